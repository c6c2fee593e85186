"""How a photo becomes the canvas that networks are fed from."""

from dataclasses import dataclass
from typing import Literal, get_args

from comp.errors import RecipeError

Fit = Literal["squash", "shorter", "letterbox", "center-crop"]
Interpolation = Literal["bicubic", "bilinear"]
MAX_SIZE_PX = 4096  # a canvas of 50 MB; beyond it a number is a slip of the pen
PAD = (
    124,
    116,
    104,
)  # ImageNet's mean colour, about 0 once normalised: what fills a canvas beside the photo
MAX_ASPECT = 4  # of a canvas that keeps its shape; the most extreme of 2,002 real photos has 2.8


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """The size and shape of a canvas and how its pixels are interpolated; always antialiased, always uint8.

    "squash" makes size x size out of the whole photo, whatever its shape. "shorter" keeps the shape: the shorter side becomes `size_px`,
    the longer one follows, up to MAX_ASPECT times that; the rest is cut off evenly at both ends, so a strip of 1 x 10,000 px does no harm.
    "letterbox" keeps both the shape and the whole photo: the longer side becomes `size_px`, and PAD fills the square evenly at both ends.
    "center-crop" resizes nothing: the middle of the photo, at its own scale, on PAD where the photo is smaller than the square.
    """

    fit: Fit = "squash"
    size_px: int = 256
    interpolation: Interpolation = "bicubic"

    def __post_init__(self) -> None:
        if self.fit not in get_args(Fit):
            raise RecipeError(
                f"geometry.fit is {self.fit!r}: choose one of {', '.join(get_args(Fit))}"
            )
        if self.interpolation not in get_args(Interpolation):
            raise RecipeError(
                f"geometry.interpolation is {self.interpolation!r}: choose one of {', '.join(get_args(Interpolation))}"
            )
        if (
            isinstance(self.size_px, bool)
            or not isinstance(self.size_px, int)
            or not 1 <= self.size_px <= MAX_SIZE_PX
        ):
            raise RecipeError(
                f"geometry.size_px is {self.size_px!r}: give a whole number of pixels from 1 to {MAX_SIZE_PX}"
            )

    def canvas(self, width: int, height: int) -> tuple[int, int]:
        """Height and width, in that order, of the canvas of an upright photo of `width` x `height` pixels."""
        if self.fit != "shorter":
            return self.size_px, self.size_px
        shorter, longer = min(width, height), max(width, height)
        long_px = min(
            MAX_ASPECT * self.size_px, max(self.size_px, round(self.size_px * longer / shorter))
        )
        return (self.size_px, long_px) if width >= height else (long_px, self.size_px)

    def crop(self, width: int, height: int) -> tuple[int, int, int, int]:
        """The part of the photo that fills the canvas: top, left, height, width. All of it but for center-crop and extreme shapes."""
        if self.fit == "center-crop":
            high, wide = min(height, self.size_px), min(width, self.size_px)
            return (height - high) // 2, (width - wide) // 2, high, wide
        if self.fit != "shorter" or max(width, height) <= MAX_ASPECT * min(width, height):
            return 0, 0, height, width
        keep = MAX_ASPECT * min(width, height)
        return (
            (0, (width - keep) // 2, height, keep)
            if width > height
            else ((height - keep) // 2, 0, keep, width)
        )

    def place(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Where on its canvas the part of the photo that is kept, of `width` x `height`, comes to lie: top, left, height, width."""
        high, wide = self.canvas(width, height)
        if self.fit in ("squash", "shorter"):
            return 0, 0, high, wide
        longer = max(width, height) if self.fit == "letterbox" else self.size_px
        inner_high, inner_wide = (
            max(1, round(self.size_px * side / longer)) for side in (height, width)
        )
        return (high - inner_high) // 2, (wide - inner_wide) // 2, inner_high, inner_wide

    @property
    def name(self) -> str:
        """A name for people and folders, such as squash-256-bicubic."""
        return f"{self.fit}-{self.size_px}-{self.interpolation}"
