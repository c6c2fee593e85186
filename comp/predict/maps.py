"""Out-of-fold logits -> a map to calibrated probabilities that never changes the order of two photos. numpy in float64, nothing else.

    none         sigmoid(z)
    temperature  sigmoid(z / T)                                          Guo et al. 2017, section 4.2
    platt        sigmoid(a z + c)                                        Platt 1999
    beta         sigmoid(a ln q - b ln(1 - q) + c), with q = sigmoid(z)  Kull et al. 2017
    isotonic     the rising steps nearest to the labels                  Zadrozny and Elkan 2002

The first four are one curve: beta's, with a = b for Platt, c = 0 for a temperature, and a = b = 1 for none.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from comp.errors import DataError, RecipeError, TrainingError
from comp.metric import Floats, per_photo_logit_loss, sigmoid
from comp.recipe import Method

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0
"""Where a fit stops: logits that separate the classes send T to 0, logits that mislead to infinity, and neither says how far to go."""
MAX_NEWTON = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """What the first four methods fit. A temperature T is `below` = `above` = 1 / T."""

    below: float  # > 0: slope of the calibrated logit where the raw one is far below 0
    above: float  # > 0: where it is far above
    shift: float = 0.0

    def __post_init__(self) -> None:
        if not (0 < self.below < np.inf and 0 < self.above < np.inf and np.isfinite(self.shift)):
            raise RecipeError(f"{self} is no rising curve: fit it again with `make predict`")

    def __str__(self) -> str:
        if self.below == self.above:
            return f"temperature {1 / self.above:.3f}" + f", shift {self.shift:.3f}" * bool(
                self.shift
            )
        return f"slopes {self.below:.3f} and {self.above:.3f}, shift {self.shift:.3f}"

    def probs(self, logits: ArrayLike) -> Floats:
        z = np.asarray(logits, np.float64)
        return sigmoid(
            self.above * np.logaddexp(0, z) - self.below * np.logaddexp(0, -z) + self.shift
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """What isotonic regression fits: straight lines between knots, level beyond the last ones."""

    logits: tuple[float, ...]  # rising
    levels: tuple[float, ...]  # the probability at each

    def __str__(self) -> str:
        return f"{len(set(self.levels))} steps"

    def probs(self, logits: ArrayLike) -> Floats:
        return np.interp(np.asarray(logits, np.float64), self.logits, self.levels)


def fit_map(method: Method, logits: ArrayLike, labels: ArrayLike) -> Curve | Steps:
    """The map by `method` with the least log loss; isotonic: squared error. `logits [n]` out-of-fold and raw, `labels [n]` 0 or 1."""
    z, truth = _checked(logits, labels)
    if method == "none":
        return Curve(below=1.0, above=1.0)
    if method == "temperature":
        slope = 1 / fit_temperature(z, truth)
        return Curve(below=slope, above=slope)
    return (
        _fit_steps(z, truth)
        if method == "isotonic"
        else _fit_curve(z, truth, is_symmetric=method == "platt")
    )


def fit_temperature(logits: ArrayLike, labels: ArrayLike) -> float:
    """The T at which sigmoid(logits / T) has the least log loss, kept within `MIN_TEMPERATURE` and `MAX_TEMPERATURE`.

    `logits [n]` out-of-fold and raw. The loss is convex in 1/T, so the sign of its slope says on which side the least lies.
    Source: Guo et al. 2017, section 4.2.
    """
    z, truth = _checked(logits, labels)
    margins = np.where(truth > 0.5, z, -z)  # positive where the photo is on its own side

    def rising(temperature: float) -> bool:
        """Whether the loss grows with 1/T here, that is, whether the best T is larger."""
        return bool(
            (margins * sigmoid(-margins / temperature)).sum() < 0
        )  # not a dot product: BLAS threads take 100 times as long

    if not rising(MIN_TEMPERATURE):
        return MIN_TEMPERATURE
    if rising(MAX_TEMPERATURE):
        return MAX_TEMPERATURE
    low, high = np.log(MIN_TEMPERATURE), np.log(MAX_TEMPERATURE)
    for _ in range(48):  # halvings of a range of 6: as exact as float64
        middle = (low + high) / 2
        low, high = (middle, high) if rising(float(np.exp(middle))) else (low, middle)
    return float(np.exp((low + high) / 2))


def _fit_curve(z: Floats, truth: Floats, *, is_symmetric: bool) -> Curve:
    """Platt's curve or beta's, by Newton's method with halved steps.

    Each parameter is held to "none" by as much as one photo would, so that there is an optimum even where the classes are separable.
    """
    columns = [z] if is_symmetric else [-np.logaddexp(0, -z), np.logaddexp(0, z)]
    x = np.column_stack([*columns, np.ones_like(z)])
    start = np.array([1.0] * len(columns) + [0.0])

    def loss(at: Floats) -> float:
        return float(per_photo_logit_loss(truth, x @ at).sum() + ((at - start) ** 2).sum() / 2)

    at = start
    for _ in range(MAX_NEWTON):
        p = sigmoid(x @ at)
        step = np.linalg.solve(
            (x * (p * (1 - p))[:, None]).T @ x + np.eye(start.size), x.T @ (p - truth) + at - start
        )
        while loss(at - step) > loss(at) and np.abs(step).max() > 1e-9:
            step = step / 2
        at = at - step
        if np.abs(step).max() <= 1e-9:
            break
    below, above = np.clip([at[0], at[-2]], 1 / MAX_TEMPERATURE, 1 / MIN_TEMPERATURE)
    return Curve(below=float(below), above=float(above), shift=float(at[-1]))


def _fit_steps(z: Floats, truth: Floats) -> Steps:
    """Pool adjacent violators. No level is surer than n photos can make it: within 1 / (n + 2) of neither 0 nor 1."""
    distinct, place = np.unique(z, return_inverse=True)
    blocks: list[list[float]] = []  # first logit, last logit, photos, positive photos
    for logit, n, n_positive in zip(
        distinct.tolist(),
        np.bincount(place).tolist(),
        np.bincount(place, truth).tolist(),
        strict=True,
    ):
        block = [logit, logit, n, n_positive]
        while blocks and blocks[-1][3] * block[2] >= block[3] * blocks[-1][2]:
            last = blocks.pop()
            block = [last[0], block[1], last[2] + block[2], last[3] + block[3]]
        blocks.append(block)
    least = 1 / (z.size + 2)
    knots = {
        logit: min(max(n_positive / n, least), 1 - least)
        for first, end, n, n_positive in blocks
        for logit in (first, end)
    }
    return Steps(logits=tuple(knots), levels=tuple(knots.values()))


def _checked(logits: ArrayLike, labels: ArrayLike) -> tuple[Floats, Floats]:
    z, truth = np.asarray(logits, np.float64), np.asarray(labels, np.float64)
    n_strange, n_odd = (
        np.count_nonzero(~np.isfinite(z)),
        np.count_nonzero((truth != 0) & (truth != 1)),
    )
    if n_strange:
        raise TrainingError(
            f"{n_strange:,} of {z.size:,} out-of-fold logits are not finite: delete the run's folder and train again"
        )
    if n_odd:
        raise DataError(
            f"{n_odd:,} of {truth.size:,} out-of-fold labels are neither 0 nor 1: delete the run's folder and train again"
        )
    if not z.size or np.ptp(z) == 0:
        seen = (
            f"all {z.size:,} out-of-fold logits are {z[0]:.5g}"
            if z.size
            else "there are 0 out-of-fold logits"
        )
        raise TrainingError(
            f"no calibration can be fitted: {seen}; the model has learnt nothing, look at the run's losses and train longer"
        )
    return z, truth
