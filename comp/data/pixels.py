"""The store of pixels: the canvases of one geometry, each decoded once.

    data/pixels/<geometry>-<fingerprint>/
        pixels.bin         one canvas after the other: uint8 RGB, no header, no gaps
        index-00000.csv    one chunk: key, height, width and checksum of each canvas

All folds, epochs, runs and processes share a store. Its keys are the sha256 of the photos' files:
photos that come later are added, and equal photos are stored once. A chunk's bytes reach the disk
before its index gets its name; bytes behind the last index are left over from a killed run and are
overwritten. A damaged store is made again.
"""

import io
import mmap
import os
import shutil
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from comp.data.canvas import PIXELS_FILE, Geometry, store_folder
from comp.data.manifest import photo_path, usable
from comp.errors import DataError, StaleError
from comp.progress import Reporter, counted
from comp.store import Workspace, locked, write_table

Canvas = NDArray[np.uint8]  # [height, width, 3] RGB
CHUNK_BYTES = 64 * 2**20  # the most that a killed run loses: a quarter of a second of decoding
N_CHECKED = 32  # canvases whose checksum is compared when a store is opened
N_MAPPED = 2048  # canvases read before the memory that they are mapped into is given back
INDEX_COLUMNS = {"key": "str", "height": "int64", "width": "int64", "crc32": "int64"}


class PixelStore:
    """The canvases of some photos, row i of `ids[i]`; small to pickle, safe to share by threads."""

    def __init__(
        self, folder: Path, geometry: Geometry, wanted: pd.DataFrame, index: pd.DataFrame
    ) -> None:
        """`wanted`: id and sha256 of the photos, in order; `index`: of the store in `folder`."""
        places = index.set_index("key").loc[list(wanted["sha256"])]
        self.geometry = geometry
        self.store = folder.name  # names everything that decides the bytes of a canvas
        self.ids: tuple[str, ...] = tuple(wanted["id"])
        self.sha256s: tuple[str, ...] = tuple(wanted["sha256"])
        self.heights: NDArray[np.int64] = places["height"].to_numpy(np.int64)
        self.widths: NDArray[np.int64] = places["width"].to_numpy(np.int64)
        self._offsets: NDArray[np.int64] = places["offset"].to_numpy(np.int64)
        self._row_of = {id: row for row, id in enumerate(self.ids)}
        self._path = folder / PIXELS_FILE
        self._map, self._bytes = _mapped(self._path)
        self._n_read = 0

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """The rows of `ids`. DataError for an id without a usable photo."""
        absent = [id for id in ids if id not in self._row_of]
        if absent:
            raise DataError(
                f"{counted(len(absent), 'id has', 'ids have')} no pixels, the first is {absent[0]}:"
                " leave out photos that cannot be decoded"
            )
        return np.array([self._row_of[id] for id in ids], dtype=np.int64)

    def canvas(self, row: int) -> Canvas:
        """`[h, w, 3]` RGB, a read-only view of the file."""
        self._n_read += 1
        if self._map and self._n_read % N_MAPPED == 0 and hasattr(mmap, "MADV_DONTNEED"):
            # The kernel keeps the pages, but they no longer count as this process's memory.
            self._map.madvise(mmap.MADV_DONTNEED)
        start, height, width = self._offsets[row], self.heights[row], self.widths[row]
        return self._bytes[start : start + height * width * 3].reshape(height, width, 3)

    def __getstate__(self) -> dict[str, Any]:
        dropped = ("_map", "_bytes")
        return {name: value for name, value in self.__dict__.items() if name not in dropped}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._map, self._bytes = _mapped(self._path)


def _mapped(path: Path) -> tuple[mmap.mmap | None, NDArray[np.uint8]]:
    # Not np.memmap: slicing it costs 5 us a photo, and pickling it would copy the whole file.
    if not path.exists() or not path.stat().st_size:
        return None, np.empty(0, np.uint8)
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return mapped, np.frombuffer(mapped, np.uint8)


def open_pixels(
    workspace: Workspace, manifests: Sequence[pd.DataFrame], geometry: Geometry, reporter: Reporter
) -> PixelStore:
    """The usable photos of `manifests`, one after the other. Decodes what the store lacks."""
    wanted = usable(pd.concat(list(manifests), ignore_index=True))
    twice = wanted["id"][wanted["id"].duplicated()]
    if len(twice):
        both = f"photo {twice.iloc[0]} is in both manifests"
        raise DataError(f"{both}: delete them and run `make data`")
    folder = store_folder(workspace, geometry)
    try:
        index = read_index(folder)
    except StaleError:
        index = pd.DataFrame(columns=list(INDEX_COLUMNS))  # the writer will say why
    missing = wanted[~wanted["sha256"].isin(index["key"])]
    if len(missing):
        _add(workspace, missing.drop_duplicates("sha256"), geometry, reporter)
        index = read_index(folder)
    return PixelStore(folder, geometry, wanted, index)


def _add(
    workspace: Workspace, missing: pd.DataFrame, geometry: Geometry, reporter: Reporter
) -> None:
    from comp.data.scan import scan  # loads torch, which a store that is complete does not need

    splits = np.where(missing["label"].isna(), "test", "train")
    photos = [(split, id, None) for split, id in zip(splits, missing["id"], strict=True)]
    found, _ = scan(workspace, photos, geometry, reporter, with_thumbnails=False)
    changed = found[found["sha256"].to_numpy() != missing["sha256"].to_numpy()]
    if len(changed):
        path = photo_path(workspace, *changed[["split", "id"]].iloc[0])
        raise StaleError(
            f"{counted(len(changed), 'photo')} other than in the manifests, the first is {path}:"
            f" delete the folder {path.parent} and run `make data`"
        )


def read_index(folder: Path) -> pd.DataFrame:
    """INDEX_COLUMNS, offset and length of all canvases in the store, if there is one, in its order.

    StaleError if an index or the bytes do not fit, or a sampled canvas has another checksum.
    """
    chunks = [path.read_bytes() for path in sorted(folder.glob("index-*.csv"))]
    header = ",".join(INDEX_COLUMNS).encode() + b"\n"
    if not all(chunk.startswith(header) and chunk.endswith(b"\n") for chunk in chunks):
        raise _damaged(folder, "an index is cut")
    table = io.BytesIO(b"".join([header, *(chunk.removeprefix(header) for chunk in chunks)]))
    try:
        index = pd.read_csv(table, dtype=INDEX_COLUMNS, keep_default_na=False)
    except ValueError:
        raise _damaged(folder, "an index is not readable") from None
    length = 3 * index["height"] * index["width"]
    index = index.assign(offset=length.cumsum() - length, length=length)
    path, end = folder / PIXELS_FILE, length.sum()
    n_bytes = path.stat().st_size if path.exists() else 0
    if n_bytes < end or (length <= 0).any() or index["key"].duplicated().any():
        raise _damaged(folder, f"{n_bytes:,} bytes of {end:,}")
    sample = np.linspace(0, len(index) - 1, min(len(index), N_CHECKED)).astype(int)
    columns = (index[name].iloc[sample].tolist() for name in index.columns)
    for key, height, _, crc32, offset, n_bytes in zip(*columns, strict=True):
        with path.open("rb") as file:
            file.seek(offset)
            if _checksum(folder, key, height, file.read(n_bytes)) != crc32:
                raise _damaged(folder, f"the canvas at byte {offset:,} is wrong")
    return index


def _damaged(folder: Path, reason: str) -> StaleError:
    return StaleError(f"{folder} is damaged ({reason}): delete it and run `make data`")


def _checksum(folder: Path, key: str, height: int, canvas: bytes | memoryview) -> int:
    """CRC-32 of a canvas and of all that makes it this photo's in this store."""
    return zlib.crc32(canvas, zlib.crc32(f"{folder.name} {key} {height}".encode()))


@contextmanager
def open_writer(
    workspace: Workspace, geometry: Geometry, reporter: Reporter
) -> Iterator["PixelWriter"]:
    """The store of `geometry`, locked, to add canvases to; a damaged one is begun anew."""
    folder = store_folder(workspace, geometry)
    with locked(workspace.pixels / f"{folder.name}.lock", reporter):
        try:
            read_index(folder)
        except StaleError as error:
            reporter.warn(f"{str(error).rpartition(':')[0]}: decoding again")
            shutil.rmtree(folder)
        with closing(PixelWriter(folder)) as writer:
            yield writer


class PixelWriter:
    """Appends canvases to a store. One writer at a time: the caller holds the lock."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        index = read_index(folder)
        self._folder = folder
        self._keys = set(index["key"])
        self._n_chunks = len(list(folder.glob("index-*.csv")))
        self._rows: list[tuple[str, int, int, int]] = []  # of the chunk that is open
        self._n_bytes = 0  # of it
        self._pending: Future[None] | None = None
        self._syncer = ThreadPoolExecutor(1)  # so that only the end waits for the disk
        self._file = (folder / PIXELS_FILE).open("ab")
        self._file.truncate(int(index["length"].sum()))

    def __contains__(self, key: str) -> bool:
        return key in self._keys

    def add(self, key: str, canvas: Canvas) -> None:
        """Append `canvas` unless the store has `key`."""
        if key in self._keys:
            return
        self._keys.add(key)
        self._file.write(canvas.data)
        height, width, _ = canvas.shape
        crc32 = _checksum(self._folder, key, height, canvas.data)
        self._rows.append((key, height, width, crc32))
        self._n_bytes += canvas.nbytes
        if self._n_bytes >= CHUNK_BYTES:
            self._close_chunk()

    def _close_chunk(self) -> None:
        if self._pending:
            self._pending.result()  # no index after one that could not be written
        self._file.flush()
        table = pd.DataFrame(self._rows, columns=list(INDEX_COLUMNS))
        path = self._folder / f"index-{self._n_chunks:05d}.csv"
        self._pending = self._syncer.submit(self._write_index, path, table)
        self._n_chunks, self._n_bytes, self._rows = self._n_chunks + 1, 0, []

    def _write_index(self, path: Path, table: pd.DataFrame) -> None:
        os.fsync(self._file.fileno())
        write_table(path, table)

    def close(self) -> None:
        """Also after an error or Ctrl-C what was added is kept: each canvas is complete."""
        try:
            if self._rows:
                self._close_chunk()
            if self._pending:
                self._pending.result()
        finally:
            self._syncer.shutdown()
            self._file.close()
