"""The ledger as a page: cross-validation beside public scores, and which submissions to pick."""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from comp.competition import Competition
from comp.metric import Floats
from comp.options import differing
from comp.plots import BLUE, INK, MUTED, ORANGE, SKY, Drawing, make_logarithmic
from comp.predict.runs import options_of
from comp.report.page import Chart, Page, Section, TextTable, Tile
from comp.store import Workspace
from comp.submit.leaderboard import archived_scores, ranks
from comp.submit.ledger import LEDGER_COLUMNS, LedgerRow, read_ledger

SCORES = ["cv_raw", "cv_clipped", "public_score", "private_score"]
MIN_FITTED = 3  # submissions under a fitted line
BOARD_MARKS = (1, 10, 26, 50, 100, 132, 250, 500, 1000)  # ranks in the table of the leaderboard


def ledger_page(workspace: Workspace, competition: Competition) -> Page:
    """All submissions, oldest first."""
    rows, board = read_ledger(workspace.ledger), archived_scores(competition)
    ledger = pd.DataFrame(rows, range(1, len(rows) + 1), columns=list(LEDGER_COLUMNS))
    ledger = ledger.astype(dict.fromkeys(SCORES, np.float64))
    run, change = ledger["file"].str.removesuffix(".csv"), list(_changes(workspace, rows))
    ledger = ledger.assign(run=run, change=change)
    scored = ledger.dropna(subset="public_score")
    charts = list(_charts(scored, board))
    columns = ["", "when", "run", "status", "CV raw", "CV as submitted", "public", "private"]
    scores = ledger[SCORES].map("{:.5f}".format).replace("nan", "-")
    shown = pd.concat([ledger[["when", "run", "status"]], scores, ledger["change"]], axis=1)
    table = TextTable("", [*columns, "changed"], list(shown.itertuples()))
    sections = [
        Section("Scores", "" if charts else "No score yet.", charts),
        Section("All submissions", tables=[table] if rows else []),
    ]
    subtitle = f"{competition.title}: {len(rows):,} in the ledger, {len(scored):,} with a score"
    return Page("Submissions", subtitle, list(_tiles(scored, board)), sections)


def _changes(workspace: Workspace, rows: Sequence[LedgerRow]) -> Iterator[str]:
    """The options of each row that differ from the row before, as far as the runs are on disk."""
    before: dict[str, str] = {}
    for row in rows:
        now = options_of(workspace.runs / f"{row.recipe}-{row.fingerprint}")
        if before and now:
            pairs = differing({"before": before, "now": now})
            yield "; ".join(f"{name} {old} → {new}" for name, old, new in pairs) or "no option"
        else:
            yield "not known: no longer on disk" if before else ""
        before = now or before


def finalists(scored: pd.DataFrame) -> pd.DataFrame:
    """The rows of the two to pick: the best by cross-validation, then the best other by score.

    Cross-validation cannot overfit the leaderboard; a public score sees faults that it cannot.
    """
    by_cv = scored.dropna(subset="cv_clipped").nsmallest(1, "cv_clipped")
    others = scored[~scored["run"].isin(by_cv["run"])].nsmallest(1, "public_score")
    reasons = "best by cross-validation", "best other public score"
    return pd.concat([by_cv.assign(why=reasons[0]), others.assign(why=reasons[1])])


def _tiles(scored: pd.DataFrame, board: Floats) -> Iterator[Tile]:
    if scored.empty:
        yield Tile("Best public score", "none yet", "run `make submit`")
        return
    best = scored.iloc[int(scored["public_score"].argmin())]
    rank = f", rank {ranks(best['public_score'], board):,} of {board.size:,}" if board.size else ""
    yield Tile("Best public score", f"{best['public_score']:.5f}", f"{best['run']}{rank}")
    picks = finalists(scored)[["run", "why", "cv_clipped", "public_score"]]
    for run, why, cv, score in picks.itertuples(index=False):
        scores = f"CV {cv:.5f}, public {score:.5f}".replace("nan", "-")
        yield Tile("Pick as final", run, f"{why}: {scores}")


def _charts(scored: pd.DataFrame, board: Floats) -> Iterator[Chart]:
    pairs = scored[["cv_clipped", "public_score"]].dropna()
    if len(pairs):
        yield _against(*pairs.to_numpy().T)
    if len(scored):
        yield _over_time(scored)
    if len(scored) and board.size:
        yield _on_board(scored["public_score"].to_numpy(), board)


def fitted_line(x: Floats, y: Floats, at: Floats) -> tuple[Floats, Floats]:
    """Least squares of `y` on `x` at `at`, and half the 95 % interval of the line there."""
    from scipy.special import stdtrit

    n, spread = len(x), ((x - x.mean()) ** 2).sum()
    slope = ((x - x.mean()) * y).sum() / spread
    line = y.mean() + slope * (at - x.mean())
    variance = ((y - y.mean() - slope * (x - x.mean())) ** 2).sum() / (n - 2)
    error = np.sqrt(variance * (1 / n + (at - x.mean()) ** 2 / spread))
    return line, stdtrit(n - 2, 0.975) * error


def _against(x: Floats, y: Floats) -> Chart:
    """Public scores `y` against cross-validation `x`, both as submitted."""
    drawing = Drawing("against")
    (axes,) = drawing.axes
    words = f"Submissions with both: {len(x)}"
    if len(x) >= MIN_FITTED and np.ptp(x) > 0:
        at = np.linspace(x.min(), x.max(), 50)
        line, half = fitted_line(x, y, at)
        axes.plot(at, line, color=BLUE, linewidth=1)
        axes.fill_between(at, line - half, line + half, color=SKY, alpha=0.3, linewidth=0)
        slope = (line[-1] - line[0]) / np.ptp(at)
        correlation = np.corrcoef(x, y)[0, 1]
        words += f"; the fitted line has a slope of {slope:.2f}, correlation {correlation:.2f}"
    axes.plot(x, y, "o", color=INK)
    axes.set(xlabel="cross-validation, as submitted", ylabel="public score")
    columns, rows = (
        ("cross-validation", "public score"),
        [(f"{a:.5f}", f"{b:.5f}") for a, b in zip(x, y, strict=True)],
    )
    return Chart("Cross-validation against public score", f"{words}.", drawing.svg(), columns, rows)


def _over_time(scored: pd.DataFrame) -> Chart:
    public, n = scored["public_score"], np.arange(1, len(scored) + 1)
    best = public.cummin()
    drawing = Drawing("time")
    (axes,) = drawing.axes
    axes.step(n, best, where="post", color=BLUE, label="best so far")
    axes.plot(n, public, "o", color=ORANGE, label="each")
    axes.set(xlabel="submission", ylabel="public score")
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    drawing.legend()
    sentence = f"Public scores in order; the best of {len(public)} is {public.min():.5f}."
    cells = zip(scored["when"], public, best, strict=True)
    rows = [(when, f"{score:.5f}", f"{least:.5f}") for when, score, least in cells]
    columns = ("when", "public score", "best so far")
    return Chart("Over time", sentence, drawing.svg(), columns, rows)


def _on_board(public: Floats, board: Floats) -> Chart:
    places = ranks(public, board)
    drawing = Drawing("board")
    (axes,) = drawing.axes
    axes.plot(np.arange(1, board.size + 1), board, color=MUTED)
    axes.plot(places, public, "o", color=ORANGE, label="own submissions")
    make_logarithmic(axes.xaxis, axes.yaxis)
    axes.set(xlabel="rank", ylabel="score", ylim=(0.8 * min(board[0], public.min()), 1.0))
    axes.legend()
    sentence = f"Scores of {board.size:,} teams by rank; the best own rank is {places.min():,}."
    marks = [rank for rank in BOARD_MARKS if rank <= board.size]
    rows = [(f"{rank:,}", f"{board[rank - 1]:.5f}") for rank in marks]
    rows += [(f"own, {rank:,}", f"{x:.5f}") for rank, x in zip(places, public, strict=True)]
    title = "On the archived leaderboard"
    return Chart(title, sentence, drawing.svg(), ("rank", "score"), rows)
