"""Knobs are typed, bounded where they are defined, and overridden by name."""

import pytest

from comp.errors import RecipeError
from comp.recipe import FineTune, Head, override
from comp.recipes import RECIPES, named


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_called_what_it_is_named_and_says_what_it_claims(name: str) -> None:
    assert named(name).name == name
    assert RECIPES[name].__doc__


def test_a_setting_changes_its_knob_and_nothing_else() -> None:
    before = named("lite0_finetune")
    after = override(
        before,
        [
            "training.epochs=7",
            "training.peak_lr=1e-3",
            "prediction.views=none",
            "model.weights=a/b.pth",
            "training.flip=false",
        ],
    )
    assert isinstance(after.training, FineTune)
    assert (after.training.epochs, after.training.peak_lr, after.training.flip) == (7, 1e-3, False)
    assert (after.prediction.views, after.model.weights) == ("none", "a/b.pth")
    assert after.folds == before.folds
    assert override(after, ["model.weights=none"]).model.weights is None


def test_knobs_that_bound_each_other_can_change_together_in_any_order() -> None:
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


def test_of_two_settings_of_one_knob_the_last_holds() -> None:
    assert override(named("lite0_head"), ["seed=1", "seed=2"]).seed == 2


def test_a_list_of_numbers_is_a_knob_too() -> None:
    training = override(named("lite0_head"), ["training.penalties=[1e-3,0.1]"]).training
    assert isinstance(training, Head)
    assert training.penalties == (1e-3, 0.1)


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("training.epoch=3", "no knob 'training.epoch'"),
        ("nothing=3", "no knob 'nothing'"),
        ("training=3", "is a section"),
        ("training.epochs.x=3", "has no parts"),
        ("training.epochs", "reads section.knob=value"),
        ("training.epochs=many", "takes int"),
        ("training.epochs=1.5", "takes int"),
        ("training.epochs=0", "at least 1"),
        ("training.flip=2", "takes bool"),
        ("training.peak_lr=nan", "takes float"),
        ("training.trains=last:0", "all, head, last:N or from:NAME"),
        ("prediction.views=ten", "none | flip"),
        ("prediction.clip=0.5", "in (0, 0.5)"),
        ("folds.n=1", "in [2, 100]"),
        ("name=x", "no knob 'name'"),
    ],
)
def test_what_a_knob_cannot_take_is_refused_in_one_line(setting: str, says: str) -> None:
    with pytest.raises(RecipeError) as caught:
        override(named("lite0_finetune"), [setting])
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_recipe_is_answered_with_the_names_there_are() -> None:
    with pytest.raises(RecipeError, match="lite0_head"):
        named("lite9")


def test_the_fit_is_told_apart_by_what_changes_it_and_shared_by_what_does_not() -> None:
    recipe = named("lite0_head")
    clipped = override(recipe, ["prediction.clip=0.01"])
    assert clipped.fit_key() == recipe.fit_key()
    assert clipped.key() != recipe.key()
    assert override(recipe, ["seed=1"]).fit_key() != recipe.fit_key()
