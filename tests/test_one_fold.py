"""Machines that share the folds of one run: each fits one, and the last command collects them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from crashes import results
from heard import Heard
from tiny import TINY

from comp.__main__ import main
from comp.errors import RecipeError
from comp.options import override
from comp.store import Workspace, read_json
from comp.train.run import open_run
from comp.train.stage import train

RECIPE = override(TINY, ["folds.n=3", "training.head_start=true"])
SCRIPT = """
import sys
from pathlib import Path
import test_one_fold
from comp.progress import Reporter
from comp.store import Workspace
from comp.train.stage import train
train(Workspace(Path(sys.argv[1])), test_one_fold.RECIPE, "cpu", Reporter(), fold=int(sys.argv[2]))
"""


def test_folds_fitted_by_processes_side_by_side_make_the_same_run(drawn_copy: Workspace) -> None:
    run = train(drawn_copy, RECIPE, "cpu", Heard())
    expected = results(drawn_copy.root)
    shutil.rmtree(run.folder)
    tests = Path(__file__).parent
    words = [sys.executable, "-W", "ignore", "-c", SCRIPT, str(drawn_copy.root)]
    env = {**os.environ, "PYTHONPATH": f"{tests}:{tests.parent}", "OMP_NUM_THREADS": "1"}
    started = [subprocess.Popen([*words, str(fold)], env=env) for fold in (0, 2, 1)]
    assert [one.wait(120) for one in started] == [0, 0, 0]
    assert all(run.is_scored(fold) for fold in run.folds)
    assert not run.oof.exists()
    fitted = {took["work"] for took in read_json(run.origin)["times"]}
    assert {f"fit fold {fold}" for fold in run.folds} <= fitted
    train(drawn_copy, RECIPE, "cpu", Heard())
    assert results(drawn_copy.root) == expected
    assert len(read_json(run.origin)["times"]) == 6  # each fold fitted and scored once


def test_a_fold_that_the_recipe_does_not_fit_is_refused(
    drawn_copy: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RecipeError, match="FOLD must be 0 to 2, got 3"):
        train(drawn_copy, RECIPE, "cpu", Heard(), fold=3)
    assert not open_run(drawn_copy, RECIPE).folder.exists()
    words = ["--recipe", "lite0_head", "--workspace", str(drawn_copy.root)]
    assert main(["train", "--fold", "9", *words]) == 1
    assert "FOLD must be 0 to 4, got 9" in capsys.readouterr().err
