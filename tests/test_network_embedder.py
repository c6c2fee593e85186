"""Cached outputs of a frozen network are kept under a key of everything that they depend on."""

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tiny import CPU, IMAGENET, Canvases, numbers, random_crops, random_network
from torch import Tensor, nn

from comp.errors import UserError
from comp.network import embedder
from comp.network.boundary import find_boundary
from comp.network.device import Device, find_device
from comp.network.embedder import Embedder, make_embedder
from comp.network.layers import ModuleHead
from comp.network.surgery import freeze
from comp.network.views import CENTRE

META = Device(where=torch.device("meta"), name="none", train_dtype=torch.float32)
BACKBONE = "mobilenetv3_small_050"


def embedder_of(network: Any = None, device: Device = CPU, **changes: Any) -> Embedder:
    network = network or random_network(BACKBONE, 32)
    preprocessing = replace(IMAGENET, **changes)
    return make_embedder(network, preprocessing, device, random_crops(2).numpy())[0]


@pytest.fixture(autouse=True)
def in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedder, "has_fast_bf16", lambda: False)


def test_the_key_changes_with_everything_that_the_outputs_depend_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other_weights, other_head, partly = (random_network(BACKBONE, 32) for _ in range(3))
    next(other_weights.parameters()).data[0] += 1
    other_head.get_classifier().weight.data += 1
    freeze(partly, "last:1")
    boundary = find_boundary(partly, 32)
    plain = embedder_of()
    keys = {
        "nothing": plain.key,
        "weights": embedder_of(other_weights).key,
        "device": embedder_of(device=META).key,
        "mean": embedder_of(mean=(0.5, 0.5, 0.5)).key,
        "interpolation": embedder_of(interpolation="bilinear").key,
        "boundary": make_embedder(partly, IMAGENET, CPU, random_crops(2).numpy(), boundary)[0].key,
    }
    monkeypatch.setattr(embedder, "has_fast_bf16", lambda: True)
    monkeypatch.setattr(embedder, "BF16_TOLERANCE", 10.0)
    half = embedder_of()
    assert half.dtype == torch.bfloat16
    keys["precision"] = half.key
    assert len(set(keys.values())) == len(keys), keys
    monkeypatch.setattr(embedder, "has_fast_bf16", lambda: False)
    assert embedder_of().key == embedder_of(other_head).key == plain.key


def test_bfloat16_is_left_where_it_changes_the_outputs_too_much(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(embedder, "has_fast_bf16", lambda: True)
    monkeypatch.setattr(embedder, "BF16_TOLERANCE", 0.0)
    network, crops = random_network(BACKBONE, 32), random_crops(2).numpy()
    made, why = make_embedder(network, IMAGENET, CPU, crops)
    assert made.dtype == torch.float32
    assert why.startswith("float32 inference (in bfloat16 features change by ")


def test_bfloat16_is_taken_where_the_outputs_hardly_change(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(embedder, "has_fast_bf16", lambda: True)
    network, crops = random_network(BACKBONE, 32), random_crops(2).numpy()
    _, why = make_embedder(network, IMAGENET, CPU, crops)
    says = r"bfloat16 inference \(features change by \d %, harmless below 10 %\)"
    assert re.fullmatch(says, why)


@pytest.mark.parametrize("n_cores", [1, 2])
def test_a_cpu_is_called_by_its_cores(n_cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("comp.network.device.n_cores", lambda: n_cores)
    assert find_device("cpu").name == {1: "CPU (1 core)", 2: "CPU (2 cores)"}[n_cores]


class Bounded(nn.Module):
    """A network, or its last part, on a device that holds few photos at once."""

    def __init__(self, network: nn.Module, room: int, error: Exception) -> None:
        super().__init__()
        self.network, self.room, self.error = network, room, error

    def forward(self, images: Tensor) -> Tensor:
        if len(images) > self.room:
            raise self.error
        return self.network(images)  # type: ignore[no-any-return]  # modules are untyped

    def embed(self, _: nn.Module, images: Tensor) -> Tensor:
        return self(images).flatten(1)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("MPS backend out of memory (MPS allocated: 8 GB)"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"),
        MemoryError(),
        np._core._exceptions._ArrayMemoryError((9, 9), np.dtype(np.float32)),
    ],
    ids=lambda error: str(error)[:20],
)
def test_photos_are_halved_until_they_fit_into_memory_and_the_outputs_stay(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, photos = nn.Conv2d(3, 4, 32), Canvases(40)
    bounded = Bounded(layer, 3, error).eval()
    monkeypatch.setattr(embedder, "embed", bounded.embed)
    network = random_network(BACKBONE, 32)
    made, _ = make_embedder(network, IMAGENET, CPU, CENTRE.crops(photos, range(32), 32))
    outputs = list(made.embed_photos(photos, range(40), CENTRE))
    assert [len(batch) for batch in outputs] == [32, 8]
    assert made.room.n_photos == 2
    images = [made.images(torch.from_numpy(CENTRE.crops(photos, [row], 32))) for row in range(40)]
    expected = layer(torch.cat(images)).flatten(1).detach().numpy()
    np.testing.assert_allclose(np.concatenate(outputs), expected, atol=1e-4)
    tail, given = Bounded(nn.Linear(4, 1), 3, error), numbers(40, 4)
    logits = ModuleHead(module=tail).logits(given.numpy())
    np.testing.assert_allclose(logits, tail.network(given)[:, 0].detach(), atol=1e-6)
    bounded.room = tail.room = 0
    for compute in (
        lambda: made(random_crops(4).numpy()),
        lambda: ModuleHead(module=tail).logits(given.numpy()),
    ):
        with pytest.raises(UserError, match=r"a single photo does not fit .*pixels\.size_px"):
            compute()


def test_another_error_is_not_taken_for_a_lack_of_memory() -> None:
    tail = Bounded(nn.Linear(4, 1), 3, RuntimeError("shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        ModuleHead(module=tail).logits(numbers(40, 4).numpy())
