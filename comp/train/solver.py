"""Logistic heads on fixed features, solved to their optimum; many at once."""

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import softplus

from comp.data.folds import assign_folds
from comp.errors import DataError
from comp.network.heads import LinearHead
from comp.progress import Reporter
from comp.recipe import Head
from comp.store import derive_seed
from comp.train.labels import training_rows

MEMORY = 12  # pairs of steps that L-BFGS remembers
MAX_STEPS = 500
# largest gradient entry at the optimum, of the mean log loss over standardised features
TOLERANCE = 1e-6
# the same where penalties are compared: their log losses differ by more than what is left
ROUGH_TOLERANCE = 1e-4
N_NEWTON = 8  # steps of a line search


def solve_fold(
    features: NDArray[np.float32], photos: pd.DataFrame, fold: int, training: Head, seed: int
) -> LinearHead:
    """The head for `fold`, from `features [n, d]` of the `photos` of the other folds.

    `photos` has the columns target, group and fold.
    """
    rows = training_rows(photos, fold)
    return fit_head(
        torch.from_numpy(features[rows]),
        torch.from_numpy(photos["target"].to_numpy()[rows]),
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
            logits[held_out] = head.logits(torch.from_numpy(features[held_out])).numpy()
            advance()
    return logits


def fit_head(
    features: Tensor, labels: Tensor, groups: list[int], training: Head, *, seed: int
) -> LinearHead:
    """The head with the least penalised log loss on `features [n, d]`, `labels [n]` in [0, 1].

    Its penalty has the least log loss over inner folds, which never split a group. It is solved
    rather than trained because the problem is convex: a schedule would decide nothing but the time.
    """
    x, y = features.double(), labels.double()
    mean, scale = x.mean(0), x.std(0)
    if not bool((scale > 0).any()):
        raise DataError(
            f"all {x.shape[1]} features are the same for all {x.shape[0]} photos: is the backbone's"
            " file damaged?"
        )
    # |x|^2 is about 1, so that a penalty means the same for every backbone
    scale = torch.where(scale > 0, scale, 1.0) * x.shape[1] ** 0.5
    x = (x - mean) / scale
    penalty = training.penalties[0]
    if len(training.penalties) > 1:
        names = [str(group) for group in groups]  # never row numbers: their order means nothing
        inner = assign_folds(names, (y > 0.5).tolist(), groups, n_folds=training.n_inner, seed=seed)
        folds = torch.as_tensor(inner, device=x.device)
        penalty = _choose_penalty(x.float(), y.float(), folds, training)
    everything, strength = torch.ones_like(y)[:, None], x.new_tensor([penalty])
    solution = solve(x, y, everything, strength)[:, 0]
    weight = solution[:-1] / scale
    return LinearHead(weight=weight, bias=solution[-1] - mean @ weight, penalty=penalty)


def _choose_penalty(x: Tensor, y: Tensor, inner: Tensor, training: Head) -> float:
    """The penalty with the least log loss, every (inner fold, penalty) solved in one batch."""
    n_inner, n_penalties = training.n_inner, len(training.penalties)
    by_fold = torch.stack([inner == fold for fold in range(n_inner)], 1)
    held_out = by_fold.repeat_interleave(n_penalties, 1)  # [n, n_inner * n_penalties]
    strengths = x.new_tensor(training.penalties).repeat(n_inner)
    solution = solve(x, y, (~held_out).to(x.dtype), strengths, ROUGH_TOLERANCE)
    logits = _logits(x, solution)
    losses = y[:, None] * softplus(-logits) + (1 - y[:, None]) * softplus(logits)
    total = (losses * held_out).sum(0).reshape(n_inner, n_penalties).sum(0)
    return training.penalties[int(total.argmin())]


def _logits(x: Tensor, solution: Tensor) -> Tensor:
    return x @ solution[:-1] + solution[-1]


def solve(
    x: Tensor, y: Tensor, weights: Tensor, penalties: Tensor, tolerance: float = TOLERANCE
) -> Tensor:
    """Solutions [d + 1, p], bias last, of p logistic regressions on one `x [n, d]` and `y [n]`.

    Each has its own row weights and penalty. Minimises the mean over rows, weighted by `weights
    [n, p]`, of the log loss, plus `penalties [p]` * |w|^2 / 2; the bias is free. L-BFGS (Nocedal
    and Wright 2006, algorithm 7.4) with all problems in one matrix, so that a step is two matrix
    products. The line search is exact and costs none, because logits are linear in the step.
    """
    share = weights / weights.sum(0)
    state = torch.zeros(x.shape[1] + 1, weights.shape[1], dtype=x.dtype, device=x.device)
    logits = torch.zeros_like(weights)
    gradient = _gradient(x, y, share, penalties, state, logits)
    steps: list[tuple[Tensor, Tensor, Tensor]] = []
    for _ in range(MAX_STEPS):
        if float(gradient.abs().max()) < tolerance:
            break
        direction = -_two_loop(gradient, steps)
        is_descent = (direction * gradient).sum(0) < 0
        direction = torch.where(is_descent, direction, -gradient)
        along = _logits(x, direction)
        length = _line_search(y, share, penalties, state, direction, logits, along)
        step = length * direction
        state, logits = state + step, logits + length * along
        previous, gradient = gradient, _gradient(x, y, share, penalties, state, logits)
        change = gradient - previous
        curvature = (step * change).sum(0)
        rho = torch.where(curvature > 0, 1 / curvature.clamp_min(1e-300), 0.0)
        steps = [*steps[-MEMORY + 1 :], (step, change, rho)]
    return state


def _gradient(
    x: Tensor, y: Tensor, share: Tensor, penalties: Tensor, state: Tensor, logits: Tensor
) -> Tensor:
    residual = share * (torch.sigmoid(logits) - y[:, None])
    return torch.cat([x.T @ residual + penalties * state[:-1], residual.sum(0, keepdim=True)])


def _two_loop(gradient: Tensor, steps: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """L-BFGS's estimate of the inverse Hessian times `gradient`."""
    q, alphas = gradient, []
    for step, change, rho in reversed(steps):
        alpha = rho * (step * q).sum(0)
        q = q - alpha * change
        alphas.append(alpha)
    if steps:
        step, change, rho = steps[-1]
        scale = (step * change).sum(0) / (change * change).sum(0).clamp_min(1e-300)
        q = q * torch.where(rho > 0, scale, 1.0)
    for (step, change, rho), alpha in zip(steps, reversed(alphas), strict=True):
        q = q + step * (alpha - rho * (change * q).sum(0))
    return q


def _line_search(
    y: Tensor,
    share: Tensor,
    penalties: Tensor,
    state: Tensor,
    direction: Tensor,
    logits: Tensor,
    along: Tensor,
) -> Tensor:
    """The step length [p] with the least loss: Newton's method kept within a growing bracket."""
    linear = penalties * (state[:-1] * direction[:-1]).sum(0)
    square = penalties * direction[:-1].square().sum(0)
    length = torch.ones_like(penalties)
    low, high = torch.zeros_like(penalties), torch.full_like(penalties, torch.inf)
    for _ in range(N_NEWTON):
        p = torch.sigmoid(logits + length * along)
        slope = (share * (p - y[:, None]) * along).sum(0) + linear + square * length
        bend = (share * p * (1 - p) * along.square()).sum(0) + square
        low, high = torch.where(slope < 0, length, low), torch.where(slope < 0, high, length)
        newton = length - slope / bend.clamp_min(1e-300)
        beyond = torch.where(high.isinf(), 2 * length, (low + high) / 2)
        inside = (newton > low) & (newton < high) & (high.isfinite() | (newton < 10 * length))
        length = torch.where(inside, newton, beyond)
    return torch.where(length.isfinite(), length, 0.0)
