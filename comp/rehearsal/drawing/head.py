"""The head: a solid of simple parts, turned, put on the page and painted from the back to the front."""

from dataclasses import dataclass
from math import atan2, cos, pi, sin

import numpy as np
from numpy.typing import ArrayLike

from comp.rehearsal.drawing.anatomy import Anatomy, Coat, Pose
from comp.rehearsal.drawing.brush import Brush, Colour, Lot, Points, ellipse, limb, rounded, tufted

BLACK: Colour = (22, 18, 20)
WHITE: Colour = (240, 236, 230)
Spot = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Skull:
    """x to the right, y down, z out of the face; `turn [3, 3]` brings that to the viewer's."""

    turn: Points

    @classmethod
    def turned(cls, yaw: float, pitch: float) -> "Skull":
        about_y = np.array([[cos(yaw), 0, sin(yaw)], [0, 1, 0], [-sin(yaw), 0, cos(yaw)]])
        about_x = np.array([[1, 0, 0], [0, cos(pitch), sin(pitch)], [0, -sin(pitch), cos(pitch)]])
        return cls(about_x @ about_y)

    def page(self, points: ArrayLike) -> Points:
        """Solid `[n, 3]` to flat, nearer things a little larger."""
        seen = np.asarray(points, float) @ self.turn.T
        flat: Points = seen[:, :2] * (1 + 0.14 * seen[:, 2:])
        return flat

    def depth(self, spot: Spot) -> float:
        """Towards the viewer."""
        return float(self.turn[2] @ spot)

    def patch(self, at: Spot, outline: ArrayLike) -> Points:
        """A flat `outline` stuck on the face, foreshortened as the face turns there."""
        side = atan2(at[0], at[2] + 0.4)
        along = np.array([[cos(side), 0, -sin(side)], [0, 1, 0]])
        return self.page(np.asarray(outline, float) @ along + at)


@dataclass(frozen=True, slots=True)
class _Head:
    brush: Brush
    skull: Skull
    build: Anatomy
    coat: Coat
    hairs: Lot

    def fluffy(self, outline: Points) -> Points:
        return tufted(outline, self.coat.tuft, self.hairs)


def paint_head(
    brush: Brush, build: Anatomy, coat: Coat, pose: Pose, muzzle: Colour | None, hairs: Lot
) -> None:
    """The unit is the skull's radius and (0, 0) its middle; `muzzle` is its colour, None the pelt's."""
    head = _Head(brush, Skull.turned(pose.yaw, pose.pitch), build, coat, hairs)
    far, near = sorted((-1, 1), key=lambda side: head.skull.depth((side, 0, 0)))
    hanging = [
        side
        for side in (far, near)
        if build.ear == "floppy" and head.skull.depth((side, 0, 0.3)) > 0
    ]
    for side in (far, near):
        if side not in hanging:
            _ear(head, side)
    brush.fur(head.fluffy(ellipse((0, 0), (1.0, 0.94))))
    brush.fur(head.fluffy(ellipse(head.skull.page([(0, 0.3, 0.25)])[0], (build.cheek, 0.62))))
    brush.fur(ellipse((0, -0.1), (0.9, 0.78)))
    if coat.blaze:
        brush.shape(
            head.skull.patch((0, -0.25, 0.9), tufted(ellipse((0, 0), (0.17, 0.6)), 0.05, hairs)),
            WHITE,
        )
    _eye(head, far, pose.eyes_closed)
    _muzzle(head, (near, far), muzzle)
    _eye(head, near, pose.eyes_closed)
    for side in hanging:
        _ear(head, side)


def _ear(head: _Head, side: int) -> None:
    """The left (-1) or right (1) ear."""
    brush, skull, build, coat = head.brush, head.skull, head.build, head.coat
    long, wide = build.ear_length, build.ear_width
    colour = coat.second if coat.dark_points else None
    if build.ear == "floppy":
        a, b, c = skull.page(
            [(side * 0.62, -0.72, 0.1), (side * 1.02, -0.5, 0.1), (side * 1.12, long - 0.35, 0.2)]
        ).tolist()
        brush.fur(
            head.fluffy(limb([(*a, wide * 0.5), (*b, wide * 0.85), (*c, wide * 0.95)])),
            colour,
            0.85,
        )
    elif build.ear == "round":
        centre = skull.page([(side * 0.74, -0.62 - long * 0.25, 0)])[0]
        brush.fur(head.fluffy(ellipse(centre, (wide * 1.05, wide * 1.05))), colour)
        brush.shape(ellipse(centre, (wide * 0.6, wide * 0.6)), coat.skin)
    else:
        height = long if build.ear == "pointed" else long * 0.62
        root, tip = (
            np.array([side * 0.58, -0.62, 0.2]),
            np.array([side * (0.62 + 0.25 * wide), -0.62 - height, 0.05]),
        )
        corners = np.array(
            [(side * (0.58 - wide), -0.7, 0.1), tip, (side * (0.58 + wide), -0.35, 0)]
        )
        brush.fur(_bowed(skull.page(corners)), colour, 0.9)
        if build.ear == "pointed":
            brush.shape(_bowed(skull.page(root + (corners - root) * 0.62)), coat.skin)
        else:
            flap = [
                np.add(tip, (-side * wide * 0.55, 0.12, 0)),
                np.add(tip, (side * wide * 0.65, 0.16, 0)),
                np.add(tip, (side * 0.1, 0.5, 0.3)),
            ]
            brush.fur(_bowed(skull.page(flap)), colour, 0.8)


def _bowed(triangle: Points) -> Points:
    """A triangle whose sides bulge a little and whose second corner is blunt."""
    a, tip, b = triangle
    middle = triangle.mean(axis=0)
    left, right = (1.12 * (corner + tip) / 2 - 0.12 * middle for corner in (a, b))
    return rounded(
        [
            a,
            left,
            tip + (a - tip) * 0.08,
            tip + (middle - tip) * 0.06,
            tip + (b - tip) * 0.08,
            right,
            b,
        ],
        times=2,
    )


def _eye(head: _Head, side: int, closed: bool) -> None:
    brush, build, r = head.brush, head.build, head.build.eye_radius
    if head.skull.depth((side * 0.62, 0, 0.75)) < 0.12:  # turned away
        return

    def on_face(outline: ArrayLike) -> Points:
        return head.skull.patch((side * 0.46, -0.16, 0.8), outline)

    if closed:
        arc = np.linspace(0.15 * pi, 0.85 * pi, 8)
        brush.line(on_face(np.stack([r * np.cos(arc), 0.6 * r * np.sin(arc)], axis=1)), BLACK, 0.07)
        return
    slant = -side * build.eye_slant
    brush.shape(on_face(ellipse((0, 0), (r * 1.18, r * 1.02), slant)), BLACK)
    brush.shape(on_face(ellipse((0, 0), (r, r * 0.86), slant)), build.iris)
    brush.shape(on_face(ellipse((0, 0), (r * 0.78 * build.pupil, r * 0.8), n=16)), BLACK)
    brush.shape(on_face(ellipse((r * 0.25, -r * 0.3), (r * 0.22, r * 0.2), n=10)), (255, 255, 255))


def _muzzle(head: _Head, sides: tuple[int, int], colour: Colour | None) -> None:
    """Bridge, tongue, chin, lips in the order of `sides`, and nose."""
    brush, build, page = head.brush, head.build, head.skull.page
    wide, y, z = build.muzzle_width, 0.36 + 0.16 * build.muzzle_length, 0.72 + build.muzzle_length
    base, tip = page([(0, 0.32, 0.45), (0, y, z - 0.1)])
    if np.hypot(*(tip - base)) > 0.12:  # else it points at the viewer, and the lips hide it
        brush.fur(limb([(*base.tolist(), wide * 1.15), (*tip.tolist(), wide * 0.9)]), colour)
    chin = page([(0, y + wide * 0.7 + build.jowl * 0.6, z - 0.3)])[0]
    if build.tongue:
        brush.shape(ellipse(np.add(chin, (0, 0.12)), (0.17, 0.32)), (226, 110, 122))
    brush.fur(ellipse(chin, (wide * 0.55, wide * 0.42)), colour)
    for side in sides:
        lip = page([(side * wide * 0.5, y + 0.1 + build.jowl * 0.4, z - 0.14)])[0]
        brush.fur(ellipse(lip, (wide * 0.64, wide * 0.56 + build.jowl * 0.5)), colour)
    _nose(head, (0.0, y - wide * 0.3, z + wide * 0.4))


def _nose(head: _Head, at: Spot) -> None:
    """Nose, mouth and whiskers."""
    brush, build, coat = head.brush, head.build, head.coat
    w, h = build.nose_width, build.nose_width * 0.72
    nose = rounded(
        [(-w * 1.1, -h), (w * 1.1, -h), (w * 0.9, 0), (0, h * 1.1), (-w * 0.9, 0)], times=2
    )
    brush.shape(head.skull.patch(at, nose), coat.skin if coat.pale_nose else BLACK)
    droops = head.hairs.normal(0, 0.05, (2, 3))
    for side in (-1, 1):
        mouth = [(0, h), (0, h + 0.16), (side * w * 1.3, h + 0.3 + build.jowl * 0.5)]
        brush.line(head.skull.patch(at, mouth), (40, 26, 28, 200), 0.045)
        for rise, droop in zip((-0.18, 0.02, 0.22), droops[max(0, side)], strict=True):
            if build.whisker:
                x, y = head.skull.patch(at, [(side * 0.2, h + 0.12 + rise * 0.3)])[0]
                end = x + side * build.whisker * 0.9, y + rise + droop
                brush.line(
                    rounded(
                        [(x, y), ((x + end[0]) / 2, (y + end[1]) / 2 - 0.05), end],
                        closed=False,
                        times=2,
                    ),
                    (245, 245, 240, 190),
                    0.025,
                )
