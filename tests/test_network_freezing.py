"""What trains is what `trainable` names, in backbones of several families."""

import pytest
import torch
from tiny import names_with_gradient, random_network, trained_names
from torch import nn

from comp.errors import RecipeError
from comp.network.surgery import freeze

# a backbone, a block in its middle, a size that it can take
VARIED = [
    ("tf_efficientnet_lite0", "blocks.4", 32),
    ("convnext_atto", "stages.2", 32),
    ("vit_tiny_patch16_224", "blocks.9", 32),
    ("resnet18", "layer3.1", 32),
    ("mobilenetv3_small_050", "blocks.3", 32),
    ("inception_v3", "Mixed_7b", 75),
]


@pytest.mark.parametrize(("backbone", "block", "size_px"), VARIED)
def test_what_trains_is_counted_and_is_the_named_block_what_follows_and_nothing_below(
    backbone: str, block: str, size_px: int
) -> None:
    network = random_network(backbone, size_px)
    sizes = {name: parameter.numel() for name, parameter in network.named_parameters()}
    counts = []
    for trains in ("head", "last:1", "last:2", "last:3", "all"):
        n_trained, n_all = freeze(network, trains)
        assert n_trained == sum(sizes[name] for name in trained_names(network))
        assert n_all == sum(sizes.values())
        counts.append(n_trained)
    assert counts[0] == sum(value.numel() for value in network.get_classifier().parameters())
    assert counts[-1] == sum(sizes.values())
    assert sorted(set(counts)) == counts

    freeze(network, f"from:{block}")
    names = list(sizes)
    first = next(index for index, name in enumerate(names) if name.startswith(f"{block}."))
    assert trained_names(network) == set(names[first:])
    nn.init.normal_(network.get_classifier().weight)
    flows: list[tuple[bool, bool]] = []
    network.get_submodule(block).register_forward_hook(
        lambda _, inputs, output: flows.append((inputs[0].requires_grad, output.requires_grad))
    )
    network(torch.randn(2, 3, size_px, size_px)).sum().backward()
    assert flows == [(False, True)]
    assert names_with_gradient(network) == trained_names(network)


def test_two_inception_blocks_are_the_same_by_count_and_by_name() -> None:
    network = random_network("inception_v3", 75)
    freeze(network, "last:2")
    by_count = trained_names(network)
    freeze(network, "from:Mixed_7b")
    assert trained_names(network) == by_count


@pytest.mark.parametrize("layer", ["layer4.1.conv2", "layer4.1.act1"])
def test_a_single_layer_trains_with_what_follows_even_if_it_has_no_parameters(layer: str) -> None:
    network = random_network("resnet18", 32)
    freeze(network, f"from:{layer}")
    after = ("layer4.1.conv2", "layer4.1.bn2", "fc")
    names = {name for name, _ in network.named_parameters() if name.startswith(after)}
    assert trained_names(network) == names


def test_a_backbone_whose_blocks_timm_does_not_know_can_be_frozen_too() -> None:
    network = random_network("pit_ti_224", 224)
    n_head, n_all = freeze(network, "head")
    assert 0 < n_head < freeze(network, "last:1")[0] < n_all == freeze(network, "all")[0]


def test_unknown_modules_are_refused_with_near_names_and_too_many_blocks_with_their_number() -> (
    None
):
    network = random_network("inception_v3", 75)
    says = r"inception_v3 has no module 'Mixed_7d'; near it are .*Mixed_7b"
    with pytest.raises(RecipeError, match=says):
        freeze(network, "from:Mixed_7d")
    with pytest.raises(RecipeError, match="has 13 blocks below its head"):
        freeze(network, "last:999")
