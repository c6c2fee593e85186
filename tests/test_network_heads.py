"""Heads that gradients train: what they say untrained, what is kept of them, and that one logit is enough for two classes."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import (
    binary_cross_entropy_with_logits,
    cross_entropy,
    log_softmax,
    nll_loss,
)

from comp.network.backbone import build, embed
from comp.network.device import find_device
from comp.network.heads import (
    KernelHead,
    LinearHead,
    ModuleHead,
    head_from,
    last_layer,
    make_layers,
    set_head,
    start_from,
    tensors_of,
    trained_head,
)
from comp.network.preprocessing import KNOWN
from comp.network.surgery import freeze
from comp.network.views import normalise
from comp.recipe import Augmentation, FineTune, HeadShape, Model
from comp.train.batches import AugmentedPhotos, CachedPhotos, batches_of
from comp.train.features import in_memory
from comp.train.finetune import fine_tune

CPU = find_device("cpu")
FIXED = Augmentation(crop="center-crop", flip=False, colour=0.0)
SHAPES = [
    HeadShape(),
    HeadShape(dropout=0.5),
    HeadShape(widths=(7,)),
    HeadShape(widths=(7, 5), activation="gelu", dropout=0.3),
]


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_one_logit_with_binary_cross_entropy_is_two_logits_with_cross_entropy_is_log_softmax_with_nll() -> (
    None
):
    """Two logits a, b with softmax give P(b) = sigmoid(b - a): the same losses, and the same steps for the difference of the weights."""
    pair, labels = numbers(50, 2).double().requires_grad_(), torch.arange(50) % 2
    one = (pair[:, 1] - pair[:, 0]).detach().requires_grad_()
    binary = binary_cross_entropy_with_logits(one, labels.double())
    softmax = cross_entropy(pair, labels)
    torch.testing.assert_close(binary, softmax)
    torch.testing.assert_close(softmax, nll_loss(log_softmax(pair, 1), labels))
    (by_one,) = torch.autograd.grad(binary, one)
    (by_two,) = torch.autograd.grad(softmax, pair)
    torch.testing.assert_close(by_two, torch.stack([-by_one, by_one], 1))


@pytest.mark.parametrize("shape", SHAPES)
def test_an_untrained_head_says_one_half_and_is_the_same_for_the_same_seed(
    shape: HeadShape,
) -> None:
    head, again, other = (make_layers(6, shape, seed).eval() for seed in (1, 1, 2))
    assert torch.equal(head(numbers(4, 6)), torch.zeros(4, 1))
    states = [
        torch.cat([tensor.flatten() for tensor in layers.state_dict().values()])
        for layers in (head, again, other)
    ]
    assert torch.equal(states[0], states[1])
    assert torch.equal(states[0], states[2]) == (not shape.widths)


def test_the_head_of_the_vgg16_tutorial_is_built_as_it_is_written_there() -> None:
    with torch.device("meta"):
        head = make_layers(25088, HeadShape(widths=(4096, 4096), dropout=0.5), 0)
    assert [type(layer).__name__ for layer in head] == [
        "Linear",
        "ReLU",
        "Dropout",
        "Linear",
        "ReLU",
        "Dropout",
        "Linear",
    ]  # type: ignore[attr-defined]
    assert [tuple(p.shape) for p in head.parameters()] == [
        (4096, 25088),
        (4096,),
        (4096, 4096),
        (4096,),
        (1, 4096),
        (1,),
    ]


@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_kept_of_a_trained_head_says_the_same(shape: HeadShape) -> None:
    layers = make_layers(6, shape, 0).eval()
    nn.init.normal_(last_layer(layers).weight, generator=torch.Generator().manual_seed(1))
    expected = layers(numbers(9, 6))[:, 0].double()
    head = trained_head(layers.train())
    assert isinstance(head, ModuleHead if shape.widths else LinearHead)
    tensors = {
        name: tensor.clone() for name, tensor in sorted(tensors_of(head).items())
    }  # in the order in which safetensors keeps them
    for kept in (head, head_from(tensors, shape)):
        torch.testing.assert_close(kept.logits(numbers(9, 6)), expected, atol=1e-6, rtol=1e-6)


def test_support_vectors_are_kept_as_tensors_too() -> None:
    parts = {"mean": 6, "scale": 6, "dual": 3}
    tensors = {name: numbers(n).double().abs() + 1 for name, n in parts.items()} | {
        "support": numbers(3, 6).double()
    }
    scalars = {name: torch.tensor(0.5, dtype=torch.float64) for name in ("gamma", "slope", "bias")}
    head = KernelHead(**tensors, **scalars)
    kept = head_from(tensors_of(head), HeadShape())
    assert torch.equal(kept.logits(numbers(9, 6)), head.logits(numbers(9, 6)))


def test_every_parameter_of_a_deep_head_gets_a_finite_gradient_from_the_second_step_on() -> None:
    head = make_layers(6, SHAPES[-1], 0).train()
    nn.init.normal_(last_layer(head).weight)
    head(numbers(20, 6)).sum().backward()
    assert all(
        p.grad is not None and bool(torch.isfinite(p.grad).all()) and bool(p.grad.any())
        for p in head.parameters()
    )


@pytest.mark.parametrize(
    ("backbone", "layer"),
    [
        ("resnet18", None),
        ("resnet18", "layer2"),
        ("vit_tiny_patch16_224", None),
        ("convnext_atto", None),
    ],
)
def test_a_network_with_a_deep_head_still_freezes_and_embeds(
    backbone: str, layer: str | None
) -> None:
    network = build(
        Model(
            backbone=backbone, layer=layer, pool="flatten" if layer else "mean", weights="random"
        ),
        size_px=32,
    )
    before = embed(network, numbers(2, 3, 32, 32))
    set_head(network, HeadShape(widths=(5,)), 0)
    torch.testing.assert_close(embed(network, numbers(2, 3, 32, 32)), before)
    assert freeze(network, "head")[0] == before.shape[1] * 5 + 5 + 5 + 1
    nn.init.normal_(last_layer(network.get_classifier()).weight)  # type: ignore[operator]
    torch.testing.assert_close(
        trained_head(network.get_classifier()).logits(before).float(),
        network(numbers(2, 3, 32, 32))[:, 0],
    )  # type: ignore[operator]


class Canvases:
    """Squares whose brightness is the label's."""

    def __init__(self, n: int) -> None:
        rng = np.random.default_rng(0)
        self.labels = [row % 2 for row in range(n)]
        self.sha256s = tuple(map(str, range(n)))
        self.squares = [
            (rng.integers(0, 100, (32, 32, 3)) + 120 * label).astype(np.uint8)
            for label in self.labels
        ]

    def canvas(self, row: int) -> np.ndarray:
        return self.squares[row]


@pytest.mark.parametrize("shape", [HeadShape(), HeadShape(widths=(9,))])
def test_a_head_trained_on_kept_features_ends_where_it_ends_when_they_are_computed_in_every_step(
    shape: HeadShape,
) -> None:
    model, canvases = Model(backbone="resnet18", weights="random"), Canvases(24)
    training = FineTune(
        trainable="head",
        augment=FIXED,
        epochs=4,
        batch_size=8,
        head=shape,
        head_start=False,
        peak_lr=1e-2,
    )
    assert training.on_features
    network = build(model, size_px=32)
    set_head(network, shape, seed=3)
    freeze(network, "head")
    squares = torch.from_numpy(np.stack(canvases.squares)).permute(0, 3, 1, 2)
    with torch.inference_mode():
        features = embed(
            network, normalise(squares, KNOWN["convnext_tiny.in12k_ft_in1k"], torch.float32)
        ).numpy()
    alone = make_layers(512, shape, seed=3)
    augmented = AugmentedPhotos(canvases, range(24), canvases.labels, FIXED, 32, 5)
    cached = CachedPhotos([in_memory(features)], range(24), canvases.labels)
    steps, same_steps = (batches_of(photos, 24, training, 5) for photos in (augmented, cached))
    assert len(steps) == len(same_steps) == 12
    whole = fine_tune(
        network,
        steps,
        12,
        training,
        KNOWN["convnext_tiny.in12k_ft_in1k"],
        CPU,
        lambda n=1, note="": None,
    )
    short = fine_tune(alone, same_steps, 12, training, None, CPU, lambda n=1, note="": None)
    assert short[-1].loss < 0.95 * short[0].loss
    assert [point.loss for point in short] == pytest.approx(
        [point.loss for point in whole], rel=1e-4
    )
    for a, b in zip(alone.parameters(), network.get_classifier().parameters(), strict=True):  # type: ignore[operator]
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


def test_a_linear_head_starts_from_the_solved_one() -> None:
    solved = LinearHead(
        weight=numbers(6).double(), bias=torch.tensor(0.3, dtype=torch.float64), penalty=1.0
    )
    for shape in SHAPES[:2]:
        head = make_layers(6, shape, 0)
        start_from(head, solved)
        torch.testing.assert_close(
            trained_head(head).logits(numbers(4, 6)),
            solved.logits(numbers(4, 6)),
            atol=1e-6,
            rtol=1e-6,
        )


def test_features_are_cached_only_where_a_photo_looks_the_same_in_every_epoch() -> None:
    fixed = FineTune(trainable="head", augment=FIXED)
    assert fixed.on_features
    assert not fixed.replace(trainable="last:1").on_features
    for change in ({"crop": "pad-and-crop"}, {"flip": True}, {"colour": 0.1}):
        assert not fixed.replace(augment=FIXED.replace(**change)).on_features
    assert not fixed.replace(trainable="all", first=fixed.first.replace(epochs=1)).on_features
