"""A logistic head on fixed features, solved to its optimum; many of them at once."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from comp.data.folds import assign_folds
from comp.errors import DataError

MEMORY = 12  # pairs of steps that L-BFGS remembers
MAX_STEPS = 500
TOLERANCE = (
    1e-6  # largest gradient entry at the optimum, of the mean log loss over standardised features
)
ROUGH = (
    1e-4  # the same where penalties are compared: their log losses differ by more than what is left
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearHead:
    """logit = features @ weight + bias, for raw features. `weight [d]`, float64."""

    weight: Tensor
    bias: Tensor
    penalty: float  # the L2 penalty that the inner folds chose

    def logits(self, features: Tensor) -> Tensor:
        """Logits [n] of `features [n, d]`."""
        return features.double() @ self.weight + self.bias


def fit_head(
    features: Tensor,
    labels: Tensor,
    groups: list[int],
    *,
    penalties: tuple[float, ...],
    n_inner: int,
    seed: int,
) -> LinearHead:
    """The head with the least penalised log loss on `features [n, d]`, `labels [n]` in [0, 1].

    The penalty is the one of `penalties` with the least log loss over inner folds, which never split a group. Source of the idea to solve
    rather than train: the problem is convex, so an optimiser's schedule decides nothing but the time it takes.
    """
    x, y = features.double(), labels.double()
    mean, scale = x.mean(0), x.std(0)
    if not bool((scale > 0).any()):
        raise DataError(
            f"all {x.shape[1]} features are the same for all {x.shape[0]} photos: is the backbone's file damaged?"
        )
    scale = (
        torch.where(scale > 0, scale, 1.0) * x.shape[1] ** 0.5
    )  # |x|^2 is about 1, so that a penalty means the same for every backbone
    x = (x - mean) / scale
    ids = [str(index) for index in range(len(y))]
    inner = torch.as_tensor(
        assign_folds(ids, (y > 0.5).tolist(), groups, n_folds=n_inner, seed=seed), device=x.device
    )
    penalty = (
        _choose_penalty(x.float(), y.float(), inner, penalties, n_inner)
        if len(penalties) > 1
        else penalties[0]
    )
    solution = solve(
        x, y, torch.ones_like(y)[:, None], torch.tensor([penalty], dtype=x.dtype, device=x.device)
    )[:, 0]
    weight = solution[:-1] / scale
    return LinearHead(weight=weight, bias=solution[-1] - mean @ weight, penalty=penalty)


def _choose_penalty(
    x: Tensor, y: Tensor, inner: Tensor, penalties: tuple[float, ...], n_inner: int
) -> float:
    """The penalty with the least log loss, every (inner fold, penalty) solved in one batch."""
    held_out = torch.stack([inner == fold for fold in range(n_inner)], 1).repeat_interleave(
        len(penalties), 1
    )  # [n, n_inner * n_penalties]
    strengths = torch.tensor(penalties, dtype=x.dtype, device=x.device).repeat(n_inner)
    logits = _logits(x, solve(x, y, (~held_out).to(x.dtype), strengths, ROUGH))
    losses = y[:, None] * softplus(-logits) + (1 - y[:, None]) * softplus(logits)
    total = (losses * held_out).sum(0).reshape(n_inner, len(penalties)).sum(0)
    return penalties[int(total.argmin())]


def _logits(x: Tensor, solution: Tensor) -> Tensor:
    return x @ solution[:-1] + solution[-1]


def solve(
    x: Tensor, y: Tensor, weights: Tensor, penalties: Tensor, tolerance: float = TOLERANCE
) -> Tensor:
    """Solutions [d + 1, p], bias last, of p logistic regressions on one `x [n, d]` and `y [n]`, each with its own row weights and penalty.

    Minimises the mean over rows, weighted by `weights [n, p]`, of the log loss, plus `penalties [p]` * |w|^2 / 2; the bias is free. L-BFGS
    (Nocedal and Wright 2006, algorithm 7.4) with all problems in one matrix, so that a step is two products of matrices. The line search is
    exact and costs no product, because logits are linear in the step.
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
        downhill = (direction * gradient).sum(0) < 0
        direction = torch.where(downhill, direction, -gradient)
        along = _logits(x, direction)
        length = _line_search(y, share, penalties, state, direction, logits, along)
        step = length * direction
        state, logits = state + step, logits + length * along
        previous, gradient = gradient, _gradient(x, y, share, penalties, state, logits)
        change = gradient - previous
        curvature = (step * change).sum(0)
        steps = [
            *steps[-MEMORY + 1 :],
            (step, change, torch.where(curvature > 0, 1 / curvature.clamp_min(1e-300), 0.0)),
        ]
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
    """The length [p] of the step with the least loss along `direction`, by Newton's method kept within a growing bracket."""
    linear = penalties * (state[:-1] * direction[:-1]).sum(0)
    square = penalties * direction[:-1].square().sum(0)
    length = torch.ones_like(penalties)
    low, high = torch.zeros_like(penalties), torch.full_like(penalties, torch.inf)
    for _ in range(8):
        p = torch.sigmoid(logits + length * along)
        slope = (share * (p - y[:, None]) * along).sum(0) + linear + square * length
        bend = (share * p * (1 - p) * along.square()).sum(0) + square
        low, high = torch.where(slope < 0, length, low), torch.where(slope < 0, high, length)
        newton = length - slope / bend.clamp_min(1e-300)
        beyond = torch.where(high.isinf(), 2 * length, (low + high) / 2)
        inside = (newton > low) & (newton < high) & (high.isfinite() | (newton < 10 * length))
        length = torch.where(inside, newton, beyond)
    return torch.where(length.isfinite(), length, 0.0)
