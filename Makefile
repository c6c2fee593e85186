# Two commands need nothing but Python 3.11 and make: `make rehearsal` and `make test`.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
COMP := .venv/bin/python -m comp
quote = '$(subst ','\'',$(1))'
option = $(if $($(2)),--$(1) $(call quote,$($(2))))
WITH := $(call option,recipe,RECIPE) $(call option,set,SET) $(call option,workspace,WORKSPACE)
ON := $(call option,device,DEVICE)
REAL := $(call option,archive,ARCHIVE) $(call option,solution,SOLUTION)

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' Makefile

.venv/done: requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version)'
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check uv  # the lock pins it too
	.venv/bin/uv pip install --quiet --compile-bytecode --require-hashes --python .venv/bin/python -r requirements.txt
	touch $@

data: .venv/done ## download, check, unpack; manifest, folds, pixels
	$(COMP) data $(WITH)
train: .venv/done ## fit RECIPE's folds: make train RECIPE=lite0_head SET="folds.n=10" [WORKSPACE=.rehearsal/drawn]
	$(COMP) train $(WITH) $(ON)
predict: .venv/done ## predict the test photos, calibrate, clip
	$(COMP) predict $(WITH) $(ON)
calibrate: .venv/done ## compare every way from RECIPE's logits to probabilities
	$(COMP) calibrate $(WITH) $(ON)
blend: .venv/done ## a run made of others: make blend RUNS="lite0_head lite1_head" [METHOD=greedy, equal or features]
	$(COMP) blend $(RUNS) $(call option,method,METHOD) $(call option,set,SET) $(call option,workspace,WORKSPACE) $(ON)
ablate: .venv/done ## two runs, photo by photo: make ablate RECIPE=a AGAINST=b
	$(COMP) ablate $(RECIPE) $(AGAINST) $(call option,workspace,WORKSPACE)
forecast: .venv/done ## the score and rank to expect of RECIPE, or of RUN=blend-...
	$(COMP) forecast $(WITH) $(call option,run,RUN)
report: .venv/done ## a run as a page, with activation maps: runs/<run>/report.html; make report RECIPE=a, or RUN=blend-...
	$(COMP) report $(WITH) $(call option,run,RUN) $(ON)
submit: .venv/done ## check, upload, wait for the score, note it in the ledger (FORCE=1: even again)
	$(COMP) submit $(WITH) $(call option,run,RUN) $(if $(FORCE),--force)
scores: .venv/done ## pick up scores that were pending
	$(COMP) scores
leaderboard: .venv/done ## your best, rank and neighbours, now and on the archived board (REFRESH=1: download it again)
	$(COMP) leaderboard $(if $(REFRESH),--refresh)
doctor: .venv/done ## what a run needs, line by line: fine, or what to do
	@$(COMP) doctor
scout: .venv/done ## which backbone to fine-tune: make scout BACKBONES="a b c=weights.pth" BUDGET=10m SET="folds.n_photos=2000"
	$(COMP) scout $(if $(BACKBONES),--backbones $(BACKBONES)) $(call option,budget,BUDGET) $(call option,set,SET) $(call option,workspace,WORKSPACE) $(ON)
lr: .venv/done ## find a learning rate: make lr RECIPE=lite0_finetune
	$(COMP) lr $(WITH) $(ON)
audit: .venv/done ## labels in doubt: make audit [RUNS="a b"]; writes runs/audit.csv, runs/audit.html
	$(COMP) audit $(RUNS) $(call option,workspace,WORKSPACE) $(ON)
judge: .venv/done ## RECIPE with and without data/verdicts.csv: make judge RECIPE=lite0_head VERDICTS=all (or flip, or dog.4334)
	$(COMP) judge $(or $(VERDICTS),all) $(WITH) $(ON)
recipes: .venv/done ## list the recipes
	@$(COMP) recipes
rehearsal: .venv/done ## all four stages, no account: drawn pictures, or ARCHIVE=... SOLUTION=...
	$(COMP) rehearsal $(WITH) $(ON) $(REAL)
smoke: .venv/done ## the CI job: a fine-tune on a subset through all four stages
	$(COMP) rehearsal --recipe lite0_finetune --set folds.n_photos=200 folds.fit=2 \
	  training.head_start=false training.wise_ft=1 training.epochs=3 training.batch_size=16 training.peak_lr=1e-3 prediction.views=none $(call quote,$(SET)) $(ON) $(REAL)
bench: .venv/done ## speed and score beside bare models and peers: make bench [ARCHIVE=... SOLUTION=...] [ROWS="head timm"] [ROUNDS=3] [FULL=1]
	.venv/bin/python -m tests.bench $(REAL) $(if $(ROWS),--rows $(ROWS)) $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(FULL),--full)
bench-peers: .venv/peers ## install the peers that the benchmark compares with
.venv/peers: .venv/done requirements-bench.txt
	.venv/bin/uv pip install --quiet --compile-bytecode --require-hashes --python .venv/bin/python -r requirements.txt -r requirements-bench.txt
	touch $@
test: .venv/done ## all tests that need neither network nor GPU
	.venv/bin/python -m pytest -m "not gpu" -n auto --dist loadfile
check: .venv/done ## ruff and mypy --strict
	.venv/bin/ruff check comp tests
	.venv/bin/ruff format --check comp tests
	.venv/bin/mypy comp
lock: .venv/done ## pin all dependencies anew
	.venv/bin/uv pip compile --quiet --upgrade --python-version 3.11 --extra dev --generate-hashes \
	  --no-emit-index-url --no-emit-find-links --no-header --no-annotate pyproject.toml -o requirements.txt
	.venv/bin/uv pip compile --quiet --upgrade --python-version 3.11 --extra dev --extra bench --constraint requirements.txt --generate-hashes \
	  --no-emit-index-url --no-emit-find-links --no-header --no-annotate $$(sed -n 's/^\([a-z0-9._-]*\)==.*/--no-emit-package \1/p' requirements.txt) \
	  pyproject.toml -o requirements-bench.txt
clean: ## delete what can be made again, but not data, runs or submissions
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .rehearsal

.PHONY: help data train predict calibrate blend ablate forecast report submit scores leaderboard doctor scout lr audit judge recipes rehearsal smoke bench bench-peers test check lock clean
