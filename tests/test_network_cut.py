"""A head on any layer of a backbone works as one on the whole backbone does."""

from typing import Any

import pytest
import torch
from tiny import numbers, random_network
from torch import Tensor

from comp.errors import RecipeError
from comp.network.backbone import embed, parameter_groups
from comp.network.embedder import weights_key
from comp.network.surgery import freeze
from comp.recipe import Model

# a backbone, one of its layers, a size that it can take
VARIED = [
    ("tf_efficientnet_lite0", "blocks.4", 64),
    ("convnext_atto", "stages.2", 64),
    ("vit_tiny_patch16_224", "blocks.8", 64),
    ("resnet18", "layer3.0.act1", 64),
    ("inception_v3", "Mixed_6e", 96),
    ("swin_tiny_patch4_window7_224", "layers.1", 224),
]


def n_parameters(network: Any) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(("backbone", "layer", "size_px"), VARIED)
def test_features_are_the_layers_output_pooled_or_flattened(
    backbone: str, layer: str, size_px: int
) -> None:
    whole, images = random_network(backbone, size_px), numbers(2, 3, size_px, size_px)
    outputs: list[Tensor] = []
    whole.get_submodule(layer).register_forward_hook(
        lambda module, inputs, output: outputs.append(output.clone())
    )
    mean = random_network(backbone, size_px, layer=layer)
    flat = random_network(backbone, size_px, layer=layer, pool="flatten")
    with torch.inference_mode():
        whole(images)
        pooled, flattened = embed(mean, images), embed(flat, images)
    (output,) = outputs
    channels = 1 if output.ndim == 4 and not backbone.startswith("swin") else output.ndim - 1
    expected = output.movedim(channels, -1).reshape(2, -1, pooled.shape[1]).mean(1)
    torch.testing.assert_close(pooled, expected)
    assert torch.equal(flattened, output.flatten(1))
    assert mean.get_classifier().in_features == pooled.shape[1]
    assert n_parameters(mean) < n_parameters(whole)
    assert torch.equal(mean(images), torch.zeros(2, 1))


@pytest.mark.parametrize(("backbone", "layer", "size_px"), VARIED[:4])
def test_a_cut_backbone_freezes_by_the_same_names_and_its_rates_fall_from_the_head_down(
    backbone: str, layer: str, size_px: int
) -> None:
    network, block = random_network(backbone, size_px, layer=layer), layer.rpartition(".")[0]
    counts = [freeze(network, trains)[0] for trains in ("head", "last:1", "last:2", "all")]
    assert sorted(set(counts)) == counts
    freeze(network, f"from:{block}")
    trained = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    assert trained[0].startswith(f"below.{block}")
    assert trained[-2:] == ["head.weight", "head.bias"]
    freeze(network, "all")
    groups = parameter_groups(network, weight_decay=0.05, layer_decay=0.5)
    scale = {id(parameter): group["lr_scale"] for group in groups for parameter in group["params"]}
    assert scale[id(network.get_submodule("head").weight)] == max(scale.values()) == 1.0
    assert scale[id(next(network.parameters()))] == min(scale.values()) < 0.3


def test_features_of_other_layers_and_pools_are_cached_under_other_keys() -> None:
    keys = {
        weights_key(random_network("resnet18", 32, layer=layer, pool=pool))
        for layer in ("layer3", "layer3.1", "layer2")
        for pool in ("mean", "flatten")
    }
    assert len(keys) == 6


def test_the_map_below_the_classifier_of_vgg16_has_25088_numbers() -> None:
    with torch.device("meta"):
        flat = random_network("vgg16", 224, layer="features", pool="flatten")
        pooled = random_network("vgg19", 224, layer="features.27")
    assert flat.get_classifier().in_features == 25088
    assert pooled.get_classifier().in_features == 512


def test_unknown_layers_are_refused_with_near_names_and_flattening_without_a_layer() -> None:
    says = r"vgg11 has no module 'feature'; near it are .*features"
    with pytest.raises(RecipeError, match=says), torch.device("meta"):
        random_network("vgg11", 32, layer="feature")
    with pytest.raises(ValueError, match=r"model\.pool must be mean where model\.layer names no"):
        Model(pool="flatten")
