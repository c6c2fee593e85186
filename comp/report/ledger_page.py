"""The ledger as a page: cross-validation beside public scores, and which submissions to pick."""

from collections.abc import Iterator, Sequence

import numpy as np

from comp.competition import Competition
from comp.metric import Floats
from comp.options import differing, flat
from comp.plots import BLUE, INK, MUTED, ORANGE, SKY, Drawing, make_logarithmic
from comp.predict.runs import recipe_of
from comp.report.page import Chart, NumberTable, Page, Section, Tile
from comp.store import Workspace
from comp.submit.leaderboard import archived_scores, ranks
from comp.submit.ledger import LedgerRow, read_ledger, score_text

MIN_FITTED = 3  # submissions under a fitted line
BOARD_MARKS = (1, 10, 26, 50, 100, 132, 250, 500, 1000)  # ranks in the table of the leaderboard


def ledger_page(workspace: Workspace, competition: Competition) -> Page:
    """All submissions, oldest first."""
    rows = read_ledger(workspace.ledger)
    scored = [row for row in rows if row.public_score is not None]
    board = archived_scores(competition)
    charts = list(_charts(scored, board))
    names = ["when", "run", "status", "CV raw", "CV as submitted", "public", "private"]
    names += ["public rank", "changed"]
    table = NumberTable(
        title="",
        columns=("", *names),
        rows=[
            (n, *_cells(row, board), change)
            for n, (row, change) in enumerate(zip(rows, _changes(workspace, rows), strict=True), 1)
        ],
        is_text=True,
    )
    return Page(
        title="Submissions",
        subtitle=f"{competition.title}: {len(rows):,} in the ledger, {len(scored):,} with a score",
        tiles=list(_tiles(scored, board)),
        sections=[
            Section(title="Scores", charts=charts, text="" if charts else "No score yet."),
            Section(title="All submissions", tables=[table] if rows else []),
        ],
    )


def _cells(row: LedgerRow, board: Floats) -> tuple[object, ...]:
    scores = (row.cv_raw, row.cv_clipped, row.public_score, row.private_score)
    texts = ["-" if score is None else f"{score:.5f}" for score in scores]
    public = row.public_score
    rank = f"{ranks(public, board):,}" if public is not None and board.size else "-"
    return row.when, row.file.removesuffix(".csv"), row.status, *texts, rank


def _changes(workspace: Workspace, rows: Sequence[LedgerRow]) -> Iterator[str]:
    """The options of each row that differ from the row before, as far as the runs are on disk."""
    before = None
    for row in rows:
        folder = workspace.runs / f"{row.recipe}-{row.fingerprint}"
        recipe = recipe_of(folder) if (folder / "run.json").exists() else None
        now = flat(recipe) if recipe else None
        if before is None or now is None:
            yield "" if before is None else "not known: a blend, or no longer on disk"
        else:
            pairs = differing({"before": before, "now": now})
            yield "; ".join(f"{name} {old} → {new}" for name, old, new in pairs) or "no option"
        before = now or before


def finalists(scored: Sequence[LedgerRow]) -> list[tuple[LedgerRow, str]]:
    """The two to pick: the best by cross-validation, then the best other by public score.

    Cross-validation cannot overfit the leaderboard; a public score sees faults that it cannot.
    """
    with_cv = [row for row in scored if row.cv_clipped is not None]
    picks = (
        [(min(with_cv, key=lambda row: row.cv_clipped or 0), "best by cross-validation")]
        if with_cv
        else []
    )
    others = [row for row in scored if all(row.file != pick.file for pick, _ in picks)]
    if others:
        picks.append(
            (min(others, key=lambda row: row.public_score or 0), "best other public score")
        )
    return picks


def _tiles(scored: Sequence[LedgerRow], board: Floats) -> Iterator[Tile]:
    if not scored:
        yield Tile(label="Best public score", value="none yet", note="run `make submit`")
        return
    best = min(scored, key=lambda row: row.public_score or 0)
    score = best.public_score or 0.0
    rank = f", rank {ranks(score, board):,} of {board.size:,}" if board.size else ""
    yield Tile(label="Best public score", value=f"{score:.5f}", note=f"{best.file}{rank}")
    for row, why in finalists(scored):
        cv = "-" if row.cv_clipped is None else f"{row.cv_clipped:.5f}"
        note = f"{why}: CV {cv}, public {score_text(row)}"
        yield Tile(label="Pick as final", value=row.file.removesuffix(".csv"), note=note)


def _charts(scored: Sequence[LedgerRow], board: Floats) -> Iterator[Chart]:
    if not scored:
        return
    public = np.array([row.public_score for row in scored], np.float64)
    pairs = [(row.cv_clipped, row.public_score) for row in scored if row.cv_clipped is not None]
    if pairs:
        yield _against(np.array(pairs, np.float64))
    yield _over_time(scored, public)
    if board.size:
        yield _on_board(public, board)


def fitted_line(x: Floats, y: Floats, at: Floats) -> tuple[Floats, Floats]:
    """Least squares of `y` on `x` at `at`, and half the 95 % interval of the line there."""
    from scipy.special import stdtrit

    n, spread = len(x), ((x - x.mean()) ** 2).sum()
    slope = ((x - x.mean()) * y).sum() / spread
    line = y.mean() + slope * (at - x.mean())
    variance = ((y - y.mean() - slope * (x - x.mean())) ** 2).sum() / (n - 2)
    error = np.sqrt(variance * (1 / n + (at - x.mean()) ** 2 / spread))
    return line, stdtrit(n - 2, 0.975) * error


def _against(pairs: Floats) -> Chart:
    x, y = pairs.T
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
    return Chart(
        title="Cross-validation against public score",
        sentence=f"{words}.",
        svg=drawing.svg(),
        columns=("cross-validation", "public score"),
        rows=[(f"{a:.5f}", f"{b:.5f}") for a, b in pairs],
    )


def _over_time(scored: Sequence[LedgerRow], public: Floats) -> Chart:
    n, best = np.arange(1, len(public) + 1), np.minimum.accumulate(public)
    drawing = Drawing("time")
    (axes,) = drawing.axes
    axes.step(n, best, where="post", color=BLUE, label="best so far")
    axes.plot(n, public, "o", color=ORANGE, label="each")
    axes.set(xlabel="submission", ylabel="public score")
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    drawing.legend()
    return Chart(
        title="Over time",
        sentence=f"Public scores in order; the best of {len(public)} is {best[-1]:.5f}.",
        svg=drawing.svg(),
        columns=("when", "public score", "best so far"),
        rows=[
            (row.when, f"{score:.5f}", f"{least:.5f}")
            for row, score, least in zip(scored, public, best, strict=True)
        ],
    )


def _on_board(public: Floats, board: Floats) -> Chart:
    places = ranks(public, board)
    drawing = Drawing("board")
    (axes,) = drawing.axes
    axes.plot(np.arange(1, board.size + 1), board, color=MUTED)
    axes.plot(places, public, "o", color=ORANGE, label="own submissions")
    low = min(board[0], public.min())
    make_logarithmic(axes.xaxis, axes.yaxis)
    axes.set(xlabel="rank", ylabel="score", ylim=(0.8 * low, 1.0))
    axes.legend()
    marks = [rank for rank in BOARD_MARKS if rank <= board.size]
    return Chart(
        title="On the archived leaderboard",
        sentence=f"Scores of {board.size:,} teams by rank; own submissions are at rank"
        f" {places.min():,} at best.",
        svg=drawing.svg(),
        columns=("rank", "score"),
        rows=[*((f"{rank:,}", f"{board[rank - 1]:.5f}") for rank in marks)]
        + [(f"own, {rank:,}", f"{score:.5f}") for rank, score in zip(places, public, strict=True)],
    )
