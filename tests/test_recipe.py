"""Options are typed, bounded where they are defined, and overridden by name."""

import json

import pytest

from comp.errors import RecipeError
from comp.options import override, restored
from comp.recipe import FineTune, Head, Recipe, Svm
from comp.recipes import RECIPES, named

FINGERPRINTS = {
    "convnext_tiny": "904d3b24ee",
    "convnext_base": "b4348cd002",
    "vit_base": "b86092c7f4",
    "eva02_base": "e108567b34",
    "dinov2_small": "f721b12bb1",
    "lite0_head": "d69c9381f7",
    "lite1_head": "f42d841b5d",
    "lite2_head": "96dd6daa62",
    "lite2_views": "4c4d44852a",
    "lite0_tail": "3024486beb",
    "lite0_finetune": "663f25e4c3",
    "vgg16_mlp": "1dd1042730",
    "vgg16_last_layer": "79a574af68",
    "vgg16_finetune": "6aa5b9550f",
    "vgg16_last_block": "f761300cc5",
    "inception_bottleneck": "cdf74941a9",
    "inception_last_blocks": "62a5639a87",
    "vgg19_block4_svm": "79af744fee",
}


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_has_its_functions_name_and_a_docstring(name: str) -> None:
    assert named(name).name == name
    assert RECIPES[name].__doc__


def test_a_setting_changes_one_option_and_nothing_else() -> None:
    before = named("lite0_finetune")
    after = override(
        before,
        [
            "training.epochs=7",
            "training.peak_lr=1e-3",
            "prediction.views=none",
            "model.weights=a/b.pth",
            "training.augment.flip=false",
        ],
    )
    assert isinstance(after.training, FineTune)
    assert (after.training.epochs, after.training.peak_lr, after.training.augment.flip) == (
        7,
        1e-3,
        False,
    )
    assert (after.prediction.views, after.model.weights) == ("none", "a/b.pth")
    assert after.folds == before.folds
    assert override(after, ["model.weights=none"]).model.weights is None


def test_options_that_bound_each_other_can_change_together_in_any_order() -> None:
    before = override(
        named("lite0_finetune"), ["training.batch_size=64", "training.micro_batch=16"]
    )
    for settings in (
        ["training.batch_size=9", "training.micro_batch=3"],
        ["training.micro_batch=3", "training.batch_size=9"],
    ):
        training = override(before, settings).training
        assert isinstance(training, FineTune)
        assert (training.batch_size, training.micro_batch) == (9, 3)


def test_the_last_of_two_settings_of_one_option_wins() -> None:
    assert override(named("lite0_head"), ["seed=1", "seed=2"]).seed == 2


def test_a_list_of_numbers_is_an_option_too() -> None:
    training = override(named("lite0_head"), ["training.penalties=[1e-3,0.1]"]).training
    assert isinstance(training, Head)
    assert training.penalties == (1e-3, 0.1)


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("training.epoch=3", "no option 'training.epoch'"),
        ("nothing=3", "no option 'nothing'"),
        ("training=3", "is a section"),
        ("training.epochs.x=3", "has no parts"),
        ("training.epochs", "reads section.option=value"),
        ("training.epochs=many", "must be a valid integer"),
        ("training.epochs=1.5", "must be a valid integer"),
        ("training.epochs=0", "must be greater than or equal to 1"),
        ("training.augment.flip=2", "must be a valid boolean"),
        ("training.peak_lr=nan", "must be a finite number"),
        ("training.trainable=last:0", "all, head, last:N or from:NAME"),
        ("prediction.views=ten", "must be 'none', 'flip', 'five_crop' or 'multi_scale'"),
        ("prediction.clip=0.5", "must be less than 0.5"),
        ("folds.n=1", "must be greater than or equal to 2"),
        ("name=x", "no option 'name'"),
    ],
)
def test_a_value_that_an_option_refuses_is_named_in_one_line(setting: str, says: str) -> None:
    with pytest.raises(RecipeError) as caught:
        override(named("lite0_finetune"), [setting])
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_recipe_lists_the_known_names() -> None:
    with pytest.raises(RecipeError, match="lite0_head"):
        named("lite9")


def test_the_fit_key_changes_with_what_affects_fitting_and_nothing_else() -> None:
    recipe = named("lite0_head")
    clipped = override(recipe, ["prediction.clip=0.01"])
    assert clipped.fit_key() == recipe.fit_key()
    assert clipped.key() != recipe.key()
    assert override(recipe, ["seed=1"]).fit_key() != recipe.fit_key()


def test_the_fingerprint_of_every_recipe_is_pinned() -> None:
    """A run stays valid until its result would change: then FORMAT grows, and these with it."""
    assert {name: named(name).key() for name in RECIPES} == FINGERPRINTS


def test_a_new_option_leaves_fingerprints_as_they_are() -> None:
    class Extended(Head):
        new_option: int = 3

    assert Extended().changed() == Head().changed()
    assert Extended(new_option=4).changed() != Head().changed()


def test_fits_of_different_kinds_have_different_fingerprints() -> None:
    head = named("lite0_head")
    keys = {head.replace(training=training).fit_key() for training in (Head(), Svm(), FineTune())}
    assert len(keys) == 3


def test_an_unknown_option_is_answered_with_near_names() -> None:
    with pytest.raises(RecipeError, match=r"'training\.epoch'; near it: epochs"):
        override(named("lite0_finetune"), ["training.epoch=3"])


def test_a_recipe_survives_json() -> None:
    for name in RECIPES:
        recipe = named(name)
        assert restored(Recipe, json.loads(recipe.model_dump_json())) == recipe
