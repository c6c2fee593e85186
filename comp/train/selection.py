"""Which training photos a run uses, and in which fold each is held out."""

import hashlib

import pandas as pd

from comp.data.folds import assign_folds
from comp.data.manifest import usable
from comp.errors import DataError
from comp.recipe import Folds


def select(manifest: pd.DataFrame, folds: Folds, seed: int) -> pd.DataFrame:
    """id, label, group, fold, part, sha256 and verdict of the photos that train, in the order of `manifest`.

    The manifest's own folds where the recipe asks for as many, so that a fold means the same in every run; else new ones by the same rule.
    Held out in `fold`, a photo is reported with its `part`, which is the same. But where the recipe splits, fold 0 holds out validation
    (part 0) and test (part 1) together, and the rest (part 2, fold 1) is never held out.
    """
    photos = usable(manifest)
    photos = photos[photos["fold"].notna()].reset_index(drop=True)
    n_here = int(photos["fold"].max()) + 1 if len(photos) else 0
    shares = None if folds.split is None else (*folds.split, 1 - sum(folds.split))
    n_parts = folds.n if shares is None else len(shares)
    part = photos["fold"]
    if shares is not None or n_parts != n_here:
        keys = list(photos["id"]), list(photos["label"]), list(photos["group"])
        part = pd.Series(
            assign_folds(*keys, n_folds=n_parts, seed=0, shares=shares), index=photos.index
        )
    photos = photos.assign(
        part=part, fold=part if shares is None else (part == n_parts - 1).astype("int64")
    )
    if folds.n_photos is not None:
        photos = _subset(photos, folds.n_photos, seed)
    counts = (
        photos.groupby(["part", "label"])
        .size()
        .reindex(pd.MultiIndex.from_product([range(n_parts), (0, 1)]), fill_value=0)
    )
    if (counts == 0).any():
        raise DataError(
            f"{int((counts == 0).sum())} of {n_parts} folds lack a class, with {len(photos)} photos: lower folds.n or raise folds.n_photos"
        )
    return photos.astype({"fold": "int64", "part": "int64", "label": "int64"})


def learners(photos: pd.DataFrame, fold: int) -> "pd.Series[bool]":
    """Which of `photos` (fold, target) train for `fold`: those of the other folds that no verdict drops."""
    return (photos["fold"] != fold) & photos["target"].notna()


def _subset(photos: pd.DataFrame, n_photos: int, seed: int) -> pd.DataFrame:
    """About `n_photos` rows, whole groups, the classes and folds in their shares; which ones depends on the groups and the seed alone."""
    share = n_photos / len(photos)
    if share >= 1:
        return photos
    first = photos.groupby("group")["id"].transform("min")
    order = [hashlib.sha256(f"{seed} {id}".encode()).hexdigest() for id in first]
    ranked = photos.assign(order=order).sort_values(["order", "id"])
    within = ranked.groupby(["part", "label"])["order"].rank(method="max", pct=True)
    kept = ranked[within <= share]
    return photos[photos["group"].isin(kept["group"])].reset_index(drop=True)
