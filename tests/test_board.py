"""The archived board: its scores are the published ones, and ties share a rank."""

from pathlib import Path

import numpy as np
import pytest

from comp.board import archived_scores, best_first, ranks, score_at
from comp.errors import DataError

PUBLISHED = {
    1: 0.03302,
    2: 0.03305,
    3: 0.03483,
    4: 0.03507,
    5: 0.03518,
    10: 0.03807,
    12: 0.03882,
    20: 0.04183,
    26: 0.04357,
    50: 0.04842,
}
PUBLISHED |= {65: 0.05038, 100: 0.05629, 131: 0.06127, 263: 0.08107, 329: 0.09099}
"""Rank -> score, as written down independently of the file."""


def test_the_archived_board_has_the_published_scores() -> None:
    board = archived_scores()
    assert board.size == 1315
    assert {rank: score_at(rank, board) for rank in PUBLISHED} == PUBLISHED
    assert np.median(board) == pytest.approx(0.12216, abs=5e-6)


def test_a_score_takes_the_rank_after_all_better_ones_and_ties_share_it() -> None:
    board = best_first([0.3, 0.1, 0.2, 0.2, 0.5])
    assert ranks([0.05, 0.1, 0.15, 0.2, 0.25, 0.5, 0.6], board).tolist() == [1, 1, 2, 2, 4, 5, 6]
    for rank in (1, 2, 4, 5):
        assert ranks(score_at(rank, board), board) == rank
    assert score_at(3, board) == 0.2


@pytest.mark.parametrize("scores", [[], [0.1, float("nan")]])
def test_a_board_without_scores_ranks_nobody(scores: list[float]) -> None:
    with pytest.raises(DataError, match="ranks nobody"):
        best_first(scores)


def test_a_board_that_is_damaged_or_not_there_and_a_rank_beyond_it_end_in_one_line(
    tmp_path: Path,
) -> None:
    (tmp_path / "board.csv").write_text("score\nhigh\n")
    for path in (tmp_path / "board.csv", tmp_path / "nothing.csv"):
        with pytest.raises(DataError, match="restore it from git"):
            archived_scores(path)
    with pytest.raises(DataError, match="the ranks 1 to 3, not 4"):
        score_at(4, best_first([0.1, 0.2, 0.3]))
