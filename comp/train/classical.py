"""The only door to scikit-learn in training: a support vector machine on features, with calibrated probabilities."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.calibration import CalibratedClassifierCV
from sklearn.svm import SVC

from comp.data.folds import assign_folds
from comp.errors import DataError
from comp.recipe import Svm
from comp.train.head import LinearHead
from comp.train.heads import FeatureHead, KernelHead


def fit_svm(
    features: NDArray[np.float32],
    targets: NDArray[np.float64],
    groups: Sequence[int],
    training: Svm,
    *,
    seed: int,
) -> FeatureHead:
    """A machine fitted to all of `features [n, d]` and `targets [n]`, 0 or 1, whose decisions are turned into logits by Platt's sigmoid.

    The sigmoid is fitted to decisions on inner folds, which never split a group, by machines that did not see them. Features are
    standardised and gamma is 1 / d, scikit-learn's "scale". Source: Platt 1999, "Probabilistic outputs for support vector machines".
    """
    labels = (targets > 0.5).astype(np.int64)
    if (labels != targets).any():
        n_soft = int((labels != targets).sum())
        raise DataError(
            f"{n_soft} photos have a soft label, and an SVM learns 0 or 1: set folds.label_fixes=flip or drop"
        )
    x, mean, scale = _standardised(features)
    inner = assign_folds(
        [str(index) for index in range(len(labels))],
        labels,
        groups,
        n_folds=training.n_inner,
        seed=seed,
    )
    splits = [
        (np.flatnonzero(inner != fold), np.flatnonzero(inner == fold))
        for fold in range(training.n_inner)
    ]
    machine = SVC(C=training.cost, kernel=training.kernel, gamma=1 / x.shape[1])
    calibrated = (
        CalibratedClassifierCV(machine, method="sigmoid", cv=splits, ensemble=False)
        .fit(x, labels)
        .calibrated_classifiers_[0]
    )
    fitted, sigmoid = calibrated.estimator, calibrated.calibrators[0]
    slope, bias = (
        -sigmoid.a_,
        -sigmoid.b_,
    )  # scikit-learn's P is 1 / (1 + exp(a f + b)), so the logit is -(a f + b)
    bias += slope * fitted.intercept_[0]
    if training.kernel == "linear":
        weight = slope * fitted.coef_[0] / scale
        return LinearHead(
            weight=torch.tensor(weight), bias=torch.tensor(bias - mean @ weight), penalty=0.0
        )
    numbers = {
        "mean": mean,
        "scale": scale,
        "support": fitted.support_vectors_,
        "dual": fitted.dual_coef_[0],
    }
    scalars = {"gamma": 1 / x.shape[1], "slope": slope, "bias": bias}
    return KernelHead(
        **{
            name: torch.tensor(value, dtype=torch.float64)
            for name, value in (numbers | scalars).items()
        }
    )


def _standardised(
    features: NDArray[np.float32],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    x = features.astype(np.float64)
    mean, spread = x.mean(0), x.std(0)
    scale = np.where(spread > 0, spread, 1.0)
    return (x - mean) / scale, mean, scale
