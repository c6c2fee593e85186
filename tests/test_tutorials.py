"""The tutorials' recipes are what the tutorials say, at full size and without weights or photos."""

import re
from functools import reduce
from typing import Any

import pytest
import torch
from tiny import trained_names
from torch import nn

from comp.network.backbone import build
from comp.network.layers import set_head
from comp.network.preprocessing import geometry_of
from comp.network.surgery import freeze
from comp.options import override
from comp.recipe import FineTune, Recipe
from comp.recipes import RECIPES, named
from comp.train.finetune import learning_rate

VGG_HEAD = 4096 + 1
VGG_DENSE = 25088 * 4096 + 4096 + 4096 * 4096 + 4096
VGG_BLOCK = 3 * (512 * 512 * 9 + 512)
VGG_CONVOLUTIONS = 14_714_688  # torchvision's count
HALF = (0.5, 0.5, 0.5)
# the tutorials' options, and how many parameters train in each phase
TUTORIALS: dict[str, tuple[dict[str, Any], list[int]]] = {
    "vgg16_mlp": (
        {
            "training.optimiser": "adam",
            "training.head.widths": (4096, 4096),
            "training.head.activation": "relu",
            "training.head.dropout": 0.5,
            "pixels.fit": "squash",
            "pixels.normalise": "constants",
            "pixels.mean": HALF,
            "pixels.std": HALF,
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
        [VGG_CONVOLUTIONS + VGG_DENSE + VGG_HEAD],
    ),
    "vgg16_last_block": ({}, [VGG_BLOCK + VGG_DENSE + VGG_HEAD]),
    "inception_bottleneck": ({"training.optimiser": "sgd", "folds.split": (0.1, 0.1)}, [2048 + 1]),
    "inception_last_blocks": ({}, [2048 + 1, 11_121_408 + 2048 + 1]),
}


def network_of(recipe: Recipe) -> Any:
    """The network of `recipe`, without numbers in it."""
    with torch.device("meta"):
        network = build(recipe.model.replace(weights="random"), size_px=recipe.pixels.size_px)
        if isinstance(recipe.training, FineTune) and recipe.training.head.widths:
            set_head(network, recipe.training.head, 0)
    return network


@pytest.mark.parametrize("name", TUTORIALS)
def test_a_tutorials_recipe_has_its_options_and_trains_as_many_parameters(name: str) -> None:
    recipe, (options, counts) = named(name), TUTORIALS[name]
    for path, value in options.items():
        assert reduce(getattr, path.split("."), recipe) == value, path
    assert isinstance(recipe.training, FineTune)
    network = network_of(recipe)
    assert [freeze(network, phase.trainable)[0] for phase in recipe.training.phases()] == counts


def test_the_last_blocks_of_vgg16_and_inception_v3_are_those_below_the_pool() -> None:
    vgg, inception = (
        network_of(named(name)) for name in ("vgg16_last_block", "inception_last_blocks")
    )
    freeze(vgg, "from:features.24")
    names = trained_names(vgg)
    convolutions = {name.rpartition(".")[0] for name in names if name.startswith("features")}
    assert convolutions == {"features.24", "features.26", "features.28"}
    assert isinstance(vgg.get_submodule("features.23"), nn.MaxPool2d)  # the end of block 4
    assert {name.partition(".")[0] for name in names} == {"features", "pre_logits", "head"}
    freeze(inception, "from:Mixed_7b")
    blocks = {name.partition(".")[0] for name in trained_names(inception)}
    assert blocks == {"Mixed_7b", "Mixed_7c", "fc"}


def test_block_4_of_vgg19_ends_in_the_layer_that_feeds_the_svm() -> None:
    recipe = named("vgg19_block4_svm")
    whole = network_of(recipe.replace(model=recipe.model.replace(layer=None)))
    pools = [name for name, module in whole.named_modules() if isinstance(module, nn.MaxPool2d)]
    assert recipe.model.layer == pools[3]
    assert network_of(recipe).get_classifier().in_features == 512


def test_the_rate_of_the_inception_bottleneck_falls_from_a_tenth_to_a_thousandth() -> None:
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
def test_every_setting_that_a_docstring_offers_changes_the_recipe(name: str) -> None:
    recipe, text = named(name), " ".join((RECIPES[name].__doc__ or "").split())
    for offered in re.findall(r'SET="([^"]+)"', text):
        changed = override(recipe, offered.split())
        assert changed.key() != recipe.key(), offered
        sections = {part: getattr(recipe, part) for part in ("model", "pixels", "training")}
        assert changed.replace(**sections) == recipe


@pytest.mark.parametrize("name", ["vit_base", "eva02_base"])
@pytest.mark.parametrize("size_px", [224, 448])
def test_transformers_are_built_at_both_sizes(name: str, size_px: int) -> None:
    recipe = override(named(name), [f"pixels.size_px={size_px}"])
    network = network_of(recipe)
    n_patches = (size_px // network.patch_embed.patch_size[0]) ** 2
    assert network.pos_embed.shape[1] == n_patches + 1
    assert geometry_of(recipe).size_px >= size_px
