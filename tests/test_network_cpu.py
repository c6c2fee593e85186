"""Convolutions made fast on a CPU: the same features, losses, gradients and names."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny import names_with_gradient, random_network
from torch import Tensor, nn

from comp.network import cpu
from comp.network.backbone import embed
from comp.network.batchnorm import fuse_batch_norm
from comp.network.boundary import input_to
from comp.network.cpu import fuse_activations, packed

IMAGES = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)).to(
    memory_format=torch.channels_last
)
RELU6, RELU, HARDSWISH, GELU, SILU = (
    "tf_efficientnet_lite0",  # padded as TensorFlow pads
    "resnet10t",
    "mobilenetv3_small_050",
    "convnext_atto",
    "efficientnet_b0",
)
HAS_BF16 = cpu.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
needs_bf16 = pytest.mark.skipif(not HAS_BF16, reason="oneDNN has no bfloat16 for this CPU")


@pytest.fixture(autouse=True)
def needs_onednn() -> None:
    if not cpu.is_available():
        pytest.skip("torch has no oneDNN on this machine")


def fused(backbone: str) -> Any:
    """A network whose batch norms are fused into biases other than 0."""
    network = random_network(backbone, 64).to(memory_format=torch.channels_last)
    random = torch.Generator().manual_seed(1)
    nn.init.normal_(network.get_classifier().weight, std=0.1, generator=random)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias, std=0.3, generator=random)
    fuse_batch_norm(network, lambda: network(IMAGES[:1]))
    return network.requires_grad_()


def count(network: nn.Module, kind: type[nn.Module]) -> int:
    return sum(type(module) is kind for module in network.modules())


def gradients(network: nn.Module) -> tuple[float, dict[str, Tensor]]:
    """The loss, and its gradients by the images and the parameters."""
    images = IMAGES.clone().requires_grad_()
    loss = network(images).square().mean()
    loss.backward()
    by_name = {name: parameter.grad for name, parameter in network.named_parameters()}
    return float(loss.detach()), {"images": images.grad} | by_name  # type: ignore[dict-item]


@pytest.mark.parametrize("backbone", [RELU6, RELU, HARDSWISH, SILU, GELU])
@torch.inference_mode()
def test_packing_takes_activations_over_and_leaves_the_features_as_they_were(backbone: str) -> None:
    network = fused(backbone)
    made = packed(network, IMAGES, embed)
    if backbone == GELU:  # it follows no convolution; those are packed all the same
        assert sum(isinstance(module, nn.Conv2d) for module in network.modules()) > 4
        assert not any(isinstance(module, nn.Conv2d) for module in made.modules())
    else:
        assert count(made, nn.Identity) > count(network, nn.Identity)
    for images in (IMAGES, IMAGES[:1]):
        features = embed(made, images), embed(network, images)
        torch.testing.assert_close(*features, rtol=1e-3, atol=1e-4)


@needs_bf16
@torch.inference_mode()
def test_in_bfloat16_packed_features_are_as_near_to_those_of_float32() -> None:
    exact, half, images = fused(RELU), fused(RELU).bfloat16(), IMAGES.bfloat16()
    expected = embed(exact, IMAGES)
    plain, fast = embed(half, images), embed(packed(half, images, embed), images)
    errors = [float((made.float() - expected).norm()) for made in (plain, fast)]
    assert 0 < errors[1] <= 1.2 * errors[0]


@pytest.mark.parametrize("backbone", [RELU6, RELU])
def test_a_network_with_fused_activations_trains_as_before(backbone: str) -> None:
    plain, fast = fused(backbone), fused(backbone)
    before = {name: id(parameter) for name, parameter in fast.named_parameters()}
    assert fuse_activations(fast, IMAGES[:1]) > 5
    assert {name: id(parameter) for name, parameter in fast.named_parameters()} == before
    (loss, expected), (fast_loss, made) = gradients(plain), gradients(fast)
    assert fast_loss == pytest.approx(loss, rel=1e-4)
    for name, gradient in expected.items():
        assert float((made[name] - gradient).norm()) <= 1e-3 * float(gradient.norm()) + 1e-7, name
    plain.load_state_dict(fast.state_dict())


@needs_bf16
@pytest.mark.parametrize("backbone", [RELU6, RELU, HARDSWISH])
def test_in_half_precision_gradients_keep_their_direction_and_weights_stay_in_float32(
    backbone: str,
) -> None:
    plain, half = fused(backbone), fused(backbone)
    n_convolutions = sum(isinstance(module, nn.Conv2d) for module in plain.modules())
    assert fuse_activations(half, IMAGES[:1], half=True) == n_convolutions
    expected, made = (
        torch.cat([gradient.flatten() for gradient in gradients(network)[1].values()])
        for network in (plain, half)
    )
    assert {parameter.dtype for parameter in half.parameters()} == {torch.float32} == {made.dtype}
    assert torch.cosine_similarity(made, expected, dim=0) > 0.98
    assert not torch.equal(made, expected)
    assert list(half.state_dict()) == list(plain.state_dict())


@pytest.mark.parametrize("backbone", ["eca_resnet33ts", "davit_tiny"])
def test_a_network_that_replaced_layers_do_not_suit_stays_as_it_is(backbone: str) -> None:
    """The first takes no half precision, the second reads the padding of its convolutions."""
    network = random_network(backbone, 64)
    kinds, expected = [type(module) for module in network.modules()], embed(network, IMAGES)
    assert backbone == "eca_resnet33ts" or packed(network, IMAGES, embed) is network
    assert fuse_activations(network, IMAGES[:1], half=True) == 0
    assert [type(module) for module in network.modules()] == kinds
    assert torch.equal(embed(network, IMAGES), expected)


def test_frozen_parts_of_a_fused_network_get_no_gradient() -> None:
    network = fused(RELU)
    fuse_activations(network, IMAGES[:1])
    trained = {name for name, _ in network.named_parameters() if name.startswith(("layer4", "fc"))}
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in trained)
    network(IMAGES).sum().backward()
    assert names_with_gradient(network) == trained


class Around(nn.Module):
    """Uses its convolution's output a second time, past the activation."""

    def __init__(self, act: nn.Module | None = None) -> None:
        super().__init__()
        self.conv, self.act, self.fc = nn.Conv2d(3, 4, 3), act or nn.ReLU(), nn.Linear(4, 1)

    def forward_features(self, images: Tensor) -> Tensor:
        made: Tensor = self.conv(images)
        return self.act(made) - made if type(self.act) is nn.ReLU else self.act(made)

    def forward_head(self, made: Tensor, pre_logits: bool = False) -> Tensor:
        return made.mean((2, 3))


class Doubled(nn.ReLU):
    def forward(self, given: Tensor) -> Tensor:
        return 2 * super().forward(given)


@pytest.mark.parametrize(
    "change",
    [
        lambda network: packed(network, IMAGES, embed),
        lambda network: fuse_activations(network, IMAGES[:1]) and network,
    ],
)
@pytest.mark.parametrize("act", [nn.ReLU(), Doubled()], ids=["used twice", "own activation"])
@torch.no_grad()
def test_what_cannot_be_fused_stays_as_it_is(
    act: nn.Module, change: Callable[[nn.Module], nn.Module]
) -> None:
    network: Any = Around(act)
    expected = embed(network, IMAGES)
    made = change(network) or network
    assert type(made.act) is type(network.act) is type(act)
    assert type(network.conv) is nn.Conv2d
    torch.testing.assert_close(embed(made, IMAGES), expected)


@torch.inference_mode()
def test_nothing_changes_at_the_activation_where_the_pass_ends_or_without_onednn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network, name = fused(RELU), "layer1.0.act1"
    assert type(packed(network, IMAGES, embed).get_submodule(name)) is nn.Identity
    first_part = packed(network, IMAGES, lambda part, images: input_to(part, name, images))
    assert type(first_part.get_submodule("layer1.0.conv1")) is not nn.Conv2d
    assert type(first_part.get_submodule(name)) is nn.ReLU
    monkeypatch.setattr(cpu, "is_available", lambda: False)
    assert packed(network, IMAGES, embed) is network
    assert fuse_activations(network, IMAGES[:1]) == 0
