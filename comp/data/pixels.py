"""Photos decoded once into a packed uint8 store that all folds, epochs, runs and processes share.

A store has one geometry and is keyed by the sha256 of the photo's file: photos that come later are added, equal photos are stored once, and
a subset finds its photos in the store of the whole. Where raw pixels would not fit into the bound on its size, the store holds JPEGs of
quality 95 at the reduced size and decodes on reading, behind the same interface.
"""

import hashlib
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from comp.data.geometry import Geometry
from comp.data.lock import locked
from comp.data.manifest import photo_path, usable
from comp.data.pack import N_CHECKED, DamagedError, Writer, data_file, read_index, verify
from comp.data.photos import DECODER, Canvas, decode, encode_jpeg, to_canvas
from comp.data.pool import in_order
from comp.errors import DataError, StaleError
from comp.progress import Reporter
from comp.store import Workspace, fingerprint

MAX_BYTES = 20 * 10**9  # all 37,500 photos take 7.4 GB as squash-256 and 17 GB as squash-384
JPEG_SHARE = 0.25  # of raw pixels that a re-encoded photo takes; an estimate on the safe side, see LOG

Form = Literal["raw", "jpeg"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreName:
    """Which store: everything that decides what bytes a photo becomes."""

    geometry: Geometry
    form: Form

    def folder(self, workspace: Workspace) -> Path:
        return workspace.pixels / f"{self.geometry.name}-{self.form}-{self.fingerprint}"

    @property
    def fingerprint(self) -> str:
        libraries = [f"{name} {version(name).split('+')[0]}" for name in ("torch", "torchvision", "pillow")]
        return fingerprint(self.geometry, self.form, DECODER, libraries)


class Pixels:
    """The canvases of some photos. Row i belongs to `ids[i]`; it is small to pickle and safe to share between threads and processes."""

    def __init__(self, folder: Path, form: Form, geometry: Geometry, wanted: pd.DataFrame, index: pd.DataFrame) -> None:
        """`wanted`: id and sha256 of the photos, in order; `index`: of the store in `folder`, which has all of them."""
        places = index.set_index("key").loc[list(wanted["sha256"])]
        self.geometry = geometry
        self.form = form
        self.ids: tuple[str, ...] = tuple(wanted["id"])
        self.sha256s: tuple[str, ...] = tuple(wanted["sha256"])
        self.heights: NDArray[np.int64] = places["height"].to_numpy(np.int64)
        self.widths: NDArray[np.int64] = places["width"].to_numpy(np.int64)
        self.fingerprint = fingerprint(folder.name, self.ids, self.sha256s)
        self._offsets: NDArray[np.int64] = places["offset"].to_numpy(np.int64)
        self._lengths: NDArray[np.int64] = places["length"].to_numpy(np.int64)
        self._row_of = {id: row for row, id in enumerate(self.ids)}
        self._path = data_file(folder)
        self._bytes = _mapped(self._path)

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """The rows of `ids`. An id without a usable photo is an error, never a black canvas."""
        absent = [id for id in ids if id not in self._row_of]
        if absent:
            raise DataError(f"{len(absent):,} ids have no pixels, the first is {absent[0]}: leave out photos whose verdict is not usable")
        return np.array([self._row_of[id] for id in ids], dtype=np.int64)

    def canvas(self, row: int) -> Canvas:
        """`[h, w, 3]` RGB. A read-only view of the file if it holds raw pixels; decoded now if it holds JPEGs."""
        start = int(self._offsets[row])
        packed = self._bytes[start : start + int(self._lengths[row])]
        if self.form == "raw":
            return packed.reshape(int(self.heights[row]), int(self.widths[row]), 3)
        pixels = decode(packed.tobytes()).pixels
        if pixels is None:
            raise DamagedError(f"{self._path} holds no JPEG for photo {self.ids[row]}: delete its folder and run the stage again")
        return pixels

    def stack(self, rows: Sequence[int] | NDArray[np.int64], out: Canvas | None = None) -> NDArray[np.uint8]:
        """`[n, h, w, 3]` of canvases that all have the same size, as those of a squash store do; into `out` if it is given."""
        if out is None:
            size_px = self.geometry.size_px
            height, width = (int(self.heights[rows[0]]), int(self.widths[rows[0]])) if len(rows) else (size_px, size_px)
            out = np.empty((len(rows), height, width, 3), np.uint8)
        canvases = map(self.canvas, rows) if self.form == "raw" else in_order(self.canvas, rows)
        for place, canvas in zip(out, canvases, strict=True):
            np.copyto(place, canvas, casting="no")
        return out

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_bytes"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._bytes = _mapped(self._path)


def _mapped(path: Path) -> NDArray[np.uint8]:
    # As a plain array: slicing a memmap costs 5 us a photo, and pickling one would copy the whole file.
    return np.asarray(np.memmap(path, np.uint8, "r")) if path.exists() and path.stat().st_size else np.empty(0, np.uint8)


def open_pixels(
    workspace: Workspace, manifests: Sequence[pd.DataFrame], geometry: Geometry, reporter: Reporter, max_bytes: int = MAX_BYTES
) -> Pixels:
    """The usable photos of `manifests`, one after the other. Decodes those, and only those, that the store does not have yet."""
    wanted = usable(pd.concat(list(manifests), ignore_index=True))
    if wanted["id"].duplicated().any():
        raise DataError(f"photo {wanted['id'][wanted['id'].duplicated()].iloc[0]} stands in the manifests more than once: run `make data`")
    n_bytes = raw_bytes(zip(wanted["width"], wanted["height"], strict=True), geometry)
    name = StoreName(geometry=geometry, form=choose_form(n_bytes, geometry, max_bytes))
    folder = name.folder(workspace)
    index = read_index(folder)
    if not _is_sound(folder, index, reporter) or not set(wanted["sha256"]) <= set(index["key"]):
        _build(workspace, name, wanted, reporter)
        index = read_index(folder)
    return Pixels(folder, name.form, geometry, wanted, index)


def raw_bytes(sizes: Iterable[tuple[int, int]], geometry: Geometry) -> int:
    """What canvases of upright photos of these (width, height) take on disk, uncompressed."""
    shapes = (geometry.canvas(int(width), int(height)) for width, height in sizes)
    return sum(height * width * 3 for height, width in shapes)


def choose_form(n_bytes: int, geometry: Geometry, max_bytes: int) -> Form:
    """Raw if `n_bytes` of pixels fit into `max_bytes`, else JPEG if these fit."""
    if n_bytes <= max_bytes:
        return "raw"
    if n_bytes * JPEG_SHARE <= max_bytes:
        return "jpeg"
    raise DataError(
        f"pixels {geometry.name} take {gigabytes(n_bytes)}, about {gigabytes(n_bytes * JPEG_SHARE)} as JPEG, "
        f"and the bound is {gigabytes(max_bytes)}: raise the bound or choose a smaller geometry"
    )


def announce(workspace: Workspace, name: StoreName, n_photos: int, n_bytes: int, reporter: Reporter) -> None:
    """Says what a store will take before anything is written, and refuses if the disk has not that much."""
    need = n_bytes if name.form == "raw" else int(n_bytes * JPEG_SHARE)
    workspace.pixels.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(workspace.pixels).free
    line = (
        f"pixels {name.geometry.name} of {n_photos:,} photos take {'' if name.form == 'raw' else 'about '}{gigabytes(need)} as {name.form}"
    )
    if need > free:
        raise DataError(f"{line} and {gigabytes(free)} are free under {workspace.pixels}: make room or choose a smaller geometry")
    reporter.say(f"{line}; {gigabytes(free)} are free")


def gigabytes(n_bytes: float) -> str:
    return f"{n_bytes / 1e9:.2f} GB"


def pack(canvas: Canvas, form: Form) -> NDArray[np.uint8]:
    """The bytes a store of this form keeps for `canvas`."""
    return canvas.reshape(-1) if form == "raw" else np.frombuffer(encode_jpeg(canvas, quality=95), np.uint8)


@contextmanager
def writing(workspace: Workspace, name: StoreName, reporter: Reporter) -> Iterator[Writer]:
    """The store, locked, to add photos to; one that is damaged is begun anew."""
    folder = name.folder(workspace)
    with locked(workspace.pixels / f"{folder.name}.lock", reporter):
        if not _is_sound(folder, read_index(folder), reporter):
            shutil.rmtree(folder)
        with Writer(folder) as writer:
            yield writer


def _is_sound(folder: Path, index: pd.DataFrame, reporter: Reporter) -> bool:
    try:
        verify(folder, index, N_CHECKED)
    except DamagedError as error:
        reporter.warn(f"{error}: decoding again")
        return False
    return True


def _build(workspace: Workspace, name: StoreName, wanted: pd.DataFrame, reporter: Reporter) -> None:
    with writing(workspace, name, reporter) as writer:  # which may have been filled by another process while this one waited
        missing = wanted[[sha256 not in writer for sha256 in wanted["sha256"]]].drop_duplicates("sha256")
        if missing.empty:
            return
        n_bytes = raw_bytes(zip(missing["width"], missing["height"], strict=True), name.geometry)
        announce(workspace, name, len(missing), n_bytes, reporter)
        splits = np.where(missing["label"].isna(), "test", "train")
        photos = list(zip(missing["id"], splits, missing["sha256"], strict=True))

        def packed(photo: tuple[str, str, str]) -> tuple[str, str, NDArray[np.uint8], int, int]:
            id, split, sha256 = photo
            canvas = to_canvas(_pixels(photo_path(workspace, split, id), sha256), name.geometry)
            return sha256, id, pack(canvas, name.form), canvas.shape[0], canvas.shape[1]

        with reporter.track("decoding", len(photos), "photos") as advance:
            for photo in in_order(packed, photos):
                writer.add(*photo)
                advance()


def _pixels(path: Path, sha256: str) -> Canvas:
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing: run `make data`") from error
    pixels = decode(data).pixels if hashlib.sha256(data).hexdigest() == sha256 else None
    if pixels is None:
        raise StaleError(f"{path} is not the photo that the manifest names: delete the manifest and run `make data`")
    return pixels
