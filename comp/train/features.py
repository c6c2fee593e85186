"""Pooled features of a frozen backbone: computed once for each photo and view, kept, shared by folds and runs."""

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from comp.data.pixels import Pixels
from comp.errors import StaleError
from comp.progress import Reporter
from comp.store import fingerprint, whole
from comp.train.backbone import Input, embed
from comp.train.device import Device, has_fast_bf16
from comp.train.folding import fold_batch_norm
from comp.train.views import View, as_images, cut

BATCH = 32  # photos a forward pass on a CPU; more only makes the cache miss
BATCH_GPU = 256
SHARD = 2048  # photos a file, so that a killed run loses at most these
# Largest relative error of features in bfloat16 that is let pass. Lite0's move by 4 to 7 %, which is rounding without a direction: on 2,002
# photos its out-of-fold log loss went from .0401 to .0398, and that of the 400 from .0331 to .0327.
BF16_TOLERANCE = 0.10


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedder:
    """A frozen network made ready to embed photos: folded, laid out and in the precision that suits the device."""

    network: nn.Module
    shown: Input
    size_px: int
    device: Device
    dtype: torch.dtype
    key: str  # changes with the network's weights, the size, the colours' normalisation and the precision

    def features(self, pixels: Pixels, rows: Sequence[int], view: View) -> Iterator[Tensor]:
        """Batches [b, d] float32 on the CPU, in the order of `rows`; the next batch is cut while this one is computed."""
        size = BATCH_GPU if self.device.is_cuda else BATCH
        chunks = [rows[start : start + size] for start in range(0, len(rows), size)]
        with ThreadPoolExecutor(1) as ahead, torch.inference_mode():
            pending = [ahead.submit(cut, pixels, chunk, view, self.size_px) for chunk in chunks[:1]]
            for index in range(len(chunks)):
                square = torch.from_numpy(pending.pop().result())
                if index + 1 < len(chunks):
                    pending.append(ahead.submit(cut, pixels, chunks[index + 1], view, self.size_px))
                yield self.embed(square, view).float().cpu()

    def embed(self, square: Tensor, view: View) -> Tensor:
        """Features [b, d] of uint8 `square [b, s, s, 3]`."""
        images = as_images(square.to(self.device.where, non_blocking=True), view, self.size_px, self.shown, self.dtype)
        return embed(self.network, images)


def make_embedder(network: nn.Module, shown: Input, size_px: int, device: Device, example: Tensor) -> tuple[Embedder, str]:
    """The embedder and one line that says in what precision it works and why. `example` uint8 [n, s, s, 3] decides.

    The key comes from the weights as they were before anything was folded.
    """
    key = weights_key(network)
    network = network.to(device.where).to(memory_format=torch.channels_last)
    exact = Embedder(network=network, shown=shown, size_px=size_px, device=device, dtype=torch.float32, key=key)
    view = View(name="centre")
    with torch.inference_mode():
        reference = exact.embed(example, view)
    fold_batch_norm(network, as_images(example.to(device.where)[:1], view, size_px, shown, torch.float32))
    dtype, why = torch.float32, "float32: this device has no fast bfloat16"
    if device.is_cuda or has_fast_bf16():
        dtype, why = _trial(network, exact, example, view, reference)
    network = network.to(dtype)
    key = fingerprint(key, size_px, str(dtype), shown)
    return Embedder(network=network, shown=shown, size_px=size_px, device=device, dtype=dtype, key=key), why


def _trial(network: nn.Module, exact: Embedder, example: Tensor, view: View, reference: Tensor) -> tuple[torch.dtype, str]:
    """bfloat16 if the features hardly move, measured on `example`; the network comes back in float32."""
    state = {key: value.clone() for key, value in network.state_dict().items()}
    network.to(torch.bfloat16)
    images = as_images(example.to(exact.device.where), view, exact.size_px, exact.shown, torch.bfloat16)
    with torch.inference_mode():
        error = float((embed(network, images).float() - reference).norm() / reference.norm())
    network.to(torch.float32).load_state_dict(state)
    if error <= BF16_TOLERANCE:
        return torch.bfloat16, f"bfloat16: features move by {error:.2%} on {len(example)} photos"
    return torch.float32, f"float32: in bfloat16 features would move by {error:.2%} on {len(example)} photos"


def weights_key(network: Any) -> str:
    """Ten hexadecimal digits of everything in the network but its head, and of the layer that it ends in."""
    digest = hashlib.sha256(network.pretrained_cfg.get("cut", "").encode())
    head = network.pretrained_cfg["classifier"]
    for name, value in network.state_dict().items():
        if not name.startswith(f"{head}."):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:10]


class FeatureStore:
    """Features of photos under one key (weights, size, precision, canvas) and view, in files that are whole or absent."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def load(self) -> tuple[dict[str, int], NDArray[np.float32] | NDArray[np.float16]]:
        """The row of each photo's sha256, and all features [n, d]."""
        shards = [np.load(path) for path in sorted(self.folder.glob("*.npz"))]
        if not shards:
            return {}, np.empty((0, 0), np.float16)
        keys = np.concatenate([shard["sha256"] for shard in shards])
        return {str(key): row for row, key in enumerate(keys)}, np.concatenate([shard["features"] for shard in shards])

    def append(self, keys: Sequence[str], features: NDArray[np.float32]) -> None:
        """Keep `features [n, d]`, in half precision where all of them fit."""
        half = features.astype(np.float16)
        kept = half if np.isfinite(half).all() else features
        name = f"{len(list(self.folder.glob('*.npz'))):05d}-{fingerprint(list(keys))}.npz"
        with whole(self.folder / name) as scratch, scratch.open("wb") as file:
            np.savez(file, sha256=np.array(keys), features=kept)


def features_of(
    folder: Path, embedder: Embedder, pixels: Pixels, ids: Sequence[str], view: View, reporter: Reporter
) -> tuple[NDArray[np.float32], int]:
    """Features [n, d] of `ids` in order, and how many of them had to be computed."""
    store = FeatureStore(folder / fingerprint(embedder.key, pixels.geometry) / view.name)
    rows = pixels.rows(ids)
    keys = [pixels.sha256s[row] for row in rows]
    known, _ = store.load()
    missing = [index for index, key in enumerate(keys) if key not in known]
    unique = list({keys[index]: index for index in missing}.values())  # exact copies are computed once
    if unique:
        with reporter.track(f"features, {view.name}", len(unique), "photos") as advance:
            for start in range(0, len(unique), SHARD):
                part = unique[start : start + SHARD]
                batches = []
                for batch in embedder.features(pixels, [int(rows[index]) for index in part], view):
                    batches.append(batch)
                    advance(len(batch))
                store.append([keys[index] for index in part], torch.cat(batches).numpy())
    known, features = store.load()
    picked = features[[known[key] for key in keys]].astype(np.float32)
    if not np.isfinite(picked).all():
        bad = int((~np.isfinite(picked)).any(1).sum())
        raise StaleError(
            f"{bad} of {len(picked)} photos have features that are not finite: the weights are damaged, or delete {store.folder}"
        )
    return picked, len(unique)
