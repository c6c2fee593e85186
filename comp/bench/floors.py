"""How fast a bare model is on one resident batch: a forward pass and a training step, as tutorials write them and at their best."""

from contextlib import nullcontext
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from comp.bench.rows import Clock, Done, Setup, Work
from comp.recipe import Model
from comp.train.backbone import build, embed
from comp.train.device import Device, find_device
from comp.train.finetune import set_training
from comp.train.folding import fold_batch_norm
from comp.train.fusing import fuse, packed

Norms = Literal["training", "frozen", "folded"]


def forward(
    setup: Setup,
    *,
    n_passes: int,
    channels_last: bool = True,
    folded: bool = False,
    fused: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Work:
    """Features of the batch, `n_passes` times."""
    device = find_device("cpu")
    network, images = _resident(setup, setup.model, setup.batch, device, channels_last)
    if folded:
        fold_batch_norm(network, lambda: network(images[:1]))
    network, images = network.to(dtype), images.to(dtype)
    if fused:
        with torch.inference_mode():
            network = packed(network, images, embed)

    def passes(n: int) -> None:
        with torch.inference_mode():
            for _ in range(n):
                embed(network, images)

    def work(clock: Clock) -> Done:
        passes(1)  # other rows have used the caches and the heap since
        with clock:
            passes(n_passes)
        return Done(n_photos=n_passes * setup.batch)

    return work


def step(
    setup: Setup,
    *,
    n_steps: int,
    channels_last: bool = True,
    norms: Norms = "training",
    fused: bool = True,  # AdamW
    fused_acts: bool = False,
    half: bool = False,
    dtype: torch.dtype | None = None,  # of autocast; None: what we train in on this device
    model: Model | None = None,
    batch: int | None = None,
    device: str = "cpu",
) -> Work:
    """Forward, backward and AdamW on the batch, `n_steps` times, all parameters trained."""
    where, size = find_device(device), batch or setup.batch
    network, images = _resident(setup, model or setup.model, size, where, channels_last)
    if norms == "folded":
        fold_batch_norm(network, lambda: network(images[:1]))
    if fused_acts:
        fuse(network, images[:1], half=half)
    for parameter in network.parameters():
        parameter.requires_grad_(True)
    network.train()
    if norms != "training":
        set_training(network)
    labels = (torch.arange(size, device=where.where) % 2).float()
    optimiser = torch.optim.AdamW(network.parameters(), 1e-5, fused=fused or None)
    dtype = dtype or where.train_dtype

    def steps(n: int) -> None:
        for _ in range(n):
            with (
                torch.autocast(where.where.type, dtype) if dtype != torch.float32 else nullcontext()
            ):
                loss = binary_cross_entropy_with_logits(network(images).squeeze(1).float(), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        wait(where)

    def work(clock: Clock) -> Done:
        steps(1)
        with clock:
            steps(n_steps)
        return Done(n_photos=n_steps * size)

    return work


def wait(device: Device) -> None:
    """Until the device has done what it was given."""
    if device.is_cuda:
        torch.cuda.synchronize(device.where)


def _resident(
    setup: Setup, model: Model, batch: int, device: Device, channels_last: bool
) -> tuple[nn.Module, Tensor]:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    network = build(model, size_px=setup.size_px).to(device.where).to(memory_format=layout)
    images = torch.randn(
        batch, 3, setup.size_px, setup.size_px, generator=torch.Generator().manual_seed(0)
    )
    return network, images.to(device.where).to(memory_format=layout)
