"""Which packed store photos of a geometry are in, in what form, and whether it fits on the disk."""

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from comp.data.geometry import Geometry
from comp.data.lock import locked
from comp.data.pack import N_CHECKED, DamagedError, Writer, read_index, verify
from comp.data.photos import DECODER, Canvas, decode, encode_jpeg
from comp.errors import DataError
from comp.progress import Reporter
from comp.store import Workspace, fingerprint

MAX_BYTES = 20 * 10**9  # all 37,500 photos take 7.4 GB as squash-256 and 17 GB as squash-384
JPEG_SHARE = 0.25  # of the raw pixels that a JPEG of quality 95 takes, on the safe side: 2,002 photos took .17 (squash-256) and .16 (shorter-256)
JPEG_QUALITY = 95

Form = Literal["raw", "jpeg"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """Everything that decides which bytes a photo becomes."""

    geometry: Geometry
    form: Form

    def folder(self, workspace: Workspace) -> Path:
        libraries = [
            f"{name} {version(name).split('+')[0]}" for name in ("torch", "torchvision", "pillow")
        ]
        return (
            workspace.pixels
            / f"{self.geometry.name}-{self.form}-{fingerprint(self.geometry, self.form, DECODER, libraries)}"
        )

    def packed(self, canvas: Canvas) -> NDArray[np.uint8]:
        return (
            canvas.reshape(-1)
            if self.form == "raw"
            else np.frombuffer(encode_jpeg(canvas, JPEG_QUALITY), np.uint8)
        )

    def unpacked(self, packed: NDArray[np.uint8], height: int, width: int) -> Canvas:
        """The canvas: a view of `packed` if that is raw pixels."""
        if self.form == "raw":
            return packed.reshape(height, width, 3)
        pixels = decode(packed.tobytes()).pixels
        if pixels is None or pixels.shape != (height, width, 3):
            raise DamagedError(
                "a photo in the store of pixels is no JPEG any more: delete data/pixels and run the stage again"
            )
        return pixels

    def disk_bytes(self, raw_bytes: int) -> int:
        return raw_bytes if self.form == "raw" else int(raw_bytes * JPEG_SHARE)


def choose_store(geometry: Geometry, sizes: Iterable[tuple[int, int]], max_bytes: int) -> Store:
    """The store for upright photos of these (width, height): raw if that fits into `max_bytes`, else JPEG."""
    n_bytes = raw_bytes(geometry, sizes)
    raw, jpeg = Store(geometry=geometry, form="raw"), Store(geometry=geometry, form="jpeg")
    if jpeg.disk_bytes(n_bytes) > max_bytes:
        raise DataError(
            f"pixels {geometry.name} take {_gb(n_bytes)}, about {_gb(jpeg.disk_bytes(n_bytes))} as JPEG, and the bound is "
            f"{_gb(max_bytes)}: choose fewer pixels by pixels.size_px or pixels.canvas"
        )
    return raw if n_bytes <= max_bytes else jpeg


def raw_bytes(geometry: Geometry, sizes: Iterable[tuple[int, int]]) -> int:
    canvases = (geometry.canvas(int(width), int(height)) for width, height in sizes)
    return sum(height * width * 3 for height, width in canvases)


@contextmanager
def writing(workspace: Workspace, store: Store, reporter: Reporter) -> Iterator[Writer]:
    """The store on disk, locked, to add photos to; one that is damaged is begun anew."""
    folder = store.folder(workspace)
    with locked(workspace.pixels / f"{folder.name}.lock", reporter):
        if not is_sound(folder, read_index(folder), reporter):
            shutil.rmtree(folder)
        with Writer(folder) as writer:
            yield writer


def is_sound(folder: Path, index: pd.DataFrame, reporter: Reporter) -> bool:
    """Whether a sample of the store has the right checksums; says what has not."""
    try:
        verify(folder, index, N_CHECKED)
    except DamagedError as error:
        reporter.warn(f"{error}: decoding again")
        return False
    return True


def announce(
    workspace: Workspace, store: Store, n_photos: int, n_bytes: int, reporter: Reporter
) -> None:
    """Says what `n_photos` will take on disk before they are written, and refuses if there is not that much."""
    free = shutil.disk_usage(workspace.pixels).free
    line = f"pixels {store.geometry.name} ({store.form}) of {n_photos:,} photos take about {_gb(n_bytes)}"
    if n_bytes > free:
        raise DataError(
            f"{line} and {_gb(free)} are free under {workspace.pixels}: make room or choose a smaller geometry"
        )
    reporter.say(f"{line}; {_gb(free)} are free")


def _gb(n_bytes: float) -> str:
    return f"{n_bytes / 1e9:.2f} GB"
