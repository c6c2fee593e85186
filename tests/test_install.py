"""comp as it is used elsewhere: completed by the shell, and imported by a notebook."""

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from finished_run import TINY_HEAD, make_run, make_workspace

import comp
from comp.competition import COMPETITION
from comp.errors import RecipeError
from comp.options import override
from comp.predict.stage import predict
from comp.progress import Reporter
from comp.recipes import RECIPES
from comp.store import Workspace
from comp.train.stage import train


def offered(line: str) -> list[str]:
    """What the shell offers after `line`, by the protocol of argcomplete: on descriptor 8."""
    env = os.environ | {"COMP_LINE": line, "COMP_POINT": str(len(line)), "_ARGCOMPLETE": "1"}
    command = f"{sys.executable} -m comp 8>&1 9>/dev/null >/dev/null"
    env |= {"_ARGCOMPLETE_IFS": "\n", "PYTHONPATH": str(Path(comp.__file__).parents[1])}
    done = subprocess.run(command, shell=True, env=env, capture_output=True, text=True, check=True)
    return [word.strip() for word in done.stdout.splitlines()]


def test_the_shell_completes_commands_recipes_options_and_runs(tmp_path: Path) -> None:
    folder = make_run(make_workspace(tmp_path))
    assert offered("comp clas") == ["classify"]
    assert offered("comp train --recipe lite2_") == [n for n in RECIPES if n.startswith("lite2_")]
    assert offered("comp train --recipe lite0_finetune --set training.peak") == [
        "training.peak_lr="
    ]
    assert offered("comp train --recipe lite0_head --set training.peak") == []
    for option in (
        "errors --workspace {} --run",
        "compare --workspace {} --a",
        "blend --workspace {}",
    ):
        words = f"comp {option.format(tmp_path)} lite0_head-0"
        assert offered(words) == [folder.name]


def test_a_notebook_gets_the_tables_of_a_workspace(drawn_copy: Workspace) -> None:
    recipe = override(TINY_HEAD, ["folds.n=2"])
    train(drawn_copy, recipe, "cpu", Reporter())
    folder = predict(drawn_copy, COMPETITION, recipe, "cpu", Reporter()).folder
    root = str(drawn_copy.root)
    assert len(comp.manifest(workspace=root)) == 80
    assert len(comp.predictions("tiny", root)) == len(comp.manifest("test", root)) == 20
    oof, run = comp.oof_table("tiny", root), comp.finished_run("tiny", root)
    assert oof["loss"].mean() == pytest.approx(run.figures.cv_raw)
    assert list(oof["id"]) == list(run.oof["id"])
    found = comp.classify_photos(drawn_copy.photos / "test", folder.name, root, "cpu")
    assert isinstance(found, pd.DataFrame)
    assert len(found) == 19
    with pytest.raises(RecipeError, match="no run 'other'"):
        comp.oof_table("other", root)


def test_all_that_a_notebook_is_given_is_documented_and_loads_nothing_before_it_is_used() -> None:
    assert all(inspect.getdoc(getattr(comp, name)) for name in comp.__all__)
    assert {*comp.__all__} <= {*dir(comp)}
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = comp.nothing
    code = "import sys, comp; sys.exit(' '.join({'torch', 'pandas'} & {*sys.modules}) or 0)"
    subprocess.run([sys.executable, "-c", code], check=True)
