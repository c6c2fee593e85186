"""How much better the log loss of a recipe looks with folds that split near-duplicates: what grouping them is worth."""

import numpy as np
import pandas as pd

from comp.errors import RecipeError
from comp.metric import Gain, gain, per_photo_logit_loss
from comp.progress import Reporter
from comp.recipe import Head, Recipe
from comp.store import Workspace
from comp.train.device import Device
from comp.train.run import open_run
from comp.train.stage import out_of_fold, solved_head
from comp.train.workbench import open_workbench


def measure_leak(workspace: Workspace, recipe: Recipe, device: Device, reporter: Reporter) -> Gain:
    """What splitting near-duplicates seems to save, by heads solved anew on the features of `recipe`; RecipeError if it solves none."""
    training = recipe.training
    if not isinstance(training, Head):
        raise RecipeError(f"{recipe.name} solves no head: measure the leak by a head recipe")
    recipe = recipe.replace(folds=recipe.folds.replace(split=None))
    bench = open_workbench(open_run(workspace, recipe), device, reporter, with_test=False)
    alike = bench.photos["group"].duplicated(keep=False).to_numpy()
    if not alike.any():
        reporter.say(
            f"leak: none, there are no near-duplicates among {len(alike):,} training photos"
        )
        return Gain(mean=0.0, low=0.0, high=0.0)
    embedder, _ = bench.embedder(bench.backbone())
    features = bench.mean_features(embedder, list(bench.photos["id"]), bench.views(training.views))
    # One penalty for both: chosen anew it changes with every dealing of the inner folds, and by more than the leak.
    penalty = solved_head(features, bench.photos.assign(fold=0), 1, training, recipe.seed).penalty
    training = training.replace(penalties=(penalty,))
    together, apart = (
        per_photo_logit_loss(
            photos["label"], out_of_fold(features, photos, training, recipe.seed, reporter)
        )
        for photos in (bench.photos, ungrouped(bench.photos))
    )
    found = gain(together, apart, bench.photos["group"])
    reporter.say(
        f"leak of {recipe.name}: log loss {together.mean():.5f} with near-duplicates kept together, {apart.mean():.5f} with them "
        f"split over folds, an apparent gain of {found}; on the {int(alike.sum()):,} photos that have one, "
        f"{together[alike].mean():.5f} and {apart[alike].mean():.5f}"
    )
    return found


def ungrouped(photos: pd.DataFrame) -> pd.DataFrame:
    """`photos` (fold, group) with each a group of its own.

    The members of a group are dealt over the folds in turn; all others stay where they are, so that the difference is the groups' alone.
    """
    turn = photos.groupby("group").cumcount()
    return photos.assign(
        fold=(photos["fold"] + turn) % (photos["fold"].max() + 1), group=np.arange(len(photos))
    )
