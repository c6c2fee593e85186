"""Options are typed, bounded where they are defined, and overridden by name."""

import json
import shlex
import subprocess
from pathlib import Path

import pytest

from comp.arguments import words_of
from comp.errors import RecipeError, UserError
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


def test_every_recipe_has_its_functions_name_a_docstring_and_survives_json() -> None:
    for name, function in RECIPES.items():
        recipe = named(name)
        assert recipe.name == name
        assert function.__doc__
        assert restored(Recipe, json.loads(recipe.model_dump_json())) == recipe
    with pytest.raises(RecipeError, match="lite0_head"):
        named("lite9")


def test_a_setting_changes_one_option_and_nothing_else() -> None:
    before = named("lite0_finetune")
    settings = ["training.epochs=7", "training.peak_lr=1e-3", "training.augment.flip=false"]
    after = override(before, [*settings, "prediction.views=none", "model.weights=a/b.pth"])
    training = after.training
    assert isinstance(training, FineTune)
    assert (training.epochs, training.peak_lr, training.augment.flip) == (7, 1e-3, False)
    assert (after.prediction.views, after.model.weights) == ("none", "a/b.pth")
    assert after.folds == before.folds
    assert override(after, ["model.weights=none"]).model.weights is None
    assert override(before, ["seed=1", "seed=2"]).seed == 2
    head = override(named("lite0_head"), ["training.penalties=[1e-3,0.1]"]).training
    assert isinstance(head, Head)
    assert head.penalties == (1e-3, 0.1)


def test_options_that_bound_each_other_can_change_together_in_any_order() -> None:
    small = ["training.batch_size=9", "training.micro_batch=3"]
    large = ["training.batch_size=64", "training.micro_batch=16"]
    before = override(named("lite0_finetune"), large)
    for settings in (small, small[::-1]):
        training = override(before, settings).training
        assert isinstance(training, FineTune)
        assert (training.batch_size, training.micro_batch) == (9, 3)


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("training.epoch=3", "no option 'training.epoch'; near it: epochs"),
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


def test_the_fit_key_changes_with_what_affects_fitting_and_nothing_else() -> None:
    recipe = named("lite0_head")
    clipped = override(recipe, ["prediction.clip=0.01"])
    assert clipped.fit_key() == recipe.fit_key()
    assert clipped.key() != recipe.key()
    assert override(recipe, ["seed=1"]).fit_key() != recipe.fit_key()
    kinds = (Head(), Svm(), FineTune())
    assert len({recipe.replace(training=training).fit_key() for training in kinds}) == 3


def test_the_fingerprint_of_every_recipe_is_pinned() -> None:
    """A run stays valid until its result would change: then FORMAT grows, and these with it."""
    assert {name: named(name).key() for name in RECIPES} == FINGERPRINTS


def test_a_new_option_leaves_fingerprints_as_they_are() -> None:
    class Extended(Head):
        new_option: int = 3

    assert Extended().changed() == Head().changed()
    assert Extended(new_option=4).changed() != Head().changed()


def test_make_passes_settings_and_paths_with_spaces_and_quotes_as_one_word() -> None:
    words = ["SET=seed=3 pixels.mean='[0.1, 0.2, 0.3]'", "ARCHIVE=a b.zip", "SOLUTION=it's.csv"]
    options = ["--dry-run", "--no-print-directory", "--old-file=.venv/done"]
    make = ["make", *options, "rehearsal", *words]
    root = Path(__file__).parents[1]
    shown = subprocess.run(make, cwd=root, capture_output=True, text=True, check=True).stdout
    given = shlex.split(next(line for line in shown.splitlines() if "-m comp" in line))
    for word in words:
        assert word.partition("=")[2] in given
    assert words_of([words[0].partition("=")[2]]) == ["seed=3", "pixels.mean=[0.1, 0.2, 0.3]"]
    with pytest.raises(UserError, match="no closing quotation in name="):
        words_of(["name='open"])
