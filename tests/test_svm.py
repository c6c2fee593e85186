"""Support vector machines: what is kept of them says what scikit-learn says, and no group is split."""

import numpy as np
import pytest
import torch
from sklearn.calibration import CalibratedClassifierCV
from sklearn.svm import SVC

from comp.errors import DataError
from comp.network.heads import head_from, tensors_of
from comp.recipe import HeadShape, Svm
from comp.train import svm
from comp.train.svm import fit_svm


def problem(n: int = 120, d: int = 8) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(n, d)) * np.arange(1, d + 1) + 3).astype(np.float32)
    return x, (np.abs(x[:, 0] - 3) + 0.3 * rng.normal(size=n) > 0.7).astype(np.float64)


def splits_of(monkeypatch: pytest.MonkeyPatch) -> list[tuple[np.ndarray, np.ndarray]]:
    """The inner folds (learnt, held) of the fits from here on."""
    seen: list[tuple[np.ndarray, np.ndarray]] = []

    def spied(
        *machine: SVC, cv: list[tuple[np.ndarray, np.ndarray]], **rest: object
    ) -> CalibratedClassifierCV:
        seen.extend(cv)
        return CalibratedClassifierCV(*machine, cv=cv, **rest)

    monkeypatch.setattr(svm, "CalibratedClassifierCV", spied)
    return seen


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_probabilities_are_those_of_scikit_learn(
    kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = problem()
    splits = splits_of(monkeypatch)
    head = fit_svm(x, y, list(range(len(y))), Svm(kernel=kernel, cost=2.0), seed=0)
    z = (x.astype(np.float64) - x.astype(np.float64).mean(0)) / x.astype(np.float64).std(0)
    machine = SVC(C=2.0, kernel=kernel, gamma=1 / 8)
    reference = CalibratedClassifierCV(machine, method="sigmoid", cv=splits, ensemble=False).fit(
        z, y
    )
    for kept in (head, head_from(tensors_of(head), HeadShape())):
        probs = torch.sigmoid(kept.logits(torch.from_numpy(x))).numpy()
        assert np.allclose(probs, reference.predict_proba(z)[:, 1], atol=1e-6)


def test_inner_folds_that_calibrate_never_split_a_group_and_hold_out_each_photo_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x, y = problem()
    groups = [row // 3 for row in range(len(y))]
    splits = splits_of(monkeypatch)
    fit_svm(x, y, groups, Svm(n_inner=3), seed=0)
    assert len(splits) == 3
    for learnt, held in splits:
        assert not {groups[row] for row in learnt} & {groups[row] for row in held}
        assert sorted([*learnt, *held]) == list(range(len(y)))
    assert sorted(row for _, held in splits for row in held) == list(range(len(y)))


def test_a_logit_far_from_the_margin_is_finite_and_calibrated_ones_are_not_too_sure() -> None:
    x, y = problem()
    noise = np.random.default_rng(1).integers(0, 2, len(y)).astype(np.float64)
    assert (
        float(
            fit_svm(x, noise, list(range(len(y))), Svm(), seed=0)
            .logits(torch.from_numpy(x))
            .abs()
            .max()
        )
        < 1
    )
    assert torch.isfinite(
        fit_svm(x, y, list(range(len(y))), Svm(kernel="linear"), seed=0).logits(
            torch.from_numpy(1e4 * x)
        )
    ).all()


def test_soft_labels_are_refused_in_one_line() -> None:
    x, y = problem()
    y[3] = 0.7
    with pytest.raises(DataError, match="1 photos have a soft label"):
        fit_svm(x, y, list(range(len(y))), Svm(), seed=0)
