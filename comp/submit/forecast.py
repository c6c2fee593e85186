"""What a run will score, estimated before a submission is spent on it.

The leaderboard is simulated many times: a label-noise rate is drawn from the prior; photos are
drawn from the out-of-fold photos, near-duplicates together, and those are themselves only a
sample; some of the labels are flipped. Each simulation scores the new run and all runs that have
a real score on the same leaderboard. The real scores then correct the noise rate and the forecast
by regression adjustment (Beaumont et al. 2002): each draw moves by the regression on its distance
from the real scores, so that a few scores narrow the prior only as far as they are informative.
Only means over the whole test set are used, never a single test label.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from operator import itemgetter

import numpy as np
from numpy.typing import ArrayLike

from comp.competition import Competition
from comp.data.manifest import read_manifest
from comp.errors import UserError
from comp.metric import Floats, per_photo_loss
from comp.predict.compare import groups_of, side_by_side
from comp.predict.runs import FinishedRun, check_current, read_run
from comp.progress import Reporter, counted
from comp.store import Workspace
from comp.submit.leaderboard import archived_scores, ranks
from comp.submit.ledger import LedgerRow, read_ledger, score_text

N_DRAWS = 2000
N_PAIRS = 20  # latest scores that are used
# Relative deviation of a score from its simulation, one standard deviation: the average of five
# heads scored 3 to 4 % below a single one.
MISFIT = 0.03


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Mean, standard deviation and central 90 % of a distribution."""

    mean: float
    spread: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.5f} ({self.low:.5f} to {self.high:.5f})"


def summarize(draws: Floats) -> Estimate:
    low, high = np.quantile(draws, [0.05, 0.95]).tolist()
    return Estimate(mean=float(draws.mean()), spread=float(draws.std()), low=low, high=high)


def draw_noise_rates(mean: float, spread: float, n_draws: int, seed: int) -> Floats:
    """From the Beta distribution with this mean and standard deviation; constant if either is 0."""
    if not (mean and spread):
        return np.full(n_draws, mean)
    strength = mean * (1 - mean) / spread**2 - 1
    return np.random.default_rng(seed).beta(mean * strength, (1 - mean) * strength, n_draws)


def draw_scores(
    labels: Floats, probs: Floats, groups: ArrayLike, rates: Floats, *, n_test: int, seed: int
) -> Floats:
    """Scores [draws, m] of `probs [n, m]` on simulated leaderboards, one for each of `rates`.

    `probs` are cross-fitted probabilities, as submitted, of the out-of-fold photos with
    `labels [n]` and near-duplicate `groups [n]`. Each leaderboard has about `n_test` photos.
    """
    correct, wrong = (per_photo_loss(truth, probs.T) for truth in (labels, 1 - labels))
    index = np.unique(np.asarray(groups), return_inverse=True)[1]
    sums = np.stack([np.bincount(index, losses) for losses in correct])
    sizes, extra = np.bincount(index), wrong - correct
    n_drawn = max(1, round(n_test / sizes.mean()))  # groups
    rng = np.random.default_rng(seed)
    scores = np.empty((rates.size, probs.shape[1]))
    for draw, rate in enumerate(rates):
        sample = rng.integers(sizes.size, size=sizes.size)  # the photos are only one sample
        board = sample[rng.integers(sizes.size, size=n_drawn)]
        n = sizes[board].sum()
        flipped = rng.integers(labels.size, size=rng.binomial(n, rate))
        scores[draw] = (sums[:, board].sum(1) + extra[:, flipped].sum(1)) / n
    return scores * rng.normal(1, MISFIT, scores.shape)


def adjust(draws: Floats, simulated: Floats, scores: ArrayLike) -> Floats:
    """`draws [d, k]` given the real `scores [m]` of runs that were `simulated [d, m]` with them."""
    away = np.asarray(scores, np.float64) - simulated
    centred = simulated - simulated.mean(0)
    slopes = np.linalg.lstsq(centred, draws - draws.mean(0), rcond=1e-9)[0]
    return np.asarray(draws + away @ slopes, np.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """Expected score of a run."""

    score: Estimate
    noise_rate: Estimate
    gain: Estimate | None  # over the best score so far; None if there is none
    n_pairs: int  # scores that it uses


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
    """Forecast of the run in the first column of `probs [n, 1 + m]`; the others have `scores [m]`.

    `best` is the best score so far, of any run.
    """
    rates = draw_noise_rates(competition.noise_rate, competition.noise_spread, n_draws, seed=1)
    simulated = draw_scores(labels, probs, groups, rates, n_test=n_test, seed=2)
    draws = np.column_stack([simulated[:, 0], rates])
    if scores:
        draws = adjust(draws, simulated[:, 1:], scores)
    return Forecast(
        score=summarize(draws[:, 0].clip(min=0)),
        noise_rate=summarize(draws[:, 1].clip(min=0)),
        gain=None if best is None else summarize(best - draws[:, 0]),
        n_pairs=len(scores),
    )


def forecast_run(
    workspace: Workspace, competition: Competition, run: FinishedRun
) -> tuple[Forecast, LedgerRow | None]:
    """The forecast of a finished run, and the best submission so far of any other.

    StaleError for a run of photos that are not in `workspace`.
    """
    check_current(workspace, run)
    rows = [row for row in read_ledger(workspace.ledger) if row.file != f"{run.folder}.csv"]
    scored = [(row, row.public_score) for row in rows if row.public_score is not None]
    best_row, best = min(scored, key=itemgetter(1), default=(None, None))
    pairs = _comparable(workspace, run, scored)
    runs = [run, *(past for past, _ in pairs)]
    photos, _ = side_by_side({each.folder: each.oof for each in runs})
    made = forecast(
        photos["label"].to_numpy(np.float64),
        np.column_stack([each.out_of_fold_probs().loc[photos["id"]] for each in runs]),
        [score for _, score in pairs],
        best,
        groups_of(workspace, photos),
        competition,
        len(read_manifest(workspace.manifest("test"))),
    )
    return made, best_row


def print_forecast(
    workspace: Workspace, competition: Competition, run: FinishedRun, reporter: Reporter
) -> Forecast:
    """The forecast of a finished run; warns if it may not be better than the best submission."""
    made, best_row = forecast_run(workspace, competition, run)
    _print_table(competition, run, made, reporter)
    if best_row and made.gain:
        _warn_if_no_gain(made.gain, score_text(best_row), reporter)
    return made


def _warn_if_no_gain(gain: Estimate, best: str, reporter: Reporter) -> None:
    if gain.mean < 0:
        reporter.warn(f"expected to be worse than your best ({best}), by {-gain.mean:.5f}")
    elif gain.mean < gain.spread:
        reporter.warn(
            f"expected to be better than your best ({best}) by {gain.mean:.5f}, less than the"
            f" standard deviation of {gain.spread:.5f}: it may not be worth a submission"
        )


def _comparable(
    workspace: Workspace, run: FinishedRun, scored: Sequence[tuple[LedgerRow, float]]
) -> list[tuple[FinishedRun, float]]:
    """The latest scored runs that are still on disk and have the photos of `run`, each once."""
    pairs = {}
    for row, score in scored:
        with suppress(UserError):
            past = read_run(workspace.runs / f"{row.recipe}-{row.fingerprint}")
            side_by_side({run.folder: run.oof, past.folder: past.oof})
            pairs[past.folder] = (past, score)
    return list(pairs.values())[-N_PAIRS:]


def _print_table(
    competition: Competition, run: FinishedRun, made: Forecast, reporter: Reporter
) -> None:
    board = archived_scores(competition)
    values = [made.score.mean, made.score.low, made.score.high]
    rows: list[tuple[object, ...]] = [("public score", *values)]
    if board.size:
        places = ranks(values, board)
        rows.append((f"rank among {board.size:,}", *(f"{rank:,}" for rank in places)))
        rows.append(("top", *(f"{min(100 * rank / board.size, 100):.1f} %" for rank in places)))
    reporter.table(f"forecast of {run.folder}", ("", "expected", "5 %", "95 %"), rows)
    n, own, rate = made.n_pairs, run.settings.noise_rate, made.noise_rate
    if not n:
        which = "no scores yet" if made.gain is None else "no score of a run on the same photos yet"
        reporter.say(f"assumed label noise {_percent(rate.mean)} (prior; {which})")
        return
    interval = f"{_percent(rate.mean)} ({_percent(rate.low)} to {_percent(rate.high)})"
    reporter.say(f"label noise {interval}, estimated from {counted(n, 'score')}")
    if not rate.low <= own <= rate.high:
        reporter.say(
            f"this run assumes label noise of {_percent(own)}:"
            f" SET=prediction.noise_rate={rate.mean:.4f} fits the scores better"
        )


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"
