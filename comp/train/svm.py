"""A support vector machine on features, with calibrated probabilities: a door to scikit-learn."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.calibration import CalibratedClassifierCV
from sklearn.svm import SVC

from comp.data.folds import assign_folds
from comp.errors import DataError
from comp.network.heads import KernelHead, LinearHead
from comp.recipe import Svm


def fit_svm(
    features: NDArray[np.float32],
    targets: NDArray[np.float64],
    groups: Sequence[int],
    training: Svm,
    *,
    seed: int,
) -> LinearHead | KernelHead:
    """A machine fitted to `features [n, d]` and `targets [n]`, 0 or 1, whose decisions are logits.

    Platt's sigmoid maps decisions to logits. It is fitted on inner folds, which never split a
    group, by machines that did not see them. Features are standardised and gamma is 1 / d,
    scikit-learn's "scale". Source: Platt 1999, "Probabilistic outputs for support vector machines".
    """
    labels = (targets > 0.5).astype(np.int64)
    n_soft = int((labels != targets).sum())
    if n_soft:
        raise DataError(
            f"an SVM learns 0 or 1, not soft labels ({n_soft}): set folds.label_fixes=flip or drop"
        )
    x = features.astype(np.float64)
    mean, spread = x.mean(0), x.std(0)
    scale = np.where(spread > 0, spread, 1.0)
    x = (x - mean) / scale
    names = [str(group) for group in groups]  # never row numbers: their order means nothing
    inner = assign_folds(names, labels, groups, n_folds=training.n_inner, seed=seed)
    splits = [
        (np.flatnonzero(inner != fold), np.flatnonzero(inner == fold))
        for fold in range(training.n_inner)
    ]
    machine = SVC(C=training.cost, kernel=training.kernel, gamma=1 / x.shape[1])
    classifier = CalibratedClassifierCV(machine, method="sigmoid", cv=splits, ensemble=False)
    calibrated = classifier.fit(x, labels).calibrated_classifiers_[0]
    return _as_head(calibrated.estimator, calibrated.calibrators[0], mean, scale)


def _as_head(
    machine: SVC, sigmoid: Any, mean: NDArray[np.float64], scale: NDArray[np.float64]
) -> LinearHead | KernelHead:
    """`machine` and Platt's `sigmoid` on features standardised by `mean` and `scale`."""
    # scikit-learn's P is 1 / (1 + exp(a f + b)), so the logit is -(a f + b)
    slope, bias = -sigmoid.a_, -sigmoid.b_ - sigmoid.a_ * machine.intercept_[0]
    if machine.kernel == "linear":
        weight = slope * machine.coef_[0] / scale
        return LinearHead(weight=weight, bias=np.asarray(bias - mean @ weight))
    numbers = {
        "mean": mean,
        "scale": scale,
        "support": machine.support_vectors_,
        "dual": machine.dual_coef_[0],
        "gamma": machine.gamma,
        "slope": slope,
        "bias": bias,
    }
    return KernelHead(**{name: np.array(value, np.float64) for name, value in numbers.items()})
