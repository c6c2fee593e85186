"""Ranks, and a leaderboard that is downloaded at most once an hour."""

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from finished_run import add_score
from heard import Heard
from kaggle_stand import Stand, stand

from comp.competition import COMPETITION, Competition
from comp.errors import DataError, SubmissionError
from comp.kaggle import Submission
from comp.store import Workspace
from comp.submit.leaderboard import (
    archived_scores,
    print_standings,
    ranks,
    read_board,
    standing,
)

# Rank -> score, as published, noted independently of the file.
PUBLISHED = {1: 0.03302, 2: 0.03305, 3: 0.03483, 4: 0.03507, 5: 0.03518, 10: 0.03807, 12: 0.03882}
PUBLISHED |= {20: 0.04183, 26: 0.04357, 50: 0.04842, 65: 0.05038, 100: 0.05629, 131: 0.06127}
PUBLISHED |= {263: 0.08107, 329: 0.09099}
ARCHIVED = archived_scores(COMPETITION)
UNARCHIVED = replace(COMPETITION, archived_board=None)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    with stand(tmp_path_factory.mktemp("kaggle")) as made:
        yield made


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


def printed(
    workspace: Workspace,
    scene: Stand,
    *,
    refresh: bool = False,
    competition: Competition = COMPETITION,
) -> str:
    heard = Heard()
    print_standings(workspace, competition, scene.kaggle, heard, refresh=refresh)
    return str(heard)


def test_the_archived_leaderboard_has_the_published_scores() -> None:
    assert ARCHIVED.size == 1315
    assert {rank: ARCHIVED[rank - 1] for rank in PUBLISHED} == PUBLISHED
    assert np.median(ARCHIVED) == pytest.approx(0.12216, abs=5e-6)
    assert archived_scores(UNARCHIVED).size == 0


def test_a_score_ranks_after_all_better_ones_and_equal_scores_share_a_rank() -> None:
    board = np.array([0.1, 0.2, 0.2, 0.3, 0.5])
    assert ranks([0.05, 0.1, 0.15, 0.2, 0.25, 0.5, 0.6], board).tolist() == [1, 1, 2, 2, 4, 5, 6]


@pytest.mark.parametrize("content", ["Score\nhigh\n", None])
def test_a_damaged_or_missing_archived_leaderboard_ends_in_one_line(
    tmp_path: Path, content: str | None
) -> None:
    path = tmp_path / "board.csv"
    if content:
        path.write_text(content)
    with pytest.raises(DataError, match="restore it from git"):
        archived_scores(replace(COMPETITION, archived_board=str(path)))


@pytest.mark.parametrize(
    ("score", "cells"),
    [
        (0.05, ("1", "5", "20.0 %", "-", "0.10000 a")),
        (0.1, ("1", "5", "20.0 %", "-", "0.20000 b")),
        (0.15, ("2", "5", "40.0 %", "0.10000 a", "0.20000 b")),
        (0.2, ("2", "5", "40.0 %", "0.10000 a", "0.30000 e")),
        (0.25, ("5", "5", "100.0 %", "0.20000 d", "0.30000 e")),
        (0.3, ("5", "5", "100.0 %", "0.20000 d", "-")),
    ],
)
def test_a_standing_counts_better_scores_and_equal_scores_are_not_neighbours(
    score: float, cells: tuple[str, ...]
) -> None:
    board = pd.DataFrame({"Score": [0.1, 0.2, 0.2, 0.2, 0.3], "TeamName": list("abcde")})
    assert standing(score, board) == cells


@pytest.mark.parametrize(
    ("score", "rank", "zone"),
    [
        (0.12216, 658, "bronze zone from rank 131, 0.06127 (0.06089 better)"),
        (0.06127, 131, "silver zone from rank 65, 0.05038 (0.01089 better)"),
        (0.04183, 20, "gold zone from rank 12, 0.03882 (0.00301 better)"),
        (0.03302, 1, "gold zone"),
    ],
)
def test_rank_and_next_zone_on_the_archived_leaderboard_are_printed(
    scene: Stand, workspace: Workspace, score: float, rank: int, zone: str
) -> None:
    scene.arm()
    add_score(workspace, "run-1", score, ref=1)
    text = printed(workspace, scene)
    assert f"\narchived {rank} 1,315 " in text
    assert f"\narchived: {zone}" in text
    assert f"own best {score:.5f} (run-1.csv, in the ledger)" in text


def test_the_best_score_of_ledger_and_kaggle_counts(
    scene: Stand, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_hand = Submission(
        ref=7,
        date=datetime(2026, 11, 21, tzinfo=UTC),
        file_name="by-hand.csv",
        message="",
        status="complete",
        public_score=0.06,
        private_score=0.065,
        error="",
    )
    others = [replace(by_hand, public_score=None), replace(by_hand, status="error")]
    monkeypatch.setattr(scene.kaggle, "submissions", lambda: [*others, by_hand])
    scene.arm()
    add_score(workspace, "run-1", None, ref=1)
    add_score(workspace, "run-2", 0.07, ref=2)
    on_kaggle = "own best 0.06000, private 0.06500 (by-hand.csv, ref 7, on Kaggle)"
    assert on_kaggle in printed(workspace, scene)
    add_score(workspace, "run-3", 0.05, ref=3)
    assert "own best 0.05000 (run-3.csv, in the ledger)" in printed(workspace, scene)


def test_a_leaderboard_is_downloaded_once_an_hour_or_on_request_and_its_age_is_printed(
    scene: Stand, workspace: Workspace
) -> None:
    add_score(workspace, "run-1", 0.045, ref=1)
    path = workspace.submissions / "leaderboard.csv"

    def download(age_s: float = 0.0, refresh: bool = False) -> tuple[int, str]:
        scene.arm()
        if path.exists():
            os.utime(path, (time.time() - age_s,) * 2)
        text = printed(workspace, scene, refresh=refresh)
        return len(scene.asked("DownloadLeaderboard")), text

    assert download()[0] == 1
    n, text = download(age_s=3000)
    rank = int(ranks(0.045, ARCHIVED))  # the stand-in serves the archived scores, with team names
    above, below = ARCHIVED[[rank - 2, rank - 1]]
    neighbours = f"{above:.5f} Team {rank - 1} {below:.5f} Team {rank}"
    assert n == 0
    assert f"Kaggle, 50 min old {rank} 1,315 {rank / 13.15:.1f} % {neighbours}" in text
    assert download(age_s=3700)[0] == 1
    assert download(age_s=-60)[0] == 1
    assert download(refresh=True)[0] == 1
    names = [file.name for file in workspace.submissions.iterdir() if file.suffix == ".csv"]
    assert sorted(names) == ["leaderboard.csv", "ledger.csv"]


def test_without_kaggle_the_ledger_the_old_copy_and_the_archived_leaderboard_are_used(
    scene: Stand, workspace: Workspace
) -> None:
    add_score(workspace, "run-1", 0.045, ref=1)
    scene.arm("500")
    text = printed(workspace, scene)
    assert f"\narchived {int(ranks(0.045, ARCHIVED))} 1,315 " in text
    assert "only scores in the ledger are considered" in text
    assert "there is no earlier copy" in text
    scene.arm()
    assert "archived" not in printed(workspace, scene, competition=UNARCHIVED)
    scene.arm("500")
    assert "the earlier copy is used" in printed(workspace, scene, refresh=True)


def test_without_a_score_there_is_nothing_to_print(scene: Stand, workspace: Workspace) -> None:
    scene.arm()
    add_score(workspace, "run-1", None, ref=1)
    with pytest.raises(SubmissionError, match="`make scores` if one is pending"):
        printed(workspace, scene)


def test_a_leaderboard_is_read_in_any_order_and_refused_without_scores(tmp_path: Path) -> None:
    path = tmp_path / "leaderboard.csv"
    path.write_text('\ufeffRank,TeamId,TeamName,Score\n2,7,"b, c",0.5\n1,8,NA,0.25\n')
    board = read_board(path, "restore it")
    assert board.to_numpy().tolist() == [[0.25, "NA"], [0.5, "b, c"]]
    rows = [f"TeamName,Score\n{row}" for row in ("a,best\n", "a,0.1\nb,nan\n", "")]
    for text in ("", "<html>", "Team,Points\na,1\n", *rows):
        path.write_text(text)
        with pytest.raises(DataError, match=r"a column Score .*: restore it"):
            read_board(path, "restore it")
