"""Support vector machines predict what scikit-learn's do, and inner folds split no group."""

from typing import Any, Literal

import numpy as np
import pytest
from sklearn.calibration import CalibratedClassifierCV
from sklearn.svm import SVC

from comp.errors import DataError
from comp.network.heads import arrays_of, head_from
from comp.recipe import Svm
from comp.train import svm
from comp.train.svm import fit_svm

RNG = np.random.default_rng(0)
X = (RNG.normal(size=(120, 8)) * np.arange(1, 9) + 3).astype(np.float32)
Y = (np.abs(X[:, 0] - 3) + 0.3 * RNG.normal(size=120) > 0.7).astype(np.float64)
GROUPS = list(range(120))
Splits = list[tuple[np.ndarray, np.ndarray]]


@pytest.fixture
def splits(monkeypatch: pytest.MonkeyPatch) -> Splits:
    """The inner folds (training rows, held-out rows) of the fits of a test."""
    found: Splits = []

    def spied(*machine: SVC, cv: Splits, **rest: Any) -> CalibratedClassifierCV:
        found.extend(cv)
        return CalibratedClassifierCV(*machine, cv=cv, **rest)

    monkeypatch.setattr(svm, "CalibratedClassifierCV", spied)
    return found


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_probabilities_are_those_of_scikit_learn(
    kernel: Literal["linear", "rbf"], splits: Splits
) -> None:
    head = fit_svm(X, Y, GROUPS, Svm(kernel=kernel, cost=2.0), seed=0)
    x = X.astype(np.float64)
    z = (x - x.mean(0)) / x.std(0)
    machine = SVC(C=2.0, kernel=kernel, gamma=1 / 8)
    reference = CalibratedClassifierCV(machine, method="sigmoid", cv=splits, ensemble=False)
    expected = reference.fit(z, Y).predict_proba(z)[:, 1]
    for each in (head, head_from(arrays_of(head))):
        probs = 1 / (1 + np.exp(-each.logits(X)))
        assert np.allclose(probs, expected, atol=1e-6)


def test_inner_folds_never_split_a_group_and_hold_out_each_photo_once(splits: Splits) -> None:
    groups = [row // 3 for row in range(120)]
    fit_svm(X, Y, groups, Svm(n_inner=3), seed=0)
    assert len(splits) == 3
    for training, held_out in splits:
        assert not {groups[row] for row in training} & {groups[row] for row in held_out}
        assert sorted([*training, *held_out]) == list(range(120))
    assert sorted(row for _, held_out in splits for row in held_out) == list(range(120))


def test_logits_are_modest_for_noise_and_finite_far_from_the_margin() -> None:
    noise = np.random.default_rng(1).integers(0, 2, 120).astype(np.float64)
    logits = fit_svm(X, noise, GROUPS, Svm(), seed=0).logits(X)
    assert np.abs(logits).max() < 1
    head = fit_svm(X, Y, GROUPS, Svm(kernel="linear"), seed=0)
    assert np.isfinite(head.logits(1e4 * X)).all()


def test_soft_labels_are_refused_in_one_line() -> None:
    with pytest.raises(DataError, match=r"not soft labels \(1\)"):
        fit_svm(X, np.where(np.arange(120) == 3, 0.7, Y), GROUPS, Svm(), seed=0)
