"""One head on the features of several runs side by side, out of fold and for the test photos.

ypwhs did this with three backbones and scored .04141 on this leaderboard. The features are cached,
so it costs one head per fold. Each feature is standardised: a backbone with more features counts
for more.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from comp.errors import DataError, RecipeError
from comp.metric import Floats
from comp.predict.blend import Members
from comp.predict.runs import recipe_of
from comp.progress import Reporter
from comp.recipe import Head, Recipe
from comp.store import Workspace
from comp.train.fits import HeadFit, open_fit
from comp.train.run import open_run
from comp.train.solver import solve_fold


def fit_on_features(
    workspace: Workspace, members: Members, device: str | None, reporter: Reporter
) -> tuple[Floats, "pd.Series[float]"]:
    """Out-of-fold logits [n] of the members' photos, and the mean over folds of test logits by id.

    RecipeError for a member that solves no heads, DataError if they learn from different labels.
    """
    recipes = [_head_recipe(workspace.runs / name) for name in members.names]
    fits = list[HeadFit]()
    for recipe, _ in recipes:
        fit = open_fit(open_run(workspace, recipe), device, reporter)
        assert isinstance(fit, HeadFit)
        fits.append(fit)
        run, inputs = fit.inputs.run, fits[0].inputs
        if run.folds != inputs.run.folds or not fit.inputs.photos.equals(inputs.photos):
            raise DataError(
                f"{recipes[0][0].name} and {recipe.name} learn from other labels or in other"
                " folds: train both with the same folds.* options"
            )
    heads = [head for _, head in recipes]
    pairs = zip(fits, heads, strict=True)
    learnt = np.hstack([fit.mean_features(inputs.ids, head.views) for fit, head in pairs])
    scored, test = (
        np.hstack([fit.mean_features(ids) for fit in fits]) for ids in (inputs.ids, inputs.test_ids)
    )
    logits, test_logits = np.full(len(scored), np.nan), np.zeros(len(test))
    training, seed, folds = shared_head(heads), inputs.run.recipe.seed, inputs.run.folds
    with reporter.track(f"heads on {learnt.shape[1]:,} features", len(folds), "folds") as advance:
        for fold in folds:
            held_out = (inputs.photos["fold"] == fold).to_numpy()
            head = solve_fold(learnt, inputs.photos, fold, training, seed)
            logits[held_out] = head.logits(scored[held_out])
            test_logits += head.logits(test)
            advance()
    out_of_fold = pd.Series(logits, index=inputs.ids).loc[members.photos["id"]]
    return out_of_fold.to_numpy(np.float64), pd.Series(test_logits / len(folds), inputs.test_ids)


def shared_head(heads: Sequence[Head]) -> Head:
    """The options of a head in the place of `heads`: it chooses among all of their penalties.

    It does so by as many inner folds as the one with the most.
    """
    penalties = sorted({penalty for head in heads for penalty in head.penalties})
    return Head(penalties=tuple(penalties), n_inner=max(head.n_inner for head in heads))


def _head_recipe(folder: Path) -> tuple[Recipe, Head]:
    recipe = recipe_of(folder)
    if recipe is None or not isinstance(recipe.training, Head):
        raise RecipeError(
            f"{folder.name} has no solved head on features of its own: METHOD=features takes runs"
            " of head recipes"
        )
    return recipe, recipe.training
