"""The crops of a canvas that a network is given; test-time augmentation is a list of them.

Needs no torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from comp.errors import RecipeError
from comp.recipe import ViewsName
from comp.store import fingerprint

Crops = NDArray[np.uint8]  # [n, s, s, 3]


class Canvases(Protocol):
    """Canvases [h, w, 3] of photos, and the hash of each photo's file, by row."""

    @property
    def sha256s(self) -> tuple[str, ...]: ...

    def canvas(self, row: int) -> NDArray[np.uint8]: ...


@cache
def code_of_outputs() -> str:
    """Fingerprint of the modules that crop, augment and embed photos."""
    folder = Path(__file__).parent
    paths = [*sorted(folder.glob("*.py")), folder.parent / "train/augment.py"]
    return fingerprint([path.read_text(encoding="utf-8") for path in paths])


class Look(Protocol):
    """One way to crop every photo: a `View`, or a draw of the augmentation."""

    @property
    def name(self) -> str: ...

    @property
    def key(self) -> str: ...  # names what the crops show

    @property
    def flip(self) -> bool: ...  # whether the crops are to be mirrored, on the device

    def crops(self, photos: Canvases, rows: Sequence[int], size_px: int) -> Crops:
        """The crops of the photos at `rows`, not yet mirrored or resized to `size_px`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """One square of the canvas, perhaps mirrored."""

    name: str
    x: float = 0.5  # where the square sits in the space around it: 0 left, 0.5 centred, 1 right
    y: float = 0.5  # 0 top, 1 bottom
    whole: bool = False  # the largest centred square, resized, instead of one of the input's size
    flip: bool = False

    @property
    def key(self) -> str:
        """Changes with everything but the name."""
        return fingerprint(replace(self, name=""))

    def crops(self, photos: Canvases, rows: Sequence[int], size_px: int) -> Crops:
        return np.stack([crop(photos.canvas(row), self, size_px) for row in rows])


CENTRE = View(name="centre")
_CORNERS = tuple(
    View(name=f"corner-{x:.0f}{y:.0f}", x=x, y=y) for y in (0.0, 1.0) for x in (0.0, 1.0)
)
_UNMIRRORED: dict[str, tuple[View, ...]] = {
    "flip": (CENTRE,),
    "five_crop": (CENTRE, *_CORNERS),
    "multi_scale": (CENTRE, View(name="whole", whole=True)),
}


def views_of(name: ViewsName, *, has_room: bool) -> tuple[View, ...]:
    """The views called `name`; all but `none` also mirrored.

    RecipeError where the canvas is no larger than the input and leaves no room for them.
    """
    if name == "none":
        return (CENTRE,)
    if name != "flip" and not has_room:
        raise RecipeError(
            f"prediction.views={name} needs a canvas larger than the input: set pixels.canvas above"
            " 1, such as 1.143, or prediction.views=flip"
        )
    return tuple(
        replace(view, name=view.name + "-flip" * flip, flip=flip)
        for view in _UNMIRRORED[name]
        for flip in (False, True)
    )


def crop(canvas: NDArray[np.uint8], view: View, size_px: int) -> NDArray[np.uint8]:
    """`view` of one canvas [h, w, 3], not mirrored and not resized."""
    height, width = canvas.shape[:2]
    side = min(height, width) if view.whole else size_px
    top, left = round(view.y * (height - side)), round(view.x * (width - side))
    return canvas[top : top + side, left : left + side]
