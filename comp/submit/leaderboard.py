"""Where our best score stands on the current and the archived leaderboard, and the next medal.

A playground competition awards no medals. The thresholds here are those of Kaggle's progression
system (kaggle.com/progression) for 1,000 teams or more: gold for the top 10 and one more team per
500, silver for the top 5 %, bronze for the top 10 %.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

import numpy as np
import pandas as pd

from comp.board import archived_scores, ranks, sort_scores
from comp.competition import Competition
from comp.errors import DataError, KaggleError, SubmissionError
from comp.kaggle import Kaggle
from comp.metric import Floats
from comp.progress import Reporter
from comp.store import Workspace
from comp.submit.ledger import read_rows

FRESH_S = 3600.0  # age up to which a downloaded leaderboard is not downloaded again
MEDALS_FROM = 1000  # teams; Kaggle has other rules for fewer


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """A leaderboard, best first."""

    name: str
    scores: Floats
    teams: tuple[str, ...] = ()  # in the order of `scores`; empty if unknown


def print_standings(
    workspace: Workspace,
    competition: Competition,
    kaggle: Kaggle,
    reporter: Reporter,
    *,
    refresh: bool = False,
) -> None:
    """Where our best score stands, on the current leaderboard and on the archived one, if any.

    SubmissionError if no submission has a score.
    """
    own = min(_own_scores(workspace, kaggle, reporter), key=itemgetter(0), default=None)
    if own is None:
        raise SubmissionError(
            "no submission has a score yet, in the ledger or on Kaggle: run `make submit`,"
            " or `make scores` if one is pending"
        )
    score, source = own
    reporter.say(f"{competition.title}: own best {score:.5f} ({source})")
    boards = _current_board(workspace, kaggle, reporter, refresh)
    archived = archived_scores(competition)
    if archived.size:
        boards.append(Board(name="archived", scores=archived))
    columns = ("leaderboard", "rank", "of", "top", "next above", "next below")
    reporter.table("where it stands", columns, [standing(score, board) for board in boards])
    for board in boards:
        reporter.say(f"{board.name}: {next_medal(score, board.scores)}")


def standing(score: float, board: Board) -> tuple[str, ...]:
    """Name, rank, teams, top percentage, and the next better and the next worse score.

    An equal score may be our own, so it is not a neighbour.
    """

    def neighbour(place: int) -> str:
        if not 0 <= place < board.scores.size:
            return "-"
        return f"{board.scores[place]:.5f}" + (f" {board.teams[place]}" if board.teams else "")

    rank, n_teams = int(ranks(score, board.scores)), board.scores.size
    n_not_worse = int(np.searchsorted(board.scores, score, side="right"))
    numbers = (f"{rank:,}", f"{n_teams:,}", f"{100 * rank / n_teams:.1f} %")
    return (board.name, *numbers, neighbour(rank - 2), neighbour(n_not_worse))


def medal_ranks(n_teams: int) -> dict[str, int]:
    """The last rank of each medal, easiest first; empty where Kaggle has other rules."""
    if n_teams < MEDALS_FROM:
        return {}
    return {"bronze": n_teams // 10, "silver": n_teams // 20, "gold": 10 + n_teams // 500}


def next_medal(score: float, scores: Floats) -> str:
    """What the next medal would need, in words."""
    medals = medal_ranks(scores.size)
    if not medals:
        return f"no medal thresholds for {scores.size:,} teams, fewer than {MEDALS_FROM:,}"
    for medal, rank in medals.items():
        if ranks(score, scores) > rank:
            need = scores[rank - 1]  # an equal score shares the rank
            return f"{medal} needs rank {rank:,}, a score of {need:.5f} ({score - need:.5f} better)"
    return "good enough for gold"


def _own_scores(
    workspace: Workspace, kaggle: Kaggle, reporter: Reporter
) -> Iterator[tuple[float, str]]:
    """Scores of our submissions, each with its source."""
    for row in read_rows(workspace, reporter):
        if row.public_score is not None:
            yield row.public_score, f"{row.file}, in the ledger"
    try:
        for known in kaggle.submissions():
            if known.status == "complete" and known.public_score is not None:
                yield known.public_score, f"{known.file_name} (ref {known.ref}), on Kaggle"
    except KaggleError as error:
        reporter.warn(f"{error}; only scores in the ledger are considered")


def _current_board(
    workspace: Workspace, kaggle: Kaggle, reporter: Reporter, refresh: bool
) -> list[Board]:
    """Kaggle's leaderboard, downloaded if ours is old; ours if that fails; empty without either."""
    path = workspace.submissions / "leaderboard.csv"
    if refresh or not 0 <= _age_s(path) <= FRESH_S:
        try:
            kaggle.leaderboard(workspace.submissions)
        except KaggleError as error:
            kept = "the earlier copy is used" if path.exists() else "there is no earlier copy"
            reporter.warn(f"{error}; {kept}")
    if not path.exists():
        return []
    age_s = _age_s(path)
    age = f"{age_s / 60:.0f} min" if age_s < 2 * 3600 else f"{age_s / 3600:,.0f} h"
    return [read_board(path, f"Kaggle, {age} old")]


def _age_s(path: Path) -> float:
    """Negative if there is no file, or if its time is in the future."""
    return time.time() - path.stat().st_mtime if path.exists() else -1.0


def read_board(path: Path, name: str) -> Board:
    """The leaderboard in a CSV of Kaggle's. DataError if it has no column of scores."""
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
        table["Score"] = table["Score"].astype(float)
    except (ValueError, KeyError) as error:  # pandas' own are ValueErrors
        cause = " ".join(str(error).split())
        raise DataError(
            f"{path} is not a leaderboard with a column Score ({cause}):"
            " run `make leaderboard REFRESH=1`"
        ) from None
    table = table.sort_values("Score", kind="stable")
    teams = tuple(table.get("TeamName", ()))
    return Board(name=name, scores=sort_scores(table["Score"].tolist()), teams=teams)
