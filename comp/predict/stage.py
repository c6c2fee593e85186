"""The stage `predict`: test logits of all folds, averaged, calibrated and clipped.

1. Each fold predicts the test photos under the recipe's views, and writes them to its own file.
2. The folds are averaged in logit space: the geometric mean of their odds.
3. The recipe's calibration is fitted on the out-of-fold logits; its gain there is cross-fitted.
4. test.csv gets one row for each photo of data/test.csv.

Several recipes are predicted one by one, and their runs are blended.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from comp.competition import Competition
from comp.data.manifest import read_manifest, usable
from comp.errors import StaleError
from comp.predict.blend import OPTIONS, blend_folder, blend_runs
from comp.predict.calibrate import settings_of
from comp.predict.runs import is_predicted, print_losses, write_predictions
from comp.progress import Reporter
from comp.recipe import Recipe
from comp.store import Workspace, file_sha256, write_table
from comp.train.run import Run, read_scores, timed, trained_run

ENSEMBLE_METHOD = "simplex"


def predict(
    workspace: Workspace,
    competition: Competition,
    recipe: Recipe,
    device: str | None,
    reporter: Reporter,
) -> Run:
    """The run of `recipe`, which is trained, with its test.csv and calibration.json."""
    run = trained_run(workspace, recipe)
    settings = settings_of(recipe.prediction, competition)
    if is_predicted(workspace, run.folder, settings.noise_rate):
        reporter.say(f"{run.name}: all test photos are predicted; nothing to do")
    else:
        logits = _mean_logits(run, device, reporter)
        oof = read_scores(run.oof)
        write_predictions(workspace, run.folder, oof, logits, settings, reporter)
        n_folds = len(run.folds)
        reporter.say(f"{run.name}: {len(logits):,} test photos predicted by {n_folds} folds")
    print_losses(run.folder, reporter)
    return run


def _mean_logits(run: Run, device: str | None, reporter: Reporter) -> "pd.Series[float]":
    """The mean over folds of the test photos' logits, by id.

    The name of a fold's file contains a hash of data/test.csv, so that logits of other photos are
    never taken for these.
    """
    manifest = run.workspace.manifest("test")
    ids = list(usable(read_manifest(manifest))["id"])
    key = file_sha256(manifest)[:10]
    paths = {fold: run.folder / f"fold-{fold}-test-{key}.csv" for fold in run.folds}
    missing = [fold for fold, path in paths.items() if not path.exists()]
    if missing:
        from comp.network.device import find_device  # torch takes seconds to load
        from comp.train.fits import open_fit

        fit = open_fit(run, find_device(device), reporter)
        for fold in missing:
            with timed(run, f"predict fold {fold}", len(fit.inputs.test_ids)):
                by_view = fit.logits(fold, fit.inputs.test_ids)
            logits = np.mean(list(by_view.values()), axis=0)
            write_table(paths[fold], pd.DataFrame({"id": fit.inputs.test_ids, "logit": logits}))
    tables = [_read_fold(path, ids).to_numpy() for path in paths.values()]
    mean: NDArray[np.float64] = np.mean(tables, axis=0)
    return pd.Series(mean, index=ids)


def _read_fold(path: Path, ids: list[str]) -> "pd.Series[float]":
    table = read_scores(path).set_index("id")["logit"]
    if set(table.index) != set(ids) or not table.index.is_unique or not np.isfinite(table).all():
        raise StaleError(
            f"{path} does not contain one finite logit for each of {len(ids):,} test photos:"
            " delete it and predict again"
        )
    return table.loc[ids]


def predict_all(
    workspace: Workspace,
    competition: Competition,
    recipes: Sequence[Recipe],
    device: str | None,
    reporter: Reporter,
) -> Path:
    """The folder of the run of `recipes`, which are trained: for several, that of their blend."""
    names = [predict(workspace, competition, each, device, reporter).name for each in recipes]
    if len(names) == 1:
        return workspace.runs / names[0]
    settings = settings_of(recipes[0].prediction, competition)
    folder = blend_folder(workspace, names, ENSEMBLE_METHOD, settings)
    if is_predicted(workspace, folder, settings.noise_rate):
        reporter.say(f"{folder.name}: the blend of {', '.join(names)}; nothing to do")
        print_losses(folder, reporter)
        return folder
    wanted = recipes[0].prediction
    overrides = [f"{path}={getattr(wanted, path.partition('.')[2])}" for path in OPTIONS]
    arguments = (ENSEMBLE_METHOD, overrides, device, reporter)
    return blend_runs(workspace, competition, names, *arguments)


def finished_folder(
    workspace: Workspace, competition: Competition, recipes: Sequence[Recipe]
) -> Path:
    """The folder that `predict_all` made of `recipes`; StaleError if it did not yet."""
    names = [trained_run(workspace, recipe).name for recipe in recipes]
    if len(names) == 1:
        return workspace.runs / names[0]
    settings = settings_of(recipes[0].prediction, competition)
    if all((workspace.runs / name / "test.csv").exists() for name in names):
        folder = blend_folder(workspace, names, ENSEMBLE_METHOD, settings)
        if is_predicted(workspace, folder, settings.noise_rate):
            return folder
    raise StaleError(
        f"{', '.join(names)} are not blended yet: run `make predict` with the same RECIPE and SET"
        " first"
    )
