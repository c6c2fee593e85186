"""Closed curves in units of the thing drawn, painted with Pillow."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import cos, hypot, pi, sin

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw

Points = NDArray[np.float64]  # [n, 2]: x to the right, y down
Colour = tuple[int, ...]  # red, green, blue and, where paint is thin, alpha; 0..255 each
Lot = np.random.Generator  # what is left to chance, for one purpose
_SHADOW = (20, 14, 24)
_CAP = np.array(
    [(cos(turn), sin(turn)) for turn in np.linspace(0, pi, 7)[1:-1]]
)  # half a circle without its ends


def ellipse(
    centre: ArrayLike, radii: tuple[float, float], angle: float = 0.0, n: int = 24
) -> Points:
    c, s = cos(angle), sin(angle)
    points: Points = (
        _circle(n) @ np.array([[c * radii[0], s * radii[0]], [-s * radii[1], c * radii[1]]])
        + centre
    )
    return points


@cache
def _circle(n: int) -> Points:
    turn = np.linspace(0, 2 * pi, n, endpoint=False)
    return np.stack([np.cos(turn), np.sin(turn)], axis=1)


def sheet(left: float, top: float, right: float, bottom: float) -> Points:
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)])


def rounded(corners: ArrayLike, closed: bool = True, times: int = 3) -> Points:
    """The smooth curve that `corners` (of any dimension) pull on. Source: Chaikin 1974, corner cutting."""
    points = np.asarray(corners, float)
    curve: Points = _cutting(len(points), closed, times) @ points
    return curve


@cache
def _cutting(n: int, closed: bool, times: int) -> NDArray[np.float64]:
    """Corner cutting is linear, so the weights of `n` corners in each point of the curve are worked out once."""
    points = np.eye(n)
    for _ in range(times):
        ahead = np.roll(points, -1, axis=0) if closed else points[1:]
        here = points if closed else points[:-1]
        cut = np.stack([0.75 * here + 0.25 * ahead, 0.25 * here + 0.75 * ahead], axis=1).reshape(
            -1, n
        )
        points = cut if closed else np.concatenate([points[:1], cut, points[-1:]])
    return points


def limb(spine: Sequence[tuple[float, float, float]]) -> Points:
    """The outline of a leg, tail or neck: rounded through (x, y, radius), with round ends."""
    path = rounded(spine, closed=False, times=2)
    centre, radius = path[:, :2], path[:, 2:]
    along = np.empty_like(centre)
    along[1:-1], along[0], along[-1] = (
        centre[2:] - centre[:-2],
        centre[1] - centre[0],
        centre[-1] - centre[-2],
    )
    along *= radius / (np.hypot(along[:, :1], along[:, 1:]) + 1e-9)
    side = along[:, ::-1] * (-1.0, 1.0)
    end = centre[-1] + _CAP[:, :1] * side[-1] + _CAP[:, 1:] * along[-1]
    start = centre[0] - _CAP[:, :1] * side[0] - _CAP[:, 1:] * along[0]
    return np.concatenate([centre + side, end, (centre - side)[::-1], start])


def tufted(outline: Points, tuft: float, hairs: Lot) -> Points:
    """`outline` with hair standing off it by up to `tuft` units."""
    if tuft <= 0:
        return outline
    ahead = np.concatenate([outline[1:], outline[:1]])
    points = np.concatenate(
        [outline, (outline * 2 + ahead) / 3, (outline + ahead * 2) / 3], axis=1
    ).reshape(-1, 2)
    out = points - outline.mean(axis=0)
    push = hairs.random((len(points), 1)) * tuft
    push[::2] = 0
    out *= push / (np.hypot(out[:, :1], out[:, 1:]) + 1e-9)
    hairy: Points = points + out + out[:, ::-1] * 0.3
    return hairy


@cache
def _dimness(light: int) -> Image.Image:
    """How dark a ball is, 0..110 of 255, with the light at `light` twelfths of a turn clockwise from nine o'clock."""
    y, x = np.mgrid[-1:1:96j, -1:1:96j]
    facing = (
        -x * cos(light * pi / 6)
        - y * sin(light * pi / 6)
        + np.sqrt(np.clip(1.2 - x**2 - y**2, 0, None))
    )
    return Image.fromarray(np.clip(110 - 100 * facing, 0, 110).astype(np.uint8))


@dataclass(frozen=True, slots=True, kw_only=True)
class Brush:
    """Paints on `image` in units of its own: pixels = `matrix` @ units + `origin`."""

    image: Image.Image
    matrix: Points
    origin: Points
    pelt: Image.Image | None = (
        None  # what fur is cut from: as large as the image, with the coat's pattern
    )
    light: int = 2  # where it comes from, in twelfths of a turn clockwise from nine o'clock
    ink: Colour | None = None  # outlines the fur; None: no outline

    @classmethod
    def on(
        cls, image: Image.Image, scale: float, light: int = 2, ink: Colour | None = None
    ) -> "Brush":
        """A brush whose unit is `scale` pixels, from the upper left corner."""
        return cls(image=image, matrix=np.eye(2) * scale, origin=np.zeros(2), light=light, ink=ink)

    def at(
        self, place: ArrayLike, scale: float = 1.0, angle: float = 0.0, flip: bool = False
    ) -> "Brush":
        """The same brush with a frame of its own at `place`; `angle` in radians, clockwise; `flip` swaps left and right."""
        turn = np.array([[cos(angle), -sin(angle)], [sin(angle), cos(angle)]]) * scale
        matrix = self.matrix @ turn @ np.diag([-1.0 if flip else 1.0, 1.0])
        return replace(self, matrix=matrix, origin=self.pixels(place))

    def pixels(self, points: ArrayLike) -> Points:
        pixels: Points = np.asarray(points, float) @ self.matrix.T + self.origin
        return pixels

    def shape(self, outline: ArrayLike, colour: Colour) -> None:
        ImageDraw.Draw(self.image, "RGBA").polygon(
            self.pixels(outline).ravel().tolist(), fill=colour
        )

    def line(self, points: ArrayLike, colour: Colour, width: float) -> None:
        """A line `width` units thick, and one pixel at least."""
        thick = max(1, round(width * hypot(*self.matrix[0].tolist())))
        ImageDraw.Draw(self.image, "RGBA").line(
            self.pixels(points).ravel().tolist(), fill=colour, width=thick
        )

    def fur(self, outline: Points, colour: Colour | None = None, shade: float = 1.0) -> None:
        """Something round: cut from the pelt, or of plain `colour`; `shade` below 1 for what is farther off."""
        pixels = self.pixels(outline)
        low = np.maximum(np.floor(pixels.min(axis=0)), 0).astype(int)
        high = np.minimum(np.ceil(pixels.max(axis=0)) + 1, self.image.size).astype(int)
        if (high <= low).any():
            return
        box, size = (*low.tolist(), *high.tolist()), tuple((high - low).tolist())
        piece = (
            self.pelt.crop(box) if self.pelt and not colour else Image.new("RGB", size, colour or 0)
        )
        piece.paste(
            Image.new("RGB", size, _SHADOW),
            (0, 0),
            _dimness(self.light).resize(size, Image.Resampling.NEAREST),
        )
        if shade < 1:
            piece = Image.blend(Image.new("RGB", size), piece, shade)
        mask = Image.new("L", size)
        ImageDraw.Draw(mask).polygon((pixels - low).ravel().tolist(), fill=255)
        self.image.paste(piece, box, mask)
        if self.ink:
            self.line(np.concatenate([outline, outline[:1]]), self.ink, 0.045)
