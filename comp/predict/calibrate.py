"""Out-of-fold logits -> a temperature, honest losses, and the probabilities that a noisy board rewards. numpy in float64, nothing else.

Three steps lie between a logit and the number that is submitted: p = sigmoid(logit / T), with T fitted on out-of-fold logits;
p' = p (1 - r) + (1 - p) r, because a share r of the board's labels contradicts any confident model; and the clip, the last word
on what one label may cost.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from comp.errors import DataError, RecipeError, TrainingError
from comp.metric import Floats, log_loss, logit_log_loss, sigmoid

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0
"""Where a fit stops: logits that separate the classes send T to 0, logits that mislead to infinity, and neither says how far to go."""


def fit_temperature(logits: ArrayLike, labels: ArrayLike) -> float:
    """The T at which sigmoid(logits / T) has the least log loss, kept within `MIN_TEMPERATURE` and `MAX_TEMPERATURE`.

    `logits [n]` out-of-fold and raw. The loss is convex in 1/T, so the sign of its slope says on which side the least lies.
    Source: Guo et al. 2017, section 4.2.
    """
    z, truth = _checked(logits, labels)
    margins = np.where(truth > 0.5, z, -z)  # positive where the photo is on its own side

    def rising(temperature: float) -> bool:
        """Whether the loss grows with 1/T here, that is, whether the best T is larger."""
        return bool((margins * sigmoid(-margins / temperature)).sum() < 0)  # not a dot product: BLAS threads take 100 times as long

    if not rising(MIN_TEMPERATURE):
        return MIN_TEMPERATURE
    if rising(MAX_TEMPERATURE):
        return MAX_TEMPERATURE
    low, high = np.log(MIN_TEMPERATURE), np.log(MAX_TEMPERATURE)
    for _ in range(48):  # halvings of a range of 6: as exact as float64
        middle = (low + high) / 2
        low, high = (middle, high) if rising(float(np.exp(middle))) else (low, middle)
    return float(np.exp((low + high) / 2))


def _checked(logits: ArrayLike, labels: ArrayLike) -> tuple[Floats, Floats]:
    z, truth = np.asarray(logits, np.float64), np.asarray(labels, np.float64)
    n_strange, n_odd = np.count_nonzero(~np.isfinite(z)), np.count_nonzero((truth != 0) & (truth != 1))
    if n_strange:
        raise TrainingError(f"{n_strange:,} of {z.size:,} out-of-fold logits are not finite: delete the run's folder and train again")
    if n_odd:
        raise DataError(f"{n_odd:,} of {truth.size:,} out-of-fold labels are neither 0 nor 1: delete the run's folder and train again")
    if not z.size or np.ptp(z) == 0:
        seen = f"all {z.size:,} out-of-fold logits are {z[0]:.5g}" if z.size else "there are 0 out-of-fold logits"
        raise TrainingError(
            f"no temperature can be fitted: {seen}; the model has learnt nothing, look at the run's losses and train longer"
        )
    return z, truth


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What turns a raw logit into the probability that is submitted."""

    temperature: float  # > 0; above 1 the model was too sure of itself
    noise_rate: float  # share of the board's labels that contradict any confident model, in [0, 0.5)
    clip: float  # no probability nearer to 0 or 1 than this, in [0, 0.5); 0 leaves them as they are

    def __post_init__(self) -> None:
        if not 0 < self.temperature < np.inf:
            raise RecipeError(f"temperature {self.temperature} is not a positive number: fit it again with `make predict`")
        for knob, value in (("noise_rate", self.noise_rate), ("clip", self.clip)):
            if not 0 <= value < 0.5:
                raise RecipeError(f"{knob} {value} is not in [0, 0.5): give a share of the photos, such as 0.004")

    def apply(self, logits: ArrayLike) -> Floats:
        """Probabilities in [clip, 1 - clip] of raw `logits`, of any shape."""
        probs = _with_flips(sigmoid(np.asarray(logits, np.float64) / self.temperature), self.noise_rate)
        return np.clip(probs, self.clip, 1 - self.clip)


def _with_flips(probs: Floats, noise_rate: float) -> Floats:
    """P(the label says positive) when a share `noise_rate` of labels is flipped: the least expected log loss for calibrated `probs`."""
    return probs * (1 - noise_rate) + (1 - probs) * noise_rate


def calibrate(logits: ArrayLike, labels: ArrayLike, *, noise_rate: float, clip: float) -> Calibration:
    """The calibration for test photos, its temperature fitted on every out-of-fold logit; for what it scores see `cross_fitted`."""
    return Calibration(temperature=fit_temperature(logits, labels), noise_rate=noise_rate, clip=clip)


def cross_fitted(logits: ArrayLike, labels: ArrayLike, folds: ArrayLike, *, noise_rate: float, clip: float) -> Floats:
    """Probabilities `[n]`, each fold's with the temperature of the other folds: no label has a say in its own photo's probability."""
    z, truth, fold = np.asarray(logits, np.float64), np.asarray(labels), np.asarray(folds)
    names = np.unique(fold)
    if names.size < 2:
        raise DataError(f"cross-fitting needs 2 or more folds and finds {names.size}: train all folds of the recipe")
    probs = np.empty(z.shape)
    for name in names:
        held = fold == name
        probs[held] = calibrate(z[~held], truth[~held], noise_rate=noise_rate, clip=clip).apply(z[held])
    return probs


@dataclass(frozen=True, slots=True, kw_only=True)
class OutOfFoldLosses:
    """The three figures that stand side by side: natural log loss over all out-of-fold photos."""

    raw: float  # sigmoid(logit)
    calibrated: float  # cross-fitted temperature alone
    clipped: (
        float  # cross-fitted temperature, noise rate and clip: what would be submitted, scored on labels that are cleaner than the board's
    )


def out_of_fold_losses(logits: ArrayLike, labels: ArrayLike, folds: ArrayLike, *, noise_rate: float, clip: float) -> OutOfFoldLosses:
    return OutOfFoldLosses(
        raw=logit_log_loss(labels, logits),
        calibrated=log_loss(labels, cross_fitted(logits, labels, folds, noise_rate=0.0, clip=0.0)),
        clipped=log_loss(labels, cross_fitted(logits, labels, folds, noise_rate=noise_rate, clip=clip)),
    )


def expected_board_loss(probs: ArrayLike, truth: ArrayLike, *, noise_rate: float, clip: float) -> float:
    """Expected log loss of `probs [n]`, clipped, on a board that flips a share `noise_rate` of its labels.

    `truth [n]` is P(positive) before the flips: the labels of out-of-fold photos, or calibrated probabilities. A clip is chosen
    by comparing this over clips; on out-of-fold labels alone (`noise_rate` 0) it comes out too small for the board.
    """
    clipped = np.clip(np.asarray(probs, np.float64), clip, 1 - clip)
    return log_loss(_with_flips(np.asarray(truth, np.float64), noise_rate), clipped)
