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
from comp.errors import StaleError
from comp.predict.blend import OPTIONS, blend_folder, blend_runs
from comp.predict.calibrate import cross_fitted, settings_of
from comp.predict.runs import is_predicted, print_losses, read_oof, write_predictions
from comp.progress import Reporter, counted
from comp.recipe import Recipe
from comp.store import Workspace, file_sha256, write_table
from comp.train.files import is_intact, read_table, record, warn_of_damage
from comp.train.run import Run, timed, trained_run

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
        warn_of_damage([run.folder / "test.csv", run.folder / "calibration.json"], reporter)
        oof = read_oof(run.folder)
        cross_fitted(oof["logit"], oof["label"], oof["fold"], settings)  # refused before any work
        logits = _mean_logits(run, device, reporter)
        write_predictions(workspace, run.folder, oof, logits, settings, reporter)
        photos, folds = counted(len(logits), "test photo"), counted(len(run.folds), "fold")
        reporter.say(f"{run.name}: {photos} predicted by {folds}")
    print_losses(run.folder, reporter)
    return run


def _mean_logits(run: Run, device: str | None, reporter: Reporter) -> "pd.Series[float]":
    """The mean over folds of the test photos' logits, by id.

    The name of a fold's file contains a hash of data/test.csv, so that logits of other photos are
    never taken for these, and all have the same ids in the same order.
    """
    manifest = run.workspace.manifest("test")
    key = file_sha256(manifest)[:10]
    paths = {fold: run.folder / f"fold-{fold}-test-{key}.csv" for fold in run.folds}
    missing = [fold for fold, path in paths.items() if not is_intact(path)]
    if missing:
        from comp.train.fits import open_fit  # loads what only predicting needs

        fit = open_fit(run, device, reporter)
        for fold in missing:
            with timed(run, f"predict fold {fold}", len(fit.inputs.test_ids)):
                by_view = fit.logits(fold, fit.inputs.test_ids)
            logits = np.mean(list(by_view.values()), axis=0)
            write_table(paths[fold], pd.DataFrame({"id": fit.inputs.test_ids, "logit": logits}))
            record(paths[fold])
    tables = [read_table(path, ["logit"], "predict") for path in paths.values()]
    mean: NDArray[np.float64] = np.mean([table["logit"] for table in tables], axis=0)
    return pd.Series(mean, index=list(tables[0]["id"]))


def predict_all(
    workspace: Workspace,
    competition: Competition,
    recipes: Sequence[Recipe],
    device: str | None,
    reporter: Reporter,
) -> Path:
    """The folder of the run of `recipes`, which are trained: for several, that of their blend."""
    runs = [predict(workspace, competition, each, device, reporter) for each in recipes]
    folder = _find_result(workspace, competition, recipes)
    if folder is None:
        wanted = recipes[0].prediction
        overrides = [f"{path}={getattr(wanted, path.partition('.')[2])}" for path in OPTIONS]
        arguments = (ENSEMBLE_METHOD, overrides, device, reporter)
        return blend_runs(workspace, competition, [run.folder for run in runs], *arguments)
    if len(runs) > 1:
        names = ", ".join(run.name for run in runs)
        reporter.say(f"{folder.name}: the blend of {names}; nothing to do")
        print_losses(folder, reporter)
    return folder


def finished_folder(
    workspace: Workspace, competition: Competition, recipes: Sequence[Recipe]
) -> Path:
    """The folder that `predict_all` made of `recipes`; StaleError if it did not yet."""
    folder = _find_result(workspace, competition, recipes)
    if folder is None:
        names = ", ".join(recipe.name for recipe in recipes)
        remedy = "run `make predict` with the same RECIPE and SET first"
        raise StaleError(f"{names} are not blended yet: {remedy}")
    return folder


def _find_result(
    workspace: Workspace, competition: Competition, recipes: Sequence[Recipe]
) -> Path | None:
    """The folder of the run of `recipes`, or of their blend; None if there is no blend yet."""
    folders = [trained_run(workspace, recipe).folder for recipe in recipes]
    if len(folders) == 1:
        return folders[0]
    if not all((folder / "test.csv").exists() for folder in folders):
        return None
    settings, names = settings_of(recipes[0].prediction, competition), [f.name for f in folders]
    folder = blend_folder(workspace, names, ENSEMBLE_METHOD, settings)
    return folder if is_predicted(workspace, folder, settings.noise_rate) else None
