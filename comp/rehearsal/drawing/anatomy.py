"""What tells a dog from a cat, and what does not: the traits of a drawn animal, and how each is drawn by lot.

Only `anatomy` depends on the class, and every trait of it overlaps: there are cats with round ears and dogs with upright ones, cats with
round pupils, dogs with short muzzles. Coat and pose know nothing of the class.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np

from comp.rehearsal.drawing.brush import Colour, Lot

Choice = TypeVar("Choice")
Ear = Literal["pointed", "folded", "floppy", "round"]
Pattern = Literal["plain", "stripes", "spots", "patches", "saddle", "brindle"]
Posture = Literal[
    "portrait", "sitting", "perched", "standing", "lying"
]  # perched: sitting, seen from the side


def pick(lot: Lot, weights: Mapping[Choice, float]) -> Choice:
    """One key, as likely as its weight says; takes one number from `lot`, whatever the weights."""
    left = lot.random() * sum(weights.values())
    for choice, weight in weights.items():
        left -= weight
        if left < 0:
            return choice
    return list(weights)[-1]


def varied(colour: Colour, spread: float, lot: Lot) -> Colour:
    """`colour`, lighter or darker by about `spread` of 255 and off its hue by half of that."""
    moved = np.array(colour[:3]) + lot.normal(0, spread) + lot.normal(0, spread / 2, 3)
    return tuple(np.clip(moved, 6, 250).astype(int).tolist())


@dataclass(frozen=True, slots=True, kw_only=True)
class Anatomy:
    """The build, in units of the skull's radius."""

    ear: Ear
    ear_length: float
    ear_width: float
    muzzle_length: float
    muzzle_width: float
    jowl: float  # how far the lips hang
    nose_width: float
    cheek: float  # half the width of the face
    eye_radius: float
    eye_slant: float  # rad, outer corner upwards
    pupil: float  # width over height: a slit near 0.15, round at 1
    iris: Colour
    whisker: float  # 0: none to be seen
    tongue: bool
    neck: float
    leg_length: float
    leg_width: float
    depth: float  # half the height of the trunk
    length: float  # half the length of the trunk
    tail_length: float
    tail_width: float
    tail_curl: float  # rad from root to tip, upwards


@dataclass(frozen=True, slots=True, kw_only=True)
class Coat:
    """Colours and pattern of the fur."""

    base: Colour
    second: Colour
    pattern: Pattern
    turn: float  # rad, of the pattern
    white_chest: bool
    white_muzzle: bool
    socks: bool
    blaze: bool  # a white stripe down the forehead
    dark_points: bool  # ears, muzzle, paws and tail in the second colour
    tuft: float  # how far hair stands off, in units of the skull's radius
    skin: Colour  # inside the ears, and of a pale nose
    pale_nose: bool
    collar: Colour | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pose:
    """How the animal holds itself; angles in radians."""

    posture: Posture
    flip: bool
    yaw: float  # of the head: 0 faces the viewer
    pitch: float
    roll: float
    tail_lift: float
    stride: float  # of a standing animal's feet, in units of the skull's radius
    eyes_closed: bool


_EARS: tuple[dict[Ear, float], dict[Ear, float]] = (
    {"pointed": 0.86, "folded": 0.06, "floppy": 0.0, "round": 0.08},
    {"pointed": 0.18, "folded": 0.19, "floppy": 0.59, "round": 0.04},
)
_PALE_EYES: dict[Colour, float] = {
    (126, 168, 66): 1,
    (214, 176, 52): 1,
    (96, 160, 206): 0.7,
    (198, 128, 48): 1,
}
_DARK_EYES: dict[Colour, float] = {(74, 44, 24): 2, (110, 66, 30): 1}


def anatomy(label: int, lot: Lot) -> Anatomy:
    """The build of a cat (0) or a dog (1). With equal lots both have the same luck, not the same build."""

    def size(cat: tuple[float, float], dog: tuple[float, float], low: float = 0.0) -> float:
        mean, spread = dog if label else cat
        return max(low, mean + spread * float(np.clip(lot.normal(), -2.2, 2.2)))

    def chance(cat: float, dog: float) -> bool:
        return bool(lot.random() < (dog if label else cat))

    slit, whiskered = chance(0.6, 0.03), chance(0.88, 0.12)
    round_pupil, slit_pupil, whisker = (
        size((0.82, 0.1), (0.9, 0.1), 0.5),
        size((0.3, 0.1), (0.35, 0.1), 0.15),
        size((1.0, 0.25), (0.55, 0.15)),
    )
    return Anatomy(
        ear=pick(lot, _EARS[label]),
        ear_length=size((0.78, 0.16), (0.86, 0.26), 0.35),
        ear_width=size((0.40, 0.06), (0.37, 0.08), 0.2),
        muzzle_length=size((0.22, 0.10), (0.74, 0.25), 0.05),
        muzzle_width=size((0.34, 0.05), (0.46, 0.07), 0.25),
        jowl=size((0.04, 0.04), (0.17, 0.10)),
        nose_width=size((0.14, 0.025), (0.24, 0.045), 0.09),
        cheek=size((1.01, 0.06), (0.92, 0.08), 0.78),
        eye_radius=size((0.27, 0.035), (0.19, 0.035), 0.11),
        eye_slant=size((0.22, 0.15), (0.02, 0.16), -0.3),
        pupil=slit_pupil if slit else round_pupil,
        iris=pick(lot, _PALE_EYES if chance(0.9, 0.15) else _DARK_EYES),
        whisker=whisker if whiskered else 0.0,
        tongue=chance(0.03, 0.4),
        neck=size((0.25, 0.15), (0.5, 0.25)),
        leg_length=size((1.4, 0.2), (1.85, 0.4), 0.7),
        leg_width=size((0.27, 0.04), (0.32, 0.06), 0.18),
        depth=size((0.82, 0.12), (0.92, 0.14), 0.55),
        length=size((1.65, 0.25), (1.60, 0.30), 1.0),
        tail_length=size((3.2, 0.4), (1.9, 0.6), 0.5),
        tail_width=size((0.21, 0.05), (0.26, 0.09), 0.1),
        tail_curl=size((1.2, 1.2), (1.3, 1.0), -1.5),
    )


_COATS: dict[Colour, float] = {
    (214, 134, 62): 1.2,  # ginger
    (44, 40, 44): 1.2,  # black
    (128, 128, 134): 1.0,  # grey
    (232, 226, 216): 1.0,  # white
    (222, 192, 146): 1.0,  # cream
    (124, 82, 50): 1.0,  # brown
    (78, 52, 38): 0.7,  # chocolate
    (178, 138, 92): 1.0,  # tan
    (108, 118, 138): 0.6,  # blue
}
_PATTERNS: dict[Pattern, float] = {
    "plain": 1.3,
    "stripes": 1.2,
    "spots": 0.7,
    "patches": 1.0,
    "saddle": 0.7,
    "brindle": 0.6,
}
_COLLARS: dict[Colour, float] = {
    (196, 40, 44): 1,
    (40, 90, 190): 1,
    (40, 150, 90): 1,
    (230, 190, 50): 1,
}
_POSTURES: dict[Posture, float] = {
    "portrait": 1.5,
    "sitting": 1.1,
    "perched": 0.9,
    "standing": 1.2,
    "lying": 0.9,
}


def coat(lot: Lot) -> Coat:
    base, other = (varied(pick(lot, _COATS), 14, lot) for _ in range(2))
    shade = 0.45 if sum(base) > 240 else 1.9
    own = varied(tuple(min(250, int(channel * shade)) for channel in base), 8, lot)
    return Coat(
        base=base,
        second=other if lot.random() < 0.5 else own,
        pattern=pick(lot, _PATTERNS),
        turn=float(lot.normal(0, 0.4)),
        white_chest=lot.random() < 0.4,
        white_muzzle=lot.random() < 0.4,
        socks=lot.random() < 0.3,
        blaze=lot.random() < 0.25,
        dark_points=lot.random() < 0.2,
        tuft=max(0.0, float(lot.normal(0.05, 0.08))),
        skin=varied((222, 160, 150), 10, lot),
        pale_nose=lot.random() < 0.35,
        collar=varied(pick(lot, _COLLARS), 12, lot) if lot.random() < 0.3 else None,
    )


def pose(lot: Lot) -> Pose:
    posture = pick(lot, _POSTURES)
    ahead = (
        0.0 if posture in ("portrait", "sitting") else 0.45
    )  # an animal seen from the side looks where it stands, more or less
    return Pose(
        posture=posture,
        flip=lot.random() < 0.5,
        yaw=float(np.clip(lot.normal(ahead, 0.4), -1.2, 1.2)),
        pitch=float(np.clip(lot.normal(0.0, 0.18), -0.4, 0.4)),
        roll=float(lot.normal(0, 0.2)),
        tail_lift=float(lot.normal(0.5, 0.6)),
        stride=float(lot.normal(0, 0.25)),
        eyes_closed=lot.random() < 0.07,
    )
