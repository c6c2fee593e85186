"""Curves as PNG, and as text for a terminal. The only door to matplotlib."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no screen is needed

import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import ArrayLike

from comp.store import whole

_EIGHTHS = " ▁▂▃▄▅▆▇█"


def curve_png(
    path: Path,
    x: ArrayLike,
    curves: Mapping[str, ArrayLike],
    marks: Mapping[str, float],
    *,
    title: str,
    x_label: str,
    y_label: str,
) -> None:
    """`curves` over `x > 0` on logarithmic axes, with a vertical line for each of `marks`."""
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for index, (name, y) in enumerate(curves.items()):
        axes.plot(x, y, label=name, alpha=0.35 if index else 1.0)
    for index, (name, at) in enumerate(marks.items()):
        axes.axvline(at, label=name, color=f"C{index + len(curves)}", linestyle="--")
    axes.set(xscale="log", yscale="log", title=title, xlabel=x_label, ylabel=y_label)
    axes.legend()
    with whole(path) as scratch:
        figure.savefig(scratch, format="png", dpi=120)
    plt.close(figure)


def text_curve(y: ArrayLike, *, width: int = 64, height: int = 8) -> list[str]:
    """Lines of text, top first: a bar chart of `y [n]`, from its least to its largest value."""
    values = np.array(
        [part.mean() for part in np.array_split(np.asarray(y, np.float64), min(width, np.size(y)))]
    )
    spread = np.ptp(values) or 1.0
    eighths = 1 + np.rint((values - values.min()) / spread * (8 * height - 1)).astype(int)
    return [
        "".join(_EIGHTHS[min(max(n - 8 * row, 0), 8)] for n in eighths.tolist())
        for row in reversed(range(height))
    ]
