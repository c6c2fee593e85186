"""Drawn photos of cats and dogs, and an edition of the competition made from them.

The classes differ in the build of head and body (`TRAITS`), with overlap, and in nothing else.
Equal arguments give equal bytes as long as Pillow, its JPEG library and numpy are the same.
"""

import io
import zipfile
from cmath import phase, pi, rect
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import PIL
from numpy.random import Generator, default_rng
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

from comp.competition import COMPETITION, Competition
from comp.progress import Reporter
from comp.store import derive_seed, file_sha256, fingerprint, whole, write_text

TRAITS = {  # mean of cats, mean of dogs, standard deviation of both; lengths in head radii
    "ear droop": (0.45, 1.5, 0.7),  # rad between straight up and where the ear points
    "ear bluntness": (0.1, 0.8, 0.5),  # from 0.5 on an oval, below it a triangle
    "muzzle length": (0.2, 0.7, 0.25),
    "muzzle width": (0.34, 0.46, 0.06),
    "eye": (0.25, 0.18, 0.04),
    "pupil": (0.4, 0.8, 0.25),  # width over height
    "iris": (0.75, 0.25, 0.35),  # from 0.5 on yellow, below it brown
    "whisker": (0.5, 0.1, 0.25),
    "tongue": (0.0, 0.15, 0.15),
    "tail": (2.8, 1.8, 0.6),
}
ODDITIES = {  # share of the photos in train and in test; at least one of each
    "grey": 0.02,  # a JPEG with one channel
    "rotated": 0.015,  # a JPEG on its side or upside down, with the EXIF orientation that says so
    "png": 0.005,  # a PNG named .jpg
    "cmyk": 0.005,  # a JPEG with four channels
    "copy": 0.015,  # a training photo of the same class, encoded again
    "crop": 0.01,  # a training photo of the same class, cut by 0.5 to 2 % at each edge
    "truncated": 0.0,  # half of a JPEG: one in train and one in test
}
SIDES_PX = 160, 400  # shortest and longest side of a photo
_TURNED_DEG = {3: 180, 6: 90, 8: 270}  # counterclockwise in the file, by EXIF orientation
_COATS = ["peru", "sienna", "tan", "linen", "gray", "lightslategray", "#403a3e"]
_PATTERNS = [(1, 1), (4, 5), (14, 18), (2, 14), (14, 2)]  # cells: plain, patches, spots, stripes

Planned = tuple[str, int, int, str]  # name in Kaggle's archive, label, seed, and oddity or ""
Outline = NDArray[np.complex128]  # corners as x + iy, y down
Shape = tuple[Outline, int | str]  # filled with fur of that brightness, 1..255, or with a colour


def write_edition(
    folder: Path,
    competition: Competition = COMPETITION,
    reporter: Reporter | None = None,
    *,
    seed: int,
    n_train: int,
    n_test: int,
) -> tuple[Path, Path]:
    """Kaggle's archive and the test labels, drawn unless they are there already.

    Their folder is named by all that decides their bytes. The oddities need 40 training photos and
    20 test photos.
    """
    code = [PIL.__version__, np.__version__, file_sha256(Path(__file__))]
    folder /= fingerprint(seed, n_train, n_test, competition, code)
    archive, solution = folder / f"{competition.slug}.zip", folder / "solution.csv"
    if archive.exists() and solution.exists():
        return archive, solution
    photos = plan_edition(seed, n_train, n_test, competition)
    progress = (reporter or Reporter()).track("drawing", len(photos), "photos")
    with whole(archive) as scratch, progress as advance:
        files = []
        for photo in photos:
            files.append((photo[0], encode_photo(*photo)))
            advance()
        halves = _zipped(files[:n_train]), _zipped(files[n_train:])
        sample = competition.sample, _table(competition, [0.5] * n_test).encode()
        scratch.write_bytes(_zipped([sample, *zip(competition.archives, halves, strict=True)]))
    write_text(solution, _table(competition, [label for _, label, _, _ in photos[n_train:]]))
    return archive, solution


def plan_edition(seed: int, n_train: int, n_test: int, competition: Competition) -> list[Planned]:
    """The photos of train, then those of test; half of each are cats, give or take one photo."""
    rng = default_rng(seed)
    labels = [*(np.arange(n_train) % 2), *rng.permutation(np.arange(n_test) % 2)]
    names = [f"train/{competition.classes[i % 2]}.{i // 2}.jpg" for i in range(n_train)]
    names += [f"test/{i}.jpg" for i in range(1, n_test + 1)]
    oddities: list[str] = []
    for n in (n_train, n_test):
        odd = [name for name, share in ODDITIES.items() for _ in range(max(1, round(share * n)))]
        oddities += rng.permutation(odd + [""] * (n - len(odd))).tolist()
    seeds = rng.integers(2**62, size=len(names)).tolist()
    for i, oddity in enumerate(oddities):
        if oddity in ("copy", "crop"):  # the seed of a plain training photo of its class
            like = [j for j in range(n_train) if labels[j] == labels[i] and not oddities[j]]
            seeds[i] = seeds[rng.choice(like)]
    return list(zip(names, labels, seeds, oddities, strict=True))


def encode_photo(name: str, label: int, seed: int, oddity: str) -> bytes:
    """The bytes of a file; copies have a lower JPEG quality than their original."""
    image, file, exif = draw(seed, label), io.BytesIO(), Image.Exif()
    image = image.convert({"grey": "L", "cmyk": "CMYK"}.get(oddity, "RGB"))
    rng = default_rng(derive_seed(seed, name))
    quality = int(rng.integers(55, 75) if oddity else rng.integers(75, 96))
    if oddity == "crop":
        left, top, right, bottom = rng.uniform(0.005, 0.02, 4) * (image.size * 2)
        image = image.crop((left, top, image.width - right, image.height - bottom))
    elif oddity == "rotated":
        exif[0x0112] = int(rng.choice(list(_TURNED_DEG)))
        image = image.rotate(_TURNED_DEG[exif[0x0112]], expand=True)
    image.save(file, "PNG" if oddity == "png" else "JPEG", quality=quality, exif=exif)
    data = file.getvalue()
    return data[: len(data) // 2] if oddity == "truncated" else data


def _zipped(members: Iterable[tuple[str, bytes]]) -> bytes:
    """A zip like Kaggle's: stored, made on Linux; every member has the same date."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in members:
            info = zipfile.ZipInfo(name, (2016, 9, 2, 0, 0, 0))
            info.create_system, info.external_attr = 3, 0o600 << 16
            archive.writestr(info, data)
    return file.getvalue()


def _table(competition: Competition, values: Sequence[float]) -> str:
    rows = [f"{index},{value}" for index, value in enumerate(values, 1)]
    return "\n".join([",".join(competition.columns), *rows, ""])


def draw(seed: int, label: int) -> Image.Image:
    """An RGB picture of a cat (0) or a dog (1); the label changes its traits and nothing else."""
    rng = default_rng(seed)
    luck = zip(TRAITS.items(), rng.normal(size=len(TRAITS)).clip(-2, 2).tolist(), strict=True)
    traits = {name: max(0.02, row[label] + row[2] * z) for (name, row), z in luck}
    width, height = np.interp(rng.random(2) ** 3, [0, 1], SIDES_PX).astype(int).tolist()
    photo = _noise("RGB", (4, 3), rng).resize((width, height))
    _paint(photo, _clutter(6, 60, photo.size, rng))
    photo = photo.filter(ImageFilter.BoxBlur(rng.uniform(0, 3)))
    photo = ImageEnhance.Color(photo).enhance(rng.uniform(0.1, 0.7))
    head = complex(width * rng.uniform(0.3, 0.7), height * rng.uniform(0.3, 0.5))
    unit = rect(min(width, height) * rng.uniform(0.18, 0.28), rng.normal(0, 0.08))  # head radius
    shapes = [(head + unit * outline, fill) for outline, fill in _animal(traits, rng)]
    _paint_fur(photo, [shape for shape in shapes if isinstance(shape[1], int)], rng)
    _paint(photo, [shape for shape in shapes if isinstance(shape[1], str)])
    _paint(photo, _clutter(*[(0, 0), (2, 30), (15, 8)][rng.integers(3)], photo.size, rng))
    photo = ImageEnhance.Brightness(photo).enhance(rng.uniform(0.6, 1.2))
    return Image.blend(photo, _noise("RGB", photo.size, rng), rng.uniform(0, 0.12))


def _animal(traits: dict[str, float], rng: Generator) -> Iterator[Shape]:
    """An animal from back to front, in head radii around the middle of its head."""
    turn = rng.uniform(-1.5, 1.5)  # rad, of the spine from straight down
    chest = 0.2 * turn + 1.4j
    hip = chest + rect(rng.uniform(1.2, 2.2), pi / 2 - turn)
    ground = max(chest.imag, hip.imag) + rng.choice([0.9, 1.5])
    tail, curl = hip, rng.normal(0.25, 0.2)
    for step in range(9):
        tail += rect(traits["tail"] / 9, pi / 2 - np.sign(turn) * (1.2 + curl * step))
        yield _oval(tail, 0.24, 0.24), 190
    for joint in (hip - 0.5, chest - 0.4, hip + 0.4, chest + 0.45):
        foot = complex(joint.real + rng.normal(0, 0.1), ground)
        yield _oval((joint + foot) / 2, 0.3, (foot - joint).imag / 2), 200
    yield _oval((chest + hip) / 2, abs(hip - chest) / 2 + 0.9, 0.95, pi / 2 - turn), 230
    yield _oval(0, 1.0, 0.92), 235
    gaze = complex(*(rng.normal(size=2).clip(-2, 2) * (0.2, 0.1)))  # where the head is turned to
    muzzle, wide = 0.4j + gaze * (1 + traits["muzzle length"]), traits["muzzle width"]
    yield _oval(muzzle / 2 + 0.2j, wide * 1.1, abs(muzzle) * 0.7, phase(muzzle) - pi / 2), 240
    for side in (-1, 1):
        angle = side * traits["ear droop"] - pi / 2
        corners = 24 if traits["ear bluntness"] > 0.5 else 3
        yield _oval(side * 0.66 - 0.6j + rect(0.4, angle), 0.6, 0.4, angle, corners), 170
        yield _oval(muzzle + side * wide * 0.5, wide * 0.65, wide * 0.6), 255
        at, size, whisker = side * 0.43 - 0.2j + gaze, traits["eye"], traits["whisker"]
        yield _oval(at, size * 1.15, size), "black"
        yield _oval(at, size, size * 0.87), "gold" if traits["iris"] > 0.5 else "saddlebrown"
        yield _oval(at, size * 0.8 * traits["pupil"], size * 0.8), "black"
        for slope in (-0.25, 0.0, 0.25):
            hair = side * rect(whisker, slope)
            yield _oval(muzzle + side * wide * 0.6 + hair, whisker, 0.02, slope), "white"
    yield _oval(muzzle + (wide + traits["tongue"]) * 0.6j, 0.15, traits["tongue"]), "salmon"
    yield _oval(muzzle - wide * 0.4j, wide * 0.5, wide * 0.35), "black"


def _oval(centre: complex, rx: float, ry: float, turn: float = 0.0, n: int = 24) -> Outline:
    """An ellipse turned clockwise by `turn` rad; a triangle or rhombus if `n` is 3 or 4."""
    circle: Outline = np.exp(2j * pi * np.arange(n) / n)
    return centre + rect(1, turn) * (circle.real * rx + 1j * circle.imag * ry)


def _clutter(n: int, longest: int, size: tuple[int, int], rng: Generator) -> Iterator[Shape]:
    """`n` shapes of radii up to `longest` px, anywhere on a photo of that size."""
    for x, y, rx, ry, turn in rng.random((n, 5)) * (*size, longest, longest, pi):
        yield _oval(complex(x, y), rx, ry, turn, rng.choice([3, 4, 24])), "#" + rng.bytes(3).hex()


def _paint(image: Image.Image, shapes: Iterable[Shape], edge: int | None = None) -> None:
    for outline, fill in shapes:
        ImageDraw.Draw(image).polygon(outline.view(float).tolist(), fill, edge)


def _paint_fur(photo: Image.Image, shapes: Iterable[Shape], rng: Generator) -> None:
    """Shapes with rough edges, in a coat of two colours."""
    shades = Image.new("L", photo.size)
    _paint(shades, shapes, edge=150)
    pattern = _noise("L", _PATTERNS[rng.integers(len(_PATTERNS))], rng).resize(photo.size)
    one, other = (Image.new("RGB", photo.size, colour) for colour in rng.choice(_COATS, 2))
    coat = Image.composite(one, other, pattern.point(lambda v: 255 * (v > 140)))
    hairs = _noise("L", (photo.width, photo.height // 3), rng).resize(photo.size)
    coat = Image.composite(coat, Image.new("RGB", photo.size), Image.blend(shades, hairs, 0.15))
    edge = Image.blend(shades.filter(ImageFilter.BoxBlur(2)), hairs, 0.3)
    photo.paste(coat, mask=edge.point(lambda v: 255 * (v > 110)))


def _noise(mode: str, size: tuple[int, int], rng: Generator) -> Image.Image:
    return Image.frombytes(mode, size, rng.bytes(len(mode) * size[0] * size[1]))
