"""Arrays of photos kept on disk: computed once, in shards that are there whole or not at all, mapped into memory rather than read."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from comp.errors import StaleError
from comp.store import fingerprint, whole, write_text

SHARD_BYTES = (
    64 * 2**20
)  # of half-precision numbers; what a killed run loses at most, with SHARD_PHOTOS
SHARD_PHOTOS = 2048


class Rows:
    """Arrays of some photos, in order, on disk: only what is taken is read."""

    def __init__(self, shards: Sequence[NDArray[np.floating]], places: NDArray[np.int64]) -> None:
        """`places [n, 2]`: of each photo, its shard and the row in it."""
        self._shards, self._places = list(shards), places
        self.shape: tuple[int, ...] = (
            len(places),
            *(self._shards[0].shape[1:] if self._shards else (0,)),
        )

    def __len__(self) -> int:
        return len(self._places)

    def take(self, places: Sequence[int] | NDArray[np.int64]) -> NDArray[np.float32]:
        """The arrays [n, ...] at `places`, 0 the first."""
        wanted = self._places[np.asarray(places, np.int64)]
        taken = np.empty((len(wanted), *self.shape[1:]), np.float32)
        for shard in np.unique(wanted[:, 0]):
            here = wanted[:, 0] == shard
            taken[here] = self._shards[shard][wanted[here, 1]]
        return taken

    def all(self) -> NDArray[np.float32]:
        return self.take(np.arange(len(self)))


class Store:
    """The arrays of one kind in one folder, by their photo's sha256.

    00000-1f3a5c7e9b.npy    one shard, [n, ...] float16, or float32 where half precision cannot hold it
    00000-1f3a5c7e9b.txt    the sha256 of each of its photos, a line each; a shard counts once this is there
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def keys(self) -> dict[str, tuple[int, int]]:
        """Where each photo is: its shard, and the row in it."""
        lists = [path.read_text().split() for path in self._lists()]
        return {
            key: (shard, row) for shard, keys in enumerate(lists) for row, key in enumerate(keys)
        }

    def rows(self, keys: Sequence[str]) -> Rows:
        """The arrays of the photos `keys`, all of which are there."""
        known = self.keys()
        places = np.array([known[key] for key in keys], np.int64).reshape(-1, 2)
        return Rows([_mapped(path.with_suffix(".npy")) for path in self._lists()], places)

    def append(self, keys: Sequence[str], arrays: NDArray[np.float32]) -> None:
        """Keep `arrays [n, ...]`, in half precision where all of them fit."""
        with np.errstate(over="ignore"):
            half = arrays.astype(np.float16)
        kept = half if np.isfinite(half).all() else arrays
        name = f"{len(self._lists()):05d}-{fingerprint(list(keys))}"
        with whole(self.folder / f"{name}.npy") as scratch, scratch.open("wb") as file:
            np.save(file, kept)
        write_text(self.folder / f"{name}.txt", "".join(f"{key}\n" for key in keys))

    def _lists(self) -> list[Path]:
        return sorted(self.folder.glob("*.txt"))


def _mapped(path: Path) -> NDArray[np.floating]:
    try:
        mapped: NDArray[np.floating] = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise StaleError(
            f"{path} is damaged: delete {path.parent} and run the stage again"
        ) from error
    return mapped
