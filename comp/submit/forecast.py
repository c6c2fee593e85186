"""What a run will score, estimated before a submission is spent on it.

Two things about the test photos are unknown: the share of flipped labels, and how hard the photos
are compared with the training photos. Both are drawn many times from a prior. For each draw, the
scores of the new run and of all runs that have a real score are taken as jointly log-normal; mean
and covariance come from the out-of-fold losses, with near-duplicates kept together. The real scores
weight the draws by likelihood and condition the new score. Only means over the whole test set are
used, never a single test label.
"""

from collections.abc import Sequence
from contextlib import suppress
from operator import itemgetter
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from comp.competition import Competition
from comp.data.manifest import read_manifest
from comp.errors import UserError
from comp.metric import BOARD_EPSILON, Floats, per_photo_loss
from comp.predict.compare import groups_of, side_by_side
from comp.predict.runs import FinishedRun, check_current, read_run
from comp.progress import Reporter, counted
from comp.store import Workspace
from comp.submit.leaderboard import archived_scores, ranks
from comp.submit.ledger import LedgerRow, read_ledger, score_text

N_DRAWS = 4000
N_PAIRS = 20  # latest scores that are used
# The belief about label noise may be wrong: with probability DOUBT the rate is MAX_RATE * u^3
# instead, with u uniform on [0, 1], which includes clean labels.
DOUBT, MAX_RATE = 0.5, 0.01
# Standard deviation of ln(loss of hidden photos / loss out of fold). Seven runs scored on 1,000 to
# 5,000 hidden photos had +.07 to +.50, root mean square .26, chance included.
HARDNESS = 0.25
# Relative deviation of a score from its expectation, one standard deviation: the average of five
# heads scored 3 to 4 % below a single one.
MISFIT = 0.03


class Estimate(NamedTuple):
    """Mean, standard deviation and central 90 % of a distribution."""

    mean: float
    spread: float
    low: float
    high: float


def summarize(draws: Floats) -> Estimate:
    low, high = np.quantile(draws, [0.05, 0.95]).tolist()
    return Estimate(float(draws.mean()), float(draws.std()), low, high)


def draw_noise_rates(mean: float, spread: float, n_draws: int, seed: int) -> Floats:
    """From the Beta distribution with this mean and standard deviation; constant if either is 0."""
    if not (mean and spread):
        return np.full(n_draws, mean)
    strength = mean * (1 - mean) / spread**2 - 1
    return np.random.default_rng(seed).beta(mean * strength, (1 - mean) * strength, n_draws)


def score_moments(
    labels: Floats, probs: Floats, groups: ArrayLike, flipped: Floats, hardness: Floats, n_test: int
) -> tuple[Floats, Floats]:
    """Means [d, m] and covariances [d, m, m] of the scores of `probs [n, m]` on leaderboards.

    `probs` are cross-fitted probabilities, as submitted, of the out-of-fold photos with
    `labels [n]` and near-duplicate `groups [n]`, which are themselves only a sample. A leaderboard
    has `n_test` photos, a share `flipped [d]` of wrong labels, and `hardness [d]`, which multiplies
    what the losses exceed the least possible by; a run's clip and noise rate set that for all.
    """
    correct, wrong = (per_photo_loss(truth, probs.T) for truth in (labels, 1 - labels))
    least, extra = correct.min(1, keepdims=True), wrong - correct
    above = correct - least
    mean = above.mean(1, keepdims=True)
    index = np.unique(np.asarray(groups), return_inverse=True)[1]
    sums = np.stack([np.bincount(index, losses) for losses in above - mean])
    one_photo, one_flip = sums @ sums.T / labels.size, np.atleast_2d(np.cov(extra))
    means = least.T + hardness[:, None] * mean.T + flipped[:, None] * extra.mean(1)
    share = hardness**2 * (1 / n_test + 1 / labels.size)
    flips = np.multiply.outer(flipped / n_test, one_flip)
    return means, np.multiply.outer(share, one_photo) + flips


def condition(
    means: Floats, covariances: Floats, scores: ArrayLike
) -> tuple[Floats, Floats, Floats]:
    """Log-likelihood [d] of `scores [m]`; given them, mean and deviation [d] of the new log score.

    `means [d, 1 + m]` and `covariances [d, 1 + m, 1 + m]` have the new run first.
    """
    n_runs = means.shape[1]
    spread = covariances / (means[:, :, None] * means[:, None]) + MISFIT**2 * np.eye(n_runs)
    logs = np.log(means) - np.diagonal(spread, axis1=1, axis2=2) / 2
    away = np.log(np.maximum(scores, BOARD_EPSILON)) - logs[:, 1:]
    cross, inner = spread[:, 0, 1:], spread[:, 1:, 1:]
    solved = np.linalg.solve(inner, np.stack([away, cross], axis=2))
    by_away, by_cross = solved[:, :, 0], solved[:, :, 1]
    likelihood = -((away * by_away).sum(1) + np.linalg.slogdet(inner)[1]) / 2
    variance = spread[:, 0, 0] - (cross * by_cross).sum(1)
    return likelihood, logs[:, 0] + (cross * by_away).sum(1), np.sqrt(variance)


class Forecast(NamedTuple):
    """Expected score of a run."""

    score: Estimate
    noise_rate: Estimate
    hardness: Estimate  # losses of test photos, as a multiple of those out of fold
    gap: float  # mean of the scores that it uses, minus the same runs' out of fold; 0 if none
    gain: Estimate | None  # over the best score so far; None if there is none
    n_pairs: int  # scores that it uses


def forecast(
    labels: Floats,
    probs: Floats,
    scores: Sequence[float],
    best: float | None,  # score so far, of any run
    groups: ArrayLike,
    competition: Competition,
    n_test: int,
) -> Forecast:
    """Forecast of the first run of `probs [n, 1 + m]`; the others have `scores [m]`."""
    rng = np.random.default_rng(0)
    believed = draw_noise_rates(competition.noise_rate, competition.noise_spread, N_DRAWS, seed=1)
    rates = np.where(rng.random(N_DRAWS) < DOUBT, MAX_RATE * rng.random(N_DRAWS) ** 3, believed)
    hardness = np.exp(rng.normal(0, HARDNESS, N_DRAWS))
    flipped = rng.binomial(n_test, rates) / n_test
    means, covariances = score_moments(labels, probs, groups, flipped, hardness, n_test)
    likelihood, log_mean, deviation = condition(means, covariances, scores)
    weights = np.exp(likelihood - likelihood.max())
    drawn = rng.choice(N_DRAWS, N_DRAWS, p=weights / weights.sum())
    least = per_photo_loss(labels, probs[:, 0]).min()
    draws = np.exp(rng.normal(log_mean[drawn], deviation[drawn])).clip(min=least)
    return Forecast(
        score=summarize(draws),
        noise_rate=summarize(rates[drawn]),
        hardness=summarize(hardness[drawn]),
        gap=float(np.mean(scores) - per_photo_loss(labels, probs.T[1:]).mean()) if scores else 0.0,
        gain=None if best is None else summarize(best - draws),
        n_pairs=len(scores),
    )


def forecast_run(
    workspace: Workspace, competition: Competition, run: FinishedRun
) -> tuple[Forecast, LedgerRow | None]:
    """The forecast of a finished run, and the best submission so far of any other."""
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


def print_forecast(
    workspace: Workspace, competition: Competition, run: FinishedRun, reporter: Reporter
) -> Forecast:
    """The forecast of a finished run; warns if it may not be better than the best submission."""
    made, best_row = forecast_run(workspace, competition, run)
    board, score = archived_scores(competition), made.score
    values = [score.mean, score.low, score.high]
    rows: list[tuple[object, ...]] = [("public score", *values)]
    if board.size:
        places = ranks(values, board)
        rows.append((f"rank among {board.size:,}", *(f"{rank:,}" for rank in places)))
        rows.append(("top", *(f"{min(100 * rank / board.size, 100):.1f} %" for rank in places)))
    reporter.table(f"forecast of {run.folder}", ("", "expected", "5 %", "95 %"), rows)
    _explain(competition, run.figures.noise_rate, made, reporter)
    if best_row and made.gain:
        gain, best = made.gain, f"your best ({score_text(best_row)})"
        if gain.mean < 0:
            reporter.warn(f"expected to be worse than {best}, by {-gain.mean:.5f}")
        elif gain.mean < gain.spread:
            reporter.warn(
                f"expected to be better than {best} by {gain.mean:.5f}, less than the standard"
                f" deviation of {gain.spread:.5f}: it may not be worth a submission"
            )
    return made


def _explain(competition: Competition, own: float, made: Forecast, reporter: Reporter) -> None:
    """What the forecast assumes of the test photos, or has learnt of them from scores."""
    n, rate, hard = made.n_pairs, made.noise_rate, made.hardness
    interval = f"{rate.low:.2%} to {rate.high:.2%}"
    harder = f"test photos {hard.low:.2f} to {hard.high:.2f} times as hard as the training photos"
    if not n:
        which = "no scores yet" if made.gain is None else "no score of a run on the same photos yet"
        believed = f"assumed label noise {competition.noise_rate:.2%} (prior; {which})"
        reporter.say(f"{believed}; the forecast allows for {interval}, and for {harder}")
        return
    estimate = f"label noise {rate.mean:.2%} ({interval}), estimated from"
    reporter.say(f"{estimate} {counted(n, 'score')}; {harder}")
    if made.gap > 0:
        reporter.say(
            f"scores are {made.gap:.5f} higher than out of fold, because of label noise or harder"
            " photos: the score of a much weaker run tells which"
        )
    if not rate.low <= own <= rate.high:
        reporter.say(
            f"this run assumes label noise of {own:.2%}:"
            f" SET=prediction.noise_rate={rate.mean:.4f} fits the scores better"
        )
