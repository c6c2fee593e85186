"""How fast bare models and decoders are: as tutorials write them, and at their best."""

import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from comp.data.photos import n_cores
from comp.network.backbone import build, embed
from comp.network.batchnorm import fuse_batch_norm
from comp.network.cpu import fuse_activations, packed
from comp.network.device import Device, find_device
from comp.recipe import Model
from comp.train.finetune import set_training_mode
from tests.bench.rows import Measured, Setup, Work, timed

Norms = Literal["training", "frozen", "fused"]


def forward(
    setup: Setup,
    *,
    n: int,  # passes
    channels_last: bool = True,
    fused: bool = False,  # batch norms
    pack: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Work:
    """Features of one batch in memory, `n` times."""
    network, images = _resident(setup, setup.model, setup.batch, _cpu(), channels_last)
    if fused:
        fuse_batch_norm(network, lambda: network(images[:1]))
    network, images = network.to(dtype), images.to(dtype)
    if pack:
        with torch.inference_mode():
            network = packed(network, images, embed)

    @torch.inference_mode()
    def passes(count: int) -> None:
        for _ in range(count):
            embed(network, images)

    def work() -> Measured:
        passes(1)  # other rows have used the caches and the heap since
        return Measured(timed(lambda: passes(n)), n * setup.batch)

    return work


def step(
    setup: Setup,
    *,
    n: int,  # steps
    channels_last: bool = True,
    norms: Norms = "training",
    adamw_fused: bool = True,
    acts_fused: bool = False,
    half: bool = False,
    dtype: torch.dtype | None = None,  # of autocast; None: what we train in on this device
    model: Model | None = None,
    batch: int | None = None,
    device: str | None = None,
) -> Work:
    """Forward, backward and AdamW on one batch in memory, all parameters trained."""
    where, size = find_device(device) if device else _cpu(), batch or setup.batch
    network, images = _resident(setup, model or setup.model, size, where, channels_last)
    if norms == "fused":
        fuse_batch_norm(network, lambda: network(images[:1]))
    if acts_fused:
        fuse_activations(network, images[:1], half=half)
    network.requires_grad_(True).train()
    if norms != "training":
        set_training_mode(network)
    labels = (torch.arange(size, device=where.where) % 2).float()
    optimiser = torch.optim.AdamW(network.parameters(), 1e-5, fused=adamw_fused or None)
    dtype = dtype or where.train_dtype
    is_float = dtype == torch.float32

    def steps(count: int) -> None:
        for _ in range(count):
            with nullcontext() if is_float else torch.autocast(where.where.type, dtype):
                loss = binary_cross_entropy_with_logits(network(images).squeeze(1).float(), labels)
            loss.backward()
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        wait(where)

    def work() -> Measured:
        steps(1)
        return Measured(timed(lambda: steps(n)), n * size)

    return work


def decode(setup: Setup) -> Work:
    """torchvision's decoder and antialiased uint8 resize to the input's size; a thread per core."""
    paths = sorted((setup.root / "photos").rglob("*.jpg"))

    def decode_one(path: Path) -> None:
        data = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)
        planes = decode_jpeg(data, ImageReadMode.RGB)
        transforms.resize(planes, [setup.size_px], InterpolationMode.BICUBIC, antialias=True)

    def decode_all() -> None:
        with ThreadPoolExecutor(n_cores()) as pool, warnings.catch_warnings():
            # torchvision warns at each call that TorchCodec will replace its decoder one day
            warnings.simplefilter("ignore")
            list(pool.map(decode_one, paths))

    def work() -> Measured:
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        spent = timed(decode_all)
        torch.set_num_threads(before)
        return Measured(spent, len(paths))

    work()  # also reads the files into memory
    return work


def wait(device: Device) -> None:
    """Until the device has done its work."""
    if device.is_cuda:
        torch.cuda.synchronize(device.where)


def _cpu() -> Device:
    """The CPU, without the allocator settings that `find_device` makes."""
    return Device(where=torch.device("cpu"), name="cpu", train_dtype=torch.float32)


def _resident(
    setup: Setup, model: Model, batch: int, device: Device, channels_last: bool
) -> tuple[nn.Module, Tensor]:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    network = build(model, size_px=setup.size_px).to(device.where).to(memory_format=layout)
    shape = (batch, 3, setup.size_px, setup.size_px)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return network, images.to(device.where).to(memory_format=layout)
