"""The squares of a canvas that a network is shown; test-time augmentation is a list of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from comp.errors import RecipeError
from comp.recipe import ViewsName
from comp.train.backbone import Input


class Canvases(Protocol):
    """Where the canvases of photos come from; `comp.data.pixels.PixelStore` is one."""

    def canvas(self, row: int) -> NDArray[np.uint8]:
        """The canvas [h, w, 3] of one photo."""
        ...


class Photos(Canvases, Protocol):
    """Canvases of photos that are known by their file."""

    @property
    def sha256s(self) -> tuple[str, ...]: ...


class Seen(Protocol):
    """A way to see every photo."""

    @property
    def name(self) -> str: ...

    @property
    def flip(self) -> bool:
        """Whether the squares are mirrored, which is left to the device."""
        ...

    def squares(self, photos: Photos, rows: Sequence[int], size_px: int) -> NDArray[np.uint8]:
        """What is seen of each photo, unmirrored, [n, s, s, 3]; s is `size_px`, or what will be scaled to it."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """One square of a canvas, and whether it is mirrored."""

    name: str
    x: float = 0.5  # where the square sits in the room there is: 0 left, 0.5 centred, 1 right
    y: float = 0.5  # 0 top, 1 bottom
    whole: bool = False  # the largest centred square, scaled down to the input, instead of a square of the input's own size
    flip: bool = False

    def squares(self, photos: Canvases, rows: Sequence[int], size_px: int) -> NDArray[np.uint8]:
        """[n, s, s, 3]; s is `size_px`, or the canvas's shorter side where the view is the whole of it."""
        return np.stack([cut_square(photos.canvas(row), self, size_px) for row in rows])


_CENTRE = View(name="centre")
_CORNERS = tuple(
    View(name=f"corner-{x:.0f}{y:.0f}", x=x, y=y) for y in (0.0, 1.0) for x in (0.0, 1.0)
)
_PLAIN: dict[str, tuple[View, ...]] = {
    "flip": (_CENTRE,),
    "five_crop": (_CENTRE, *_CORNERS),
    "multi_scale": (_CENTRE, View(name="whole", whole=True)),
}


def views_of(name: ViewsName, *, has_room: bool) -> tuple[View, ...]:
    """The views that a recipe declares; all but `none` are also mirrored. RecipeError where the canvas leaves no room for them."""
    if name == "none":
        return (_CENTRE,)
    if name != "flip" and not has_room:
        raise RecipeError(
            f"prediction.views={name} needs room around the input: set pixels.canvas above 1, such as 1.143, or views=flip"
        )
    return tuple(
        replace(view, name=view.name + "-flip" * flip, flip=flip)
        for view in _PLAIN[name]
        for flip in (False, True)
    )


def cut_square(canvas: NDArray[np.uint8], view: View, size_px: int) -> NDArray[np.uint8]:
    """`view` of one canvas [h, w, 3], unmirrored."""
    height, width = canvas.shape[:2]
    side = min(height, width) if view.whole else size_px
    top, left = round(view.y * (height - side)), round(view.x * (width - side))
    return canvas[top : top + side, left : left + side]


def as_images(square: Tensor, view: Seen, size_px: int, shown: Input, dtype: torch.dtype) -> Tensor:
    """What the network is given: [n, 3, s, s] channels-last and normalised, from uint8 `square [n, s', s', 3]` on the same device."""
    images = square.permute(0, 3, 1, 2)
    if images.shape[-1] != size_px:
        mode = (
            InterpolationMode.BILINEAR
            if shown.interpolation == "bilinear"
            else InterpolationMode.BICUBIC
        )
        images = transforms.resize(images, [size_px, size_px], interpolation=mode, antialias=True)
    return normalise(images.flip(3) if view.flip else images, shown, dtype)


def normalise(images: Tensor, shown: Input, dtype: torch.dtype) -> Tensor:
    """uint8 images [n, 3, s, s] with the mean and spread that the backbone was trained with, channels-last.

    In rows of pixels, so that the inner loop is long, and in float32 up to one rounding: 2.5 times as fast as channel by channel.
    """
    n, channels, height, width = images.shape
    rows = images.permute(0, 2, 3, 1).reshape(n * height, width * channels)
    spread = torch.tensor(shown.std, device=images.device).repeat(width)
    shift = -torch.tensor(shown.mean, device=images.device).repeat(width) / spread
    made = torch.empty(rows.shape, dtype=dtype, device=images.device)
    torch.addcmul(shift, rows.float(), 1 / (255 * spread), out=made)
    return made.view(n, height, width, channels).permute(0, 3, 1, 2)
