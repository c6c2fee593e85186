"""Activations in the convolutions before them: the same features, losses, gradients and names."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from comp.network import cpu
from comp.network.backbone import build, embed
from comp.network.batchnorm import fuse_batch_norm
from comp.network.boundary import input_to
from comp.network.cpu import fuse_activations, packed
from comp.recipe import Model

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


def folded(backbone: str) -> nn.Module:
    network = build(Model(backbone=backbone, weights="random"), size_px=64).to(
        memory_format=torch.channels_last
    )
    random = torch.Generator().manual_seed(1)
    nn.init.normal_(network.get_classifier().weight, std=0.1, generator=random)  # type: ignore[operator]
    for norm in (module for module in network.modules() if isinstance(module, nn.BatchNorm2d)):
        nn.init.normal_(
            norm.bias, std=0.3, generator=random
        )  # fresh norms would fold to biases of 0
    fuse_batch_norm(network, lambda: network(IMAGES[:1]))
    return network.requires_grad_()


def has_bf16() -> bool:
    """Whether oneDNN has bfloat16 for this CPU."""
    return cpu.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


needs_bf16 = pytest.mark.skipif(not has_bf16(), reason="oneDNN has no bfloat16 for this CPU")


def n_idle(network: nn.Module) -> int:
    return sum(type(module) is nn.Identity for module in network.modules())


@pytest.fixture(autouse=True)
def needs_onednn() -> None:
    if not cpu.is_available():
        pytest.skip("torch has no oneDNN on this machine")


@pytest.mark.parametrize("backbone", [RELU6, RELU, HARDSWISH, SILU])
def test_packing_leaves_the_features_of_any_number_of_photos_as_they_were_and_takes_activations_over(
    backbone: str,
) -> None:
    network = folded(backbone)
    with torch.inference_mode():
        made = packed(network, IMAGES, embed)
        assert n_idle(made) > n_idle(network)
        for n_photos in (4, 1):
            torch.testing.assert_close(
                embed(made, IMAGES[:n_photos]),
                embed(network, IMAGES[:n_photos]),
                rtol=1e-3,
                atol=1e-4,
            )


@torch.inference_mode()
def test_convolutions_without_an_activation_are_packed_as_well() -> None:
    network = folded(GELU)
    made = packed(network, IMAGES, embed)
    assert sum(isinstance(module, nn.Conv2d) for module in network.modules()) > 4
    assert not any(isinstance(module, nn.Conv2d) for module in made.modules())
    torch.testing.assert_close(embed(made, IMAGES), embed(network, IMAGES), rtol=1e-3, atol=1e-4)


@needs_bf16
@torch.inference_mode()
def test_in_bfloat16_packed_features_are_as_near_to_those_of_float32() -> None:
    exact, half = folded(RELU), folded(RELU).bfloat16()
    expected, rough, fine = (
        embed(exact, IMAGES),
        *(embed(one, IMAGES.bfloat16()) for one in (half, packed(half, IMAGES.bfloat16(), embed))),
    )
    off_rough, off_fine = (
        float((made.float() - expected).norm() / expected.norm()) for made in (rough, fine)
    )
    assert 0 < off_fine <= 1.2 * off_rough


@pytest.mark.parametrize("backbone", [RELU6, RELU])
def test_a_fused_network_trains_as_before(backbone: str) -> None:
    def gradients(network: nn.Module) -> tuple[Tensor, dict[str, Tensor]]:
        images = IMAGES.clone().requires_grad_()
        loss = network(images).square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach(), {
            "images": images.grad,
            **{name: parameter.grad for name, parameter in network.named_parameters()},
        }  # type: ignore[dict-item]

    plain, fused = folded(backbone), folded(backbone)
    before = dict(fused.named_parameters())
    assert fuse_activations(fused, IMAGES[:1]) > 5
    assert {name: id(parameter) for name, parameter in fused.named_parameters()} == {
        name: id(one) for name, one in before.items()
    }
    loss, expected = gradients(plain)
    fused_loss, made = gradients(fused)
    assert float(fused_loss) == pytest.approx(float(loss), rel=1e-4)
    for name, gradient in expected.items():
        assert float((made[name] - gradient).norm()) <= 1e-3 * float(gradient.norm()) + 1e-7, name
    plain.load_state_dict(fused.state_dict())


@needs_bf16
@pytest.mark.parametrize("backbone", [RELU6, RELU, HARDSWISH])
def test_in_half_precision_gradients_point_where_they_did_and_weights_stay_in_float32(
    backbone: str,
) -> None:
    def gradient(network: nn.Module) -> Tensor:
        network(IMAGES).square().mean().backward()
        return torch.cat([parameter.grad.flatten() for parameter in network.parameters()])  # type: ignore[union-attr]

    plain, half = folded(backbone), folded(backbone)
    assert fuse_activations(half, IMAGES[:1], half=True) == sum(
        isinstance(module, nn.Conv2d) for module in plain.modules()
    )
    expected, made = gradient(plain), gradient(half)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.float32} == {made.dtype}
    assert torch.cosine_similarity(made, expected, dim=0) > 0.98
    assert not torch.equal(made, expected)
    assert list(half.state_dict()) == list(plain.state_dict())


def test_a_network_with_layers_that_take_no_half_precision_stays_what_it_was() -> None:
    network = build(Model(backbone="eca_resnet33ts", weights="random"), size_px=64)
    kinds, expected = [type(module) for module in network.modules()], embed(network, IMAGES)
    assert fuse_activations(network, IMAGES[:1], half=True) == 0
    assert [type(module) for module in network.modules()] == kinds
    assert torch.equal(embed(network, IMAGES), expected)


def test_frozen_parts_of_a_fused_network_get_no_gradient() -> None:
    network = folded(RELU)
    fuse_activations(network, IMAGES[:1])
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name.startswith(("layer4", "fc")))
    network(IMAGES).sum().backward()
    assert {
        name for name, parameter in network.named_parameters() if parameter.grad is not None
    } == {name for name, _ in network.named_parameters() if name.startswith(("layer4", "fc"))}


class Around(nn.Module):
    """Uses what its convolution makes a second time, past the activation."""

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
@pytest.mark.parametrize(
    "network", [Around(), Around(Doubled())], ids=["used twice", "own activation"]
)
@torch.no_grad()
def test_what_cannot_be_fused_stays_what_it_was(
    network: Any, change: Callable[[nn.Module], nn.Module]
) -> None:
    expected = embed(network, IMAGES)
    made = change(network) or network
    assert type(made.act) is type(network.act) is not nn.Identity
    assert type(network.conv) is nn.Conv2d
    torch.testing.assert_close(embed(made, IMAGES), expected)


@torch.inference_mode()
def test_an_activation_that_something_else_waits_at_stays() -> None:
    network = folded(RELU)
    assert type(packed(network, IMAGES, embed).get_submodule("layer1.0.act1")) is nn.Identity
    first_part = packed(network, IMAGES, lambda part, x: input_to(part, "layer1.0.act1", x))
    assert type(first_part.get_submodule("layer1.0.conv1")) is not nn.Conv2d
    assert type(first_part.get_submodule("layer1.0.act1")) is nn.ReLU


@torch.inference_mode()
def test_without_onednn_a_network_stays_what_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "is_available", lambda: False)
    network = folded(RELU)
    assert packed(network, IMAGES, embed) is network
    assert fuse_activations(network, IMAGES[:1]) == 0
