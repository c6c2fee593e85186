"""A rehearsal's edition of the competition: drawn photos, packed as Kaggle packs them, and the labels that the server keeps.

A small share of the files is as odd as what a real archive may hold (`ODDITIES`), so that a rehearsal exercises the real data stage.
"""

import io
import zipfile
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import PIL
from PIL import Image

from comp.competition import COMPETITION, Competition
from comp.errors import DataError
from comp.progress import Reporter
from comp.rehearsal.drawing.picture import draw, lot
from comp.store import file_sha256, fingerprint, read_json, whole, write_json, write_text

Oddity = Literal["none", "grey", "rotated", "png", "cmyk", "copy", "crop", "truncated"]
ODDITIES: dict[
    Oddity, float
] = {  # share of the training photos, and of the test photos; one of each at least
    "grey": 0.02,  # a JPEG with one channel
    "rotated": 0.015,  # a JPEG that lies on its side or head, and whose EXIF says so
    "png": 0.005,  # a PNG named .jpg
    "cmyk": 0.005,  # a JPEG with four channels
    "copy": 0.015,  # a training photo of this class again, encoded anew
    "crop": 0.01,  # a training photo of this class again, cut by 0.5 to 2 % at each edge
    "truncated": 0.0,  # a JPEG that ends half-way: one in train and one in test, whatever their number
}
SMALLEST = (40, 20)  # training and test photos; fewer leave no room for the oddities
_STORED = {
    3: Image.Transpose.ROTATE_180,
    6: Image.Transpose.ROTATE_90,
    8: Image.Transpose.ROTATE_270,
}  # by EXIF orientation
_PACKED = (
    2016,
    9,
    2,
    0,
    0,
    0,
)  # the day in the real archive; no clock, so that equal arguments give equal bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Photo:
    """One member of an archive before it is drawn; a copy or crop has the seed and label of its original."""

    name: str
    label: int
    seed: int
    oddity: Oddity


def write_edition(
    folder: Path,
    *,
    seed: int,
    n_train: int,
    n_test: int,
    competition: Competition = COMPETITION,
    reporter: Reporter | None = None,
) -> tuple[Path, Path]:
    """The archive and the solution of a drawn edition in `folder`; what is there is kept if it was drawn from the same.

    Equal arguments give equal bytes, as long as Pillow, its JPEG library and numpy are the same.
    """
    if n_train < SMALLEST[0] or n_test < SMALLEST[1]:
        raise DataError(
            f"{n_train} training and {n_test} test photos are too few to draw: ask for {SMALLEST[0]} and {SMALLEST[1]} at least"
        )
    archive, solution, origin = (
        folder / f"{competition.slug}.zip",
        folder / "solution.csv",
        folder / "edition.json",
    )
    drawn_from = fingerprint(
        seed, n_train, n_test, competition, PIL.__version__, np.__version__, _code()
    )
    if not _is_there(drawn_from, archive, solution, origin):
        train, test = plan_edition(seed, n_train, n_test, competition)
        with whole(archive) as scratch:
            scratch.write_bytes(pack_edition(train, test, competition, reporter))
        write_text(solution, _table(competition, [photo.label for photo in test]))
        write_json(
            origin,
            {
                "drawn_from": drawn_from,
                "archive": file_sha256(archive),
                "solution": file_sha256(solution),
            },
        )
    return archive, solution


def _is_there(drawn_from: str, archive: Path, solution: Path, origin: Path) -> bool:
    if not (archive.exists() and solution.exists() and origin.exists()):
        return False
    return bool(
        read_json(origin)
        == {
            "drawn_from": drawn_from,
            "archive": file_sha256(archive),
            "solution": file_sha256(solution),
        }
    )


def _code() -> list[str]:
    """What draws, so that an edition drawn by other code is drawn again."""
    return [file_sha256(path) for path in sorted(Path(__file__).parent.glob("*.py"))]


def plan_edition(
    seed: int, n_train: int, n_test: int, competition: Competition
) -> tuple[list[Photo], list[Photo]]:
    """The photos of train and test before they are drawn; in each, half are of either class, give or take one."""
    edition = lot(seed, "edition")
    seeds = edition.integers(2**62, size=n_train + n_test).tolist()
    n_cats = (n_train + 1) // 2
    labels = [int(index >= n_cats) for index in range(n_train)] + edition.permutation(
        np.arange(n_test) % 2
    ).tolist()
    oddities = _odd_ones(edition, n_train) + _odd_ones(edition, n_test)
    originals = {
        label: [
            s
            for s, mine, odd in zip(seeds[:n_train], labels, oddities, strict=False)
            if mine == label and odd == "none"
        ]
        for label in (0, 1)
    }
    names = [
        f"train/{competition.classes[label]}.{index - label * n_cats}.jpg"
        for index, label in enumerate(labels[:n_train])
    ]
    names += [f"test/{index}.jpg" for index in range(1, n_test + 1)]
    photos = []
    for name, label, own, oddity in zip(names, labels, seeds, oddities, strict=True):
        again = oddity in ("copy", "crop")
        photos.append(
            Photo(
                name=name,
                label=label,
                seed=originals[label][own % len(originals[label])] if again else own,
                oddity=oddity,
            )
        )
    return photos[:n_train], photos[n_train:]


def _odd_ones(edition: np.random.Generator, n: int) -> list[Oddity]:
    """The oddity of each of `n` photos, shuffled."""
    odd: list[Oddity] = [
        oddity for oddity, share in ODDITIES.items() for _ in range(max(1, round(share * n)))
    ]
    odd += ["none"] * (n - len(odd))
    return [odd[index] for index in edition.permutation(n)]


def pack_edition(
    train: list[Photo],
    test: list[Photo],
    competition: Competition,
    reporter: Reporter | None = None,
) -> bytes:
    """Kaggle's archive: a zip of the two zips of photos and the sample submission."""
    with (
        reporter.track("drawing", len(train) + len(test), "photos")
        if reporter
        else nullcontext() as advance
    ):

        def drawn(photo: Photo) -> tuple[str, bytes]:
            data = encode_photo(photo)
            if advance:
                advance()
            return photo.name, data

        members = {
            name: pack(map(drawn, photos))
            for name, photos in zip(competition.archives, (train, test), strict=True)
        }
    members[competition.sample] = _table(competition, [0.5] * len(test)).encode()
    return pack(sorted(members.items()))


def pack(members: Iterable[tuple[str, bytes]]) -> bytes:
    """A zip of `members`, stored and with a fixed date."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, data in members:
            info = zipfile.ZipInfo(name, _PACKED)
            info.create_system, info.external_attr = (
                3,
                0o600 << 16,
            )  # as on Kaggle's Linux, whatever this machine is
            archive.writestr(info, data)
    return packed.getvalue()


def encode_photo(photo: Photo) -> bytes:
    """The bytes of `photo`'s file. Its JPEG quality, of 55 to 95, goes by its name, so a copy differs from its original."""
    image, file = draw(photo.seed, photo.label), io.BytesIO()
    quality = lot(photo.seed, "quality", photo.name)
    settings: dict[str, object] = {"quality": int(quality.integers(55, 96))}
    if photo.oddity == "png":
        image.save(file, "PNG")
        return file.getvalue()
    if photo.oddity in ("grey", "cmyk"):
        image = image.convert({"grey": "L", "cmyk": "CMYK"}[photo.oddity])
    elif photo.oddity == "crop":
        left, top, right, bottom = quality.uniform(0.005, 0.02, 4)
        image = image.crop(
            (
                round(left * image.width),
                round(top * image.height),
                round((1 - right) * image.width),
                round((1 - bottom) * image.height),
            )
        )
    elif photo.oddity == "rotated":
        orientation = int(quality.choice(sorted(_STORED)))
        exif = Image.Exif()
        exif[0x0112] = orientation
        image, settings["exif"] = image.transpose(_STORED[orientation]), exif
    image.save(file, "JPEG", **settings)
    data = file.getvalue()
    return data[: len(data) // 2] if photo.oddity == "truncated" else data


def _table(competition: Competition, values: list[int] | list[float]) -> str:
    """A submission's form: ids from 1, in order."""
    rows = [f"{index},{value}" for index, value in enumerate(values, 1)]
    return "\n".join([",".join(competition.columns), *rows]) + "\n"
