"""Groups of photos that show the same picture, and folds that never split a group.

Two photos are near-duplicates if their perceptual hashes differ in at most MAX_DISTANCE of 64 bits
and their 32 x 32 grey thumbnails correlate by at least MIN_CORRELATION; either may be mirrored.

Measured on 2,002 real photos: one pair (0 bits, .998) is the same picture by eye; all other pairs
within 12 bits correlate by at most .80. Of copies of 400 of them, all are found that were
re-encoded, halved, quartered, turned grey or darkened by 30 %, and 99.8 % of those brightened; with
2 % of width and height cropped all, with 4 % 99 %, with 6 % 90 %, with 10 % 24 %.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from comp.data.manifest import natural_key
from comp.data.origin import MAX_DISTANCE, MIN_CORRELATION
from comp.errors import DataError
from comp.progress import Advance, Reporter

_SALT = "folds 1"  # change it whenever the rule of `assign_folds` changes
SIDE = 32  # px of a thumbnail
_ROWS = 8  # compared at once with all others: the 2 MB of 37,500 photos stay in the cache
_CHUNK = 1024  # thumbnails converted to floats at once

_N_KEPT = 8  # lowest frequencies of each axis
_COSINES = np.cos(  # DCT-II
    np.pi * np.outer(np.arange(_N_KEPT), 2 * np.arange(SIDE) + 1) / (2 * SIDE)
)
_MIRROR_SIGNS = np.where(np.arange(_N_KEPT) % 2, -1.0, 1.0)  # of the horizontal frequencies

Thumbnails = NDArray[np.uint8]  # [n, SIDE, SIDE] grey
Hashes = NDArray[np.uint64]  # [n]


def perceptual_hashes(thumbnails: Thumbnails, mirrored: bool = False) -> Hashes:
    """64 bits per photo, or per mirrored photo: which of its 8 x 8 lowest frequencies exceed their
    median. As by `phash` of the imagehash library, after Zauner 2010.
    """
    hashes = np.empty(len(thumbnails), np.uint64)
    for start in range(0, len(thumbnails), _CHUNK):
        low = _COSINES @ thumbnails[start : start + _CHUNK].astype(np.float64) @ _COSINES.T
        low = (low * _MIRROR_SIGNS if mirrored else low).reshape(len(low), -1)
        bits = low > np.median(low, axis=1, keepdims=True)
        hashes[start : start + _CHUNK] = np.packbits(bits, axis=1).view(">u8").reshape(-1)
    return hashes


def near_pairs(thumbnails: Thumbnails, reporter: Reporter) -> NDArray[np.int64]:
    """Rows i < j of all near-duplicates, [n, 2].

    Takes O(n^2): 3 s for 37,500 photos on a core, 2 minutes for 250,000. At MAX_DISTANCE of 64 bits
    an index by parts of the hash would look at nearly as many pairs.
    """
    hashes = perceptual_hashes(thumbnails)
    found = [np.empty((0, 2), np.int64)]
    with reporter.track("near-duplicates", 2 * len(hashes), "comparisons") as advance:
        for mirrored in (False, True):
            others = perceptual_hashes(thumbnails, mirrored)
            for one, other in _close_pairs(hashes, others, advance):
                second = thumbnails[other][:, :, ::-1] if mirrored else thumbnails[other]
                alike = correlations(thumbnails[one], second) >= MIN_CORRELATION
                found.append(np.stack([one[alike], other[alike]], axis=1))
    return np.concatenate(found)


def _close_pairs(
    hashes: Hashes, others: Hashes, advance: Advance
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """The i < j for which hash i is close to other hash j, some at a time."""
    for top in range(0, len(hashes), _ROWS):
        n_bits = np.bitwise_count(hashes[top : top + _ROWS, None] ^ others[None, top:])
        rows, columns = np.nonzero(n_bits <= MAX_DISTANCE)
        rows, columns = (index[columns > rows] + top for index in (rows, columns))
        for start in range(0, len(rows), _CHUNK):
            yield rows[start : start + _CHUNK], columns[start : start + _CHUNK]
        advance(len(n_bits))


def correlations(one: Thumbnails, other: Thumbnails) -> NDArray[np.float32]:
    """Of each thumbnail with its counterpart, -1 to 1; 0 if one of them has a single colour."""
    return np.asarray(np.einsum("nij,nij->n", _standardised(one), _standardised(other)), np.float32)


def _standardised(thumbnails: Thumbnails) -> NDArray[np.float32]:
    means = thumbnails.mean(axis=(1, 2), keepdims=True, dtype=np.float32)
    centred = thumbnails.astype(np.float32) - means
    norms = np.linalg.norm(centred, axis=(1, 2), keepdims=True)
    return np.asarray(centred / np.where(norms > 0, norms, 1), np.float32)


def group_photos(
    ids: Sequence[str], sha256s: Sequence[str], pairs: NDArray[np.int64]
) -> NDArray[np.int64]:
    """A group number for each photo: photos connected by `pairs` or by equal files share one.

    Groups are numbered by the natural order of their first ids, whatever the order of the rows.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    first_of: dict[str, int] = {}
    equal = [(first_of.setdefault(sha256, row), row) for row, sha256 in enumerate(sha256s)]
    rows, columns = np.concatenate([np.array(equal, np.int64), pairs]).T
    graph = coo_array((np.ones(len(rows), np.int8), (rows, columns)), shape=(len(ids), len(ids)))
    _, components = connected_components(graph, directed=False)
    order = sorted(range(len(ids)), key=[natural_key(id) for id in ids].__getitem__)
    groups = np.empty(len(ids), np.int64)
    groups[order], _ = pd.factorize(components[order])
    return groups


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

    The largest groups come first, equal ones in the order of a hash of `seed` and their first id.
    Each goes to the fold with the fewest photos of its labels for its share, on a tie to the
    smallest. DataError if a fold would lack a class.
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
