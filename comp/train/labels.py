"""Which training photos a run uses, in which fold each is held out, and what is learnt of each.

`data/verdicts.csv` holds what people decided about labels of training photos, for runs that ask for
it by `folds.label_fixes`:

id       a training photo; never a test photo, whose labels are not ours to give
verdict  keep: the label is right; drop: learn nothing from the photo; flip: learn the other class;
         soft:0.3: learn P(positive) = .3
reason   for people; so is `by`, who decided

A label fix changes what is learnt, never what is scored: every run is scored on the original labels
of all its photos, so that runs with and without it can be compared photo by photo.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from comp.data.folds import assign_folds
from comp.data.manifest import usable
from comp.errors import DataError
from comp.recipe import Folds

COLUMNS = ("id", "verdict", "reason", "by")


def select(manifest: pd.DataFrame, folds: Folds) -> pd.DataFrame:
    """The photos of a run in the manifest's order, with its columns and `part`.

    The manifest's own folds where the recipe asks for as many and no other seed, so that a fold is
    the same in every run; else new ones by the same rule. `part` is the fold again, but for a
    split: then fold 0 holds out validation (part 0) and test (part 1), and the rest (part 2) is
    never held out.
    """
    photos = usable(manifest)
    photos = photos[photos["fold"].notna()].reset_index(drop=True)
    n_here = int(photos["fold"].max()) + 1 if len(photos) else 0
    shares = None if folds.split is None else (*folds.split, 1 - sum(folds.split))
    n_parts = folds.n if shares is None else len(shares)

    def with_parts(photos: pd.DataFrame, seed: int) -> pd.DataFrame:
        columns = list(photos["id"]), list(photos["label"]), list(photos["group"])
        return photos.assign(part=assign_folds(*columns, n_folds=n_parts, seed=seed, shares=shares))

    is_as_here = shares is None and n_parts == n_here
    photos = photos.assign(part=photos["fold"]) if is_as_here else with_parts(photos, 0)
    if folds.n_photos is not None:
        photos = _subset(photos, folds.n_photos)
    if folds.seed:
        photos = with_parts(photos, folds.seed)
    part = photos["part"]
    photos = photos.assign(fold=part if shares is None else (part == n_parts - 1).astype("int64"))
    cells = pd.MultiIndex.from_product([range(n_parts), (0, 1)])
    counts = photos.groupby(["part", "label"]).size().reindex(cells, fill_value=0)
    if (counts == 0).any():
        raise DataError(
            f"folds without both classes: {int((counts == 0).sum())} of {n_parts}, with"
            f" {len(photos)} photos: lower folds.n or raise folds.n_photos"
        )
    return photos.astype({"fold": "int64", "part": "int64", "label": "int64"})


def training_rows(photos: pd.DataFrame, fold: int) -> NDArray[np.bool_]:
    """Which of `photos` (fold, target) train for `fold`: other folds', unless a fix drops them."""
    return ((photos["fold"] != fold) & photos["target"].notna()).to_numpy()


def _subset(photos: pd.DataFrame, n_photos: int) -> pd.DataFrame:
    """About `n_photos` rows: whole groups, with the classes and folds in their shares.

    Which ones depends on no seed, so that runs with other seeds can be compared photo by photo.
    """
    share = n_photos / len(photos)
    if share >= 1:
        return photos
    first = photos.groupby("group")["id"].transform("min")
    order = [hashlib.sha256(f"0 {id}".encode()).hexdigest() for id in first]
    ranked = photos.assign(order=order).sort_values(["order", "id"])
    within = ranked.groupby(["part", "label"])["order"].rank(method="max", pct=True)
    kept = ranked[within <= share]
    return photos[photos["group"].isin(kept["group"])].reset_index(drop=True)


def read_label_fixes(path: Path) -> dict[str, str]:
    """The verdict on each photo, in the file's order; none where there is no file."""
    if not path.exists():
        return {}
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (ValueError, UnicodeError) as error:
        raise DataError(f"{path} is not a readable CSV: {str(error).splitlines()[0]}") from error
    if tuple(table.columns) != COLUMNS:
        raise DataError(
            f"{path} has the columns {', '.join(table.columns)}, not {', '.join(COLUMNS)}:"
            " correct its first line"
        )
    twice = table["id"][table["id"].duplicated()]
    if len(twice):
        raise DataError(f"{path} has more than one verdict on {twice.iloc[0]}: keep one")
    share = pd.to_numeric(table["verdict"].str.extract("^soft:(.*)$")[0], errors="coerce")
    bad = table[~table["verdict"].isin(["keep", "drop", "flip"]) & ~share.between(0, 1)]
    if len(bad):
        raise DataError(
            f"{path} says {bad['verdict'].iloc[0]!r} of {bad['id'].iloc[0]}: a verdict is keep,"
            " drop, flip or soft:P with P from 0 to 1"
        )
    return dict(zip(table["id"], table["verdict"], strict=True))


def chosen_label_fixes(path: Path, wanted: str) -> dict[str, str]:
    """The fixes that change a label and that `wanted` names: all, a kind, or one photo's id.

    DataError if it names none.
    """
    fixes = read_label_fixes(path)
    chosen = {
        id: verdict
        for id, verdict in fixes.items()
        if verdict != "keep" and wanted in ("all", verdict.partition(":")[0], id)
    }
    if not chosen:
        raise DataError(
            f"folds.label_fixes={wanted} names none of the {len(fixes)} lines in {path}: all, drop,"
            " flip, soft or a photo's id"
        )
    return chosen


def targets(photos: pd.DataFrame, fixes: Mapping[str, str]) -> NDArray[np.float64]:
    """What is learnt of each of `photos` (id, label): P(positive), NaN for nothing."""
    learnt = photos["label"].to_numpy(np.float64)
    for row, id in enumerate(photos["id"]):
        kind, _, share = fixes.get(id, "keep").partition(":")
        if kind == "soft":
            learnt[row] = float(share)
        elif kind != "keep":
            learnt[row] = np.nan if kind == "drop" else 1 - learnt[row]
    return learnt
