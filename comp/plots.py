"""Figures as SVG for a page, or as PNG. The only door to matplotlib."""

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no screen is needed

import matplotlib.pyplot as plt
from cycler import cycler
from matplotlib.ticker import NullFormatter
from numpy.typing import ArrayLike

from comp.store import whole

# Okabe and Ito's colours, safe for the colour-blind; page.css replaces them in a dark theme
INK, MUTED, GRID = "#24292f", "#656d76", "#d8dee4"
BLUE, ORANGE, GREEN, PINK, SKY = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9"
SERIES = (BLUE, ORANGE, GREEN, PINK, SKY)
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",  # text stays text
    "font.size": 10,
    "axes.prop_cycle": cycler(color=SERIES),
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "text.parse_math": False,  # names may contain $
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
    "legend.fontsize": 9,
}
plt.style.use(_STYLE)


class Drawing:
    """A figure for a page, about 400 px wide: draw on `axes`, then take `svg()`.

    `name`, unique in its page, keeps ids apart; `height` is in inches of 100 px.
    """

    def __init__(self, name: str, *, rows: int = 1, height: float = 2.6) -> None:
        self._name = name
        self._figure, axes = plt.subplots(
            rows, figsize=(4.2, height), layout="constrained", sharex=True, squeeze=False
        )
        self.axes: list[Any] = list(axes[:, 0])

    def legend(self) -> None:
        """Above the axes, where it hides nothing."""
        self._figure.legend(loc="outside upper left", ncols=2)

    def svg(self) -> str:
        """An <svg> element without style attributes, which a strict content policy bans."""
        file = io.StringIO()
        # the same figure has the same bytes, and ids that no other figure of the page has
        with matplotlib.rc_context({"svg.hashsalt": self._name}):
            self._figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
        plt.close(self._figure)
        text = file.getvalue()
        text = text[text.index("<svg") :].replace("xlink:href", "href")
        for pattern, replacement in _TO_ELEMENT.items():
            text = re.sub(pattern, replacement, text, flags=re.DOTALL)
        return re.sub(r' style="([^"]*)"', _attributes, text)


def make_logarithmic(*axes: Any) -> None:
    """Logarithmic scales with plain numbers; `axes`, as in figure.xaxis, are drawn already."""
    for axis in axes:
        getattr(axis.axes, f"set_{axis.axis_name}scale")("log")
        axis.set_major_formatter("{x:g}")
        low, high = axis.get_view_interval()
        axis.set_minor_formatter("{x:.3g}" if high < 10 * low else NullFormatter())


_TO_ELEMENT = {
    r"<(metadata|style).*?</\1>|<!--.*?-->": "",
    r"(<svg)[^>]*?( viewBox=\"[^\"]*\")[^>]*": r"\1\2",
    r"<g id=\"[^\"]*\"": "<g",  # the same in every figure, and nothing refers to them
    r">\s+<": "><",
    r"\s*\n\s*": " ",
}


def _attributes(style: "re.Match[str]") -> str:
    """The declarations of a style attribute as attributes of SVG; of a font only its size."""
    pairs = (part.split(":", 1) for part in style[1].split(";") if part.strip())
    values = {name.strip(): value.strip() for name, value in pairs}
    values.pop("font-family", None)
    if "font" in values:
        values["font-size"] = re.findall(r"[\d.]+px", values.pop("font"))[0]
    return "".join(f' {name}="{value}"' for name, value in values.items())


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
    axes.set(title=title, xlabel=x_label, ylabel=y_label)
    make_logarithmic(axes.xaxis, axes.yaxis)
    axes.legend()
    with whole(path) as scratch:
        figure.savefig(scratch, format="png", dpi=120)
    plt.close(figure)
