"""The solved head is the optimum, and many are solved as one."""

import warnings

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from comp.errors import DataError
from comp.recipe import Head
from comp.train.solver import fit_head, solve

RNG = np.random.default_rng(0)
X = RNG.normal(size=(120, 30))
Y = (X[:, :3].sum(1) + RNG.normal(size=120) > 0).astype(np.float64)
ONES = np.ones((len(Y), 1))
PENALTIES = np.array([1e-3, 1e-2, 1e-1])


def objective(weight: NDArray[np.float64], bias: float, penalty: float) -> float:
    logits = X @ weight + bias
    loss = np.logaddexp(0, np.where(Y > 0.5, -logits, logits)).mean()
    return float(loss + penalty * np.square(weight).sum() / 2)


@pytest.mark.parametrize("penalty", [1e-5, 1e-3, 1e-1])
def test_the_solution_is_the_optimum_that_scikit_learn_finds(penalty: float) -> None:
    ours = solve(X, Y, ONES, np.array([penalty]))[:, 0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        machine = LogisticRegression(C=1 / (penalty * len(Y)), tol=1e-10, max_iter=10_000)
        theirs = machine.fit(X, Y)
    weight, bias = theirs.coef_[0], theirs.intercept_[0]
    assert objective(ours[:-1], ours[-1], penalty) <= objective(weight, bias, penalty) * (1 + 1e-6)


def test_many_problems_in_one_matrix_have_the_solutions_that_each_has_alone() -> None:
    weights = (np.arange(len(Y))[:, None] % 3 != np.arange(3)).astype(np.float64)
    together = solve(X, Y, weights, PENALTIES)
    for index in range(3):
        rows = weights[:, index] > 0
        alone = solve(X[rows], Y[rows], ONES[rows], PENALTIES[index : index + 1])
        np.testing.assert_allclose(together[:, index], alone[:, 0], atol=1e-3, rtol=1e-3)


def test_rows_of_weight_zero_change_nothing() -> None:
    weights, x, y = ONES.copy(), X.copy(), Y.copy()
    weights[:20], x[:20], y[:20] = 0, 1000, 1 - Y[:20]
    solutions = (solve(*data, weights, PENALTIES[:1]) for data in ((X, Y), (x, y)))
    np.testing.assert_allclose(*solutions, atol=1e-9)


def test_separable_classes_and_features_of_any_scale_still_give_finite_heads() -> None:
    x = np.hstack([X * 1e4, Y[:, None] * 2 - 1, ONES * 7])
    training = Head(penalties=(1e-6, 1e-3), n_inner=3)
    logits = fit_head(x, Y, list(range(len(Y))), training, seed=0).logits(x)
    assert np.isfinite(logits).all()
    assert np.array_equal(logits > 0, Y > 0.5)


def test_the_penalty_is_chosen_by_the_inner_folds_small_for_signal_and_large_for_noise() -> None:
    rng, groups = np.random.default_rng(0), list(range(200))
    noise = rng.normal(size=(200, 50))
    coin = rng.integers(0, 2, 200).astype(np.float64)
    signal = noise.copy()
    signal[:, 0] += 8 * (coin - 0.5)
    training = Head(penalties=(1e-6, 1e-3, 1e-1, 10.0))
    assert fit_head(noise, coin, groups, training, seed=0).penalty >= 0.1
    assert fit_head(signal, coin, groups, training, seed=0).penalty < 0.1


def test_constant_features_are_refused_in_one_line() -> None:
    with pytest.raises(DataError, match="all 4 features are the same for all 120 photos"):
        fit_head(np.ones((120, 4)), Y, list(range(120)), Head(n_inner=2), seed=0)
