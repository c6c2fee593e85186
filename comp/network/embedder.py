"""A frozen network made ready to embed photos: fused, in the precision that suits the device."""

import copy
import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from comp.network.backbone import embed
from comp.network.batchnorm import fuse_batch_norm
from comp.network.boundary import Boundary, input_to
from comp.network.cpu import packed
from comp.network.device import Device, Room, has_fast_bf16
from comp.network.preprocessing import Preprocessing
from comp.network.views import CENTRE, Canvases, Crops, Look
from comp.store import fingerprint

BATCH = 32  # photos per forward pass on a CPU: more only misses the cache
BATCH_GPU = 256
# Largest relative error of features in bfloat16. Lite0's change by 4 to 7 %, its log loss does not
# (LOG.md): this is rounding without a direction.
BF16_TOLERANCE = 0.10


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedder:
    """A frozen network, or its frozen part, ready for inference."""

    network: nn.Module
    preprocessing: Preprocessing
    device: Device
    room: Room
    dtype: torch.dtype = torch.float32
    module: str | None = None  # the one that takes its output; None: the head
    key: str = ""  # fingerprint of everything that its output depends on, other than the photo
    shape: tuple[int, ...] = ()  # of its output for one photo

    @property
    def batch_size(self) -> int:
        """Photos that are cropped together, and computed together if they fit."""
        return BATCH_GPU if self.device.is_cuda else BATCH

    @property
    def output(self) -> str:
        """What it computes, in words."""
        return f"activations before {self.module}" if self.module else "features"

    def embed_photos(
        self, photos: Canvases, rows: Sequence[int], look: Look
    ) -> Iterator[NDArray[np.float32]]:
        """Batches [b, *shape], in the order of `rows`.

        The next batch is cropped while this one is computed.
        """
        if not rows:
            return
        n, size_px = self.batch_size, self.preprocessing.size_px
        with ThreadPoolExecutor(1) as ahead:
            pending = ahead.submit(look.crops, photos, rows[:n], size_px)
            for start in range(n, len(rows) + n, n):
                crops = pending.result()
                if start < len(rows):
                    pending = ahead.submit(look.crops, photos, rows[start : start + n], size_px)
                yield self(crops, look).cpu().numpy()

    @torch.inference_mode()
    def __call__(self, crops: Crops, look: Look = CENTRE) -> Tensor:
        """The output [b, *shape] in float32 for `crops [b, s, s, 3]`."""
        given = torch.from_numpy(crops)

        def run(n_photos: int) -> Tensor:
            parts = (self.images(part, look) for part in torch.split(given, n_photos))
            return torch.cat([self.run(self.network, part).float() for part in parts])

        return self.room.run(run)

    def images(self, crops: Tensor, look: Look = CENTRE) -> Tensor:
        """The network's input for uint8 `crops [b, s, s, 3]`, on the device."""
        crops = crops.to(self.device.where, non_blocking=True)
        size_px = self.preprocessing.size_px
        return network_input(crops, look, size_px, self.preprocessing, self.dtype)

    def run(self, network: nn.Module, images: Tensor) -> Tensor:
        """The output of `network`, a version of this one, for `images [b, 3, s, s]`."""
        return input_to(network, self.module, images) if self.module else embed(network, images)


def make_embedder(
    network: nn.Module,
    preprocessing: Preprocessing,
    device: Device,
    example: Crops,
    boundary: Boundary | None = None,
) -> tuple[Embedder, str]:
    """An inference-ready embedder, which consumes `network`, and a line about its precision.

    The precision is chosen by the crops `example [n, s, s, 3]`.
    """
    key = weights_key(network)  # before anything is fused
    network = network.to(device.where).to(memory_format=torch.channels_last)
    module = boundary.module if boundary else None
    room = Room(BATCH_GPU if device.is_cuda else BATCH)
    plain = Embedder(
        network=network, preprocessing=preprocessing, device=device, room=room, module=module
    )
    reference = plain(example)
    one = plain.images(torch.from_numpy(example[:1]))
    fuse_batch_norm(network, lambda: plain.run(network, one))
    ready, why = None, "float32 inference: this device has no fast bfloat16"
    if device.is_cuda or has_fast_bf16():
        half = _in_dtype(replace(plain, network=copy.deepcopy(network)), torch.bfloat16, example)
        change = float((half(example) - reference).norm() / reference.norm())
        allowed = f"{BF16_TOLERANCE:.0%}".replace("%", " %")
        changes = f"{plain.output} change by {100 * change:.0f} %"
        why = f"float32 inference (in bfloat16 {changes}, more than the allowed {allowed})"
        if change <= BF16_TOLERANCE:
            ready, why = half, f"bfloat16 inference ({changes}, harmless below {allowed})"
    ready = ready or _in_dtype(plain, torch.float32, example)
    key = fingerprint(key, preprocessing, str(ready.dtype), device.where.type, module)
    return replace(ready, key=key, shape=tuple(reference.shape[1:])), why


def _in_dtype(embedder: Embedder, dtype: torch.dtype, example: Crops) -> Embedder:
    """With its network in `dtype`, and on a CPU with its convolutions packed."""
    ready = replace(embedder, network=embedder.network.to(dtype), dtype=dtype)
    if not ready.device.is_cpu:
        return ready
    with torch.inference_mode():
        images = ready.images(torch.from_numpy(example))
        return replace(ready, network=packed(ready.network, images, ready.run))


def weights_key(network: Any) -> str:
    """Ten hexadecimal digits of all weights but the head's, and of the layer it is cut at."""
    digest = hashlib.sha256(network.pretrained_cfg.get("cut", "").encode())
    head = network.pretrained_cfg["classifier"]
    for name, value in network.state_dict().items():
        if not name.startswith(f"{head}."):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:10]


def network_input(
    crops: Tensor, look: Look, size_px: int, preprocessing: Preprocessing, dtype: torch.dtype
) -> Tensor:
    """Normalised images [n, 3, size_px, size_px], channels-last, of uint8 `crops [n, s, s, 3]`."""
    images = crops.permute(0, 3, 1, 2)
    if images.shape[-1] != size_px:
        is_linear = preprocessing.interpolation == "bilinear"
        mode = InterpolationMode.BILINEAR if is_linear else InterpolationMode.BICUBIC
        images = transforms.resize(images, [size_px, size_px], interpolation=mode, antialias=True)
    return normalise(images.flip(3) if look.flip else images, preprocessing, dtype)


def normalise(images: Tensor, preprocessing: Preprocessing, dtype: torch.dtype) -> Tensor:
    """uint8 images [n, 3, s, s] shifted and scaled by the backbone's mean and std, channels-last.

    Works on whole rows of pixels, so that the inner loop is long: 2.5 times as fast as channel by
    channel, and equal to float32 arithmetic up to one rounding.
    """
    n, channels, height, width = images.shape
    rows = images.permute(0, 2, 3, 1).reshape(n * height, width * channels)
    std = torch.tensor(preprocessing.std, device=images.device).repeat(width)
    shift = -torch.tensor(preprocessing.mean, device=images.device).repeat(width) / std
    scaled = torch.empty(rows.shape, dtype=dtype, device=images.device)
    torch.addcmul(shift, rows.float(), 1 / (255 * std), out=scaled)
    return scaled.view(n, height, width, channels).permute(0, 3, 1, 2)
