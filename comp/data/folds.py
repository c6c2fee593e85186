"""Folds of equal size and equal share of classes that never split a group."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from comp.data.manifest import natural_key
from comp.errors import DataError

_SALT = "folds 1"  # change it whenever the rule below changes


def assign_folds(
    ids: Sequence[str],
    labels: Sequence[int] | NDArray[np.int64],
    groups: Sequence[int] | NDArray[np.int64],
    *,
    n_folds: int,
    seed: int,
    shares: Sequence[float] | None = None,
) -> NDArray[np.int64]:
    """The fold of each photo, 0 to `n_folds` - 1. It depends on the ids, not on their order.

    The largest groups are assigned first; groups of equal size come in the order of a hash of
    `seed` and their first id. Each goes to the fold with the fewest photos of its labels, on a tie
    to the smallest fold. Singletons go last and even out the folds. `shares` are the relative sizes
    of the folds; counts are divided by them before they are compared. DataError if a fold would
    lack a class.
    """
    members = defaultdict[int, list[int]](list)
    for row, group in enumerate(groups):
        members[int(group)].append(row)

    def order(rows: list[int]) -> tuple[int, bytes]:
        first = min((ids[row] for row in rows), key=natural_key)
        return -len(rows), hashlib.sha256(f"{_SALT}/{seed}/{first}".encode()).digest()

    sizes = shares or [1.0] * n_folds
    counts = [[0, 0] for _ in range(n_folds)]  # photos of each label in each fold
    folds = np.empty(len(ids), np.int64)
    for rows in sorted(members.values(), key=order) if n_folds > 1 else ():
        ones = sum(int(labels[row]) for row in rows)
        zeros = len(rows) - ones
        _, _, fold = min(
            ((zeros * n_zeros + ones * n_ones) / size, (n_zeros + n_ones) / size, fold)
            for fold, ((n_zeros, n_ones), size) in enumerate(zip(counts, sizes, strict=True))
        )
        counts[fold][0] += zeros
        counts[fold][1] += ones
        folds[rows] = fold
    if n_folds < 2 or not all(n_zeros and n_ones for n_zeros, n_ones in counts):
        n_ones = sum(int(label) for label in labels)
        raise DataError(
            f"{len(ids):,} photos ({len(ids) - n_ones:,} and {n_ones:,} of the two classes) in"
            f" {len(members):,} near-duplicate groups are not enough for {n_folds} folds with both"
            " classes in each: use fewer folds, at least 2, or more photos"
        )
    return folds
