"""Arrays of bytes packed into one file that only grows, in chunks that are there whole or not at all.

    pixels.bin         one photo after the other, no header, no gaps
    index-00000.csv    one chunk: key, id, offset, length, height, width, crc32 of each photo in it

A chunk's bytes reach the disk before its index takes its name. What lies behind the last index is left from a killed run and overwritten.
"""

import os
import zlib
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from comp.errors import DataError
from comp.store import write_table

CHUNK_BYTES = 64 * 2**20  # what a killed run loses at most: a quarter of a second's decoding
N_CHECKED = 32  # photos whose checksum is compared when a store is opened; `verify` compares all
COLUMNS = {
    "key": "str",
    "id": "str",
    "offset": "int64",
    "length": "int64",
    "height": "int64",
    "width": "int64",
    "crc32": "int64",
}


class DamagedError(DataError):
    """A packed file that is not what its index says."""


def data_file(folder: Path) -> Path:
    return folder / "pixels.bin"


def read_index(folder: Path) -> pd.DataFrame:
    """COLUMNS of all photos in the store, in the order in which they were written. Empty if there is no store."""
    chunks = [
        pd.read_csv(path, dtype=COLUMNS, keep_default_na=False)
        for path in sorted(folder.glob("index-*.csv"))
    ]
    return (
        pd.concat(chunks, ignore_index=True)
        if chunks
        else pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in COLUMNS.items()})
    )


def verify(folder: Path, index: pd.DataFrame, n_photos: int | None = None) -> None:
    """Raises `DamagedError` unless the file is as long as `index` says and the checksums of `n_photos` photos, spread evenly, are right."""
    path, end = data_file(folder), _end(index)
    size = path.stat().st_size if path.exists() else 0
    if size < end:
        raise DamagedError(f"{path} has {size:,} bytes of {end:,}")
    if not end:
        return
    picked = np.unique(
        np.linspace(0, len(index) - 1, min(len(index), n_photos or len(index))).astype(np.int64)
    )
    columns = (
        index[name].to_numpy()[picked].tolist() for name in ("id", "offset", "length", "crc32")
    )
    with path.open("rb") as file:
        for id, offset, length, crc32 in zip(*columns, strict=True):
            file.seek(offset)
            if zlib.crc32(file.read(length)) != crc32:
                raise DamagedError(f"{path} has other bytes for photo {id} than were written")


def _end(index: pd.DataFrame) -> int:
    return int((index["offset"] + index["length"]).max()) if len(index) else 0


class Writer:
    """Appends photos to a store. One writer at a time: the caller holds the lock."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        index = read_index(folder)
        self._folder = folder
        self._keys = set(index["key"])
        self._at = _end(index)
        self._n_chunks = len(list(folder.glob("index-*.csv")))
        self._rows: list[tuple[Any, ...]] = []
        self._pending: Future[None] | None = None
        self._syncer = ThreadPoolExecutor(1)  # so that nobody waits for the disk but at the end
        self._file = os.open(
            data_file(folder), os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666
        )
        os.ftruncate(self._file, self._at)

    def __contains__(self, key: str) -> bool:
        return key in self._keys

    def add(self, key: str, id: str, packed: NDArray[np.uint8], height: int, width: int) -> None:
        """Appends the bytes of `packed` under `key`, unless it has some."""
        if key in self._keys:
            return
        self._keys.add(key)
        view = packed.reshape(-1).data
        done = 0
        while done < len(view):
            done += os.pwrite(self._file, view[done:], self._at + done)
        self._rows.append((key, id, self._at, len(view), height, width, zlib.crc32(view)))
        self._at += len(view)
        if self._at - self._rows[0][2] >= CHUNK_BYTES:
            self._close_chunk()

    def _close_chunk(self) -> None:
        if self._pending:
            self._pending.result()
            self._pending = None
        if self._rows:
            table = pd.DataFrame(self._rows, columns=list(COLUMNS))
            self._pending = self._syncer.submit(
                self._write_index, self._folder / f"index-{self._n_chunks:05d}.csv", table
            )
            self._n_chunks += 1
            self._rows = []

    def _write_index(self, path: Path, table: pd.DataFrame) -> None:
        getattr(os, "fdatasync", os.fsync)(self._file)
        write_table(path, table)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Also after an error or Ctrl-C what was added is kept: each photo is complete by itself."""
        try:
            self._close_chunk()
            self._close_chunk()
        finally:
            self._syncer.shutdown()
            os.close(self._file)
