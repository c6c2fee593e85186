"""The solved head is the optimum, and many are solved as one."""

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

RNG = np.random.default_rng(0)
X = torch.from_numpy(RNG.normal(size=(120, 30)))
Y = (X[:, :3].sum(1) + torch.from_numpy(RNG.normal(size=120)) > 0).double()
ONES = torch.ones(len(Y), 1).double()
PENALTIES = torch.tensor([1e-3, 1e-2, 1e-1]).double()


def objective(weight: Tensor, bias: Tensor, penalty: float) -> float:
    logits = X @ weight + bias
    loss = softplus(torch.where(Y > 0.5, -logits, logits)).mean()
    return float(loss + penalty * weight.square().sum() / 2)


@pytest.mark.parametrize("penalty", [1e-5, 1e-3, 1e-1])
def test_the_solution_is_the_optimum_that_scikit_learn_finds(penalty: float) -> None:
    ours = solve(X, Y, ONES, torch.tensor([penalty]).double())[:, 0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        machine = LogisticRegression(C=1 / (penalty * len(Y)), tol=1e-10, max_iter=10_000)
        theirs = machine.fit(X.numpy(), Y.numpy())
    weight, bias = torch.from_numpy(theirs.coef_[0]), torch.from_numpy(theirs.intercept_)[0]
    assert objective(ours[:-1], ours[-1], penalty) <= objective(weight, bias, penalty) * (1 + 1e-6)


def test_many_problems_in_one_matrix_have_the_solutions_that_each_has_alone() -> None:
    weights = torch.stack([torch.arange(len(Y)) % 3 != fold for fold in range(3)], 1).double()
    together = solve(X, Y, weights, PENALTIES)
    for index in range(3):
        rows = weights[:, index] > 0
        alone = solve(X[rows], Y[rows], ONES[rows], PENALTIES[index : index + 1])
        torch.testing.assert_close(together[:, index], alone[:, 0], atol=1e-3, rtol=1e-3)


def test_rows_of_weight_zero_change_nothing() -> None:
    weights, x, y = ONES.clone(), X.clone(), Y.clone()
    weights[:20], x[:20], y[:20] = 0, 1000, 1 - Y[:20]
    solutions = (solve(*data, weights, PENALTIES[:1]) for data in ((X, Y), (x, y)))
    torch.testing.assert_close(*solutions)


def test_separable_classes_and_features_of_any_scale_still_give_finite_heads() -> None:
    x = torch.cat([X * 1e4, Y[:, None] * 2 - 1, ONES * 7], 1)
    training = Head(penalties=(1e-6, 1e-3), n_inner=3)
    logits = fit_head(x, Y, list(range(len(Y))), training, seed=0).logits(x)
    assert torch.isfinite(logits).all()
    assert torch.equal(logits > 0, Y > 0.5)


def test_the_penalty_is_chosen_by_the_inner_folds_small_for_signal_and_large_for_noise() -> None:
    rng, groups = np.random.default_rng(0), list(range(200))
    noise = torch.from_numpy(rng.normal(size=(200, 50)))
    coin = torch.from_numpy(rng.integers(0, 2, 200)).double()
    signal = noise.clone()
    signal[:, 0] += 8 * (coin - 0.5)
    training = Head(penalties=(1e-6, 1e-3, 1e-1, 10.0))
    assert fit_head(noise, coin, groups, training, seed=0).penalty >= 0.1
    assert fit_head(signal, coin, groups, training, seed=0).penalty < 0.1


def test_constant_features_are_refused_in_one_line() -> None:
    with pytest.raises(DataError, match="all 4 features are the same for all 120 photos"):
        fit_head(torch.ones(120, 4), Y, list(range(120)), Head(n_inner=2), seed=0)
