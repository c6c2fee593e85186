"""What lies about, and what is in the way. Units are heights of the picture, `w` is its width; none of it knows the class."""

from collections.abc import Callable

import numpy as np

from comp.rehearsal.drawing.anatomy import pick, varied
from comp.rehearsal.drawing.backdrop import BRIGHT, FLOORS, GROUND, LEAVES, Palette, one_of
from comp.rehearsal.drawing.brush import Brush, Colour, Lot, ellipse, rounded, sheet


def scatter(brush: Brush, w: float, n: int, lot: Lot) -> None:
    """`n` toys and other things on the ground; cats have bones and dogs have fish."""
    for _ in range(n):
        thing = pick(
            lot, {_ball: 1.0, _bone: 0.7, _fish: 0.7, _bowl: 0.8, _cushion: 0.8, _box: 0.6}
        )
        palettes: dict[Callable[[Brush, Colour], None], Palette] = {
            _bone: ((236, 228, 206),),
            _box: ((184, 142, 96),),
        }
        place, size = (lot.random() * w, 0.72 + 0.26 * lot.random()), 0.05 + 0.07 * lot.random()
        thing(
            brush.at(place, size * min(w, 1.0), float(lot.normal(0, 0.4))),
            one_of(palettes.get(thing, BRIGHT), lot),
        )


def _ball(brush: Brush, colour: Colour) -> None:
    brush.fur(ellipse((0, 0), (1, 1)), colour)
    for bend in (-0.7, 0.0, 0.7):
        brush.line(
            rounded(
                [(-0.9, bend * 0.4), (0, bend * 1.1), (0.9, bend * 0.4)], closed=False, times=2
            ),
            (245, 240, 235, 180),
            0.08,
        )


def _bone(brush: Brush, colour: Colour) -> None:
    for x, y in ((-1, -0.25), (-1, 0.25), (1, -0.25), (1, 0.25)):
        brush.shape(ellipse((x, y), (0.33, 0.33), n=12), colour)
    brush.shape(sheet(-1, -0.22, 1, 0.22), colour)


def _fish(brush: Brush, colour: Colour) -> None:
    brush.fur(ellipse((0, 0), (1, 0.45)), colour)
    brush.shape([(0.8, 0), (1.5, -0.45), (1.5, 0.45)], colour)
    brush.shape(ellipse((-0.6, -0.1), (0.09, 0.09), n=8), (20, 20, 20))


def _bowl(brush: Brush, colour: Colour) -> None:
    brush.fur(np.array([(-1.0, -0.3), (1.0, -0.3), (1.25, 0.5), (-1.25, 0.5)]), colour)
    brush.shape(ellipse((0, -0.3), (1.0, 0.22)), (120, 84, 60))


def _cushion(brush: Brush, colour: Colour) -> None:
    corners = [
        (-1.6, -0.9),
        (0, -0.7),
        (1.6, -0.9),
        (1.4, 0),
        (1.6, 0.9),
        (0, 0.7),
        (-1.6, 0.9),
        (-1.4, 0),
    ]
    brush.fur(rounded(corners, times=2), colour)


def _box(brush: Brush, colour: Colour) -> None:
    brush.shape(sheet(-1.4, -0.8, 1.4, 1.0), colour)
    brush.shape(sheet(-1.4, -0.8, 1.4, -0.5), (150, 112, 74))


def cover(brush: Brush, w: float, lot: Lot) -> None:
    """Something before the animal that hides a part of it; often nothing."""
    covers: dict[Callable[[Brush, float, Lot], None], float] = {
        _grass: 0.7,
        _fence: 0.2,
        _leaves: 0.6,
        _blanket: 0.5,
        _toys: 0.6,
        _glare: 0.4,
    }
    if lot.random() < 0.68:
        pick(lot, covers)(brush, w, lot)


def _grass(brush: Brush, w: float, lot: Lot) -> None:
    green, tall = one_of(GROUND, lot), 0.1 + 0.25 * lot.random()
    for x, lean, reach in lot.random((34, 3)):
        tip = x * w + (lean - 0.5) * tall, 1 - tall * (0.4 + 0.6 * reach)
        brush.shape([(x * w - 0.012, 1), (x * w + 0.012, 1), tip], varied(green, 18, lot))


def _fence(brush: Brush, w: float, lot: Lot) -> None:
    wood, gap = one_of(FLOORS, lot), w * (0.14 + 0.1 * lot.random())
    for x in np.arange(lot.random() * gap - gap, w, gap):
        brush.shape(sheet(x, 0.1, x + gap * 0.18, 1), varied(wood, 8, lot))
    brush.shape(sheet(0, 0.78, w, 0.84), wood)


def _leaves(brush: Brush, w: float, lot: Lot) -> None:
    green, (x, y) = one_of(LEAVES, lot), lot.random(2)
    for dx, dy, turn in lot.normal(0, 1, (9, 3)):
        brush.shape(
            ellipse(((x + 0.1 * dx) * w, y + 0.08 * dy), (0.07, 0.03), turn), varied(green, 16, lot)
        )


def _blanket(brush: Brush, w: float, lot: Lot) -> None:
    top = np.stack(
        [np.linspace(0, w, 7), 0.68 + 0.22 * lot.random() + 0.04 * lot.normal(0, 1, 7)], axis=1
    )
    brush.shape(
        [(0, 1), *rounded(top, closed=False, times=2).tolist(), (w, 1)], one_of(BRIGHT, lot)
    )


def _toys(brush: Brush, w: float, lot: Lot) -> None:
    scatter(brush, w, int(lot.integers(1, 4)), lot)


def _glare(brush: Brush, w: float, lot: Lot) -> None:
    x = w * lot.random()
    brush.shape([(x, 0), (x + 0.2 * w, 0), (x - 0.1 * w, 1), (x - 0.3 * w, 1)], (255, 255, 240, 90))
