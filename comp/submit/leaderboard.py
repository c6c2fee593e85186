"""Where our best score stands: on the board as it is now, and on the archived one; who is next to it; what the next medal would need.

The competition awards no medals. What is called medal-like here is what Kaggle's progression system (kaggle.com/progression) gives in a
competition with 1,000 teams or more: gold to the top 10 and one more for every 500 teams, silver to the top 5 %, bronze to the top 10 %.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

import numpy as np
import pandas as pd

from comp.board import archived_scores, best_first, ranks, score_at
from comp.competition import Competition
from comp.errors import DataError, KaggleError, SubmissionError
from comp.kaggle import Kaggle
from comp.metric import Floats
from comp.progress import Reporter
from comp.store import Workspace
from comp.submit.upload import known_rows

FRESH_S = 3600.0  # for which a downloaded board is good
MEDALS_FROM = 1000  # teams; for fewer Kaggle's rule is another


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """A leaderboard, best first."""

    name: str
    scores: Floats
    teams: tuple[str, ...] = ()  # in the order of `scores`; none where they are not known


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Where a score stands on a board."""

    rank: int  # 1 and the number of better scores
    n_teams: int
    above: int | None  # place of the nearest better score, from 0
    below: (
        int | None
    )  # and of the nearest worse one; equal scores, one of which may be ours, are neither

    @property
    def percent(self) -> float:
        """The top percentage that the rank is in."""
        return 100 * self.rank / self.n_teams


def standing(score: float, scores: Floats) -> Standing:
    """Of `score` on a board, best first."""
    n_better, n_as_good = (
        int(ranks(score, scores)) - 1,
        int(np.searchsorted(scores, score, side="right")),
    )
    return Standing(
        rank=n_better + 1,
        n_teams=scores.size,
        above=n_better - 1 if n_better else None,
        below=n_as_good if n_as_good < scores.size else None,
    )


def medal_ranks(n_teams: int) -> dict[str, int]:
    """The last rank of each medal, the easiest first; nothing where Kaggle's rule is another."""
    if n_teams < MEDALS_FROM:
        return {}
    return {"bronze": n_teams // 10, "silver": n_teams // 20, "gold": 10 + n_teams // 500}


def leaderboard(
    workspace: Workspace,
    competition: Competition,
    kaggle: Kaggle,
    reporter: Reporter,
    *,
    refresh: bool = False,
) -> Standing:
    """Shows where our best score stands, and returns that for the archived board. SubmissionError if no submission has a score."""
    best = min(_own_scores(workspace, kaggle, reporter), key=itemgetter(0), default=None)
    if best is None:
        raise SubmissionError(
            "no submission has a score yet, in the ledger or on Kaggle: run `make submit`, or `make scores` if one is pending"
        )
    score, source = best
    reporter.say(f"{competition.title}: own best {score:.5f} ({source})")
    archived = Board(name="archived 2017", scores=archived_scores())
    boards = [*_current(workspace, kaggle, reporter, refresh), archived]
    stands = [standing(score, board.scores) for board in boards]
    columns = ("board", "rank", "of", "top", "next above", "next below")
    reporter.table(
        "where that stands",
        columns,
        [_row(board, stand) for board, stand in zip(boards, stands, strict=True)],
    )
    for board, stand in zip(boards, stands, strict=True):
        reporter.say(f"{board.name}: {_next_medal(score, board, stand)}")
    return stands[-1]


def _own_scores(
    workspace: Workspace, kaggle: Kaggle, reporter: Reporter
) -> Iterator[tuple[float, str]]:
    """Scores of submissions, each with where it is from."""
    for row in known_rows(workspace, reporter):
        if row.public_score is not None:
            yield row.public_score, f"{row.file}, in the ledger"
    try:
        for known in kaggle.submissions():
            if known.status == "complete" and known.public_score is not None:
                yield known.public_score, f"{known.file_name} (ref {known.ref}), on Kaggle"
    except KaggleError as error:
        reporter.warn(f"{error}; own scores are those of the ledger")


def _current(
    workspace: Workspace, kaggle: Kaggle, reporter: Reporter, refresh: bool
) -> list[Board]:
    """Kaggle's board, downloaded at most once an hour; if it cannot be had, the one from before, if there is one."""
    path = workspace.submissions / "leaderboard.csv"
    if refresh or _age_s(path) > FRESH_S:
        try:
            kaggle.leaderboard(workspace.submissions)
        except KaggleError as error:
            reporter.warn(
                f"{error}; {'the board from before is used' if path.exists() else 'there is only the archived board'}"
            )
    return [read_board(path, f"Kaggle, {_age(_age_s(path))} old")] if path.exists() else []


def read_board(path: Path, name: str) -> Board:
    """The board in a CSV as Kaggle packs it. DataError if there is no column of scores."""
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
        table["Score"] = table["Score"].astype(float)
    except (ValueError, KeyError) as error:  # pandas' own are ValueErrors
        cause = " ".join(str(error).split())
        raise DataError(
            f"{path} is no leaderboard with a column Score ({cause}): run `make leaderboard REFRESH=1`"
        ) from None
    table = table.sort_values("Score", kind="stable")
    return Board(
        name=name,
        scores=best_first(table["Score"].tolist()),
        teams=tuple(table.get("TeamName", ())),
    )


def _age_s(path: Path) -> float:
    """Of a file; without end if there is none, or if it is from the future."""
    age_s = time.time() - path.stat().st_mtime if path.exists() else -1.0
    return age_s if age_s >= 0 else float("inf")


def _age(age_s: float) -> str:
    return f"{age_s / 60:.0f} min" if age_s < 2 * 3600 else f"{age_s / 3600:,.0f} h"


def _row(board: Board, stand: Standing) -> tuple[str, ...]:
    return (
        board.name,
        f"{stand.rank:,}",
        f"{stand.n_teams:,}",
        f"{stand.percent:.1f} %",
        *(_neighbour(board, place) for place in (stand.above, stand.below)),
    )


def _neighbour(board: Board, place: int | None) -> str:
    if place is None:
        return "-"
    return f"{board.scores[place]:.5f}" + (f" {board.teams[place]}" if board.teams else "")


def _next_medal(score: float, board: Board, stand: Standing) -> str:
    medals = medal_ranks(stand.n_teams)
    if not medals:
        return f"{stand.n_teams:,} teams, and below {MEDALS_FROM:,} Kaggle's rule for medals is another"
    ahead = [(medal, rank) for medal, rank in medals.items() if stand.rank > rank]
    if not ahead:
        return "gold-like, and there is no more than that"
    medal, rank = ahead[0]
    need = score_at(rank, board.scores)
    return f"{medal}-like from rank {rank:,} on: a score of {need:.5f}, {score - need:.5f} better"
