"""Pooled features of a frozen backbone: computed once for each photo and view, kept, shared by folds and runs."""

import copy
import hashlib
import math
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from comp.data.pixels import PixelStore
from comp.errors import DataError, StaleError
from comp.progress import Advance, Reporter
from comp.store import fingerprint
from comp.train.activations import Boundary, given_to
from comp.train.backbone import Input, embed
from comp.train.device import Device, has_fast_bf16
from comp.train.folding import fold_batch_norm
from comp.train.fusing import packed
from comp.train.kept import SHARD_BYTES, SHARD_PHOTOS, Rows, Store
from comp.train.views import Seen, View, as_images

MAX_BYTES = 20 * 10**9  # of kept activations
BATCH = 32  # photos a forward pass on a CPU; more only makes the cache miss
BATCH_GPU = 256
# Largest relative error of features in bfloat16 that is let pass. Lite0's move by 4 to 7 %, which is rounding without a direction: on 2,002
# photos its out-of-fold log loss went from .0401 to .0398, and that of the 400 from .0331 to .0327.
BF16_TOLERANCE = 0.10
_CENTRE = View(name="centre")


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedder:
    """A frozen network, or its frozen part, made ready to embed photos: folded, laid out and in the precision that suits the device."""

    network: nn.Module
    shown: Input
    size_px: int
    device: Device
    dtype: torch.dtype
    key: str  # changes with the network's weights, the size, the colours' normalisation, the precision and the boundary
    shape: tuple[int, ...]  # of what it makes of one photo
    boundary: Boundary | None = None  # where it ends; None: at the head

    @property
    def makes(self) -> str:
        return "features" if self.boundary is None else f"activations before {self.boundary.module}"

    def features(self, pixels: PixelStore, rows: Sequence[int], view: Seen) -> Iterator[Tensor]:
        """Batches [b, *shape] float32 on the CPU, in the order of `rows`; the next batch is cut while this one is computed."""
        size = BATCH_GPU if self.device.is_cuda else BATCH
        chunks = [rows[start : start + size] for start in range(0, len(rows), size)]
        with ThreadPoolExecutor(1) as ahead, torch.inference_mode():
            pending = [
                ahead.submit(view.squares, pixels, chunk, self.size_px) for chunk in chunks[:1]
            ]
            for index in range(len(chunks)):
                square = torch.from_numpy(pending.pop().result())
                if index + 1 < len(chunks):
                    pending.append(
                        ahead.submit(view.squares, pixels, chunks[index + 1], self.size_px)
                    )
                yield self.embed(square, view).float().cpu()

    def embed(self, square: Tensor, view: Seen) -> Tensor:
        """Features, or activations, [b, *shape] of uint8 `square [b, s, s, 3]`."""
        images = as_images(
            square.to(self.device.where, non_blocking=True),
            view,
            self.size_px,
            self.shown,
            self.dtype,
        )
        return self.of_images(self.network, images)

    def of_images(self, network: nn.Module, images: Tensor) -> Tensor:
        """What `network` makes of `images [b, 3, s, s]`, as its own precision wants them."""
        return (
            embed(network, images)
            if self.boundary is None
            else given_to(network, self.boundary.module, images)
        )


def make_embedder(
    network: nn.Module,
    shown: Input,
    size_px: int,
    device: Device,
    example: Tensor,
    boundary: Boundary | None = None,
) -> tuple[Embedder, str]:
    """The embedder and one line that says in what precision it works and why. `example` uint8 [n, s, s, 3] decides.

    The key comes from the weights as they were before anything was folded.
    """
    key = weights_key(network)
    network = network.to(device.where).to(memory_format=torch.channels_last)
    embedder = Embedder(
        network=network,
        shown=shown,
        size_px=size_px,
        device=device,
        dtype=torch.float32,
        key=key,
        shape=(),
        boundary=boundary,
    )
    with torch.inference_mode():
        reference = embedder.embed(example, _CENTRE)
    one = as_images(example[:1].to(device.where), _CENTRE, size_px, shown, torch.float32)
    fold_batch_norm(
        network,
        lambda: embedder.of_images(network, one),
        keep=boundary.module if boundary else None,
    )
    chosen, why = None, "float32: this device has no fast bfloat16"
    if device.is_cuda or has_fast_bf16():
        tried = _ready(replace(embedder, network=copy.deepcopy(network)), torch.bfloat16, example)
        with torch.inference_mode():
            moved = float(
                (tried.embed(example, _CENTRE).float() - reference).norm() / reference.norm()
            )
        chosen = tried if moved <= BF16_TOLERANCE else None
        move = f"move by {moved:.2%} on {len(example)} photos"
        why = (
            f"bfloat16: {embedder.makes} {move}"
            if chosen
            else f"float32: in bfloat16 {embedder.makes} would {move}"
        )
    chosen = chosen or _ready(embedder, torch.float32, example)
    key = fingerprint(
        key, size_px, str(chosen.dtype), shown, *([boundary.module] if boundary else [])
    )
    return replace(chosen, key=key, shape=tuple(reference.shape[1:])), why


def _ready(embedder: Embedder, dtype: torch.dtype, example: Tensor) -> Embedder:
    """With its network in `dtype`, and on a CPU with its convolutions packed."""
    network = embedder.network.to(dtype)
    if embedder.device.where.type == "cpu":
        images = as_images(example, _CENTRE, embedder.size_px, embedder.shown, dtype)
        with torch.inference_mode():
            network = packed(
                network,
                images,
                embedder.of_images,
                keep=embedder.boundary.module if embedder.boundary else None,
            )
    return replace(embedder, network=network, dtype=dtype)


def weights_key(network: Any) -> str:
    """Ten hexadecimal digits of everything in the network but its head, and of the layer that it ends in."""
    digest = hashlib.sha256(network.pretrained_cfg.get("cut", "").encode())
    head = network.pretrained_cfg["classifier"]
    for name, value in network.state_dict().items():
        if not name.startswith(f"{head}."):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:10]


def announce(
    folder: Path, embedder: Embedder, n_photos: int, n_views: int, reporter: Reporter
) -> None:
    """Say what all that may have to be kept takes on disk, before it is made; DataError if it is too much, or there is not that much."""
    n_bytes = n_photos * n_views * math.prod(embedder.shape) * 2
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    line = f"{embedder.makes} of {n_photos:,} photos in {n_views} views take {n_bytes / 1e9:.2f} GB"
    if n_bytes > min(free, MAX_BYTES):
        bound = (
            f"{free / 1e9:.2f} GB are free"
            if n_bytes > free
            else f"the bound is {MAX_BYTES / 1e9:.0f} GB"
        )
        raise DataError(
            f"{line} and {bound}: lower training.cached_views or freeze more, by training.trainable"
        )
    reporter.say(f"{line}; {free / 1e9:.2f} GB are free")


def features_of(
    folder: Path,
    embedder: Embedder,
    pixels: PixelStore,
    ids: Sequence[str],
    view: Seen,
    reporter: Reporter,
) -> Rows:
    """What `embedder` makes of `ids` under one view, in order; computed where it is not kept already."""
    store = Store(folder / fingerprint(embedder.key, pixels.store) / view.name)
    rows = pixels.rows(ids)
    keys = [pixels.sha256s[row] for row in rows]
    known = store.keys()
    missing = {
        key: int(row) for key, row in zip(keys, rows, strict=True) if key not in known
    }  # exact copies are computed once
    if missing:
        with reporter.track(f"{embedder.makes}, {view.name}", len(missing), "photos") as advance:
            _compute(store, embedder, pixels, missing, view, advance)
    return store.rows(keys)


def _compute(
    store: Store,
    embedder: Embedder,
    pixels: PixelStore,
    missing: dict[str, int],
    view: Seen,
    advance: Advance,
) -> None:
    keys, waiting = list(missing), list[Tensor]()
    for batch in embedder.features(pixels, list(missing.values()), view):
        bad = int((~torch.isfinite(batch)).flatten(1).any(1).sum())
        if bad:
            raise StaleError(
                f"{bad} of {len(batch)} photos have {embedder.makes} that are not finite: the weights are damaged"
            )
        waiting.append(batch)
        advance(len(batch))
        n_waiting = sum(map(len, waiting))
        if (
            n_waiting >= SHARD_PHOTOS
            or n_waiting * batch[0].numel() * 2 >= SHARD_BYTES
            or n_waiting == len(keys)
        ):
            store.append(keys[:n_waiting], torch.cat(waiting).numpy())
            keys, waiting = keys[n_waiting:], []
