"""Outputs of a frozen network, computed once per photo and view, and cached on disk.

Where all that is asked for is cached, no network is built and torch is not loaded.
"""

import io
import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from comp.errors import StaleError
from comp.network.heads import FeatureHead
from comp.network.preprocessing import preprocessing_of
from comp.network.views import Look, View, code_of_outputs
from comp.network.weights import weights_file
from comp.progress import Advance, Reporter, counted
from comp.store import file_sha256, fingerprint, read_json, require_room, whole, write_json
from comp.train.inputs import Inputs
from comp.train.run import LIBRARIES, Run, check_weights

if TYPE_CHECKING:
    from torch import nn

    from comp.network.boundary import Boundary
    from comp.network.device import Device
    from comp.network.embedder import Embedder

SHARD_PHOTOS = 2048  # with SHARD_BYTES, what a killed run loses at most
SHARD_BYTES = 64 * 2**20
N_AT_ONCE = 1024  # photos whose outputs are in memory
HALF_BYTES = 2  # of a number in a shard


class CachedRows:
    """Arrays of some photos in order, on disk: only what is taken is read."""

    def __init__(self, shards: Sequence[NDArray[np.floating]], places: NDArray[np.int64]) -> None:
        """`places [n, 2]`: the shard of each photo, and the row in it."""
        self._shards, self._places = list(shards), places
        row_shape = self._shards[0].shape[1:] if self._shards else (0,)
        self.shape: tuple[int, ...] = (len(places), *row_shape)

    def __len__(self) -> int:
        return len(self._places)

    def take(self, rows: Sequence[int] | NDArray[np.int64]) -> NDArray[np.float32]:
        """The arrays [n, ...] at `rows`."""
        wanted = self._places[np.asarray(rows, np.int64)]
        taken = np.empty((len(wanted), *self.shape[1:]), np.float32)
        for shard in np.unique(wanted[:, 0]):
            here = wanted[:, 0] == shard
            taken[here] = self._shards[shard][wanted[here, 1]]
        return taken

    def all(self) -> NDArray[np.float32]:
        return self.take(np.arange(len(self)))

    def parts(self, size: int) -> Iterator[NDArray[np.float32]]:
        """All arrays in order, up to `size` of them at once."""
        for start in range(0, len(self), size):
            yield self.take(range(start, min(start + size, len(self))))


def in_memory(arrays: NDArray[np.float32]) -> CachedRows:
    return CachedRows([arrays], np.array([(0, row) for row in range(len(arrays))], np.int64))


class ArrayCache:
    """Arrays of one kind in a folder, by their photo's sha256.

    Each shard is one file, such as 00000-1f3a5c7e.npy, named by its checksum, with two arrays: the
    hashes [n] and, in the same order, the values [n, ...] in float16, or in float32 where half
    precision overflows.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._shards = folder, list[NDArray[np.floating]]()
        self._places: dict[str, tuple[int, int]] = {}
        for path in sorted(folder.glob("?????-????????.npy")):
            self._add(path)

    def _add(self, path: Path) -> None:
        keys, values = _read_shard(path)
        self._places |= {key: (len(self._shards), row) for row, key in enumerate(keys)}
        self._shards.append(values)

    def missing(self, keys: Sequence[str]) -> list[str]:
        """Those of `keys` that have no array, each once, in order."""
        return [key for key in dict.fromkeys(keys) if key not in self._places]

    def rows(self, keys: Sequence[str]) -> CachedRows:
        """The arrays of `keys`, none of which is missing."""
        wanted = np.array([self._places[key] for key in keys], np.int64).reshape(-1, 2)
        return CachedRows(self._shards, wanted)

    def append(self, keys: Sequence[str], arrays: NDArray[np.float32]) -> None:
        with np.errstate(over="ignore"):
            half = arrays.astype(np.float16)
        values = half if np.isfinite(half).all() else arrays
        shard = io.BytesIO()
        np.save(shard, np.array(keys, "S64"))
        np.save(shard, values)
        checksum = _checksum(self._folder, shard.getbuffer())
        path = self._folder / f"{len(self._shards):05d}-{checksum}.npy"
        with whole(path) as scratch:
            scratch.write_bytes(shard.getbuffer())
        self._add(path)


def _checksum(folder: Path, shard: bytes | memoryview) -> str:
    """CRC-32 of a shard and of what its values are, which the names of its folders say."""
    return f"{zlib.crc32(shard, zlib.crc32('/'.join(folder.parts[-2:]).encode())):08x}"


def _read_shard(path: Path) -> tuple[list[str], NDArray[np.floating]]:
    """The hashes and the mapped values; StaleError if the file is damaged."""
    try:
        if not path.stem.endswith(_checksum(path.parent, path.read_bytes())):
            raise ValueError("it is not as it was written")
        with path.open("rb") as file:
            keys = [key.decode() for key in np.load(file).tolist()]
            np.lib.format.read_magic(file)
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            values = np.memmap(path, dtype, "r", file.tell(), shape)
    except (OSError, ValueError) as error:
        raise StaleError(f"{path} is damaged ({error}): delete it and run this again") from error
    return keys, values


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What is kept of a frozen network beside its outputs, so that it need not be built."""

    weights: str  # its weights_key
    key: str  # the embedder's
    device: str  # its name
    shape: Sequence[int]  # of the output for one photo


def kept_path(run: Run, device: str | None, *, is_tail: bool = False) -> Path:
    """Named by all that outputs depend on and that is known before the network is built.

    `is_tail`: of the activations where the recipe cuts the network, not of features.
    """
    recipe = run.recipe
    file = weights_file(recipe.model)
    sha256 = file_sha256(file) if file and file.is_file() else None
    size_px, preprocessing = recipe.pixels.size_px, preprocessing_of(recipe)
    versions = [version(name) for name in LIBRARIES]
    parts = (recipe.model, size_px, preprocessing, sha256, versions, device)
    name = fingerprint(*parts, recipe.training) if is_tail else fingerprint(*parts)
    return run.workspace.features / f"{name}.json"


def read_kept(run: Run, device: str | None, *, is_tail: bool = False) -> Kept | None:
    try:
        return Kept(**read_json(kept_path(run, device, is_tail=is_tail)))
    except (OSError, ValueError, TypeError):
        return None  # the network is built, and this written again


def cache_name(key: str, store: str) -> str:
    """The folder of what the embedder `key` makes of the pixels in `store`, by today's code."""
    return fingerprint(key, store, code_of_outputs())


class FrozenNetwork:
    """The part of the network that all folds of a run share, and its cached outputs."""

    def __init__(
        self,
        inputs: Inputs,
        device: str | None,
        reporter: Reporter,
        *,
        network: "nn.Module | None" = None,
        boundary: "Boundary | None" = None,
    ) -> None:
        """`network`, if it is built already, is consumed; `boundary`: where it ends."""
        self.inputs, self.reporter = inputs, reporter
        self._wanted, self._network, self._boundary = device, network, boundary
        self._kept = None if network or boundary else read_kept(inputs.run, device)

    @cached_property
    def device(self) -> "Device":
        from comp.network.device import find_device

        return find_device(self._wanted)

    @property
    def device_name(self) -> str:
        return self._kept.device if self._kept else self.device.name

    @property
    def n_outputs(self) -> int:
        """Numbers of one photo, such as features."""
        return math.prod(self._kept.shape if self._kept else self.embedder.shape)

    @cached_property
    def weights(self) -> str:
        """The weights_key of the network. StaleError if the run began with other weights."""
        found = self._kept.weights if self._kept else self._build()[1]
        check_weights(self.inputs.run, found)
        return found

    def _build(self) -> "tuple[nn.Module, str]":
        from comp.network.backbone import build
        from comp.network.embedder import weights_key

        model, size_px = self.inputs.run.recipe.model, self.inputs.run.recipe.pixels.size_px
        self._network = self._network or build(model, size_px=size_px)
        return self._network, weights_key(self._network)

    @cached_property
    def embedder(self) -> "Embedder":
        """Ready for inference. StaleError if the weights are not those the run began with."""
        from comp.network.embedder import make_embedder

        run, inputs = self.inputs.run, self.inputs
        (network, weights), self._network = self._build(), None
        check_weights(run, weights)
        arguments = (inputs.preprocessing, self.device, inputs.example_crops(), self._boundary)
        embedder, why = make_embedder(network, *arguments)
        self.reporter.say(why)
        names = {"key": embedder.key, "device": self.device.name}
        self._kept = Kept(weights=weights, shape=embedder.shape, **names)
        path = kept_path(run, self._wanted, is_tail=self._boundary is not None)
        write_json(path, asdict(self._kept))
        return embedder

    def outputs(self, ids: Sequence[str], look: Look) -> CachedRows:
        """Features, or activations, of `ids` under one view, computed where they are not cached."""
        pixels = self.inputs.pixels
        rows = [int(row) for row in pixels.rows(ids)]
        keys = [pixels.sha256s[row] for row in rows]
        row_of = dict(zip(keys, rows, strict=True))
        cache = self._cache(self._kept.key, look) if self._kept else None
        if cache is None or cache.missing(keys):
            # built today, on a device and in a precision that may differ from those then
            cache = self._cache(self.embedder.key, look)
        missing = {key: row_of[key] for key in cache.missing(keys)}
        if missing:
            label = f"{self.embedder.output}, {look.name}"
            with self.reporter.track(label, len(missing), "photos") as advance:
                self._compute(cache, missing, look, advance)
        return cache.rows(keys)

    def _cache(self, key: str, look: Look) -> ArrayCache:
        folder = cache_name(key, self.inputs.pixels.store)
        return ArrayCache(self.inputs.run.workspace.features / folder / look.key)

    def mean_features(self, ids: Sequence[str], views: Sequence[View]) -> NDArray[np.float32]:
        """Features [n, d] averaged over `views`."""
        total = self.outputs(ids, views[0]).all()
        for view in views[1:]:
            total += self.outputs(ids, view).all()
        return total / np.float32(len(views))

    def logits(self, head: FeatureHead, ids: Sequence[str]) -> dict[str, NDArray[np.float64]]:
        """Logits [n] of `ids` by a head on this network's outputs, under the recipe's views."""
        by_view = {}
        for view in self.inputs.views():
            parts = [head.logits(part) for part in self.outputs(ids, view).parts(N_AT_ONCE)]
            by_view[view.name] = np.concatenate([np.empty(0), *parts])
        return by_view

    def _compute(
        self, cache: ArrayCache, missing: dict[str, int], look: Look, advance: Advance
    ) -> None:
        """Cache the outputs of the photos `missing`, whose rows in the pixels it maps to."""
        keys, waiting = list(missing), list[NDArray[np.float32]]()
        pixels = self.inputs.pixels
        for batch in self.embedder.embed_photos(pixels, list(missing.values()), look):
            n_bad = int((~np.isfinite(batch)).reshape(len(batch), -1).any(1).sum())
            if n_bad:
                what = f"{self.embedder.output} of {counted(n_bad, 'photo')} in {len(batch)}"
                raise StaleError(f"{what} are not finite: the weights are damaged")
            waiting.append(batch)
            advance(len(batch))
            n_waiting = sum(map(len, waiting))
            n_most = min(SHARD_PHOTOS, SHARD_BYTES // (batch[0].size * HALF_BYTES))
            is_full = n_waiting >= n_most
            if is_full or n_waiting == len(keys):
                cache.append(keys[:n_waiting], np.concatenate(waiting))
                keys, waiting = keys[n_waiting:], []

    def check_disk(self, n_photos: int, n_views: int) -> None:
        """Say what caching all views takes on disk; DataError if there is not that much."""
        n_bytes = n_photos * n_views * self.n_outputs * HALF_BYTES
        what = f"{self.embedder.output} of {n_photos:,} photos in {counted(n_views, 'view')}"
        remedy = "lower training.cached_views, or freeze more layers"
        self.reporter.say(require_room(self.inputs.run.workspace.features, n_bytes, what, remedy))
