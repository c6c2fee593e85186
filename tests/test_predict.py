"""Predictions that are made already: found without loading what makes them, and never stale."""

import subprocess
import sys
from pathlib import Path

import pytest
from finished_run import make_trained_run, make_workspace
from heard import Heard

from comp.competition import COMPETITION
from comp.errors import StaleError
from comp.predict.stage import finished_folder, predict_all
from comp.recipes import chosen
from comp.store import Workspace

SLOW = {"torch", "timm", "scipy", "sklearn", "matplotlib", "albumentations"}
ENSEMBLE = chosen("ensemble", [])


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """Each recipe of the ensemble is trained and predicted."""
    workspace = make_workspace(tmp_path)
    for seed, recipe in enumerate(ENSEMBLE):
        make_trained_run(workspace, recipe, seed)
    return workspace


def predicted(workspace: Workspace) -> tuple[Path, str]:
    heard = Heard()
    return predict_all(workspace, COMPETITION, ENSEMBLE, "cpu", heard), str(heard)


def test_a_stage_that_is_done_loads_no_slow_library(workspace: Workspace) -> None:
    predicted(workspace)
    options = ["--workspace", str(workspace.root), "--recipe", "ensemble"]
    code = (
        "import sys; from comp.__main__ import main;"
        f" status = [main([stage, *{options}]) for stage in ('train', 'predict')];"
        f" print(status, sorted({SLOW} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.endswith("[0, 0] []\n"), done.stderr
    assert done.stdout.count("nothing to do") == 2 * len(ENSEMBLE) + 1


def test_an_ensemble_is_blended_once_and_again_when_a_run_has_other_predictions(
    workspace: Workspace,
) -> None:
    with pytest.raises(StaleError, match="are not blended yet: run `make predict`"):
        finished_folder(workspace, COMPETITION, ENSEMBLE)
    folder, said = predicted(workspace)
    assert "correlation of errors" in said
    again, said = predicted(workspace)
    assert again == finished_folder(workspace, COMPETITION, ENSEMBLE) == folder
    assert "correlation of errors" not in said
    make_trained_run(workspace, ENSEMBLE[0], seed=9)
    with pytest.raises(StaleError, match="are not blended yet"):
        finished_folder(workspace, COMPETITION, ENSEMBLE)
    assert predicted(workspace)[0] != folder
