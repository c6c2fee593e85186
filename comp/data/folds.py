"""Which photo is held out when: folds of equal size and share of classes that never split a group."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from comp.data.manifest import natural_key
from comp.errors import DataError

N_FOLDS = 5
SEED = 20160902  # the day the competition began; another seed deals other folds
_SALT = "folds 1"  # to be changed with the rule


@dataclass(slots=True)
class _Group:
    """Photos that must stay together."""

    rows: list[int] = field(default_factory=list)
    counts: list[int] = field(default_factory=lambda: [0, 0])  # of each label
    order: tuple[int, bytes] = (0, b"")


def assign_folds(
    ids: Sequence[str],
    labels: Sequence[int] | NDArray[np.int64],
    groups: Sequence[int] | NDArray[np.int64],
    *,
    n_folds: int,
    seed: int,
    shares: Sequence[float] | None = None,
) -> NDArray[np.int64]:
    """The fold, 0 to `n_folds` - 1, of each photo, by what it is called and not by where it stands.

    The largest groups are dealt first, those of equal size in an order shuffled by a hash of `seed` and of their first id; each goes to the
    fold that has the fewest photos of its labels, of these to the smallest. Whoever comes last, the single photos, evens out the rest.
    With `shares`, relative sizes of the folds, fewest and smallest mean for its share.
    """
    size = shares or [1.0] * n_folds
    members = _members(ids, labels, groups, seed)
    held = [[0, 0] for _ in range(n_folds)]
    folds = np.empty(len(ids), np.int64)
    for group in sorted(members, key=lambda group: group.order) if n_folds > 1 else ():
        zeros, ones = group.counts
        fold = min(
            range(n_folds),
            key=lambda fold: (
                (zeros * held[fold][0] + ones * held[fold][1]) / size[fold],
                sum(held[fold]) / size[fold],
                fold,
            ),
        )
        held[fold][0] += zeros
        held[fold][1] += ones
        folds[group.rows] = fold
    if n_folds < 2 or not all(n_zeros and n_ones for n_zeros, n_ones in held):
        n_ones = sum(int(label) for label in labels)
        raise DataError(
            f"{len(ids):,} photos ({len(ids) - n_ones:,} and {n_ones:,} of the two classes) in {len(members):,} groups of near-duplicates "
            f"do not make {n_folds} folds with both classes in each: take fewer folds, of which 2 are the least, or more photos"
        )
    return folds


def _members(
    ids: Sequence[str],
    labels: Sequence[int] | NDArray[np.int64],
    groups: Sequence[int] | NDArray[np.int64],
    seed: int,
) -> list[_Group]:
    by_number: dict[int, _Group] = {}
    for row, (label, number) in enumerate(zip(labels, groups, strict=True)):
        group = by_number.setdefault(int(number), _Group())
        group.rows.append(row)
        group.counts[int(label)] += 1
    for group in by_number.values():
        first = (
            min((ids[row] for row in group.rows), key=natural_key)
            if len(group.rows) > 1
            else ids[group.rows[0]]
        )
        group.order = (
            -len(group.rows),
            hashlib.sha256(f"{_SALT}/{seed}/{first}".encode()).digest(),
        )
    return list(by_number.values())
