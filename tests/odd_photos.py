"""Photos that a data stage must survive, and archives as Kaggle packs them, made in memory."""

import io
import os
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from heard import Heard
from numpy.typing import NDArray
from PIL import Image

from comp.competition import COMPETITION
from comp.progress import Advance

ZipMembers = Mapping[str, bytes] | Sequence[tuple[str | zipfile.ZipInfo, bytes]]


def scene(seed: int, width: int = 96, height: int = 72) -> Image.Image:
    """A picture like no other: smooth blots with a hard-edged box in front."""
    rng = np.random.default_rng(seed)
    blots = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    left, top = int(rng.integers(0, width // 2)), int(rng.integers(0, height // 2))
    box = (left, top, left + width // 3, top + height // 4)
    blots.paste(tuple(rng.integers(0, 256, 3).tolist()), box)
    return blots


def encoded(image: Image.Image, format: str = "JPEG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **({"quality": 92} | options if format == "JPEG" else options))
    return file.getvalue()


def jpeg(seed: int, **size: int) -> bytes:
    return encoded(scene(seed, **size))


def with_orientation(image: Image.Image, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(image, exif=exif.tobytes())


def with_size(data: bytes, width: int, height: int) -> bytes:
    """A JPEG whose header claims another size."""
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


def pixels_of(data: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def zipped(members: ZipMembers, method: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, data in members.items() if isinstance(members, Mapping) else members:
            archive.writestr(name, data, compress_type=method)
    return file.getvalue()


def sample_csv(ids: Sequence[str]) -> bytes:
    return "".join(f"{line}\n" for line in ["id,label", *(f"{id},0.5" for id in ids)]).encode()


def packed(
    train: Mapping[str, bytes],
    test: Mapping[str, bytes],
    method: int = zipfile.ZIP_STORED,
    inner_train: bytes | None = None,
    sample: bytes | None = None,
) -> dict[str, bytes]:
    """The members of Kaggle's archive for photos by id; train.zip and the sample submission may be
    given instead."""
    inner = {
        split: zipped({f"{split}/{name}.jpg": data for name, data in photos.items()}, method)
        for split, photos in (("train", train), ("test", test))
    }
    return {
        COMPETITION.archives[0]: inner["train"] if inner_train is None else inner_train,
        COMPETITION.archives[1]: inner["test"],
        COMPETITION.sample: sample_csv(list(test)) if sample is None else sample,
    }


def write_archive(path: Path, members: ZipMembers, method: int = zipfile.ZIP_STORED) -> Path:
    path.write_bytes(zipped(members, method))
    return path


def some_photos(n_each: int, n_test: int) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """Training photos cat.0, dog.0, cat.1, ... and test photos 1, 2, ..., all different."""
    train = {
        f"{name}.{index}": jpeg(2 * index + label)
        for index in range(n_each)
        for label, name in enumerate(COMPETITION.classes)
    }
    return train, {str(number): jpeg(10_000 + number) for number in range(1, n_test + 1)}


class DyingReporter(Heard):
    """Kills the process, as `kill -9` does, once `n_left` photos are done."""

    def __init__(self, n_left: int) -> None:
        super().__init__()
        self.n_left = n_left

    @contextmanager
    def track(self, label: str, total: int, unit: str) -> Iterator[Advance]:
        def advance(n: int = 1, note: str = "") -> None:
            self.n_left -= 1
            if self.n_left < 0:
                os.kill(os.getpid(), 9)

        yield advance


def assert_killed(function: Callable[[], object]) -> None:
    """Run `function` in a child process, which it must kill."""
    child = os.fork()
    if not child:
        function()
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 9
