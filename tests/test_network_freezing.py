"""What trains is what the policy names, for backbones of several kinds."""

import pytest
import torch
from torch import nn

from comp.errors import RecipeError
from comp.network.backbone import build
from comp.network.surgery import freeze
from comp.recipe import Model

# A backbone, a block in its middle, the size it can take.
VARIED = [
    ("tf_efficientnet_lite0", "blocks.4", 32),
    ("convnext_atto", "stages.2", 32),
    ("vit_tiny_patch16_224", "blocks.9", 32),
    ("resnet18", "layer3.1", 32),
    ("mobilenetv3_small_050", "blocks.3", 32),
    ("inception_v3", "Mixed_7b", 75),
]


def network_of(backbone: str, size_px: int) -> nn.Module:
    return build(Model(backbone=backbone, weights="random"), size_px=size_px)


def trained_names(network: nn.Module) -> set[str]:
    return {name for name, parameter in network.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize(("backbone", "block", "size_px"), VARIED)
def test_each_policy_says_how_many_parameters_train_and_they_are_those(
    backbone: str, block: str, size_px: int
) -> None:
    network = network_of(backbone, size_px)
    n_all = sum(parameter.numel() for parameter in network.parameters())
    n_head = sum(parameter.numel() for parameter in network.get_classifier().parameters())  # type: ignore[operator]
    counts = []
    for trains in ("head", "last:1", "last:2", "last:3", "all"):
        counts.append(freeze(network, trains))
        assert counts[-1] == (
            sum(p.numel() for p in network.parameters() if p.requires_grad),
            n_all,
        )
    assert counts[0][0] == n_head
    assert counts[-1][0] == n_all
    assert sorted(set(counts)) == counts
    freeze(network, f"from:{block}")
    names = [name for name, _ in network.named_parameters()]
    first = next(index for index, name in enumerate(names) if name.startswith(f"{block}."))
    assert trained_names(network) == set(names[first:])


@pytest.mark.parametrize(("backbone", "block", "size_px"), VARIED)
def test_no_gradient_flows_below_the_block_that_training_begins_from(
    backbone: str, block: str, size_px: int
) -> None:
    network = network_of(backbone, size_px)
    nn.init.normal_(network.get_classifier().weight)  # type: ignore[operator]
    freeze(network, f"from:{block}")
    seen: list[tuple[bool, bool]] = []
    network.get_submodule(block).register_forward_hook(
        lambda _, inputs, output: seen.append((inputs[0].requires_grad, output.requires_grad))
    )
    network(torch.randn(2, 3, size_px, size_px)).sum().backward()
    assert seen == [(False, True)]
    for name, parameter in network.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        assert parameter.grad is None or bool(torch.isfinite(parameter.grad).all())


def test_two_inception_blocks_are_the_same_by_count_and_by_name() -> None:
    network = network_of("inception_v3", 75)
    freeze(network, "last:2")
    by_count = trained_names(network)
    freeze(network, "from:Mixed_7b")
    assert trained_names(network) == by_count


@pytest.mark.parametrize("layer", ["layer4.1.conv2", "layer4.1.act1"])
def test_from_a_single_layer_trains_it_and_what_comes_after_even_if_it_has_no_parameters(
    layer: str,
) -> None:
    network = network_of("resnet18", 32)
    freeze(network, f"from:{layer}")
    after = ("layer4.1.conv2", "layer4.1.bn2", "fc")
    assert trained_names(network) == {
        name for name, _ in network.named_parameters() if name.startswith(after)
    }


def test_a_backbone_of_which_timm_knows_no_blocks_can_be_frozen_too() -> None:
    network = network_of("pit_ti_224", 224)
    n_head, n_all = freeze(network, "head")
    assert 0 < n_head < freeze(network, "last:1")[0] < n_all == freeze(network, "all")[0]


def test_what_the_network_has_not_is_refused_with_what_is_near() -> None:
    network = network_of("inception_v3", 75)
    with pytest.raises(
        RecipeError, match=r"inception_v3 has no module 'Mixed_7d'; near it are .*Mixed_7b"
    ):
        freeze(network, "from:Mixed_7d")
    with pytest.raises(RecipeError, match="has 13 blocks below its head"):
        freeze(network, "last:999")
