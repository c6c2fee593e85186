"""Out-of-fold logits -> probabilities for a noisy leaderboard, and their honest losses.

1. p = f(logit), where f rises, is fitted on out-of-fold logits and is one of

    none         sigmoid(z)
    temperature  sigmoid(z / T)                                          Guo et al. 2017, 4.2
    platt        sigmoid(a z + c)                                        Platt 1999
    beta         sigmoid(a ln q - b ln(1 - q) + c), with q = sigmoid(z)  Kull et al. 2017
    isotonic     the rising steps closest to the labels                  Zadrozny and Elkan 2002

   The first four are one curve: beta's, with a = b for Platt, c = 0 for a temperature, and
   a = b = 1 for none.
2. p' = p (1 - r) + (1 - p) r: a share r of the leaderboard's labels contradicts any model.
3. p' is clipped, which limits what one label may cost. With r = .004 the clip of .005 changes
   little; it is insurance, because r is known to about .001 only.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field

from comp.competition import Competition
from comp.errors import DataError, TrainingError
from comp.metric import (
    Floats,
    log_loss,
    logit_log_loss,
    per_photo_logit_loss,
    per_photo_loss,
    sigmoid,
)
from comp.options import Options
from comp.progress import counted
from comp.recipe import Method, Prediction

# Where a fit stops: logits that separate the classes send T to 0, misleading ones to infinity, and
# neither says how far to go.
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0
MAX_NEWTON = 100  # steps


class Settings(Options):
    """What is chosen of a calibration; the rest is fitted."""

    method: Method = "temperature"
    noise_rate: float = Field(ge=0, lt=0.5)  # share of the leaderboard's labels that are flipped
    clip: float = Field(ge=0, lt=0.5)  # probabilities stay in [clip, 1 - clip]

    def finish(self, probs: Floats) -> Floats:
        """What to submit for calibrated `probs`."""
        return np.clip(with_flips(probs, self.noise_rate), self.clip, 1 - self.clip)


def settings_of(prediction: Prediction, competition: Competition) -> Settings:
    """The recipe's settings; the noise rate is the competition's unless the recipe has one."""
    rate = competition.noise_rate if prediction.noise_rate is None else prediction.noise_rate
    return Settings(method=prediction.calibration, noise_rate=rate, clip=prediction.clip)


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """What the first four methods fit. A temperature T is `below` = `above` = 1 / T."""

    below: float  # > 0: slope of the calibrated logit where the raw one is far below 0
    above: float  # > 0: where it is far above
    shift: float = 0.0

    def __str__(self) -> str:
        shift = f", shift {self.shift:.3f}"
        if self.below == self.above:
            return f"temperature {1 / self.above:.3f}" + shift * bool(self.shift)
        return f"slopes {self.below:.3f} and {self.above:.3f}" + shift

    def probs(self, logits: ArrayLike) -> Floats:
        z = np.asarray(logits, np.float64)
        above, below = self.above * np.logaddexp(0, z), self.below * np.logaddexp(0, -z)
        return sigmoid(above - below + self.shift)


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """What isotonic regression fits: straight lines between knots, constant beyond the last."""

    logits: tuple[float, ...]  # rising
    levels: tuple[float, ...]  # the probability at each

    def __str__(self) -> str:
        return counted(len(set(self.levels)), "step")

    def probs(self, logits: ArrayLike) -> Floats:
        return np.interp(np.asarray(logits, np.float64), self.logits, self.levels)


def fit_curve(method: Method, logits: ArrayLike, labels: ArrayLike) -> Curve | Steps:
    """The curve of `method` with the least log loss; for isotonic, the least squared error.

    `logits [n]` are out-of-fold and raw, `labels [n]` 0 or 1. TrainingError if logits are alike.
    """
    z, truth = np.asarray(logits, np.float64), np.asarray(labels, np.float64)
    if not z.size or np.ptp(z) == 0:
        what = f"all {z.size:,} are {z[0]:.5g}" if z.size else "there are none"
        raise TrainingError(
            f"out-of-fold logits cannot be calibrated: {what}; the model has learnt nothing, look"
            " at the run's losses and train longer"
        )
    if method == "none":
        return Curve(below=1.0, above=1.0)
    if method == "temperature":
        slope = 1 / _fit_temperature(z, truth)
        return Curve(below=slope, above=slope)
    if method == "isotonic":
        return _fit_steps(z, truth)
    return _fit_slopes(z, truth, is_symmetric=method == "platt")


def _fit_temperature(z: Floats, truth: Floats) -> float:
    """The T at which sigmoid(z / T) has the least log loss, which is convex in 1 / T."""
    margins = np.where(truth > 0.5, z, -z)  # positive where the photo is on its own side
    low, high = np.log(MIN_TEMPERATURE), np.log(MAX_TEMPERATURE)
    for _ in range(48):  # halvings of a range of 6: as exact as float64
        middle = (low + high) / 2
        # not a dot product: BLAS threads take 100 times as long
        is_too_low = (margins * sigmoid(-margins / np.exp(middle))).sum() < 0
        low, high = (middle, high) if is_too_low else (low, middle)
    return float(np.exp((low + high) / 2))


def _fit_slopes(z: Floats, truth: Floats, *, is_symmetric: bool) -> Curve:
    """Platt's curve or beta's, by Newton's method with halved steps.

    Each parameter is pulled to that of "none", so that separable classes have an optimum too.
    """
    columns = [z] if is_symmetric else [-np.logaddexp(0, -z), np.logaddexp(0, z)]
    x = np.column_stack([*columns, np.ones_like(z)])
    start = np.array([1.0] * len(columns) + [0.0])

    def loss(at: Floats) -> float:
        return float(per_photo_logit_loss(truth, x @ at).sum() + ((at - start) ** 2).sum() / 2)

    at = start
    for _ in range(MAX_NEWTON):
        p = sigmoid(x @ at)
        hessian = (x * (p * (1 - p))[:, None]).T @ x + np.eye(start.size)
        step = np.linalg.solve(hessian, x.T @ (p - truth) + at - start)
        while loss(at - step) > loss(at) and np.abs(step).max() > 1e-9:
            step = step / 2
        at = at - step
        if np.abs(step).max() <= 1e-9:
            break
    below, above = np.clip([at[0], at[-2]], 1 / MAX_TEMPERATURE, 1 / MIN_TEMPERATURE)
    return Curve(below=float(below), above=float(above), shift=float(at[-1]))


def _fit_steps(z: Floats, truth: Floats) -> Steps:
    """Isotonic regression. Levels stay 1 / (n + 2) off 0 and 1: n photos cannot prove more."""
    from scipy.optimize import isotonic_regression

    distinct, place = np.unique(z, return_inverse=True)
    counts = np.bincount(place)
    found = isotonic_regression(np.bincount(place, truth) / counts, weights=counts)
    ends = np.union1d(found.blocks[:-1], found.blocks[1:] - 1)  # the first and last of each step
    lowest = 1 / (z.size + 2)
    levels = found.x[ends].clip(lowest, 1 - lowest)
    return Steps(logits=tuple(distinct[ends].tolist()), levels=tuple(levels.tolist()))


def with_flips(probs: Floats, noise_rate: float) -> Floats:
    """P(the label is positive) if a share `noise_rate` of the labels is flipped."""
    return probs * (1 - noise_rate) + (1 - probs) * noise_rate


def over_folds(folds: ArrayLike, score: Callable[[NDArray[np.bool_]], Floats]) -> Floats:
    """`score(held_out [n])` of each fold, put together; DataError if there is only one fold."""
    fold = np.asarray(folds, np.float64)
    numbers = np.unique(fold)
    if numbers.size < 2:
        raise DataError(
            f"a calibration needs 2 or more fitted folds, got {numbers.size}: set folds.fit=2, or"
            " prediction.calibration=none"
        )
    values = np.empty(fold.shape)
    for number in numbers:
        values[fold == number] = score(fold == number)
    return values


def cross_fitted(
    logits: ArrayLike, labels: ArrayLike, folds: ArrayLike, settings: Settings
) -> Floats:
    """Probabilities [n] to submit; those of each fold are calibrated on the other folds."""
    z, truth = np.asarray(logits, np.float64), np.asarray(labels)

    def calibrated(held_out: NDArray[np.bool_]) -> Floats:
        curve = fit_curve(settings.method, z[~held_out], truth[~held_out])
        return settings.finish(curve.probs(z[held_out]))

    if settings.method == "none":  # one fold is enough: nothing is fitted
        return settings.finish(fit_curve("none", z, truth).probs(z))
    return over_folds(folds, calibrated)


def out_of_fold_losses(
    logits: ArrayLike, labels: ArrayLike, folds: ArrayLike, settings: Settings
) -> dict[str, float]:
    """Mean log loss of out-of-fold photos.

    cv_raw         of sigmoid(logit)
    cv_calibrated  of cross-fitted probabilities, without noise rate and clip
    cv_clipped     with them, on labels that are cleaner than the leaderboard's
    """
    plain = cross_fitted(logits, labels, folds, settings.replace(noise_rate=0.0, clip=0.0))
    return {
        "cv_raw": logit_log_loss(labels, logits),
        "cv_calibrated": log_loss(labels, plain),
        "cv_clipped": log_loss(labels, settings.finish(plain)),
    }


def board_losses(truth: ArrayLike, probs: ArrayLike, noise_rate: float) -> Floats:
    """Expected log loss of each photo, [n], on a leaderboard with that share of flipped labels.

    `truth [n]` is P(positive) before the flips: labels, or calibrated probabilities. A clip is
    chosen by the mean of this; the best clip for unflipped labels is too small for the leaderboard.
    """
    return per_photo_loss(with_flips(np.asarray(truth, np.float64), noise_rate), probs)
