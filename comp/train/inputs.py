"""What the folds of a run are fitted to: photos with targets, their pixels, their preprocessing."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from comp.data.manifest import read_manifest, usable
from comp.data.pixels import PixelStore, open_pixels
from comp.errors import DataError
from comp.network.preprocessing import (
    Preprocessing,
    canvas_ratio,
    geometry_of,
    preprocessing_of,
)
from comp.network.views import CENTRE, Canvases, Crops, View, views_of
from comp.progress import Reporter, counted
from comp.recipe import ViewsName
from comp.train.files import checkpoint_origin
from comp.train.labels import chosen_label_fixes, select, targets
from comp.train.labels import training_rows as rows_of
from comp.train.run import Run

N_EXAMPLES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """The data of one run."""

    run: Run
    photos: pd.DataFrame  # training photos: id, label, group, fold, part and target
    test_ids: list[str]  # of those that can be decoded
    pixels: PixelStore
    preprocessing: Preprocessing

    @property
    def ids(self) -> list[str]:
        return list(self.photos["id"])

    def training_rows(self, fold: int) -> NDArray[np.bool_]:
        """Which of `photos` train for `fold`."""
        return rows_of(self.photos, fold)

    def held_out_ids(self, fold: int) -> list[str]:
        return list(self.photos["id"][self.photos["fold"] == fold])

    def views(self, name: ViewsName | None = None) -> tuple[View, ...]:
        """The views called `name`, or those that the recipe predicts with."""
        recipe = self.run.recipe
        has_room = canvas_ratio(recipe, self.preprocessing) > 1
        return views_of(name or recipe.prediction.views, has_room=has_room)

    def example_crops(self) -> Crops:
        """Crops [n, s, s, 3] of some photos, on which the precision of inference is tried."""
        rows = range(min(N_EXAMPLES, len(self.pixels)))
        return CENTRE.crops(self.pixels, rows, self.preprocessing.size_px)

    def preprocessing_for(self, fold: int) -> Preprocessing:
        """With the colours of the fold's own training photos, where the recipe measures them."""
        if self.run.recipe.pixels.normalise != "measured":
            return self.preprocessing
        if self.run.is_fitted(fold):
            return fitted_preprocessing(self.run, fold)
        ids = list(self.photos["id"][self.training_rows(fold)])
        mean, std = measure_colours(self.pixels, [int(row) for row in self.pixels.rows(ids)])
        return replace(self.preprocessing, mean=mean, std=std)


def fitted_preprocessing(run: Run, fold: int) -> Preprocessing:
    """What `fold` was fitted with, as its checkpoint says."""
    known = checkpoint_origin(run.checkpoint(fold))["preprocessing"]
    own = preprocessing_of(run.recipe)
    return replace(own, mean=tuple(known["mean"]), std=tuple(known["std"]))


def read_inputs(run: Run, reporter: Reporter, *, with_test: bool = True) -> Inputs:
    """Read the manifests and label fixes, and decode what is not decoded yet.

    `with_test` asks for the test photos too.
    """
    recipe, workspace = run.recipe, run.workspace
    train, test = (read_manifest(workspace.manifest(split)) for split in ("train", "test"))
    photos = select(train, recipe.folds)
    photos = photos.assign(target=_targets(run, photos, train["id"], reporter))
    used = train[train["id"].isin(photos["id"])]
    manifests = [used, test] if with_test else [used]
    inputs = Inputs(
        run=run,
        photos=photos,
        test_ids=list(usable(test)["id"]) if with_test else [],
        pixels=open_pixels(workspace, manifests, geometry_of(recipe), reporter),
        preprocessing=preprocessing_of(recipe),
    )
    inputs.views()  # refuses a canvas without room for them before any work
    return inputs


def _targets(
    run: Run, photos: pd.DataFrame, all_ids: "pd.Series[str]", reporter: Reporter
) -> NDArray[np.float64]:
    wanted = run.recipe.folds.label_fixes
    if wanted is None:
        return targets(photos, {})
    fixes = chosen_label_fixes(run.workspace.verdicts, wanted)
    unknown = sorted(set(fixes) - set(all_ids))
    if unknown:
        raise DataError(
            f"{counted(len(unknown), 'verdict')} on no training photo, {unknown[0]} first: correct"
            " data/verdicts.csv"
        )
    here = [fixes[id] for id in photos["id"] if id in fixes]
    counts = Counter(verdict.partition(":")[0] for verdict in here)
    kinds = ", ".join(f"{n} {kind}" for kind, n in counts.items())
    reporter.say(
        f"label fixes applied to {len(here)} of {len(photos):,} training photos:"
        f" {kinds or 'none of them is in this run'}"
    )
    return targets(photos, fixes)


def measure_colours(
    canvases: Canvases, rows: Sequence[int]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of red, green and blue in [0, 1] over all pixels of `rows`."""
    from comp.data.photos import in_order  # loads torch

    def histogram(row: int) -> NDArray[np.int64]:
        channels = canvases.canvas(row).reshape(-1, 3).T
        return np.stack([np.bincount(channel, minlength=256) for channel in channels])

    total = sum(in_order(histogram, list(rows)), np.zeros((3, 256), np.int64))
    share, value = total / total.sum(1, keepdims=True), np.arange(256) / 255
    mean = share @ value
    # the variance of photos in one colour is 0, and nothing may be divided by 0
    std = np.sqrt(np.maximum(share @ value**2 - mean**2, 1 / 255**2))
    return tuple(mean.tolist()), tuple(std.tolist())
