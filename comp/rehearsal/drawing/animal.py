"""A cat or a dog, painted from its anatomy, coat and pose: the pelt, the body, and the head on top."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from PIL import Image

from comp.rehearsal.drawing.anatomy import Anatomy, Coat, Pose, Posture
from comp.rehearsal.drawing.brush import Brush, Colour, Lot, Points, ellipse, limb, rounded, tufted
from comp.rehearsal.drawing.head import paint_head

WHITE: Colour = (240, 236, 230)
Place = tuple[float, float]


class Extent(NamedTuple):
    """The room that a posture takes, in skull radii of the body; the head is drawn `head` times as large as that."""

    width: float
    height: float
    head: float
    shift: float  # to the left, so that trunk and head together lie about x = 0


EXTENTS: dict[Posture, Extent] = {
    "portrait": Extent(3.4, 3.6, 1.0, 0.0),
    "sitting": Extent(3.9, 6.2, 1.2, 0.0),
    "perched": Extent(4.6, 6.0, 1.25, 0.3),
    "standing": Extent(7.2, 6.0, 1.35, 0.6),
    "lying": Extent(7.2, 4.2, 1.3, 0.6),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Animal:
    """All that its painting needs; `hairs` is the luck of single hairs and blotches."""

    anatomy: Anatomy
    coat: Coat
    pose: Pose
    hairs: Lot

    def fluffy(self, outline: Points, more: float = 0.0) -> Points:
        return tufted(outline, self.coat.tuft + more, self.hairs)

    @property
    def points(self) -> Colour | None:
        """The colour of ears and tail, where it is not the pelt's."""
        return self.coat.second if self.coat.dark_points else None

    @property
    def paws(self) -> Colour | None:
        return WHITE if self.coat.socks else self.points


def paint_animal(brush: Brush, animal: Animal) -> None:
    """Paints on ground that is y = 0, around x = 0; the unit is the skull's radius. A portrait goes on below the ground."""
    posture = animal.pose.posture
    extent = EXTENTS[posture]
    brush.shape(ellipse((0, 0), (extent.width * 0.42, 0.3)), (0, 0, 0, 70))
    brush = brush.at(
        (extent.shift if animal.pose.flip else -extent.shift, 0), flip=animal.pose.flip
    )
    brush = replace(
        brush, pelt=pelt(brush.at((0, -2), angle=animal.coat.turn), animal.coat, animal.hairs)
    )
    paint = {
        "portrait": _portrait,
        "sitting": _sitting,
        "perched": _perched,
        "standing": _standing,
        "lying": _lying,
    }[posture]
    throat, head = paint(brush, animal)
    if animal.coat.collar:
        brush.fur(ellipse(throat, (0.72, 0.26)), animal.coat.collar)
        brush.shape(ellipse((throat[0], throat[1] + 0.3), (0.15, 0.15)), (236, 200, 70))
    muzzle = WHITE if animal.coat.white_muzzle else animal.points
    paint_head(
        brush.at(head, extent.head, animal.pose.roll),
        animal.anatomy,
        animal.coat,
        animal.pose,
        muzzle,
        animal.hairs,
    )


def pelt(brush: Brush, coat: Coat, hairs: Lot) -> Image.Image:
    """The coat's pattern all over a canvas like the brush's, to cut fur from."""
    image = Image.new("RGB", brush.image.size, coat.base)
    brush, second = replace(brush, image=image), coat.second
    if coat.pattern == "stripes":
        for x in np.arange(-5, 5, 0.55 + 0.3 * hairs.random()):
            bend = np.stack([x + hairs.normal(0, 0.12, 9), np.linspace(-4.5, 4.5, 9)], axis=1)
            brush.line(bend, second, 0.1 + 0.16 * hairs.random())
    elif coat.pattern == "spots":
        for x, y, r in hairs.random((70, 3)):
            brush.shape(
                ellipse((x * 9 - 4.5, y * 8 - 4), (0.1 + 0.22 * r, 0.1 + 0.18 * r), n=10), second
            )
    elif coat.pattern == "patches":
        for x, y, r in hairs.random((11, 3)):
            blotch = tufted(
                ellipse((x * 8 - 4, y * 7 - 3.5), (0.5 + r, 0.4 + 0.8 * r), n=12), 0.4, hairs
            )
            brush.shape(rounded(blotch, times=2), second if r > 0.3 else WHITE)
    elif coat.pattern == "saddle":
        brush.shape(tufted(ellipse((-0.5, -1.6), (2.6, 1.7)), 0.3, hairs), second)
    elif coat.pattern == "brindle":
        for x, y, r in hairs.random((90, 3)):
            left, top = x * 9 - 4.5, y * 8 - 4
            brush.line([(left, top), (left + 0.25 * (r - 0.5), top + 0.25 + 0.4 * r)], second, 0.1)
    return image


def _leg(
    brush: Brush,
    animal: Animal,
    hip: Place,
    swing: float = 0.0,
    bend: float = 0.0,
    shade: float = 1.0,
) -> None:
    """A leg from `hip` to the ground, its foot `swing` units ahead and its knee `bend` units back."""
    width, (x, y) = animal.anatomy.leg_width, hip
    brush.fur(
        limb(
            [
                (x, y, width * 1.5),
                (x - bend + swing * 0.4, y * 0.5, width),
                (x + swing, -0.15, width * 0.8),
            ]
        ),
        shade=shade,
    )
    brush.fur(ellipse((x + swing + 0.1, -0.15), (width * 1.2, width * 0.75)), animal.paws, shade)


def _tail(brush: Brush, animal: Animal, root: Place, heading: float) -> None:
    """A tail that leaves `root` to the left, upwards by `heading`, and curls on."""
    build, steps = animal.anatomy, 6
    turn = heading + np.linspace(0, build.tail_curl, steps)
    x = root[0] - np.cumsum(np.cos(turn)) * build.tail_length / steps
    y = np.minimum(
        root[1] - np.cumsum(np.sin(turn)) * build.tail_length / steps, -0.12
    )  # it lies on the ground, not under it
    radius = build.tail_width * np.linspace(1.15, 0.7, steps)
    spine = [(*root, build.tail_width), *zip(x.tolist(), y.tolist(), radius.tolist(), strict=True)]
    brush.fur(animal.fluffy(limb(spine)), animal.points)


def _chest(
    brush: Brush, animal: Animal, at: Place, radii: tuple[float, float], angle: float = 0.0
) -> None:
    if animal.coat.white_chest:
        brush.fur(animal.fluffy(ellipse(at, radii, angle), 0.04), WHITE)


def _portrait(brush: Brush, animal: Animal) -> tuple[Place, Place]:
    brush.fur(animal.fluffy(limb([(0, -1.3, 0.75), (0, 0.2, 1.15), (0, 2.5, 1.5)])))
    _chest(brush, animal, (0, 0.6), (0.6, 1.1))
    return (0, -0.85), (0, -1.7 - 0.3 * animal.anatomy.neck)


def _sitting(brush: Brush, animal: Animal) -> tuple[Place, Place]:
    build = animal.anatomy
    girth, top = build.depth * 1.25, -2.2 - build.leg_length * 0.55
    _tail(brush, animal, (-0.8, -0.35), animal.pose.tail_lift - 0.3)
    brush.fur(
        animal.fluffy(
            limb([(0, top, 0.6), (0, top * 0.6, girth * 0.85), (0, -girth * 1.05, girth * 1.1)])
        )
    )
    _chest(brush, animal, (0, top * 0.72), (0.48, 0.95))
    for side in (-1, 1):
        brush.fur(animal.fluffy(ellipse((side * girth * 0.9, -0.75), (0.55, 0.75), side * 0.2)))
        brush.fur(ellipse((side * girth * 1.05, -0.14), (0.36, 0.2)), animal.paws)
    for side in (-1, 1):
        _leg(brush, animal, (side * 0.42, top * 0.7), swing=side * 0.05)
    return (0, top - 0.1), (0, top - 0.75 - 0.6 * build.neck)


def _perched(brush: Brush, animal: Animal) -> tuple[Place, Place]:
    build = animal.anatomy
    depth, top = build.depth, -2.1 - build.leg_length * 0.5
    _tail(brush, animal, (-1.2, -0.3), animal.pose.tail_lift - 0.4)
    _leg(brush, animal, (0.85, top * 0.7), swing=0.2, shade=0.75)
    brush.fur(
        animal.fluffy(
            limb([(-0.7, -depth, depth), (0.1, top * 0.62, depth * 0.95), (0.65, top, 0.6)])
        )
    )
    _chest(brush, animal, (0.95, top * 0.72), (0.32, 0.7), -0.25)
    brush.fur(animal.fluffy(ellipse((-0.75, -0.8), (0.85, 0.78))))
    brush.fur(ellipse((0.05, -0.16), (0.5, 0.2)), animal.paws)
    _leg(brush, animal, (0.6, top * 0.68), swing=0.1)
    return (0.7, top - 0.05), (0.85 + 0.2 * build.neck, top - 0.7 - 0.6 * build.neck)


def _standing(brush: Brush, animal: Animal) -> tuple[Place, Place]:
    build, stride = animal.anatomy, animal.pose.stride
    half, depth = build.length, build.depth
    middle = -(build.leg_length + depth * 0.8)
    x, y = half + 0.75 + 0.3 * build.neck, middle - depth - 0.3 - 0.7 * build.neck  # of the throat
    _tail(brush, animal, (-half - depth * 0.5, middle - depth * 0.4), animal.pose.tail_lift)
    _leg(brush, animal, (half + 0.25, middle), swing=stride, shade=0.7)
    _leg(brush, animal, (-half + 0.3, middle), swing=-stride, bend=0.2, shade=0.7)
    brush.fur(animal.fluffy(limb([(half - 0.1, middle, depth * 0.8), (x, y, 0.55)])))
    brush.fur(
        animal.fluffy(
            limb(
                [
                    (-half, middle, depth * 0.92),
                    (0, middle - 0.05, depth * 0.8),
                    (half, middle, depth),
                ]
            )
        )
    )
    _chest(brush, animal, (half + depth * 0.65, middle), (0.3, 0.65), 0.2)
    _leg(brush, animal, (-half, middle), swing=stride, bend=0.25)
    _leg(brush, animal, (half - 0.1, middle + 0.1), swing=-stride)
    return (x - 0.15, y + 0.3), (x + 0.15, y - 0.45)


def _lying(brush: Brush, animal: Animal) -> tuple[Place, Place]:
    build = animal.anatomy
    depth, half = build.depth, build.length * 1.15
    _tail(brush, animal, (-half - depth * 0.6, -0.4), animal.pose.tail_lift * 0.5)
    brush.fur(limb([(half - 0.2, -0.5, 0.3), (half + 1.3, -0.3, build.leg_width)]), shade=0.75)
    brush.fur(
        animal.fluffy(
            limb(
                [
                    (-half, -depth, depth),
                    (0, -depth * 1.05, depth * 1.02),
                    (half - 0.3, -depth * 1.1, depth * 0.9),
                ]
            )
        )
    )
    _chest(brush, animal, (half, -depth), (0.45, 0.6))
    brush.fur(animal.fluffy(ellipse((-half + 0.3, -0.75), (0.95, 0.72))))
    brush.fur(ellipse((-half + 1.2, -0.17), (0.5, 0.2)), animal.paws)
    brush.fur(limb([(half - 0.4, -0.55, 0.32), (half + 1.0, -0.2, build.leg_width)]))
    brush.fur(ellipse((half + 1.1, -0.18), (0.36, 0.22)), animal.paws)
    return (half + 0.1, -depth * 1.6), (half + 0.3, -depth * 1.5 - 0.7 - 0.7 * build.neck)
