"""Ranks on a leaderboard, where a lower score is better."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from comp.competition import Competition
from comp.errors import DataError
from comp.metric import Floats


def archived_scores(competition: Competition) -> Floats:
    """Public scores of all teams when the competition closed, best first; empty if not archived."""
    if competition.archived_board is None:
        return np.empty(0)
    path = Path(__file__).parent / competition.archived_board
    try:
        return sort_scores(path.read_text(encoding="utf-8").split()[1:])
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path.name} is not a column of scores ({error}): restore it from git"
        ) from None


def sort_scores(scores: Sequence[float] | Sequence[str]) -> Floats:
    """`scores`, best first. DataError if there are none or one is not finite."""
    ordered = np.sort(np.asarray(scores, np.float64))
    n_finite = int(np.isfinite(ordered).sum())
    if not ordered.size or n_finite < ordered.size:
        raise DataError(f"a leaderboard with {n_finite:,} scores of {ordered.size:,} teams")
    return ordered


def ranks(values: ArrayLike, board: Floats) -> NDArray[np.int64]:
    """The rank of each of `values` on `board`, best first: 1 + the number of better scores."""
    return np.searchsorted(board, np.asarray(values, np.float64), side="left").astype(np.int64) + 1
