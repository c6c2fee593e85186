"""The mean and spread of the colours of some photos."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from comp.data.photos import in_order
from comp.train.views import Canvases


def measured(
    canvases: Canvases, rows: Sequence[int]
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation of red, green and blue in [0, 1] over every pixel of the canvases of `rows`."""

    def counts(row: int) -> NDArray[np.int64]:
        return np.stack(
            [
                np.bincount(channel, minlength=256)
                for channel in canvases.canvas(row).reshape(-1, 3).T
            ]
        )

    total = sum(in_order(counts, list(rows)), np.zeros((3, 256), np.int64))
    share, value = total / total.sum(1, keepdims=True), np.arange(256) / 255
    mean = share @ value
    std = np.sqrt(
        np.maximum(share @ value**2 - mean**2, 1 / 255**2)
    )  # of photos in one colour it is 0, and nothing is divided by 0
    return (float(mean[0]), float(mean[1]), float(mean[2])), (
        float(std[0]),
        float(std[1]),
        float(std[2]),
    )
