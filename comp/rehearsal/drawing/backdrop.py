"""What is behind the animal. Units are heights of the picture, `w` is its width; none of it knows the class."""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter

from comp.rehearsal.drawing.anatomy import pick, varied
from comp.rehearsal.drawing.brush import Brush, Colour, Lot, ellipse, limb, rounded, sheet

Palette = tuple[Colour, ...]
BRIGHT: Palette = (
    (206, 62, 56),
    (58, 116, 190),
    (240, 190, 60),
    (84, 160, 88),
    (232, 126, 60),
    (150, 96, 170),
    (238, 234, 224),
    (70, 66, 72),
)
WALLS: Palette = (
    (214, 204, 184),
    (178, 196, 204),
    (206, 178, 170),
    (168, 186, 158),
    (232, 228, 220),
    (120, 130, 150),
    (96, 84, 90),
)
GROUND: Palette = (
    (104, 148, 70),
    (150, 160, 80),
    (196, 176, 128),
    (232, 236, 242),
    (128, 116, 96),
    (70, 110, 64),
)
FLOORS: Palette = (
    (158, 112, 70),
    (120, 82, 54),
    (190, 160, 122),
    (150, 150, 152),
    (92, 88, 96),
    (176, 110, 96),
)
LEAVES: Palette = ((62, 112, 60), (96, 130, 60), (170, 120, 50), (44, 84, 66))
FRAME: Colour = (240, 238, 232)


def one_of(palette: Palette, lot: Lot, spread: float = 16) -> Colour:
    return varied(palette[int(lot.integers(len(palette)))], spread, lot)


def backdrop(size: tuple[int, int], lot: Lot) -> Image.Image:
    """A place, out of focus by as much as the lot says."""
    image = Image.new("RGB", size)
    places: dict[Callable[[Brush, float, Lot], None], float] = {
        _meadow: 1.2,
        _room: 1.4,
        _street: 0.7,
        _studio: 0.8,
        _night: 0.4,
    }
    pick(lot, places)(Brush.on(image, size[1]), size[0] / size[1], lot)
    return image.filter(ImageFilter.BoxBlur(max(0.5, float(lot.random() * 3.0 - 0.5))))


def _gradient(brush: Brush, top: Colour, bottom: Colour) -> None:
    strip = Image.fromarray(np.array([[top], [bottom]], np.uint8))
    brush.image.paste(strip.resize(brush.image.size, Image.Resampling.BILINEAR), (0, 0))


def _hill(brush: Brush, w: float, height: float, colour: Colour, lot: Lot) -> None:
    x, waves = np.linspace(0, w, 14), lot.random(4)
    y = height + 0.05 * (
        np.sin(x / w * 9 * waves[0] + 6 * waves[1]) + np.sin(x / w * 17 * waves[2] + 6 * waves[3])
    )
    brush.shape([(0, 1), *zip(x.tolist(), y.tolist(), strict=True), (w, 1)], colour)


def _meadow(brush: Brush, w: float, lot: Lot) -> None:
    _gradient(
        brush,
        one_of(((130, 180, 226), (190, 206, 220), (236, 186, 150), (110, 140, 180)), lot),
        (238, 238, 232),
    )
    if lot.random() < 0.4:
        brush.shape(ellipse((lot.random() * w, lot.random() * 0.35), (0.07, 0.07)), (252, 236, 170))
    for x, y, r in lot.random((int(lot.integers(4)), 3)):
        for puff in (-1.0, 0.0, 1.1):
            brush.shape(
                ellipse(((x + puff * 0.07) * w, y * 0.3), ((0.06 + 0.05 * r) * w, 0.045)),
                (250, 250, 250, 200),
            )
    horizon, ground = 0.4 + 0.3 * lot.random(), one_of(GROUND, lot)
    _hill(brush, w, horizon - 0.06, varied(ground, 22, lot), lot)
    for _ in range(int(lot.integers(5))):
        _tree(brush, lot.random() * w, horizon + 0.03, lot)
    _hill(brush, w, horizon + 0.05, ground, lot)
    for x, y, lean in lot.random((int(lot.integers(10, 40)), 3)):
        root = x * w, horizon + 0.1 + (0.9 - horizon) * y
        brush.line(
            [root, (root[0] + (lean - 0.5) * 0.05, root[1] - 0.02 - 0.04 * y)],
            varied(ground, 18, lot),
            0.008,
        )
    if lot.random() < 0.35:
        colour = one_of(BRIGHT, lot)
        for x, y, r in lot.random((14, 3)):
            brush.shape(
                ellipse(
                    (x * w, horizon + 0.12 + (0.9 - horizon) * y),
                    (0.006 + 0.012 * r, 0.006 + 0.012 * r),
                    n=8,
                ),
                colour,
            )


def _tree(brush: Brush, x: float, foot: float, lot: Lot) -> None:
    tall, leaf = 0.2 + 0.3 * lot.random(), one_of(LEAVES, lot)
    brush.shape(sheet(x - tall * 0.05, foot - tall * 0.6, x + tall * 0.05, foot), (92, 66, 46))
    if lot.random() < 0.4:
        brush.shape(
            [
                (x - tall * 0.3, foot - tall * 0.25),
                (x, foot - tall * 1.2),
                (x + tall * 0.3, foot - tall * 0.25),
            ],
            leaf,
        )
    else:
        for dx, dy, r in lot.random((4, 3)):
            brush.shape(
                ellipse(
                    (x + tall * 0.5 * (dx - 0.5), foot - tall * (0.6 + 0.4 * dy)),
                    (tall * (0.15 + 0.15 * r), tall * 0.2),
                ),
                leaf,
            )


def _room(brush: Brush, w: float, lot: Lot) -> None:
    wall, floor, skirting = one_of(WALLS, lot), one_of(FLOORS, lot), 0.5 + 0.3 * lot.random()
    _gradient(brush, wall, varied(wall, 10, lot))
    if lot.random() < 0.35:
        paper, gap = varied(wall, 16, lot), w * (0.05 + 0.08 * lot.random())
        for x in np.arange(0, w, gap):
            brush.shape(sheet(x, 0, x + gap / 2, skirting), paper)
    brush.shape(sheet(0, skirting, w, 1), floor)
    lean = lot.normal(0, 0.4)
    for x in np.arange(-w, 2 * w, w * (0.1 + 0.15 * lot.random())):
        brush.line(
            [(x, skirting), (x + (x - w / 2) * 0.5 + lean * w, 1)], varied(floor, 8, lot), 0.01
        )
    brush.shape(sheet(0, skirting - 0.025, w, skirting), varied(FRAME, 12, lot))
    for furnish in (_window, _painting, _sofa, _lamp, _plant, _rug):
        if lot.random() < 0.4:
            furnish(brush, w, skirting, lot)


def _window(brush: Brush, w: float, skirting: float, lot: Lot) -> None:
    x, wide, tall = lot.random() * w * 0.8, w * (0.18 + 0.15 * lot.random()), skirting * 0.6
    brush.shape(sheet(x - 0.02, 0.03, x + wide + 0.02, 0.07 + tall), FRAME)
    brush.shape(
        sheet(x, 0.05, x + wide, 0.05 + tall),
        one_of(((160, 200, 230), (60, 70, 100), (220, 220, 200)), lot),
    )
    brush.shape(sheet(x + wide / 2 - 0.01, 0.05, x + wide / 2 + 0.01, 0.05 + tall), FRAME)
    brush.shape(sheet(x, 0.04 + tall / 2, x + wide, 0.06 + tall / 2), FRAME)


def _painting(brush: Brush, w: float, skirting: float, lot: Lot) -> None:
    x, wide, tall = lot.random() * w * 0.8, w * 0.18, skirting * (0.25 + 0.2 * lot.random())
    brush.shape(sheet(x, 0.08, x + wide, 0.08 + tall), (84, 60, 40))
    brush.shape(sheet(x + 0.02, 0.1, x + wide - 0.02, 0.06 + tall), one_of(WALLS, lot))
    brush.shape(
        ellipse((x + wide * 0.5, 0.08 + tall * 0.5), (wide * 0.2, tall * 0.25)), one_of(BRIGHT, lot)
    )


def _sofa(brush: Brush, w: float, skirting: float, lot: Lot) -> None:
    x, wide, colour = (lot.random() - 0.2) * w, w * (0.5 + 0.4 * lot.random()), one_of(BRIGHT, lot)
    brush.shape(
        rounded(sheet(x, skirting - 0.2, x + wide, skirting + 0.1), times=2),
        varied(colour, 10, lot),
    )
    brush.shape(
        rounded(
            sheet(x - 0.05 * w, skirting + 0.02, x + wide + 0.05 * w, skirting + 0.16), times=2
        ),
        colour,
    )
    x += wide * lot.random()
    brush.shape(
        rounded(sheet(x, skirting - 0.1, x + 0.14, skirting + 0.04), times=1), one_of(BRIGHT, lot)
    )


def _lamp(brush: Brush, w: float, skirting: float, lot: Lot) -> None:
    x, top = lot.random() * w, skirting * (0.2 + 0.3 * lot.random())
    brush.line([(x, top), (x, skirting + 0.04)], (60, 54, 50), 0.016)
    lit = one_of(((250, 226, 160), (220, 120, 90)), lot)
    brush.shape(
        [
            (x - 0.04 * w, top - 0.1),
            (x + 0.04 * w, top - 0.1),
            (x + 0.08 * w, top),
            (x - 0.08 * w, top),
        ],
        lit,
    )


def _plant(brush: Brush, w: float, skirting: float, lot: Lot) -> None:
    x, y, leaf = lot.random() * w, skirting + 0.06, one_of(LEAVES, lot)
    for angle, reach in zip(lot.normal(0, 0.7, 8), lot.random(8), strict=True):
        dx, dy = 0.25 * float(np.sin(angle)), -0.1 - 0.2 * float(reach)
        brush.shape(
            limb([(x, y, 0.006), (x + dx / 2, y + dy / 2, 0.02), (x + dx, y + dy, 0.002)]),
            varied(leaf, 14, lot),
        )
    brush.shape(
        [(x - 0.05, y - 0.03), (x + 0.05, y - 0.03), (x + 0.035, y + 0.06), (x - 0.035, y + 0.06)],
        one_of(BRIGHT, lot),
    )


def _rug(brush: Brush, w: float, skirting: float, lot: Lot) -> None:
    middle = w * (0.3 + 0.4 * lot.random()), (skirting + 1) / 2
    for reach in (1.0, 0.85, 0.6):
        brush.shape(
            ellipse(middle, (w * 0.4 * reach, (1 - skirting) * 0.38 * reach)), one_of(BRIGHT, lot)
        )


def _street(brush: Brush, w: float, lot: Lot) -> None:
    _gradient(
        brush, one_of(((150, 184, 216), (196, 200, 206), (222, 170, 140)), lot), (226, 226, 222)
    )
    kerb, x = 0.55 + 0.25 * lot.random(), -0.1 * w
    while x < w:
        wide = w * (0.15 + 0.2 * lot.random())
        _house(brush, sheet(x, kerb * (0.2 + 0.4 * lot.random()), x + wide, kerb), lot)
        x += wide + 0.03 * w * lot.random()
    brush.shape(
        sheet(0, kerb, w, 1), one_of(((120, 120, 124), (160, 150, 140), (100, 104, 96)), lot)
    )
    for y in np.linspace(kerb, 1, 5)[1:]:
        brush.line([(0, y), (w, y + lot.normal(0, 0.015))], (90, 88, 90, 120), 0.01)


def _house(
    brush: Brush, front: np.ndarray[tuple[int, ...], np.dtype[np.float64]], lot: Lot
) -> None:
    (x, top), (right, bottom) = front[0].tolist(), front[2].tolist()
    brush.shape(front, one_of(WALLS + FLOORS, lot))
    if lot.random() < 0.5:  # roofs have the outline of ears
        brush.shape(
            [(x - 0.01, top), ((x + right) / 2, top - 0.14), (right + 0.01, top)],
            one_of(((150, 80, 66), (90, 84, 90)), lot),
        )
    lit = one_of(((240, 220, 140), (90, 110, 140), (60, 60, 70)), lot)
    for left in (x + 0.18 * (right - x), x + 0.6 * (right - x)):
        for y in np.arange(top + 0.04, bottom - 0.1, 0.13):
            brush.shape(sheet(left, y, left + 0.22 * (right - x), y + 0.07), lit)


def _studio(brush: Brush, w: float, lot: Lot) -> None:
    colour = one_of(WALLS + BRIGHT, lot, 24)
    _gradient(brush, colour, varied(colour, 26, lot))
    for x, y, r in lot.random((int(lot.integers(0, 16)), 3)):
        brush.shape(
            ellipse((x * w, y), (0.03 + 0.12 * r, 0.03 + 0.12 * r)), (*varied(colour, 40, lot), 130)
        )


def _night(brush: Brush, w: float, lot: Lot) -> None:
    _gradient(brush, (24, 28, 54), one_of(((70, 70, 110), (110, 80, 100), (50, 80, 100)), lot))
    for x, y, r in lot.random((30, 3)):
        brush.shape(
            ellipse((x * w, y * 0.6), (0.003 + 0.004 * r, 0.003 + 0.004 * r), n=6), (250, 248, 220)
        )
    brush.shape(ellipse((w * lot.random(), 0.3 * lot.random()), (0.08, 0.08)), (244, 240, 214))
    _hill(brush, w, 0.55 + 0.2 * lot.random(), varied((34, 46, 44), 8, lot), lot)
