"""Out-of-fold logits -> honest losses, and the probabilities that a noisy board rewards. numpy in float64, nothing else.

Three steps lie between a logit and the number that is submitted: p = sigmoid(logit / T), or another of the maps in `maps`, fitted on
out-of-fold logits; p' = p (1 - r) + (1 - p) r, because a share r of the board's labels contradicts any confident model; and the clip, the
last word on what one label may cost. With r = .004 the clip of .005 hardly changes p' any more. It stays as an insurance: r is known to
.001 or so, and where labels are flipped more often than believed, a clip too small costs more than one too large.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from comp.competition import Competition
from comp.errors import DataError, RecipeError
from comp.metric import Floats, log_loss, logit_log_loss, per_photo_loss
from comp.predict.maps import Curve, Steps, fit_map
from comp.recipe import Method, Prediction


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What is chosen of a calibration; the rest is fitted."""

    method: Method = "temperature"
    noise_rate: (
        float  # share of the board's labels that contradict any confident model, in [0, 0.5)
    )
    clip: float  # no probability nearer to 0 or 1 than this, in [0, 0.5); 0 leaves them as they are

    def __post_init__(self) -> None:
        for knob, value in (("noise_rate", self.noise_rate), ("clip", self.clip)):
            if not 0 <= value < 0.5:
                raise RecipeError(
                    f"{knob} {value} is not in [0, 0.5): give a share of the photos, such as 0.004"
                )

    def finish(self, probs: Floats) -> Floats:
        """Calibrated `probs` mixed for flips, then clipped: in [clip, 1 - clip]."""
        return np.clip(with_flips(probs, self.noise_rate), self.clip, 1 - self.clip)


def settings_of(prediction: Prediction, competition: Competition) -> Settings:
    """The recipe's choice; the competition's noise rate where it has none."""
    rate = competition.noise_rate if prediction.noise_rate is None else prediction.noise_rate
    return Settings(method=prediction.calibration, noise_rate=rate, clip=prediction.clip)


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What turns a raw logit into the probability that is submitted."""

    curve: Curve | Steps
    settings: Settings

    def apply(self, logits: ArrayLike) -> Floats:
        """Probabilities in [clip, 1 - clip] of raw `logits`, of any shape."""
        return self.settings.finish(self.curve.probs(logits))


def with_flips(probs: Floats, noise_rate: float) -> Floats:
    """P(the label says positive) when a share `noise_rate` of labels is flipped: the least expected log loss for calibrated `probs`."""
    return probs * (1 - noise_rate) + (1 - probs) * noise_rate


def calibrate(logits: ArrayLike, labels: ArrayLike, settings: Settings) -> Calibration:
    """The calibration for test photos, fitted on every out-of-fold logit; for what it scores see `cross_fitted`."""
    return Calibration(curve=fit_map(settings.method, logits, labels), settings=settings)


def cross_fitted(
    logits: ArrayLike, labels: ArrayLike, folds: ArrayLike, settings: Settings
) -> Floats:
    """Probabilities `[n]`, each fold's calibrated on the other folds: no label has a say in its own photo's probability."""
    z, truth, fold = np.asarray(logits, np.float64), np.asarray(labels), np.asarray(folds)
    probs = np.empty(z.shape)
    for name in distinct(fold):
        held = fold == name
        probs[held] = calibrate(z[~held], truth[~held], settings).apply(z[held])
    return probs


def distinct(folds: ArrayLike) -> Floats:
    """The folds there are. DataError if that is one: then nothing can be fitted on the others."""
    names = np.unique(np.asarray(folds, np.float64))
    if names.size < 2:
        raise DataError(
            f"cross-fitting needs 2 or more folds and finds {names.size}: train all folds of the recipe"
        )
    return names


@dataclass(frozen=True, slots=True, kw_only=True)
class OutOfFoldLosses:
    """The three figures that stand side by side: natural log loss over all out-of-fold photos."""

    raw: float  # sigmoid(logit)
    calibrated: float  # cross-fitted map alone
    clipped: float  # and noise rate and clip: what would be submitted, scored on labels that are cleaner than the board's


def out_of_fold_losses(
    logits: ArrayLike, labels: ArrayLike, folds: ArrayLike, settings: Settings
) -> OutOfFoldLosses:
    plain = cross_fitted(
        logits, labels, folds, Settings(method=settings.method, noise_rate=0.0, clip=0.0)
    )
    return OutOfFoldLosses(
        raw=logit_log_loss(labels, logits),
        calibrated=log_loss(labels, plain),
        clipped=log_loss(labels, settings.finish(plain)),
    )


def board_losses(truth: ArrayLike, probs: ArrayLike, noise_rate: float) -> Floats:
    """Expected log loss of each photo, `[n]`, on a board that flips a share `noise_rate` of its labels.

    `truth [n]` is P(positive) before the flips: the labels of out-of-fold photos, or calibrated probabilities. A clip is chosen by
    comparing the mean of this over clips; on out-of-fold labels alone (`noise_rate` 0) it comes out too small for the board.
    """
    return per_photo_loss(with_flips(np.asarray(truth, np.float64), noise_rate), probs)
