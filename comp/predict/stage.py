"""The stage `predict`: test logits of all folds, averaged, calibrated and clipped.

1. Each fold predicts the test photos under the recipe's views, and writes them to its own file.
2. The folds are averaged in logit space: the geometric mean of their odds.
3. The recipe's calibration is fitted on the out-of-fold logits; its gain there is cross-fitted.
4. test.csv gets one row for each photo of data/test.csv.

Several recipes, or seeds of one, are predicted one by one, and their runs are blended.

Every command names a run by a recipe with options, such as `lite0_head prediction.views=none`; by
the name of its folder, or any prefix that no other run has; or by its path. A recipe's name alone
means its run without changed options, on today's photos if there is one, or else its only run. An
ensemble's name means the blend of its recipes' runs.
"""

import re
from collections.abc import Sequence
from difflib import get_close_matches
from os.path import expanduser
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from comp.competition import Competition
from comp.errors import RecipeError, StaleError
from comp.predict.blend import OPTIONS, blend_folder, blend_runs
from comp.predict.calibrate import cross_fitted, settings_of
from comp.predict.runs import is_predicted, print_losses, read_oof, recipe_of, write_predictions
from comp.progress import Reporter, counted
from comp.recipe import Recipe
from comp.recipes import ENSEMBLES, RECIPES, chosen
from comp.store import Workspace, file_sha256, write_table
from comp.train.files import again, is_intact, read_table, record, warn_of_damage
from comp.train.run import Run, open_run, run_folders, timed, trained_run

N_NAMED = 8  # runs in a message


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
        print_losses(run.folder, reporter)
    else:
        warn_of_damage([run.folder / "test.csv", run.folder / "calibration.json"], reporter)
        oof = read_oof(run.folder)
        cross_fitted(oof["logit"], oof["label"], oof["fold"], settings)  # refused before any work
        with reporter.logged(run.folder):
            logits = _mean_logits(run, device, reporter)
            write_predictions(workspace, run.folder, oof, logits, settings, reporter)
            photos, folds = counted(len(logits), "test photo"), counted(len(run.folds), "fold")
            reporter.say(f"{run.name}: {photos} predicted by {folds}")
            print_losses(run.folder, reporter)
    return run


def _mean_logits(run: Run, device: str | None, reporter: Reporter) -> "pd.Series[float]":
    """The mean over folds of the test photos' logits, by id.

    A fold's file is named by a hash of data/test.csv: all have the same ids in the same order.
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
        arguments = (_method_of(recipes), overrides, device, reporter)
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
    folder = blend_folder(workspace, names, _method_of(recipes), settings)
    return folder if is_predicted(workspace, folder, settings.noise_rate) else None


def _method_of(recipes: Sequence[Recipe]) -> str:
    """How their runs are blended: one recipe under several seeds has no better one among them."""
    return "equal" if len({recipe.name for recipe in recipes}) == 1 else "simplex"


def with_options(words: Sequence[str]) -> list[list[str]]:
    """`words` by run: each name with the options that follow it."""
    named: list[list[str]] = []
    for word in words:
        if named and re.match(r"[\w.]+=", word):
            named[-1].append(word)
        else:
            named.append([word])
    return named


def find_run(workspace: Workspace, competition: Competition, name: str, *settings: str) -> Path:
    """The folder of the trained run that `name` and the recipe's `settings` mean.

    RecipeError if there is none, or more than one; StaleError if it is not trained to its end.
    """
    if settings or name in ENSEMBLES:
        return finished_folder(workspace, competition, chosen(name, settings))
    for path in (Path(expanduser(name)), workspace.root / name):
        if path.parent.resolve() == workspace.runs.resolve():
            name = path.name
    known = run_folders(workspace, "oof.csv")
    found = _matching(workspace, name, known) or _matching(workspace, name, run_folders(workspace))
    if len(found) == 1:
        if found[0] in known:
            return found[0]
        raise StaleError(f"{found[0].name} is not trained to its end: {again(found[0], 'train')}")
    names = [path.name for path in found or known]
    near = get_close_matches(name, names, n=N_NAMED, cutoff=0.5)
    told = ", ".join(((found and names) or near or names)[:N_NAMED])
    if found:
        raise RecipeError(f"{name!r} fits {len(found)} runs, name one of them: {told}")
    what = f"near it: {told}" if near else f"there are: {told}" if names else "there are none"
    remedy = f"`make train predict RECIPE={name if name in RECIPES else '...'}` makes one"
    raise RecipeError(f"no run {name!r}; {what}; {remedy}")


def _matching(workspace: Workspace, name: str, folders: Sequence[Path]) -> list[Path]:
    """Those of `folders` that fit `name` best: by all of it, by the recipe alone, by a prefix."""
    same = [path for path in folders if path.name == name]
    of_recipe = [path for path in folders if path.name.rpartition("-")[0] == name]
    plain = [path for path in of_recipe if name in RECIPES and recipe_of(path) == RECIPES[name]()]
    today = [path for path in plain if path == open_run(workspace, RECIPES[name]()).folder]
    by_prefix = [path for path in folders if path.name.startswith(name)]
    return next(filter(None, (same, today, plain, of_recipe, by_prefix)), [])
