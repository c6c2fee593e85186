"""Cached outputs of a frozen network are kept under a key of everything that they depend on."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny import CPU, IMAGENET, random_crops, random_network

from comp.network import embedder
from comp.network.boundary import find_boundary
from comp.network.device import Device
from comp.network.embedder import Embedder, make_embedder
from comp.network.surgery import freeze

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
