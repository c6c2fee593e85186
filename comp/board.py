"""The final leaderboard, scores only, and where a score would stand on it.

`archived_board.csv` beside this file has the public scores of all 1,315 teams, best first. Source: Kaggle's public leaderboard of
dogs-vs-cats-redux-kernels-edition as it closed on 2017-03-02; late submissions are scored and not ranked.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from comp.errors import DataError
from comp.metric import Floats

ARCHIVE = Path(__file__).with_name("archived_board.csv")


def archived_scores(path: Path = ARCHIVE) -> Floats:
    """The scores of the archived board, best first."""
    try:
        return best_first(path.read_text(encoding="utf-8").split()[1:])
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path.name} is not a column of scores ({error}): restore it from git"
        ) from None


def best_first(scores: Sequence[float] | Sequence[str]) -> Floats:
    """`scores` in order. DataError if there are none, since nothing has a rank among them."""
    ordered = np.sort(np.asarray(scores, np.float64))
    if not ordered.size or not np.isfinite(ordered).all():
        raise DataError(
            f"a board with {int(np.isfinite(ordered).sum()):,} scores of {ordered.size:,} teams ranks nobody"
        )
    return ordered


def ranks(values: ArrayLike, board: Floats) -> NDArray[np.int64]:
    """The rank that each of `values` would take on `board`, best first: 1 and the number of better scores, so that ties share one."""
    return np.searchsorted(board, np.asarray(values, np.float64), side="left").astype(np.int64) + 1


def score_at(rank: int, board: Floats) -> float:
    """The score that reaches `rank` on `board`, best first: to equal it is enough."""
    if not 1 <= rank <= board.size:
        raise DataError(f"the board has the ranks 1 to {board.size:,}, not {rank:,}")
    return float(board[rank - 1])
