"""Heads that are formulas: functions from features to one logit. Needs no torch."""

from dataclasses import dataclass, fields
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]


class FeatureHead(Protocol):
    """Anything that gives logits; see also `comp.network.layers.ModuleHead`."""

    def logits(self, features: NDArray[np.float32]) -> Numbers:
        """Logits [n] of features [n, d], or of a tail's activations."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearHead:
    """logit = features @ weight + bias, for raw features."""

    weight: Numbers  # [d]
    bias: Numbers | np.float64  # []
    penalty: float = 0.0  # the L2 penalty that inner folds chose; 0: it was not solved

    def logits(self, features: NDArray[np.floating]) -> Numbers:
        return features.astype(np.float64) @ self.weight + self.bias


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelHead:
    """logit = slope * (sum over supports of dual * exp(-gamma |x - support|^2)) + bias.

    x = (features - mean) / scale.
    """

    mean: Numbers  # [d]
    scale: Numbers  # [d]
    support: Numbers  # [s, d]
    dual: Numbers  # [s]
    gamma: Numbers  # []
    slope: Numbers  # []
    bias: Numbers  # []

    def logits(self, features: NDArray[np.floating]) -> Numbers:
        x = (features.astype(np.float64) - self.mean) / self.scale
        square = np.square(x).sum(1)[:, None] + np.square(self.support).sum(1)
        distance = np.maximum(square - 2 * x @ self.support.T, 0)  # squared
        logits: Numbers = self.slope * (np.exp(-self.gamma * distance) @ self.dual) + self.bias
        return logits


def arrays_of(head: LinearHead | KernelHead) -> dict[str, NDArray[Any]]:
    """Everything that `head_from` needs."""
    return {item.name: np.asarray(getattr(head, item.name)) for item in fields(head)}


def head_from(arrays: dict[str, NDArray[Any]]) -> LinearHead | KernelHead:
    """The head that `arrays_of` took apart."""
    if "support" in arrays:
        return KernelHead(**arrays)
    return LinearHead(**arrays | {"penalty": float(arrays["penalty"])})  # type: ignore[arg-type]
