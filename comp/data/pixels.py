"""Photos decoded once into a packed uint8 store that all folds, epochs, runs and processes share.

A store has one geometry and is keyed by the sha256 of the photo's file: photos that come later are added, equal photos are stored once, and
a subset finds its photos in the store of the whole. Where raw pixels would not fit into the bound on its size, the store holds JPEGs of
quality 95 at the reduced size and decodes on reading, behind the same interface.
"""

import hashlib
import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from comp.data.geometry import Geometry
from comp.data.manifest import photo_path, usable
from comp.data.pack import data_file, read_index
from comp.data.photos import Canvas, decode, to_canvas
from comp.data.pool import in_order
from comp.data.stores import MAX_BYTES, Store, announce, choose_store, is_sound, raw_bytes, writing
from comp.errors import DataError, StaleError
from comp.progress import Reporter
from comp.store import Workspace

N_MAPPED = 2048  # canvases after which the memory that they are mapped into is given back


class Pixels:
    """The canvases of some photos. Row i belongs to `ids[i]`; it is small to pickle and safe to share between threads and processes."""

    def __init__(
        self, folder: Path, store: Store, wanted: pd.DataFrame, index: pd.DataFrame
    ) -> None:
        """`wanted`: id and sha256 of the photos, in order; `index`: of the store in `folder`, which has all of them."""
        places = index.set_index("key").loc[list(wanted["sha256"])]
        self.geometry = store.geometry
        self.ids: tuple[str, ...] = tuple(wanted["id"])
        self.sha256s: tuple[str, ...] = tuple(wanted["sha256"])
        self.heights: NDArray[np.int64] = places["height"].to_numpy(np.int64)
        self.widths: NDArray[np.int64] = places["width"].to_numpy(np.int64)
        self.store = folder.name  # tells everything that decides which bytes a photo becomes
        self._store = store
        self._offsets: NDArray[np.int64] = places["offset"].to_numpy(np.int64)
        self._lengths: NDArray[np.int64] = places["length"].to_numpy(np.int64)
        self._row_of = {id: row for row, id in enumerate(self.ids)}
        self._path = data_file(folder)
        self._map, self._bytes = _mapped(self._path)
        self._n_seen = 0

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """The rows of `ids`. An id without a usable photo is an error, never a black canvas."""
        absent = [id for id in ids if id not in self._row_of]
        if absent:
            raise DataError(
                f"{len(absent):,} ids have no pixels, the first is {absent[0]}: leave out photos whose verdict is not usable"
            )
        return np.array([self._row_of[id] for id in ids], dtype=np.int64)

    def canvas(self, row: int) -> Canvas:
        """`[h, w, 3]` RGB. A read-only view of the file if it holds raw pixels; decoded now if it holds JPEGs."""
        self._n_seen += 1
        if self._map and self._n_seen % N_MAPPED == 0 and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(
                mmap.MADV_DONTNEED
            )  # the kernel still has the pages, but they are no longer counted as ours
        start = int(self._offsets[row])
        packed = self._bytes[start : start + int(self._lengths[row])]
        return self._store.unpacked(packed, int(self.heights[row]), int(self.widths[row]))

    def __getstate__(self) -> dict[str, Any]:
        return {
            name: value for name, value in self.__dict__.items() if name not in ("_map", "_bytes")
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._map, self._bytes = _mapped(self._path)


def _mapped(path: Path) -> tuple[mmap.mmap | None, NDArray[np.uint8]]:
    # Not as a memmap: slicing one costs 5 us a photo, and pickling one would copy the whole file.
    if not path.exists() or not path.stat().st_size:
        return None, np.empty(0, np.uint8)
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return mapped, np.frombuffer(mapped, np.uint8)


def open_pixels(
    workspace: Workspace,
    manifests: Sequence[pd.DataFrame],
    geometry: Geometry,
    reporter: Reporter,
    max_bytes: int = MAX_BYTES,
) -> Pixels:
    """The usable photos of `manifests`, one after the other. Decodes those, and only those, that the store does not have yet."""
    wanted = usable(pd.concat(list(manifests), ignore_index=True))
    if wanted["id"].duplicated().any():
        raise DataError(
            f"photo {wanted['id'][wanted['id'].duplicated()].iloc[0]} stands in the manifests more than once: run `make data`"
        )
    store = choose_store(geometry, zip(wanted["width"], wanted["height"], strict=True), max_bytes)
    folder = store.folder(workspace)
    index = read_index(folder)
    if not is_sound(folder, index, reporter) or not set(wanted["sha256"]) <= set(index["key"]):
        _build(workspace, store, wanted, reporter)
        index = read_index(folder)
    return Pixels(folder, store, wanted, index)


def _build(workspace: Workspace, store: Store, wanted: pd.DataFrame, reporter: Reporter) -> None:
    with writing(
        workspace, store, reporter
    ) as writer:  # which another process may have filled while this one waited
        missing = wanted[[sha256 not in writer for sha256 in wanted["sha256"]]].drop_duplicates(
            "sha256"
        )
        if missing.empty:
            return
        n_bytes = raw_bytes(store.geometry, zip(missing["width"], missing["height"], strict=True))
        announce(workspace, store, len(missing), store.disk_bytes(n_bytes), reporter)
        splits = np.where(missing["label"].isna(), "test", "train")
        photos = list(zip(missing["id"], splits, missing["sha256"], strict=True))

        def canvas(photo: tuple[str, str, str]) -> tuple[NDArray[np.uint8], int, int]:
            pixels = to_canvas(
                _pixels(photo_path(workspace, photo[1], photo[0]), photo[2]), store.geometry
            )
            return store.packed(pixels), pixels.shape[0], pixels.shape[1]

        with reporter.track("decoding", len(photos), "photos") as advance:
            for (id, _, sha256), packed in zip(photos, in_order(canvas, photos), strict=True):
                writer.add(sha256, id, *packed)
                advance()


def _pixels(path: Path, sha256: str) -> Canvas:
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing: run `make data`") from error
    pixels = decode(data).pixels if hashlib.sha256(data).hexdigest() == sha256 else None
    if pixels is None:
        raise StaleError(
            f"{path} is not the photo that the manifest names: delete the manifest and run `make data`"
        )
    return pixels
