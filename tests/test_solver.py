"""The solved head is the optimum, many are solved as one, and nothing is learnt from what is held out."""

import warnings

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn.functional import softplus

from comp.errors import DataError
from comp.recipe import Head
from comp.train.solver import fit_head, solve


def problem(n: int = 120, d: int = 30, seed: int = 0) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d))
    y = (x[:, :3].sum(1) + rng.normal(size=n) > 0).astype(np.float64)
    return torch.from_numpy(x), torch.from_numpy(y)


def objective(x: Tensor, y: Tensor, w: Tensor, b: Tensor, penalty: float) -> float:
    z = x @ w + b
    return float(softplus(torch.where(y > 0.5, -z, z)).mean() + penalty * w.square().sum() / 2)


@pytest.mark.parametrize("penalty", [1e-5, 1e-3, 1e-1])
def test_the_solution_is_the_optimum_that_scikit_learn_finds(penalty: float) -> None:
    x, y = problem()
    ours = solve(
        x, y, torch.ones(len(y), 1, dtype=x.dtype), torch.tensor([penalty], dtype=x.dtype)
    )[:, 0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = LogisticRegression(C=1 / (penalty * len(y)), tol=1e-10, max_iter=10_000).fit(
            x.numpy(), y.numpy()
        )
    reference = objective(
        x, y, torch.from_numpy(theirs.coef_[0]), torch.from_numpy(theirs.intercept_)[0], penalty
    )
    assert objective(x, y, ours[:-1], ours[-1], penalty) <= reference * (1 + 1e-6)


def test_many_problems_in_one_matrix_have_the_solutions_that_each_has_alone() -> None:
    x, y = problem()
    weights = torch.stack([torch.arange(len(y)) % 3 != fold for fold in range(3)], 1).to(x.dtype)
    penalties = torch.tensor([1e-3, 1e-2, 1e-1], dtype=x.dtype)
    together = solve(x, y, weights, penalties)
    for index in range(3):
        kept = weights[:, index] > 0
        alone = solve(
            x[kept],
            y[kept],
            torch.ones(int(kept.sum()), 1, dtype=x.dtype),
            penalties[index : index + 1],
        )
        torch.testing.assert_close(together[:, index], alone[:, 0], atol=1e-3, rtol=1e-3)


def test_rows_of_weight_zero_have_no_say() -> None:
    x, y = problem()
    weights = torch.ones(len(y), 1, dtype=x.dtype)
    weights[:20] = 0
    poisoned = x.clone()
    poisoned[:20] = 1000
    penalty = torch.tensor([1e-2], dtype=x.dtype)
    torch.testing.assert_close(
        solve(x, y, weights, penalty),
        solve(poisoned, 1 - y + (weights[:, 0] > 0) * (2 * y - 1), weights, penalty),
    )


def test_separable_classes_and_features_of_any_scale_still_give_finite_heads() -> None:
    x, y = problem()
    x = torch.cat([x * 1e4, (y * 2 - 1)[:, None], torch.full((len(y), 1), 7.0, dtype=x.dtype)], 1)
    head = fit_head(x, y, list(range(len(y))), Head(penalties=(1e-6, 1e-3), n_inner=3), seed=0)
    logits = head.logits(x)
    assert torch.isfinite(logits).all()
    assert bool(((logits > 0) == (y > 0.5)).all())


def test_the_penalty_is_chosen_by_the_inner_folds_small_for_signal_and_large_for_noise() -> None:
    rng = np.random.default_rng(0)
    noise, coin = (
        torch.from_numpy(rng.normal(size=(200, 50))),
        torch.from_numpy(rng.integers(0, 2, 200).astype(np.float64)),
    )
    signal = noise.clone()
    signal[:, 0] += 8 * (coin - 0.5)
    penalties = (1e-6, 1e-3, 1e-1, 10.0)
    groups = list(range(200))
    assert fit_head(noise, coin, groups, Head(penalties=penalties), seed=0).penalty >= 0.1
    assert fit_head(signal, coin, groups, Head(penalties=penalties), seed=0).penalty < 0.1


def test_constant_features_are_refused_in_one_line() -> None:
    with pytest.raises(DataError, match="all 4 features are the same for all 20 photos"):
        fit_head(
            torch.ones(20, 4),
            torch.arange(20) % 2,
            list(range(20)),
            Head(penalties=(1.0,), n_inner=2),
            seed=0,
        )
