"""What a photo becomes for a network: a canvas, of a size and shape set by a geometry."""

from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from comp.store import Workspace, fingerprint

CanvasFit = Literal["squash", "shorter", "letterbox", "center-crop"]
Interpolation = Literal["bicubic", "bilinear"]
MAX_ASPECT = 4  # of a canvas that keeps its shape; the most extreme of 2,002 real photos has 2.8
DECODER = 2  # raise it when the same bytes begin to decode to other pixels: stores are made anew
PIXELS_FILE = "pixels.bin"  # in the folder of a store
PAD = (124, 116, 104)  # ImageNet's mean colour, about 0 when normalised: fills what no photo covers


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """Size and shape of a canvas and how it is interpolated; always antialiased, always uint8.

    "squash": the whole photo, resized to a square whatever its shape.
    "shorter": the shorter side becomes `size_px`, the longer one at most MAX_ASPECT times that, and
    the rest is cropped evenly at both ends.
    "letterbox": the longer side becomes `size_px`, and bars of PAD make it a square.
    "center-crop": the middle of the photo without resizing, on PAD if the photo is smaller.
    """

    fit: CanvasFit = "squash"
    size_px: int = 256
    interpolation: Interpolation = "bicubic"

    @property
    def name(self) -> str:
        """For people and folders, such as squash-256-bicubic."""
        return f"{self.fit}-{self.size_px}-{self.interpolation}"

    def canvas(self, width: int, height: int) -> tuple[int, int]:
        """Height and width (in this order) of the canvas of an upright photo."""
        if self.fit != "shorter":
            return self.size_px, self.size_px
        shorter, longer = min(width, height), max(width, height)
        long_px = min(MAX_ASPECT * self.size_px, round(self.size_px * longer / shorter))
        return (self.size_px, long_px) if width >= height else (long_px, self.size_px)

    def crop(self, width: int, height: int) -> tuple[int, int, int, int]:
        """The part of the photo that is kept: top, left, height, width. All of it for most fits."""
        high, wide = height, width
        if self.fit == "center-crop":
            high, wide = min(height, self.size_px), min(width, self.size_px)
        elif self.fit == "shorter":
            longest = MAX_ASPECT * min(width, height)
            high, wide = min(height, longest), min(width, longest)
        return (height - high) // 2, (width - wide) // 2, high, wide

    def place(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Where the part that is kept lies on its canvas: top, left, height, width."""
        high, wide = self.canvas(width, height)
        if self.fit in ("squash", "shorter"):
            return 0, 0, high, wide
        scale_to = max(width, height) if self.fit == "letterbox" else self.size_px
        inner_high, inner_wide = (
            max(1, round(self.size_px * side / scale_to)) for side in (height, width)
        )
        return (high - inner_high) // 2, (wide - inner_wide) // 2, inner_high, inner_wide

    def n_bytes(self, sizes: Iterable[tuple[int, int]]) -> int:
        """What canvases of photos of these widths and heights take in a store."""
        canvases = (self.canvas(int(width), int(height)) for width, height in sizes)
        return sum(height * width * 3 for height, width in canvases)


def store_folder(workspace: Workspace, geometry: Geometry) -> Path:
    """Where the canvases of `geometry` are stored; named by all that decides their bytes."""
    names = ("torch", "torchvision", "pillow")
    libraries = [f"{name} {version(name).split('+')[0]}" for name in names]
    return workspace.pixels / f"{geometry.name}-{fingerprint(geometry, DECODER, libraries)}"
