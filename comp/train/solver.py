"""Logistic heads on fixed features, solved to their optimum; many at once. Needs no torch."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from comp.data.folds import assign_folds
from comp.errors import DataError
from comp.network.heads import LinearHead
from comp.progress import Reporter
from comp.recipe import Head
from comp.store import derive_seed
from comp.train.labels import training_rows

MEMORY = 12  # pairs of steps that L-BFGS remembers
MAX_STEPS = 500
# largest gradient entry at the optimum, of the mean log loss over standardised features; after 1e-6
# fine-tunes that start from the head differ by .001 in a logit between two orders of summation
TOLERANCE = 1e-8
# the same where penalties are compared; 1e-4 took the second best in two of five folds
ROUGH_TOLERANCE = 1e-5
N_NEWTON = 8  # steps of a line search
_TINY = np.float32(1e-30)  # instead of a division by 0
Floats = NDArray[np.floating]


def solve_fold(
    features: NDArray[np.float32], photos: pd.DataFrame, fold: int, training: Head, seed: int
) -> LinearHead:
    """The head for `fold`, from `features [n, d]` of the `photos` of the other folds.

    `photos` has the columns target, group and fold.
    """
    rows = training_rows(photos, fold)
    return fit_head(
        features[rows],
        photos["target"].to_numpy()[rows],
        [int(group) for group in photos["group"][rows]],
        training,
        seed=derive_seed(seed, "inner folds", fold),
    )


def out_of_fold(
    features: NDArray[np.float32],
    photos: pd.DataFrame,
    training: Head,
    seed: int,
    reporter: Reporter,
) -> NDArray[np.float64]:
    """Logits [n] of `photos`, each from the solved head of its fold, all from `features [n, d]`."""
    logits, folds = np.empty(len(photos)), sorted(set(photos["fold"]))
    with reporter.track(f"heads on {features.shape[1]:,} features", len(folds), "folds") as advance:
        for fold in folds:
            held_out = (photos["fold"] == fold).to_numpy()
            head = solve_fold(features, photos, fold, training, seed)
            logits[held_out] = head.logits(features[held_out])
            advance()
    return logits


def fit_head(
    features: Floats, labels: Floats, groups: list[int], training: Head, *, seed: int
) -> LinearHead:
    """The head with the least penalised log loss on `features [n, d]`, `labels [n]` in [0, 1].

    Its penalty has the least log loss over inner folds, which never split a group. It is solved
    rather than trained because the problem is convex: a schedule would decide nothing but the time.
    """
    x, y = features.astype(np.float64), labels.astype(np.float64)
    mean, scale = x.mean(0), x.std(0, ddof=1)
    if not (scale > 0).any():
        raise DataError(
            f"all {x.shape[1]} features are the same for all {x.shape[0]} photos: is the backbone's"
            " file damaged?"
        )
    # |x|^2 is about 1, so that a penalty means the same for every backbone
    scale = np.where(scale > 0, scale, 1.0) * x.shape[1] ** 0.5
    x = (x - mean) / scale
    penalty = training.penalties[0]
    if len(training.penalties) > 1:
        names = [str(group) for group in groups]  # never row numbers: their order means nothing
        inner = assign_folds(names, (y > 0.5).tolist(), groups, n_folds=training.n_inner, seed=seed)
        penalty = _choose_penalty(x.astype(np.float32), y.astype(np.float32), inner, training)
    solution = solve(x, y, np.ones((len(y), 1)), np.array([penalty]))[:, 0]
    weight = solution[:-1] / scale
    return LinearHead(weight=weight, bias=solution[-1] - mean @ weight, penalty=penalty)


def _choose_penalty(x: Floats, y: Floats, inner: NDArray[np.int64], training: Head) -> float:
    """The penalty with the least log loss, every (inner fold, penalty) solved in one batch."""
    n_inner, n_penalties = training.n_inner, len(training.penalties)
    by_fold = inner[:, None] == np.arange(n_inner)
    held_out = by_fold.repeat(n_penalties, 1)  # [n, n_inner * n_penalties]
    strengths = np.tile(np.array(training.penalties, x.dtype), n_inner)
    solution = solve(x, y, (~held_out).astype(x.dtype), strengths, ROUGH_TOLERANCE)
    logits = _logits(x, solution)
    losses = np.logaddexp(0, logits) - y[:, None] * logits
    total = (losses * held_out).sum(0).reshape(n_inner, n_penalties).sum(0)
    return training.penalties[int(total.argmin())]


def _logits(x: Floats, solution: Floats) -> Floats:
    logits: Floats = x @ solution[:-1] + solution[-1]
    return logits


def _sigmoid(logits: Floats) -> Floats:
    return (np.tanh(logits / 2) + 1) / 2  # never overflows


def solve(
    x: Floats, y: Floats, weights: Floats, penalties: Floats, tolerance: float = TOLERANCE
) -> Floats:
    """Solutions [d + 1, p], bias last, of p logistic regressions on one `x [n, d]` and `y [n]`.

    Each has its own row weights and penalty; all are of one dtype. Minimises the mean over rows,
    weighted by `weights [n, p]`, of the log loss, plus `penalties [p]` * |w|^2 / 2; the bias is
    free. L-BFGS (Nocedal and Wright 2006, algorithm 7.4) with all problems in one matrix, so that a
    step is two matrix products. The line search is exact and costs none, because logits are linear
    in the step.
    """
    share = weights / weights.sum(0)
    state = np.zeros((x.shape[1] + 1, weights.shape[1]), x.dtype)
    logits = np.zeros_like(weights)
    gradient = _gradient(x, y, share, penalties, state, logits)
    steps: list[tuple[Floats, Floats, Floats]] = []
    for _ in range(MAX_STEPS):
        if np.abs(gradient).max() < tolerance:
            break
        direction = -_two_loop(gradient, steps)
        is_descent = (direction * gradient).sum(0) < 0
        direction = np.where(is_descent, direction, -gradient)
        along = _logits(x, direction)
        length = _line_search(y, share, penalties, state, direction, logits, along)
        step = length * direction
        state, logits = state + step, logits + length * along
        previous, gradient = gradient, _gradient(x, y, share, penalties, state, logits)
        change = gradient - previous
        curvature = (step * change).sum(0)
        rho = np.where(curvature > 0, 1 / np.maximum(curvature, _TINY), 0).astype(x.dtype)
        steps = [*steps[-MEMORY + 1 :], (step, change, rho)]
    return state


def _gradient(
    x: Floats, y: Floats, share: Floats, penalties: Floats, state: Floats, logits: Floats
) -> Floats:
    residual = share * (_sigmoid(logits) - y[:, None])
    return np.concatenate([x.T @ residual + penalties * state[:-1], residual.sum(0)[None]])


def _two_loop(gradient: Floats, steps: list[tuple[Floats, Floats, Floats]]) -> Floats:
    """L-BFGS's estimate of the inverse Hessian times `gradient`."""
    q, alphas = gradient, []
    for step, change, rho in reversed(steps):
        alpha = rho * (step * q).sum(0)
        q = q - alpha * change
        alphas.append(alpha)
    if steps:
        step, change, rho = steps[-1]
        scale = (step * change).sum(0) / np.maximum((change * change).sum(0), _TINY)
        q = q * np.where(rho > 0, scale, 1)
    for (step, change, rho), alpha in zip(steps, reversed(alphas), strict=True):
        q = q + step * (alpha - rho * (change * q).sum(0))
    return q


def _line_search(
    y: Floats,
    share: Floats,
    penalties: Floats,
    state: Floats,
    direction: Floats,
    logits: Floats,
    along: Floats,
) -> Floats:
    """The step length [p] with the least loss: Newton's method kept within a growing bracket."""
    linear = penalties * (state[:-1] * direction[:-1]).sum(0)
    square = penalties * np.square(direction[:-1]).sum(0)
    length = np.ones_like(penalties)
    low, high = np.zeros_like(penalties), np.full_like(penalties, np.inf)
    for _ in range(N_NEWTON):
        p = _sigmoid(logits + length * along)
        slope = (share * (p - y[:, None]) * along).sum(0) + linear + square * length
        bend = (share * p * (1 - p) * np.square(along)).sum(0) + square
        low, high = np.where(slope < 0, length, low), np.where(slope < 0, high, length)
        newton = length - slope / np.maximum(bend, _TINY)
        beyond = np.where(np.isinf(high), 2 * length, (low + high) / 2)
        inside = (newton > low) & (newton < high) & (np.isfinite(high) | (newton < 10 * length))
        length = np.where(inside, newton, beyond)
    return np.where(np.isfinite(length), length, 0)
