"""Where a score stands: ranks, neighbours, thresholds, and a board that is downloaded once an hour."""

import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from heard import Heard
from kaggle_stand import Stand, stand

from comp.board import archived_scores
from comp.competition import COMPETITION
from comp.errors import DataError, SubmissionError
from comp.store import Workspace
from comp.submit.leaderboard import Standing, leaderboard, medal_ranks, read_board, standing
from comp.submit.ledger import LedgerRow, write_row

SHORT = np.array([0.1, 0.2, 0.2, 0.2, 0.3])


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    with stand(tmp_path_factory.mktemp("kaggle")) as made:
        yield made


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


def scored(workspace: Workspace, score: float | None, ref: int = 1) -> None:
    when = datetime(2026, 11, 21, tzinfo=UTC).isoformat()
    numbers = {
        "cv_raw": 0.02,
        "cv_calibrated": 0.02,
        "cv_clipped": 0.02,
        "public_score": score,
        "ref": ref,
    }
    names = {
        "when": when,
        "file": f"run-{ref}.csv",
        "sha256": f"{ref}",
        "recipe": "run",
        "fingerprint": "0",
        "commit": "none",
    }
    write_row(
        workspace.ledger,
        LedgerRow(status="complete" if score else "pending", message="", **names, **numbers),
    )  # type: ignore[arg-type]


def show(workspace: Workspace, scene: Stand, *, refresh: bool = False) -> tuple[Standing, str]:
    heard = Heard()
    return leaderboard(workspace, COMPETITION, scene.kaggle, heard, refresh=refresh), str(heard)


@pytest.mark.parametrize(
    ("score", "rank", "above", "below"),
    [
        (0.05, 1, None, 0),
        (0.1, 1, None, 1),
        (0.15, 2, 0, 1),
        (0.2, 2, 0, 4),
        (0.25, 5, 3, 4),
        (0.3, 5, 3, None),
        (0.4, 6, 4, None),
    ],
)
def test_a_standing_counts_better_scores_and_its_neighbours_are_not_ties(
    score: float, rank: int, above: int | None, below: int | None
) -> None:
    assert standing(score, SHORT) == Standing(rank=rank, n_teams=5, above=above, below=below)


def test_thresholds_are_kaggles_for_a_thousand_teams_and_more() -> None:
    assert medal_ranks(1315) == {"bronze": 131, "silver": 65, "gold": 12}
    assert medal_ranks(1000) == {"bronze": 100, "silver": 50, "gold": 12}
    assert medal_ranks(999) == {}


@pytest.mark.parametrize(
    ("score", "rank", "words"),
    [
        (0.12216, 658, "bronze-like from rank 131 on: a score of 0.06127, 0.06089 better"),
        (0.06127, 131, "silver-like from rank 65 on: a score of 0.05038, 0.01089 better"),
        (0.04183, 20, "gold-like from rank 12 on: a score of 0.03882, 0.00301 better"),
        (0.03302, 1, "gold-like, and there is no more than that"),
    ],
)
def test_the_next_threshold_is_told_on_the_archived_board(
    scene: Stand, workspace: Workspace, score: float, rank: int, words: str
) -> None:
    scene.arm()
    scored(workspace, score)
    stand_, shown = show(workspace, scene)
    assert stand_.rank == rank
    assert f"archived 2017: {words}" in shown
    assert f"own best {score:.5f} (run-1.csv, in the ledger)" in shown


def test_the_best_of_ledger_and_kaggle_counts(scene: Stand, workspace: Workspace) -> None:
    scene.arm()
    made = scene.server.add(file_name="by-hand.csv", description="", score=0.06)
    scored(workspace, None, ref=1)
    scored(workspace, 0.07, ref=2)
    assert (
        f"own best 0.06000 (by-hand.csv (ref {made.ref}), on Kaggle)" in show(workspace, scene)[1]
    )
    scored(workspace, 0.05, ref=3)
    assert "own best 0.05000 (run-3.csv, in the ledger)" in show(workspace, scene)[1]
    scene.server.journal.clear()


def test_a_board_is_downloaded_once_an_hour_or_when_asked_for_and_its_age_is_shown(
    scene: Stand, workspace: Workspace
) -> None:
    scored(workspace, 0.045)
    path = workspace.submissions / "leaderboard.csv"

    def n_downloads(age_s: float = 0.0, refresh: bool = False) -> tuple[int, str]:
        scene.arm()
        if path.exists():
            os.utime(path, (time.time() - age_s,) * 2)
        shown = show(workspace, scene, refresh=refresh)[1]
        return len(scene.asked("DownloadLeaderboard")), shown

    assert n_downloads()[0] == 1
    n, shown = n_downloads(age_s=3000)
    n_better = int(
        (archived_scores() < 0.045).sum()
    )  # the rehearsal's board has the same scores, and names
    above, below = archived_scores()[[n_better - 1, n_better]]
    row = f"{n_better + 1} 1,315 {(n_better + 1) / 13.15:.1f} % {above:.5f} Team {n_better} {below:.5f} Team {n_better + 1}"
    assert (n, f"Kaggle, 50 min old {row}" in shown) == (0, True)
    assert n_downloads(age_s=3700)[0] == 1
    assert n_downloads(age_s=-60)[0] == 1
    assert n_downloads(refresh=True)[0] == 1
    assert sorted(
        file.name for file in workspace.submissions.iterdir() if file.suffix == ".csv"
    ) == ["leaderboard.csv", "ledger.csv"]


def test_without_kaggle_the_ledger_the_old_board_and_the_archived_one_tell(
    scene: Stand, workspace: Workspace
) -> None:
    scored(workspace, 0.045)
    scene.arm("500")
    stand_, shown = show(workspace, scene)
    assert stand_.rank == int((archived_scores() < 0.045).sum()) + 1
    assert "own scores are those of the ledger" in shown
    assert "there is only the archived board" in shown
    scene.arm()
    show(workspace, scene)
    scene.arm("500")
    assert "the board from before is used" in show(workspace, scene, refresh=True)[1]


def test_without_a_score_there_is_nothing_to_show(scene: Stand, workspace: Workspace) -> None:
    scene.arm()
    scored(workspace, None)
    with pytest.raises(SubmissionError, match="`make scores` if one is pending"):
        show(workspace, scene)


def test_a_board_is_read_in_any_order_and_refused_without_scores(tmp_path: Path) -> None:
    path = tmp_path / "leaderboard.csv"
    path.write_text('\ufeffRank,TeamId,TeamName,Score\n2,7,"b, c",0.5\n1,8,NA,0.25\n')
    board = read_board(path, "now")
    assert (board.scores.tolist(), board.teams) == ([0.25, 0.5], ("NA", "b, c"))
    for text in (
        "",
        "<html>",
        "Team,Points\na,1\n",
        "TeamName,Score\na,best\n",
        "TeamName,Score\n",
    ):
        path.write_text(text)
        with pytest.raises(DataError):
            read_board(path, "now")
