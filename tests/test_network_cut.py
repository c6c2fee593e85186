"""A head can sit on any layer of a backbone, and everything else works as it does on a whole one."""

import pytest
import torch
from torch import Tensor, nn

from comp.errors import RecipeError
from comp.network.backbone import build, embed, parameter_groups
from comp.network.batchnorm import fuse_batch_norm
from comp.network.embedder import weights_key
from comp.network.surgery import freeze
from comp.recipe import Model

# A backbone, one of its layers, the size it can take.
VARIED = [
    ("tf_efficientnet_lite0", "blocks.4", 64),
    ("convnext_atto", "stages.2", 64),
    ("vit_tiny_patch16_224", "blocks.8", 64),
    ("resnet18", "layer3.0.act1", 64),
    ("inception_v3", "Mixed_6e", 96),
    ("swin_tiny_patch4_window7_224", "layers.1", 224),
]


def cut(backbone: str, layer: str, size_px: int, pool: str = "mean") -> nn.Module:
    return build(
        Model(backbone=backbone, layer=layer, pool=pool, weights="random"), size_px=size_px
    )  # type: ignore[arg-type]


def images(n: int, size_px: int) -> Tensor:
    return torch.randn(n, 3, size_px, size_px, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("backbone", "layer", "size_px"), VARIED)
def test_features_are_what_the_layer_gives_out_pooled_or_flattened(
    backbone: str, layer: str, size_px: int
) -> None:
    whole = build(Model(backbone=backbone, weights="random"), size_px=size_px)
    seen: list[Tensor] = []
    whole.get_submodule(layer).register_forward_hook(
        lambda *arguments: seen.append(arguments[2].clone())
    )
    mean, flat = cut(backbone, layer, size_px), cut(backbone, layer, size_px, "flatten")
    with torch.inference_mode():
        whole(images(2, size_px))
        pooled, flattened = embed(mean, images(2, size_px)), embed(flat, images(2, size_px))
    channels = 1 if seen[0].ndim == 4 and backbone[:4] != "swin" else seen[0].ndim - 1
    torch.testing.assert_close(
        pooled, seen[0].movedim(channels, -1).reshape(2, -1, pooled.shape[1]).mean(1)
    )
    assert torch.equal(flattened, seen[0].flatten(1))
    assert mean.get_classifier().in_features == pooled.shape[1]  # type: ignore[operator]
    assert sum(p.numel() for p in mean.parameters()) < sum(p.numel() for p in whole.parameters())
    assert torch.equal(mean(images(2, size_px)), torch.zeros(2, 1))


@pytest.mark.parametrize(("backbone", "layer", "size_px"), VARIED[:4])
def test_a_cut_backbone_freezes_by_the_same_names_and_its_rates_fall_from_the_head_down(
    backbone: str, layer: str, size_px: int
) -> None:
    network = cut(backbone, layer, size_px)
    counts = [freeze(network, trains)[0] for trains in ("head", "last:1", "last:2", "all")]
    assert sorted(set(counts)) == counts
    freeze(network, f"from:{layer.rpartition('.')[0]}")
    trained = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    assert trained[0].startswith(f"below.{layer.rpartition('.')[0]}")
    assert trained[-2:] == ["head.weight", "head.bias"]
    freeze(network, "all")
    groups = parameter_groups(network, weight_decay=0.05, layer_decay=0.5)
    scale = {id(parameter): group["lr_scale"] for group in groups for parameter in group["params"]}
    assert scale[id(network.get_submodule("head").weight)] == max(scale.values()) == 1.0
    assert scale[id(next(network.parameters()))] == min(scale.values()) < 0.3


def test_batch_norms_of_a_cut_backbone_fold_as_well() -> None:
    network = cut("tf_efficientnet_lite0", "blocks.4", 64)
    for name, statistic in network.named_buffers():
        if name.endswith("running_var"):
            nn.init.uniform_(statistic, 0.5, 2.0)
    with torch.no_grad():
        before = embed(network, images(2, 64))
        assert fuse_batch_norm(network, lambda: network(images(1, 64))) > 10
        torch.testing.assert_close(
            embed(network, images(2, 64)), before, atol=1e-3 * float(before.abs().max()), rtol=1e-3
        )


def test_features_of_other_layers_and_pools_are_kept_under_other_keys() -> None:
    networks = [
        cut("resnet18", layer, 32, pool)
        for layer in ("layer3", "layer3.1", "layer2")
        for pool in ("mean", "flatten")
    ]
    assert len({weights_key(network) for network in networks}) == 6


def test_the_map_under_the_classifier_of_vgg16_has_25088_numbers() -> None:
    with torch.device("meta"):
        network = cut("vgg16", "features", 224, "flatten")
        assert network.get_classifier().in_features == 25088  # type: ignore[operator]
        assert cut("vgg19", "features.27", 224).get_classifier().in_features == 512  # type: ignore[operator]


def test_an_unknown_layer_is_refused_with_what_is_near() -> None:
    with (
        pytest.raises(RecipeError, match=r"vgg11 has no module 'feature'; near it are .*features"),
        torch.device("meta"),
    ):
        cut("vgg11", "feature", 32)


def test_only_a_named_layer_is_flattened() -> None:
    with pytest.raises(
        ValueError, match=r"model\.pool must be mean where model\.layer names no layer"
    ):
        Model(pool="flatten")
