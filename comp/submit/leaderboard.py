"""Where our best score stands on the current and the archived leaderboard: less is better.

A playground competition awards no medals: the zones here are those of Kaggle's progression system
(kaggle.com/progression) for 1,000 teams or more.
"""

import time
from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from comp.competition import Competition
from comp.data.origin import check_server
from comp.errors import DataError, KaggleError, SubmissionError
from comp.metric import Floats
from comp.progress import Reporter
from comp.store import Workspace
from comp.submit.ledger import read_ledger, score_text

if TYPE_CHECKING:  # a run's report needs no client
    from comp.kaggle import Kaggle

ZONES_FROM = 1000  # teams; Kaggle has other rules for fewer
FRESH_S = 3600.0  # age up to which a downloaded leaderboard is not downloaded again


def read_board(path: Path, remedy: str) -> pd.DataFrame:
    """Score and TeamName (may be empty) of a CSV like Kaggle's, best first; DataError if none."""
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
        table = table.astype({"Score": float}).sort_values("Score", kind="stable")
        if table.empty or not np.isfinite(table["Score"]).all():
            raise ValueError("a score is missing")
    except (OSError, ValueError, KeyError) as error:  # pandas' own are ValueErrors
        cause = " ".join(str(error).split())
        raise DataError(
            f"{path} is not a leaderboard with a column Score ({cause}): {remedy}"
        ) from None
    return table.reindex(columns=["Score", "TeamName"], fill_value="")


def archived_scores(competition: Competition) -> Floats:
    """Public scores of all teams when the competition closed, best first; empty if not archived."""
    if competition.archived_board is None:
        return np.empty(0)
    path = Path(__file__).parents[1] / competition.archived_board
    return read_board(path, "restore it from git")["Score"].to_numpy(np.float64)


def ranks(values: ArrayLike, scores: Floats) -> NDArray[np.int64]:
    """The rank of each of `values` among `scores`, best first: 1 + the number of better ones."""
    return np.searchsorted(scores, np.asarray(values, np.float64)).astype(np.int64) + 1


def print_standings(
    workspace: Workspace,
    competition: Competition,
    kaggle: "Kaggle",
    reporter: Reporter,
    refresh: bool,
) -> None:
    """Where our best score stands, on the current leaderboard and on the archived one, if any."""
    check_server(workspace, kaggle)
    own = list(_own_scores(workspace, kaggle, reporter))
    if not own:
        raise SubmissionError(
            "no submission has a score yet, in the ledger or on Kaggle: run `make submit`,"
            " or `make scores` if one is pending"
        )
    score, text = min(own, key=itemgetter(0))  # the first, so the ledger's, of equal ones
    reporter.say(f"{competition.title}: own best {text}")
    boards = _current_board(workspace, kaggle, reporter, refresh)
    archived = archived_scores(competition)
    if archived.size:
        boards["archived"] = pd.DataFrame({"Score": archived, "TeamName": ""})
    columns = ("leaderboard", "rank", "of", "top", "next above", "next below")
    rows = [(name, *standing(score, board)) for name, board in boards.items()]
    reporter.table("where it stands", columns, rows)
    for name, board in boards.items():
        if len(board) >= ZONES_FROM:
            reporter.say(f"{name}: {next_zone(score, board['Score'].to_numpy(np.float64))}")


def standing(score: float, board: pd.DataFrame) -> tuple[str, ...]:
    """Rank, teams, top percentage, and the next better and worse scores; equal ones are skipped."""
    better, worse = board[board["Score"] < score], board[board["Score"] > score]
    rank = len(better) + 1
    cells = [f"{rank:,}", f"{len(board):,}", f"{100 * rank / len(board):.1f} %"]
    for neighbour in (better[-1:], worse[:1]):
        texts = [f"{x:.5f} {team}".strip() for x, team in neighbour.itertuples(index=False)]
        cells.append(texts[0] if texts else "-")
    return tuple(cells)


def next_zone(score: float, scores: Floats) -> str:
    """What the next better zone would need, in words."""
    last_ranks = {"bronze": len(scores) // 10, "silver": len(scores) // 20}
    for zone, rank in (last_ranks | {"gold": 10 + len(scores) // 500}).items():
        need = scores[rank - 1]  # an equal score shares the rank
        if score > need:
            return f"{zone} zone from rank {rank:,}, {need:.5f} ({score - need:.5f} better)"
    return "gold zone"


def _own_scores(
    workspace: Workspace, kaggle: "Kaggle", reporter: Reporter
) -> Iterator[tuple[float, str]]:
    """Public scores of our submissions, each with a text that adds private score and source."""
    for row in read_ledger(workspace.ledger, reporter):
        if row.public_score is not None:
            yield row.public_score, f"{score_text(row)} ({row.file}, in the ledger)"
    try:
        for known in kaggle.submissions():
            if known.status == "complete" and known.public_score is not None:
                source = f"{known.file_name}, ref {known.ref}, on Kaggle"
                yield known.public_score, f"{score_text(known)} ({source})"
    except KaggleError as error:
        reporter.warn(f"{error}; only scores in the ledger are considered")


def _current_board(
    workspace: Workspace, kaggle: "Kaggle", reporter: Reporter, refresh: bool
) -> dict[str, pd.DataFrame]:
    """Kaggle's leaderboard, downloaded if ours is old; ours if that fails; none without either."""
    path = workspace.submissions / "leaderboard.csv"
    if refresh or not 0 <= _age_s(path) <= FRESH_S:
        try:
            kaggle.leaderboard(workspace.submissions)
        except KaggleError as error:
            kept = "the earlier copy is used" if path.exists() else "there is no earlier copy"
            reporter.warn(f"{error}; {kept}")
    if not path.exists():
        return {}
    name = f"Kaggle, {_age_s(path) / 60:,.0f} min old"
    return {name: read_board(path, "run `make leaderboard REFRESH=1`")}


def _age_s(path: Path) -> float:
    """Negative if there is no file, or if its time is in the future."""
    return time.time() - path.stat().st_mtime if path.exists() else -1.0
