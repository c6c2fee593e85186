"""Heads: what they predict untrained, what is saved of them, and where gradients take them."""

from typing import Any

import numpy as np
import pytest
import torch
from tiny import CPU, IMAGENET, Canvases, numbers, quiet, random_network
from torch import nn

from comp.network.backbone import embed
from comp.network.embedder import network_input
from comp.network.heads import KernelHead, LinearHead, arrays_of, head_from
from comp.network.layers import (
    ModuleHead,
    arrays_of_layers,
    last_layer,
    layers_from,
    make_layers,
    set_head,
    start_from,
    trained_head,
)
from comp.network.surgery import freeze
from comp.network.views import CENTRE
from comp.recipe import Augmentation, FineTune, HeadShape
from comp.train.batches import AugmentedPhotos, CachedPhotos, batches_of
from comp.train.features import in_memory
from comp.train.finetune import fine_tune

FIXED = Augmentation(crop="center-crop", flip=False, colour=0.0)
SHAPES = [
    HeadShape(),
    HeadShape(dropout=0.5),
    HeadShape(widths=(7,)),
    HeadShape(widths=(7, 5), activation="gelu", dropout=0.3),
]


@pytest.mark.parametrize("shape", SHAPES)
def test_an_untrained_head_predicts_one_half_and_is_the_same_for_the_same_seed(
    shape: HeadShape,
) -> None:
    heads = [make_layers(6, shape, seed).eval() for seed in (1, 1, 2)]
    assert torch.equal(heads[0](numbers(4, 6)), torch.zeros(4, 1))
    states = [nn.utils.parameters_to_vector(head.parameters()) for head in heads]
    assert torch.equal(states[0], states[1])
    assert torch.equal(states[0], states[2]) == (not shape.widths)


def test_the_head_of_the_vgg16_tutorial_has_the_tutorials_layers() -> None:
    with torch.device("meta"):
        head: Any = make_layers(25088, HeadShape(widths=(4096, 4096), dropout=0.5), 0)
    hidden = ["Linear", "ReLU", "Dropout"]
    assert [type(layer).__name__ for layer in head] == [*hidden, *hidden, "Linear"]
    shapes = [tuple(parameter.shape) for parameter in head.parameters()]
    assert shapes == [(4096, 25088), (4096,), (4096, 4096), (4096,), (1, 4096), (1,)]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_trained_head_gives_the_same_logits_after_it_is_saved(shape: HeadShape) -> None:
    layers = make_layers(6, shape, 0).eval()
    nn.init.normal_(last_layer(layers).weight, generator=torch.Generator().manual_seed(1))
    features, expected = numbers(9, 6).numpy(), layers(numbers(9, 6))[:, 0].detach().numpy()
    head = trained_head(layers.train())
    assert isinstance(head, ModuleHead if shape.widths else LinearHead)
    arrays = dict(sorted(arrays_of_layers(layers).items()))  # as safetensors does
    saved = layers_from(arrays, shape) if shape.widths else head_from(arrays)
    for each in (head, saved):
        np.testing.assert_allclose(each.logits(features), expected, atol=1e-6, rtol=1e-6)


def test_support_vectors_are_saved_as_tensors_too() -> None:
    rng = np.random.default_rng(0)
    arrays = {"mean": rng.normal(size=6), "scale": np.full(6, 2.0)}
    arrays |= {"support": rng.normal(size=(3, 6)), "dual": rng.normal(size=3)}
    scalars = {name: np.array(0.5) for name in ("gamma", "slope", "bias")}
    head, features = KernelHead(**arrays, **scalars), rng.normal(size=(9, 6)).astype(np.float32)
    saved = head_from(arrays_of(head))
    assert np.array_equal(saved.logits(features), head.logits(features))


@pytest.mark.parametrize(
    ("backbone", "options"),
    [
        ("resnet18", {}),
        ("resnet18", {"layer": "layer2", "pool": "flatten"}),
        ("vit_tiny_patch16_224", {}),
        ("convnext_atto", {}),
    ],
)
def test_a_network_with_a_deep_head_still_freezes_and_embeds(
    backbone: str, options: dict[str, str]
) -> None:
    network, images = random_network(backbone, 32, **options), numbers(2, 3, 32, 32)
    features = embed(network, images)
    set_head(network, HeadShape(widths=(5,)), 0)
    torch.testing.assert_close(embed(network, images), features)
    assert freeze(network, "head")[0] == features.shape[1] * 5 + 5 + 5 + 1
    nn.init.normal_(last_layer(network.get_classifier()).weight)
    logits = trained_head(network.get_classifier()).logits(features.detach().numpy())
    expected = network(images)[:, 0].detach().numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("shape", [HeadShape(), HeadShape(widths=(9,))])
def test_a_head_trained_on_cached_features_ends_where_it_ends_on_pixels(shape: HeadShape) -> None:
    photos, steps = Canvases(24, 32), {"epochs": 4, "batch_size": 8, "peak_lr": 1e-2}
    options: dict[str, Any] = {"trainable": "head", "augment": FIXED, "head_start": False}
    training = FineTune(head=shape, **options, **steps)
    network = random_network("resnet18", 32)
    set_head(network, shape, seed=3)
    freeze(network, "head")
    crops = torch.from_numpy(np.stack(photos.canvases))
    with torch.inference_mode():
        features = embed(network, network_input(crops, CENTRE, 32, IMAGENET, torch.float32))
    alone = make_layers(512, shape, seed=3)
    on_pixels = AugmentedPhotos(photos, range(24), photos.labels, FIXED, 32, 5)
    on_features = CachedPhotos([in_memory(features.numpy())], range(24), photos.labels)
    losses = []
    for layers, data, preprocessing in ((network, on_pixels, IMAGENET), (alone, on_features, None)):
        batches = batches_of(data, 24, training, 5)  # type: ignore[arg-type]
        points = fine_tune(layers, batches, 12, training, preprocessing, CPU, quiet)
        losses.append([point.loss for point in points])
    assert losses[1][-1] < 0.95 * losses[1][0]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    for a, b in zip(alone.parameters(), network.get_classifier().parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("shape", SHAPES[:2])
def test_a_linear_head_starts_from_the_solved_one(shape: HeadShape) -> None:
    weight = numbers(6).double().numpy()
    solved = LinearHead(weight=weight, bias=np.array(0.3), penalty=1.0)
    head = make_layers(6, shape, 0)
    start_from(head, solved)
    logits, expected = (each.logits(numbers(4, 6).numpy()) for each in (trained_head(head), solved))
    np.testing.assert_allclose(logits, expected, atol=1e-6, rtol=1e-6)


def test_features_are_cached_only_where_a_photo_looks_the_same_in_every_epoch() -> None:
    fixed = FineTune(trainable="head", augment=FIXED)
    assert fixed.on_features
    assert not fixed.replace(trainable="last:1").on_features
    for change in ({"crop": "pad-and-crop"}, {"flip": True}, {"colour": 0.1}):
        assert not fixed.replace(augment=FIXED.replace(**change)).on_features
    assert not fixed.replace(trainable="all", first=fixed.first.replace(epochs=1)).on_features
