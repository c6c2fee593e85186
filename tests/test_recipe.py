"""Options are typed, bounded where they are defined, and overridden by name."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from comp.arguments import words_of
from comp.errors import RecipeError, UserError
from comp.options import override, restored
from comp.recipe import FineTune, Head, Recipe, Svm
from comp.recipes import RECIPES, named

FINGERPRINTS = {
    "convnext_tiny": "904d3b24ee",
    "convnext_base": "b4348cd002",
    "vit_base": "b86092c7f4",
    "eva02_base": "e108567b34",
    "dinov2_small": "f721b12bb1",
    "lite0_head": "d69c9381f7",
    "lite1_head": "f42d841b5d",
    "lite2_head": "96dd6daa62",
    "lite2_views": "4c4d44852a",
    "lite0_tail": "3024486beb",
    "lite0_finetune": "663f25e4c3",
    "vgg16_mlp": "1dd1042730",
    "vgg16_last_layer": "79a574af68",
    "vgg16_finetune": "6aa5b9550f",
    "vgg16_last_block": "f761300cc5",
    "inception_bottleneck": "cdf74941a9",
    "inception_last_blocks": "62a5639a87",
    "vgg19_block4_svm": "79af744fee",
}


def test_every_recipe_has_its_functions_name_a_docstring_and_survives_json() -> None:
    for name, function in RECIPES.items():
        recipe = named(name)
        assert recipe.name == name
        assert function.__doc__
        assert restored(Recipe, json.loads(recipe.model_dump_json())) == recipe
    with pytest.raises(RecipeError, match=r"^no recipe 'lite0_heads'; did you mean lite0_head\?$"):
        named("lite0_heads")
    with pytest.raises(RecipeError, match="`make recipes` lists them"):
        named("resnet")


def test_a_setting_changes_one_option_and_nothing_else() -> None:
    before = named("lite0_finetune")
    settings = ["training.epochs=7", "training.peak_lr=1e-3", "training.augment.flip=false"]
    after = override(before, [*settings, "prediction.views=none", "model.weights=a/b.pth"])
    training = after.training
    assert isinstance(training, FineTune)
    assert (training.epochs, training.peak_lr, training.augment.flip) == (7, 1e-3, False)
    assert (after.prediction.views, after.model.weights) == ("none", "a/b.pth")
    assert after.folds == before.folds
    assert override(after, ["model.weights=none"]).model.weights is None
    assert override(before, ["seed=1", "seed=2"]).seed == 2
    head = override(named("lite0_head"), ["training.penalties=[1e-3,0.1]"]).training
    assert isinstance(head, Head)
    assert head.penalties == (1e-3, 0.1)


def test_options_that_bound_each_other_can_change_together_in_any_order() -> None:
    small = ["training.batch_size=9", "training.micro_batch=3"]
    large = ["training.batch_size=64", "training.micro_batch=16"]
    before = override(named("lite0_finetune"), large)
    for settings in (small, small[::-1]):
        training = override(before, settings).training
        assert isinstance(training, FineTune)
        assert (training.batch_size, training.micro_batch) == (9, 3)


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("training.epoch=3", "no option 'training.epoch'; near it: epochs"),
        ("nothing=3", "no option 'nothing'"),
        ("training=3", "is a section"),
        ("training.epochs.x=3", "has no parts"),
        ("training.epochs", "reads section.option=value"),
        ("training.epochs=many", "must be a valid integer"),
        ("training.epochs=1.5", "must be a valid integer"),
        ("pixels.mean=1", "pixels.mean must be a list like [1,2], got '1'"),
        ("training.epochs=0", "must be greater than or equal to 1"),
        ("training.augment.flip=2", "must be a valid boolean"),
        ("training.peak_lr=nan", "must be a finite number"),
        ("training.trainable=last:0", "all, head, last:N or from:NAME"),
        ("prediction.views=ten", "must be 'none', 'flip', 'five_crop' or 'multi_scale'"),
        ("prediction.clip=0.5", "must be less than 0.5"),
        ("folds.n=1", "must be greater than or equal to 2"),
        ("name=x", "no option 'name'"),
    ],
)
def test_a_value_that_an_option_refuses_is_named_in_one_line(setting: str, says: str) -> None:
    with pytest.raises(RecipeError) as caught:
        override(named("lite0_finetune"), [setting])
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_fit_key_changes_with_what_affects_fitting_and_nothing_else() -> None:
    recipe = named("lite0_head")
    clipped = override(recipe, ["prediction.clip=0.01"])
    assert clipped.fit_key() == recipe.fit_key()
    assert clipped.key() != recipe.key()
    assert override(recipe, ["seed=1"]).fit_key() != recipe.fit_key()
    kinds = (Head(), Svm(), FineTune())
    assert len({recipe.replace(training=training).fit_key() for training in kinds}) == 3


def test_the_fingerprint_of_every_recipe_is_pinned() -> None:
    """A run stays valid until its result would change: then FORMAT grows, and these with it."""
    assert {name: named(name).key() for name in RECIPES} == FINGERPRINTS


def test_a_new_option_leaves_fingerprints_as_they_are() -> None:
    class Extended(Head):
        new_option: int = 3

    assert Extended().changed() == Head().changed()
    assert Extended(new_option=4).changed() != Head().changed()


def make(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    """What make would run, with .venv taken as up to date."""
    options = ["--dry-run", "--no-print-directory", "--old-file=.venv/done"]
    root, clean = Path(__file__).parents[1], dict(os.environ) | {"MAKEFLAGS": ""} | env
    command = ["make", *options, *words]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, env=clean, check=False)


def commands(*words: str, **env: str) -> list[list[str]]:
    """The stages that make would run, each with its arguments."""
    done = make(*words, **env)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if "-m comp" in line]
    return [shlex.split(line)[3:] for line in lines]


def test_make_passes_any_value_as_one_word_that_no_shell_reads(tmp_path: Path) -> None:
    words = ["SET=seed=3 pixels.mean='[0.1, 0.2, 0.3]'", "SOLUTION=it's; $(shell false) `a`.csv"]
    words += [f"ARCHIVE=a b$(shell touch {tmp_path}/made).zip", "WORKSPACE=$HOME/a"]
    (given,) = commands("rehearsal", *words)
    for word in words:
        assert word.partition("=")[2] in given
    assert list(tmp_path.iterdir()) == []
    assert words_of([words[0].partition("=")[2]]) == ["seed=3", "pixels.mean=[0.1, 0.2, 0.3]"]
    with pytest.raises(UserError, match="no closing quotation in name="):
        words_of(["name='open"])


@pytest.mark.parametrize(
    ("words", "runs"),
    [
        ("submit FORCE=0 RUN=a", [["submit", "--run", "a"]]),
        ("submit FORCE=1 WORKSPACE=w", [["submit", "--force", "--workspace", "w"]]),
        ("leaderboard REFRESH=0", [["leaderboard"]]),
        ("lr STEPS=7", [["lr", "--steps", "7"]]),
        ("recipes RECIPES=own.py", [["recipes", "--recipes", "own.py"]]),
        ("train SEEDS=3", [["train", "--seeds", "3"]]),
        (
            "compare B=b A=a WORKSPACE=w",
            [["compare", *["--a", "a", "--b", "b", "--workspace", "w"]]],
        ),
        ("prune YES=1", [["prune", "--yes"]]),
        ("judge VERDICTS=flip", [["judge", "flip"]]),
        ("judge", [["judge"]]),
        (
            "data train RECIPE=a DEVICE=cpu",
            [*[["data", "--recipe", "a"]], *[["train", "--recipe", "a", "--device", "cpu"]]],
        ),
    ],
)
def test_make_passes_each_variable_to_the_targets_that_take_it(
    words: str, runs: list[list[str]]
) -> None:
    assert commands(*words.split()) == runs


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            "train recipe=a",
            "make train does not take recipe; it takes DEVICE FOLD FORCE RECIPE",
        ),
        ("train RECIP=a", "does not take RECIP;"),
        ("compare SET=a=1", "does not take SET;"),
        ("judge RUN=a", "does not take RUN;"),
        ("check DEVICE=cpu", "it takes no variables"),
        ("train submit RUN=a", "make train does not take RUN: leave train out"),
        ("blend submit 'RUNS=a b'", "make submit does not take RUNS: leave submit out"),
        ("submit lite0_head", "no target lite0_head;"),
        ("train SET=a=1 SET=b=2", "SET is given twice"),
        ("train submit FORCE=1", "FORCE is for one of train submit at a time"),
        ("submit FORCE=yes", "FORCE must be 1 or 0, got yes"),
        ("submit 'FORCE=0 1'", "FORCE must be 1 or 0, got 0 1"),
        ("submit WORKSPACE=", "WORKSPACE is empty"),
        ("train PYTHON=", "PYTHON is empty"),
    ],
)
def test_make_refuses_a_variable_that_a_target_does_not_take(words: str, says: str) -> None:
    done = make(*shlex.split(words))
    assert done.returncode == 2
    assert says in done.stderr
    assert done.stdout == ""


def test_makes_help_fits_into_80_columns() -> None:
    command = ["make", "--silent", "help"]
    root, env = Path(__file__).parents[1], dict(os.environ) | {"MAKEFLAGS": ""}
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, env=env, check=True)
    assert "make train " in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_make_takes_variables_from_the_command_line_alone_and_says_so() -> None:
    inherited = {"FORCE": "1", "RUN": "x", "RECIPE": "y", "WORKSPACE": "z"}
    assert commands("submit", **inherited) == [["submit"]]
    assert "FORCE of the environment is ignored" in make("submit", **inherited).stderr
    assert commands("submit", MAKEFLAGS="-e", **inherited) == [["submit"]]
    done = make("submit", MAKEFLAGS="FORCE=1")
    assert (done.returncode, done.stdout) == (2, "")
    assert "FORCE comes from MAKEFLAGS of the environment: write make submit FORCE=" in done.stderr


def test_make_runs_stages_in_order_however_many_jobs_it_may_run(tmp_path: Path) -> None:
    makefile = (Path(__file__).parents[1] / "Makefile").read_text()
    slow = makefile.replace(
        "\t$(if $(filter doctor recipes,$@),@)$(COMP) $@",
        "\t@sleep 0.$(words $(filter data,$@)); echo $@",
    )
    assert slow != makefile
    (tmp_path / "Makefile").write_text(slow)
    command = ["make", "-j4", "--old-file=.venv/done", "data", "train", "predict"]
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv/done").touch()
    (tmp_path / "requirements.txt").touch()
    done = subprocess.run(
        command,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=dict(os.environ) | {"MAKEFLAGS": ""},
        check=True,
    )
    assert [line for line in done.stdout.splitlines() if " " not in line] == [
        "data",
        "train",
        "predict",
    ]


def test_make_sets_up_anew_a_venv_that_was_moved_or_lost_its_python(tmp_path: Path) -> None:
    root = Path(__file__).parents[1]
    for name in ("Makefile", "requirements.txt"):
        shutil.copy(root / name, tmp_path)
    venv = tmp_path / ".venv"

    def plan(*words: str) -> str:
        command = ["make", "--dry-run", "recipes", *words]
        env = dict(os.environ) | {"MAKEFLAGS": ""}
        return subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, env=env, check=True
        ).stdout

    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    (next(venv.glob("lib/*/site-packages")) / "pip.py").touch()
    (venv / "done").touch()
    assert "-m venv" not in plan()
    assert "-m venv --clear" in plan("PYTHON=false")
    config = (venv / "pyvenv.cfg").read_text()
    (venv / "pyvenv.cfg").write_text(config.replace(str(venv), "/elsewhere/.venv"))
    assert "-m venv --clear" in plan()
    (venv / "pyvenv.cfg").write_text(config)
    assert "-m venv" not in plan()
    (venv / "bin/python").unlink()
    assert "-m venv --clear" in plan()
