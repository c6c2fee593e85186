"""What a run will score, before it costs a submission.

A board is drawn many times over, as it might be: a noise rate from what is believed of it; photos, near-duplicates together, from the
out-of-fold photos, which are themselves but a sample; a share of their labels flipped. Every draw scores the new run and the runs that
have a score already on one and the same board. What the real board said of those then corrects both the noise rate and the forecast:
each draw is moved by the regression on its distance from the scores seen (Beaumont et al. 2002), so that a few scores shrink the belief
towards them by as much as they can tell. Only means over the whole test set are ever used, never a single test label.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from comp.board import archived_scores, ranks
from comp.competition import Competition
from comp.data.manifest import read_manifest
from comp.errors import UserError
from comp.metric import Floats, per_photo_loss
from comp.predict.compare import groups_of, side_by_side
from comp.predict.runs import FinishedRun, read_run
from comp.progress import Reporter
from comp.store import Workspace
from comp.submit.ledger import LedgerRow, read_ledger

N_DRAWS = 2000
N_PAIRS = 20  # latest scores that are learnt from
LEVEL = 0.9
MISFIT = 0.03  # share of a score by which it strays from its run's out-of-fold photos: five heads averaged scored 3 to 4 % below one


@dataclass(frozen=True, slots=True, kw_only=True)
class Guess:
    """What is believed of a number: its mean, its spread (one standard deviation) and its central 90 %."""

    mean: float
    spread: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.5f} ({self.low:.5f} to {self.high:.5f})"


def guess(draws: Floats) -> Guess:
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Guess(
        mean=float(draws.mean()), spread=float(draws.std()), low=float(low), high=float(high)
    )


def rate_draws(mean: float, spread: float, n_draws: int, seed: int) -> Floats:
    """Noise rates from the Beta distribution with this mean and standard deviation; all `mean` where there is no spread."""
    if not (mean and spread):
        return np.full(n_draws, mean)
    strength = mean * (1 - mean) / spread**2 - 1
    return np.random.default_rng(seed).beta(mean * strength, (1 - mean) * strength, n_draws)


def board_draws(
    labels: Floats, probs: Floats, groups: ArrayLike, rates: Floats, *, n_test: int, seed: int
) -> Floats:
    """Scores [draws, m] of `probs [n, m]` on boards of about `n_test` photos, one for each noise rate of `rates [draws]`.

    `probs` are what would be submitted of out-of-fold photos with `labels [n]`, cross-fitted.
    """
    right, wrong = (per_photo_loss(truth, probs.T) for truth in (labels, 1 - labels))
    index = np.unique(np.asarray(groups), return_inverse=True)[1]
    sums = np.stack([np.bincount(index, losses) for losses in right])
    sizes, extra = np.bincount(index), wrong - right
    n_drawn = max(1, round(n_test / sizes.mean()))  # groups
    rng = np.random.default_rng(seed)
    scores = np.empty((rates.size, probs.shape[1]))
    for draw, rate in enumerate(rates):
        world = rng.integers(
            sizes.size, size=sizes.size
        )  # the photos in hand are one sample; this is another
        board = world[rng.integers(sizes.size, size=n_drawn)]
        n = sizes[board].sum()
        flipped = rng.integers(labels.size, size=rng.binomial(n, rate))
        scores[draw] = (sums[:, board].sum(1) + extra[:, flipped].sum(1)) / n
    return scores * rng.normal(1, MISFIT, scores.shape)


def learnt(draws: Floats, known: Floats, scores: ArrayLike) -> Floats:
    """`draws [d, k]` moved to where the runs whose draws are `known [d, m]` have the `scores [m]` they really got."""
    away = np.asarray(scores, np.float64) - known
    centred = known - known.mean(0)
    slopes = np.linalg.lstsq(centred, draws - draws.mean(0), rcond=1e-9)[0]
    return np.asarray(draws + away @ slopes, np.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What a run will score, by what was drawn."""

    score: Guess
    noise_rate: Guess
    gain: Guess | None  # over the best score so far; None: there is none
    n_pairs: int  # scores learnt from

    @property
    def is_lost_in_noise(self) -> bool:
        """Whether the expected gain is less than one standard deviation of what is believed of it."""
        return self.gain is not None and self.gain.mean < self.gain.spread


def forecast(
    labels: Floats,
    probs: Floats,
    scores: Sequence[float],
    best: float | None,
    groups: ArrayLike,
    competition: Competition,
    n_test: int,
    n_draws: int = N_DRAWS,
) -> Forecast:
    """Of the run in the first column of `probs [n, 1 + m]`; the others have the `scores [m]`, and `best` is the least so far."""
    rates = rate_draws(competition.noise_rate, competition.noise_spread, n_draws, seed=1)
    drawn = board_draws(labels, probs, groups, rates, n_test=n_test, seed=2)
    believed = np.column_stack([drawn[:, 0], rates])
    if scores:
        believed = learnt(believed, drawn[:, 1:], scores)
    return Forecast(
        score=guess(believed[:, 0].clip(min=0)),
        noise_rate=guess(believed[:, 1].clip(min=0)),
        gain=None if best is None else guess(best - believed[:, 0]),
        n_pairs=len(scores),
    )


def show_forecast(
    workspace: Workspace, competition: Competition, run: FinishedRun, reporter: Reporter
) -> Forecast:
    """The forecast of a finished run, printed; a warning where its gain over the best submission is less than its own spread."""
    rows = [row for row in read_ledger(workspace.ledger).rows if row.file != f"{run.folder}.csv"]
    scored = [(row, row.public_score) for row in rows if row.public_score is not None]
    pairs, best = _pairs(workspace, run, scored), min((score for _, score in scored), default=None)
    photos, _ = side_by_side({run.folder: run.oof} | {past.folder: past.oof for past, _ in pairs})
    probs = np.column_stack(
        [each.out_of_fold_probs().loc[photos["id"]] for each in (run, *(past for past, _ in pairs))]
    )
    made = forecast(
        photos["label"].to_numpy(np.float64),
        probs,
        [score for _, score in pairs],
        best,
        groups_of(workspace, photos),
        competition,
        len(read_manifest(workspace.manifest("test"))),
    )
    _show(run, made, best, reporter)
    return made


def _pairs(
    workspace: Workspace, run: FinishedRun, scored: Sequence[tuple[LedgerRow, float]]
) -> list[tuple[FinishedRun, float]]:
    """The latest scored submissions whose runs are still here and hold the same photos as `run`, each run once."""
    pairs: dict[str, tuple[FinishedRun, float]] = {}
    for row, score in scored:
        try:
            past = read_run(workspace.runs / f"{row.recipe}-{row.fingerprint}")
            side_by_side({run.folder: run.oof, past.folder: past.oof})
        except UserError:
            continue
        pairs[past.folder] = (past, score)
    return list(pairs.values())[-N_PAIRS:]


def _show(run: FinishedRun, made: Forecast, best: float | None, reporter: Reporter) -> None:
    board = archived_scores()
    values = [made.score.mean, made.score.low, made.score.high]
    rank = ranks(values, board)
    rows = [
        ("public score", *values),
        (f"rank among {board.size:,}", *(f"{r:,}" for r in rank)),
        ("top", *(f"{min(r / board.size, 1):.1%}" for r in rank)),
    ]
    source = (
        f"{made.n_pairs} scores in the ledger" if made.n_pairs else "no score in the ledger yet"
    )
    reporter.table(f"forecast of {run.folder}", ("", "expected", "5 %", "95 %"), rows)
    reporter.say(f"noise rate of the board, by {source}: {made.noise_rate}")
    if made.n_pairs and not made.noise_rate.low <= run.settings.noise_rate <= made.noise_rate.high:
        reporter.say(
            f"this run is made for {run.settings.noise_rate:g}: SET=prediction.noise_rate={made.noise_rate.mean:.4f} fits better"
        )
    if made.gain is not None and made.is_lost_in_noise:
        reporter.warn(
            f"the expected gain over the best submission so far ({best:.5f}) is {made.gain.mean:+.5f}, "
            f"under its own noise of {made.gain.spread:.5f}: it may not be worth a slot"
        )
