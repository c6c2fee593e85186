"""The tutorials' recipes are what the tutorials say, at full size; no weights and no photos are needed to tell."""

import re
from typing import Any

import pytest
import torch
from torch import nn

from comp.network.backbone import build
from comp.network.heads import set_head
from comp.network.preprocessing import geometry_of
from comp.network.surgery import freeze
from comp.options import override
from comp.recipe import FineTune, Recipe
from comp.recipes import RECIPES, named
from comp.train.optimiser import learning_rate

VGG_HEAD = 4096 + 1
VGG_DENSE = 25088 * 4096 + 4096 + 4096 * 4096 + 4096
VGG_BLOCK = 3 * (512 * 512 * 9 + 512)
# Knobs as the tutorials have them, and how many parameters train in each phase.
WRITTEN: dict[str, tuple[dict[str, Any], list[int]]] = {
    "vgg16_mlp": (
        {
            "training.optimiser": "adam",
            "training.head.widths": (4096, 4096),
            "training.head.activation": "relu",
            "training.head.dropout": 0.5,
            "pixels.fit": "squash",
            "pixels.normalise": "constants",
            "pixels.mean": (0.5, 0.5, 0.5),
            "pixels.std": (0.5, 0.5, 0.5),
        },
        [VGG_DENSE + VGG_HEAD],
    ),
    "vgg16_last_layer": (
        {"training.optimiser": "sgd", "training.peak_lr": 0.001, "pixels.normalise": "backbone"},
        [VGG_HEAD],
    ),
    "vgg16_finetune": (
        {
            "training.augment.crop": "pad-and-crop",
            "training.augment.pad_px": 4,
            "training.augment.flip": True,
            "training.batch_size": 128,
            "training.epochs": 20,
            "training.schedule": "step",
            "pixels.size_px": 96,
            "pixels.normalise": "measured",
        },
        [14_714_688 + VGG_DENSE + VGG_HEAD],  # torchvision's count of the convolutions
    ),
    "vgg16_last_block": ({}, [VGG_BLOCK + VGG_DENSE + VGG_HEAD]),
    "inception_bottleneck": ({"training.optimiser": "sgd", "folds.split": (0.1, 0.1)}, [2048 + 1]),
    "inception_last_blocks": ({}, [2048 + 1, 11_121_408 + 2048 + 1]),
}


def knob(recipe: Recipe, path: str) -> object:
    value: object = recipe
    for name in path.split("."):
        value = getattr(value, name)
    return value


def network_of(recipe: Recipe) -> nn.Module:
    """The network of `recipe`, without numbers in it."""
    with torch.device("meta"):
        network = build(recipe.model.replace(weights="random"), size_px=recipe.pixels.size_px)
        if isinstance(recipe.training, FineTune) and recipe.training.head.widths:
            set_head(network, recipe.training.head, 0)
    return network


def trained_names(network: nn.Module) -> set[str]:
    return {name for name, parameter in network.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("name", WRITTEN)
def test_a_tutorials_recipe_has_its_knobs_and_trains_as_many_parameters(name: str) -> None:
    recipe, (knobs, counts) = named(name), WRITTEN[name]
    assert {path: knob(recipe, path) for path in knobs} == knobs
    assert isinstance(recipe.training, FineTune)
    network = network_of(recipe)
    assert [freeze(network, phase.trainable)[0] for phase in recipe.training.phases()] == counts


def test_the_last_block_of_vgg16_is_its_fifth_and_those_of_inception_v3_are_the_two_below_the_pool() -> (
    None
):
    vgg, inception = (
        network_of(named("vgg16_last_block")),
        network_of(named("inception_last_blocks")),
    )
    freeze(vgg, "from:features.24")
    below = {name.rpartition(".")[0] for name in trained_names(vgg) if name.startswith("features")}
    assert below == {"features.24", "features.26", "features.28"}
    assert isinstance(vgg.get_submodule("features.23"), nn.MaxPool2d)  # the end of block 4
    assert {name.partition(".")[0] for name in trained_names(vgg)} == {
        "features",
        "pre_logits",
        "head",
    }
    freeze(inception, "from:Mixed_7b")
    assert {name.partition(".")[0] for name in trained_names(inception)} == {
        "Mixed_7b",
        "Mixed_7c",
        "fc",
    }


def test_block_4_of_vgg19_ends_in_the_layer_that_the_svm_is_given() -> None:
    recipe = named("vgg19_block4_svm")
    whole = network_of(recipe.replace(model=recipe.model.replace(layer=None)))
    pools = [name for name, module in whole.named_modules() if isinstance(module, nn.MaxPool2d)]
    assert recipe.model.layer == pools[3]
    assert network_of(recipe).get_classifier().in_features == 512  # type: ignore[operator]


def test_the_rate_of_the_inception_bottleneck_falls_from_a_tenth_to_a_thousandth_in_10_000_steps() -> (
    None
):
    training = named("inception_bottleneck").training
    assert isinstance(training, FineTune)
    n_steps = training.epochs * (int(25_000 * 0.8) // training.batch_size)
    assert n_steps == 10_000
    rates = [learning_rate(step, n_steps, training) for step in range(n_steps)]
    assert rates[0] == 0.1
    assert rates == sorted(rates, reverse=True)
    assert 0.001 <= rates[-1] == pytest.approx(0.001, rel=1e-3)
    assert rates[5000] == pytest.approx(0.01)


@pytest.mark.parametrize("name", RECIPES)
def test_every_setting_that_a_docstring_offers_can_be_set_and_changes_the_recipe(name: str) -> None:
    recipe = named(name)
    for offered in re.findall(r'SET="([^"]+)"', " ".join((RECIPES[name].__doc__ or "").split())):
        changed = override(recipe, offered.split())
        assert changed.key() != recipe.key(), offered
        assert (
            changed.replace(model=recipe.model, pixels=recipe.pixels, training=recipe.training)
            == recipe
        )


@pytest.mark.parametrize(
    ("name", "size_px"),
    [("vit_base", 224), ("vit_base", 448), ("eva02_base", 224), ("eva02_base", 448)],
)
def test_transformers_are_built_at_both_sizes(name: str, size_px: int) -> None:
    recipe = override(named(name), [f"pixels.size_px={size_px}"])
    network = network_of(recipe)
    patch_px = network.patch_embed.patch_size[0]  # type: ignore[union-attr, index]
    assert network.pos_embed.shape[1] == (size_px // patch_px) ** 2 + 1  # type: ignore[union-attr]
    assert geometry_of(recipe).size_px >= size_px
