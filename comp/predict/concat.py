"""The stage `blend METHOD=features`: one head on the features of several head runs side by side.

ypwhs laid those of three backbones together for .04141 on this board. Features are kept already, so that this costs a head a fold. Each is
standardised, so that a backbone has a say by how many features it has.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from comp.competition import Competition
from comp.errors import DataError, RecipeError
from comp.predict.finished import recipe_of
from comp.predict.members import Members, Mixture, keep, read_members
from comp.progress import Reporter
from comp.recipe import Head, Recipe
from comp.store import Workspace
from comp.train.device import Device
from comp.train.run import open_run
from comp.train.stage import solved_head
from comp.train.workbench import open_workbench

HEAD = Head()
Features = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """What one run brings: its photos and their features, or those of all runs side by side."""

    photos: pd.DataFrame  # id, label, target, group, fold
    folds: range  # that are fitted
    learnt: Features  # [n, d] of the photos, in the views that heads are fitted to
    scored: Features  # [n, d] of the photos, in the views that they are predicted with; a head is linear, so the mean is enough
    test: Features  # [t, d] of the test photos that can be decoded
    test_ids: list[str]


def concat(
    workspace: Workspace,
    competition: Competition,
    names: Sequence[str],
    settings: Sequence[str],
    device: Device,
    reporter: Reporter,
) -> Path:
    """The folder of a run whose heads see the features of all the head runs called `names`; forecast and submit take it like any other."""
    members = read_members(workspace, names)
    prediction = members.prediction(settings)
    recipes = [_head_recipe(workspace.runs / name) for name in members.names]
    sides = [_side(workspace, recipe, device, reporter) for recipe in recipes]
    for recipe, side in zip(recipes, sides, strict=True):
        if side.folds != sides[0].folds or not side.photos.equals(sides[0].photos):
            raise DataError(
                f"{recipes[0].name} and {recipe.name} learn other labels or in other folds: make both with the same folds.* knobs"
            )
    logits, test_logits = _fit(_together(sides), recipes[0].seed, reporter)
    out_of_fold = np.asarray(logits.loc[members.photos["id"]], np.float64)
    _show(members, out_of_fold, reporter)
    made = {"method": "features", "members": members.names}
    mixture = Mixture(
        name="concat", made=made, prediction=prediction, logits=out_of_fold, test_logits=test_logits
    )
    return keep(workspace, competition, members, mixture, reporter)


def _head_recipe(folder: Path) -> Recipe:
    recipe = recipe_of(folder)
    if recipe is None or not isinstance(recipe.training, Head):
        raise RecipeError(
            f"{folder.name} has no features and solved heads of its own: METHOD=features takes runs of head recipes"
        )
    return recipe


def _side(workspace: Workspace, recipe: Recipe, device: Device, reporter: Reporter) -> Side:
    assert isinstance(recipe.training, Head)
    bench = open_workbench(open_run(workspace, recipe), device, reporter)
    embedder, _ = bench.frozen(bench.backbone())
    ids, views = list(bench.photos["id"]), bench.views()
    return Side(
        photos=bench.photos,
        folds=bench.run.folds,
        learnt=bench.mean_features(embedder, ids, bench.views(recipe.training.views)),
        scored=bench.mean_features(embedder, ids, views),
        test=bench.mean_features(embedder, bench.test_ids, views),
        test_ids=bench.test_ids,
    )


def _together(sides: Sequence[Side]) -> Side:
    learnt, scored, test = (
        np.hstack(parts)
        for parts in zip(*((side.learnt, side.scored, side.test) for side in sides), strict=True)
    )
    return replace(sides[0], learnt=learnt, scored=scored, test=test)


def _fit(
    side: Side, seed: int, reporter: Reporter
) -> tuple["pd.Series[float]", "pd.Series[float]"]:
    """Out-of-fold logits and, in the mean over folds, those of the test photos; both by id."""
    photos, logits, total = side.photos, np.full(len(side.photos), np.nan), np.zeros(len(side.test))
    with reporter.track(
        f"heads on {side.learnt.shape[1]:,} features", len(side.folds), "folds"
    ) as advance:
        for fold in side.folds:
            held = (photos["fold"] == fold).to_numpy()
            head = solved_head(side.learnt, photos, fold, HEAD, seed)
            logits[held] = head.logits(torch.from_numpy(side.scored[held])).numpy()
            total += head.logits(torch.from_numpy(side.test)).numpy()
            advance()
    return pd.Series(logits, index=photos["id"]), pd.Series(
        total / len(side.folds), index=side.test_ids
    )


def _show(members: Members, logits: NDArray[np.float64], reporter: Reporter) -> None:
    rows = [
        (name, float(losses.mean()))
        for name, losses in zip(members.names, members.losses(), strict=True)
    ]
    reporter.table("features side by side", ("", "log loss alone"), rows)
    reporter.say(
        f"the log loss of one head on all these features, out of fold, is {members.against_best(logits)}"
    )
