# Two commands need nothing but Python 3.11 and make: `make rehearsal` and `make test`.
.DEFAULT_GOAL := help
.NOTPARALLEL:
SHELL := /bin/bash
PYTHON ?= python3
COMP := .venv/bin/python -m comp

STAGES := data train predict remote classify export calibrate blend runs errors compare prune forecast report submit scores reproduce leaderboard doctor scout sweep lr audit judge recipes rehearsal
TARGETS := help $(STAGES) smoke bench bench-peers gpu test crash-test check check-lock lock clean

# The variables that each target takes. Each becomes the option of its name.
takes_data := RECIPE SET ARCHIVE WORKSPACE
takes_train := RECIPE SET SEEDS FOLD FORCE WORKSPACE DEVICE TRACK
takes_predict := RECIPE SET SEEDS WORKSPACE DEVICE
takes_remote := RECIPE SET SEEDS WEIGHTS WORKSPACE
takes_classify := PHOTOS RECIPE SET SEEDS RUN WORKSPACE DEVICE
takes_export := RECIPE SET RUN WORKSPACE
takes_calibrate := RECIPE SET SEEDS RUN WORKSPACE
takes_blend := RUNS METHOD SET WORKSPACE DEVICE
takes_runs := RUN WORKSPACE
takes_errors := RECIPE SET SEEDS RUN WORKSPACE
takes_compare := A B WORKSPACE
takes_prune := YES WORKSPACE
takes_forecast := RECIPE SET SEEDS RUN WORKSPACE
takes_report := RECIPE SET SEEDS RUN WORKSPACE DEVICE
takes_submit := RECIPE SET SEEDS RUN FORCE WORKSPACE
takes_scores := WORKSPACE
takes_reproduce := SUB WORKSPACE DEVICE
takes_leaderboard := REFRESH WORKSPACE
takes_doctor := WORKSPACE
takes_scout := BACKBONES BUDGET SET WORKSPACE DEVICE
takes_sweep := RECIPE SET OVER TRIALS WORKSPACE DEVICE
takes_lr := RECIPE SET STEPS WORKSPACE DEVICE
takes_audit := RUNS WORKSPACE
takes_judge := VERDICTS RECIPE SET WORKSPACE DEVICE
takes_rehearsal := RECIPE SET SEEDS ARCHIVE SOLUTION WORKSPACE DEVICE
takes_smoke := SET ARCHIVE SOLUTION DEVICE
takes_gpu := ARCHIVE SOLUTION DEVICE
takes_bench := ROWS ROUNDS FULL ARCHIVE SOLUTION
$(foreach stage,$(STAGES),$(eval takes_$(stage) += RECIPES))
BARE := RUNS VERDICTS # words without the option's name before them
FLAGS := FORCE REFRESH FULL YES # 1 or 0

# Variables count on the command line only: an environment that has FORCE or RUN changes nothing.
goals := $(or $(MAKECMDGOALS),help)
taken := $(sort $(foreach goal,$(goals),$(takes_$(goal))))
written := $(foreach name,$(.VARIABLES),$(if $(filter command,$(origin $(name))),$(name)))
given := $(filter-out PYTHON,$(written))
unexport $(given)
$(foreach goal,$(filter-out $(TARGETS),$(goals)),$(error \
  no target $(goal); `make help` lists them, and a variable reads NAME=value))
typed := $(shell { tr '\0' '\n' 2>/dev/null </proc/$$PPID/cmdline || ps -o args= -p $$PPID | tr ' ' '\n'; } | \
  sed -n 's/^\([A-Z]*\):*=.*/\1/p' | sort)
twice := $(shell printf '%s\n' $(typed) | uniq -d)
$(if $(twice),$(error $(firstword $(twice)) is given twice: write all of it in one))
$(foreach name,$(filter-out $(taken),$(given)),$(error \
  make $(goals) does not take $(name); it takes $(or $(taken),no variables)))
$(foreach name,$(filter-out $(typed),$(given)),$(error \
  $(name) comes from MAKEFLAGS of the environment: write make $(goals) $(name)=...))
$(foreach name,$(filter-out SET,$(written)),$(if $(strip $(value $(name))),,$(error $(name) is empty)))
$(foreach name,$(filter $(FLAGS),$(given)),$(if $(filter-out x0 x1,x$(value $(name))),$(error \
  $(name) must be 1 or 0, got $(value $(name)))))
forced := $(if $(filter FORCE,$(given)),$(foreach goal,$(goals),$(if $(filter FORCE,$(takes_$(goal))),$(goal))))
$(if $(word 2,$(forced)),$(error FORCE is for one of $(forced) at a time: write two commands))
# A stage that takes a recipe would go on with the default one beside runs that are named.
$(foreach name,$(filter RUN RUNS,$(given)),$(foreach goal,$(goals),$(if $(filter RECIPE,$(takes_$(goal))),$(if \
  $(filter $(name),$(takes_$(goal))),,$(error make $(goal) does not take $(name): leave $(goal) out)))))
$(foreach name,$(taken),$(if $(filter environment,$(origin $(name))),$(warning \
  $(name) of the environment is ignored: write make $(goals) $(name)=...)))

lower = $(shell echo $(1) | tr A-Z a-z)
define newline


endef
quote = '$(subst ','\'',$(subst $(newline), ,$(value $(1))))'
option = $(if $(filter $(BARE),$(1)),,--$(lower)) $(if $(filter $(FLAGS),$(1)),,$(quote))
off = $(foreach name,$(FLAGS),$(if $(filter 0,$(value $(name))),$(name)))
options = $(foreach name,$(filter-out $(off),$(filter $(given),$(or $(1),$(takes_$@)))),$(call option,$(name)))

# .venv is made anew where it was moved, its Python is gone, or PYTHON= names another one.
venv := $(shell cd .venv 2>/dev/null && [ "$$(sed -n 's/^command = .* -m venv [^/]*//p' pyvenv.cfg)" = "$$(pwd -P)" ] && \
  bin/python -c 'import pip' 2>/dev/null && echo fits)
ifneq ($(filter command,$(origin PYTHON)),)
venv := $(shell [ "$$($(PYTHON) -V)" = "$$(.venv/bin/python -V 2>/dev/null)" ] && echo $(venv))
endif
$(if $(venv),,$(eval .PHONY: .venv/done))

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {line = sprintf("make %-12s", $$1); n = split($$2, words, " "); \
	  for (i = 1; i <= n; i++) {if (length(line " " words[i]) > 80) {print line; line = sprintf("%17s", "")} \
	  line = line " " words[i]} print line}' Makefile

.venv/done: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version)'
	@echo "Setting up .venv with the packages of requirements.txt; on Linux, where torch brings CUDA, 3.3 GB to download and 6.3 GB on disk"
	$(PYTHON) -m venv $(if $(venv),,--clear) .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check uv  # the lock pins it too
	.venv/bin/uv pip install --compile-bytecode --require-hashes --python .venv/bin/python -r requirements.txt
	@touch $@

data: ## download, check, unpack; manifest, folds, pixels [ARCHIVE=file-or-folder: one that you have]
train: ## fit RECIPE's folds: make train RECIPE=lite0_head SET="folds.n=10" [WORKSPACE=.rehearsal/drawn] (FORCE=1: anew, beside the run before; TRACK=tensorboard, wandb, mlflow: curves)
predict: ## predict the test photos, calibrate, clip
remote: ## train and predict on Kaggle's GPUs; the run comes home [WEIGHTS=file: uploaded once, no internet there]
classify: ## P(dog) of photos of your own, calibrated: make classify PHOTOS=folder RUN=lite0_head
export: ## a run for use elsewhere, in runs/<run>/export: ONNX, and safetensors for timm: make export RUN=lite0_head
calibrate: ## compare every way from RECIPE's logits to probabilities
blend: ## a run made of others: make blend RUNS="lite0_head lite1_head" [METHOD=greedy, equal or features]
runs: ## all runs, best first: options, cross-validation, gain on the best (or on RUN=a), scores, cost
errors: ## the worst photos, each with its line for data/verdicts.csv: make errors RUN=a
compare: ## two runs: options, photos, score: make compare A=lite0_head B="lite0_head prediction.views=none"
prune: ## what nothing uses: pixels, features, runs; YES=1 deletes it
forecast: ## the score and rank to expect of RECIPE, or of RUN=blend-...
report: ## a run as a page, with activation maps: runs/<run>/report.html; make report RECIPE=a, or RUN=blend-...
submit: ## check, upload, wait for the score, note it in the ledger (FORCE=1: even again)
scores: ## pick up scores that were pending
reproduce: ## make a submission again from the photos, and compare: make reproduce SUB=lite0_head-0123456789.csv
leaderboard: ## your best, rank and neighbours, now and on the archived board (REFRESH=1: download it again)
doctor: ## what a run needs, line by line: fine, or what to do
scout: ## which backbone to fine-tune: make scout BACKBONES="a b c=weights.pth" BUDGET=10m SET="folds.n_photos=2000"
sweep: ## search options: make sweep RECIPE=a OVER="training.peak_lr=1e-5..1e-3 training.wise_ft=0.25,1" [TRIALS=20]
lr: ## find a learning rate: make lr RECIPE=lite0_finetune [STEPS=200]
audit: ## labels in doubt: make audit [RUNS="a b"]; writes runs/audit.csv, runs/audit.html
judge: ## RECIPE with and without data/verdicts.csv: make judge RECIPE=lite0_head VERDICTS=all (or flip, or dog.4334)
recipes: ## list the recipes
rehearsal: ## all four stages, no account: drawn pictures, or ARCHIVE=... SOLUTION=...
$(STAGES): .venv/done
	$(if $(filter doctor recipes,$@),@)$(COMP) $@ $(options)
smoke: .venv/done ## the CI job: a fine-tune on a subset through all four stages
	$(COMP) rehearsal --recipe lite0_finetune --set folds.n_photos=200 folds.fit=2 \
	  training.head_start=false training.wise_ft=1 training.epochs=3 training.batch_size=16 training.peak_lr=1e-3 prediction.views=none $(options)
bench: .venv/done ## speed and score beside bare models and peers: make bench [ARCHIVE=... SOLUTION=...] [ROWS="head timm"] [ROUNDS=3] [FULL=1]
	.venv/bin/python -m tests.bench $(options)
gpu: .venv/done ## what only a GPU can show, in nine minutes: runs/gpu.json [ARCHIVE=... SOLUTION=...] (DEVICE=cpu: a small try)
	.venv/bin/python -m tests.gpu $(options)
bench-peers: .venv/peers ## install the peers that the benchmark compares with
.venv/peers: .venv/done requirements-bench.txt
	.venv/bin/uv pip install --compile-bytecode --require-hashes --python .venv/bin/python -r requirements.txt -r requirements-bench.txt
	@touch $@
test: .venv/done ## all tests that need neither network nor GPU
	.venv/bin/python -m pytest -m "not gpu" -n auto --dist loadfile
crash-test: .venv/done ## kill every stage at random moments, 42 times; each run must end the same
	.venv/bin/python -m tests.crashes 42
check: .venv/done ## ruff and mypy --strict
	.venv/bin/ruff check comp tests
	.venv/bin/ruff format --check comp tests
	.venv/bin/mypy comp
check-lock: .venv/done ## the lock has a package for each platform and Python
	@set -e; for platform in x86_64-manylinux_2_28 aarch64-manylinux_2_28 aarch64-apple-darwin; do for version in 3.11 3.12 3.13 3.14; do \
	  MACOSX_DEPLOYMENT_TARGET=14.0 .venv/bin/uv pip install --quiet --dry-run --no-build --require-hashes --target .venv/none \
	    --python-platform $$platform --python-version $$version -r requirements.txt -r requirements-bench.txt; \
	  echo "$$platform, Python $$version: all packages found"; done; done
lock: .venv/done ## pin all dependencies anew
	.venv/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 --extra dev --generate-hashes \
	  --no-emit-index-url --no-emit-find-links --no-header --no-annotate pyproject.toml -o requirements.txt
	.venv/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 --extra dev --extra bench --constraint requirements.txt --generate-hashes \
	  --no-emit-index-url --no-emit-find-links --no-header --no-annotate $$(sed -n 's/^\([a-z0-9._-]*\)==.*/--no-emit-package \1/p' requirements.txt) \
	  pyproject.toml -o requirements-bench.txt
clean: ## delete what can be made again, but not data, runs or submissions
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .rehearsal .reproduce

.PHONY: $(TARGETS)
