"""The competition's metric, log loss, and how certain a mean of it is. numpy in float64."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from comp.errors import DataError

Floats = NDArray[np.float64]

# Kaggle's log loss keeps every probability this far from 0 and 1: no photo costs more than 34.5
BOARD_EPSILON = 1e-15
LEVEL = 0.95  # of an interval
N_DRAWS = 1000  # of a bootstrap
N_AT_ONCE = 50  # of them in memory


def sigmoid(logits: ArrayLike) -> Floats:
    return np.exp(-np.logaddexp(0.0, -np.asarray(logits, np.float64)))


def per_photo_loss(labels: ArrayLike, probs: ArrayLike) -> Floats:
    """Natural log loss of each photo, `[n]`, as Kaggle counts it: finite for 0 and 1 too."""
    truth = np.asarray(labels, np.float64)
    p = np.clip(np.asarray(probs, np.float64), BOARD_EPSILON, 1 - BOARD_EPSILON)
    return -truth * np.log(p) - (1 - truth) * np.log1p(-p)


def log_loss(labels: ArrayLike, probs: ArrayLike) -> float:
    """Mean of `per_photo_loss`; a label between 0 and 1 is an expectation over labels."""
    return float(per_photo_loss(labels, probs).mean())


def per_photo_logit_loss(labels: ArrayLike, logits: ArrayLike) -> Floats:
    """Natural log loss of each photo, `[n]`: exact where the probability would round to 0 or 1."""
    truth, z = np.asarray(labels, np.float64), np.asarray(logits, np.float64)
    return truth * np.logaddexp(0.0, -z) + (1 - truth) * np.logaddexp(0.0, z)


def logit_log_loss(labels: ArrayLike, logits: ArrayLike) -> float:
    return float(per_photo_logit_loss(labels, logits).mean())


def prior_logit(labels: ArrayLike) -> float:
    """The logit of P(positive) when nothing is known of a photo.

    Half a photo is added to each class, so that it is finite where there is only one.
    """
    truth = np.asarray(labels, np.float64)
    if not truth.size:
        raise DataError("no labels to take the prior from: look at data/train.csv")
    return float(np.log(truth.sum() + 0.5) - np.log((1 - truth).sum() + 0.5))


def bootstrap_interval(
    losses: ArrayLike, groups: ArrayLike, others: ArrayLike = 1.0, *, seed: int = 0
) -> tuple[float, float]:
    """The central LEVEL of mean(losses) / mean(others), both `[n]` of the same photos.

    `groups [n]` of near-duplicates are drawn whole: photos of one group are one observation, and
    drawing them singly makes the interval too narrow.
    """
    column = np.asarray(losses, np.float64)[:, None]
    return bootstrap_intervals(column, groups, others, seed=seed)[0]


def bootstrap_intervals(
    losses: Floats, groups: ArrayLike, others: ArrayLike = 1.0, *, seed: int = 0
) -> list[tuple[float, float]]:
    """The same of each column of `losses [n, m]`, all over the same draws."""
    if not losses.size:
        raise DataError("no losses to draw from: 0 photos; run `make train` first")
    index = np.unique(np.asarray(groups), return_inverse=True)[1]
    columns = [*losses.T, np.broadcast_to(np.asarray(others, np.float64), len(losses))]
    sums = np.stack([np.bincount(index, column) for column in columns], axis=1)  # [groups, m + 1]
    n_groups, rng = len(sums), np.random.default_rng(seed)
    totals = np.empty((N_DRAWS, len(columns)))
    for start in range(0, N_DRAWS, N_AT_ONCE):
        draws = [rng.integers(n_groups, size=n_groups) for _ in range(start, start + N_AT_ONCE)]
        counts = np.stack([np.bincount(drawn, minlength=n_groups) for drawn in draws])
        totals[start : start + N_AT_ONCE] = counts.astype(np.float64) @ sums
    ends = np.quantile(totals[:, :-1] / totals[:, -1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return [(float(low), float(high)) for low, high in ends.T]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """A mean difference of log loss, positive for an improvement, with its 95 % interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:+.5f} ({self.low:+.5f} to {self.high:+.5f})"


def gain(worse: Floats, better: Floats, groups: ArrayLike) -> Gain:
    """What the losses `better [n]` save of `worse [n]`, photo by photo."""
    return gains(worse, better[:, None], groups)[0]


def gains(worse: Floats, better: Floats, groups: ArrayLike) -> list[Gain]:
    """The same for each column of `better [n, m]`."""
    saved = worse[:, None] - better
    ends = bootstrap_intervals(saved, groups)
    means = saved.mean(axis=0).tolist()
    return [Gain(mean=mean, low=a, high=b) for mean, (a, b) in zip(means, ends, strict=True)]
