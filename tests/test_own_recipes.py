"""Recipes in a file of one's own, and one recipe under several seeds."""

import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from heard import Heard

from comp import recipes
from comp.__main__ import main
from comp.competition import COMPETITION
from comp.data.manifest import read_manifest
from comp.errors import RecipeError
from comp.metric import logit_log_loss
from comp.predict.stage import predict_all
from comp.recipe import Folds
from comp.recipes import add_recipes, chosen, listed, named
from comp.store import Workspace
from comp.train.labels import select
from comp.train.stage import train

OWN = """
    from comp.recipe import Recipe
    from comp.recipes import lite0_head

    def small() -> Recipe:
        '''EfficientNet-Lite0 at 64 px.'''
        head = lite0_head()
        return head.replace(pixels=head.pixels.replace(size_px=64))

    def helper(n: int) -> int:
        return n
"""


@pytest.fixture(autouse=True)
def only_ours() -> Iterator[None]:
    """Recipes that a test adds are gone after it."""
    before, groups = dict(recipes.RECIPES), dict(recipes._GROUPS)
    yield
    for now, then in ((recipes.RECIPES, before), (recipes._GROUPS, groups)):
        now.clear()
        now.update(then)  # type: ignore[arg-type]


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "my_recipes.py"
    path.write_text(textwrap.dedent(text))
    return path


def test_a_recipe_of_ones_own_is_named_by_its_function_and_listed(tmp_path: Path) -> None:
    add_recipes(written(tmp_path, OWN))
    assert named("small").name == "small"
    assert named("small").pixels.size_px == 64
    lines = "\n".join(listed())
    assert "In my_recipes.py\n  small                   EfficientNet-Lite0 at 64 px." in lines
    assert "helper" not in lines


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("def broken(:", "cannot be read as Python: .*line 1"),
        ("x = 1", "has no recipe: write a function"),
        (OWN.replace("def small", "def lite1_head"), "the name lite1_head is taken"),
        (OWN.replace("def small", "def ensemble"), "the name ensemble is taken"),
    ],
)
def test_a_file_without_recipes_or_with_taken_names_is_refused_in_one_line(
    tmp_path: Path, text: str, says: str
) -> None:
    with pytest.raises(RecipeError, match=says) as caught:
        add_recipes(written(tmp_path, text))
    assert "\n" not in str(caught.value)
    with pytest.raises(RecipeError, match="No such file"):
        add_recipes(tmp_path / "absent.py")


def test_every_command_knows_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, words = str(written(tmp_path, OWN)), ["lr", "--recipe", "small"]
    assert main(words) == 1
    assert "no recipe 'small'" in capsys.readouterr().err
    assert main([*words, "--recipes", path]) == 1
    assert "small solves its head" in capsys.readouterr().err
    assert main(["recipes", "--recipes", path]) == 1
    assert "the name small is taken" in capsys.readouterr().err


def test_another_seed_of_the_folds_splits_the_same_photos_elsewhere_and_keeps_groups_whole(
    drawn: Workspace,
) -> None:
    manifest = read_manifest(drawn.manifest("train"))
    for n_photos in (None, 40):
        one, other = (select(manifest, Folds(seed=seed, n_photos=n_photos)) for seed in (0, 1))
        assert list(one["id"]) == list(other["id"])
        assert (one["fold"] != other["fold"]).mean() > 0.5
        assert other.groupby("group")["fold"].nunique().max() == 1


def test_seeds_change_the_folds_where_all_photos_are_held_out_and_the_first_is_the_recipe() -> None:
    plain, *others = chosen("lite0_head", [], 3)
    assert plain == named("lite0_head")
    assert [(one.seed, one.folds.seed) for one in others] == [(1, 1), (2, 2)]
    for setting in ("folds.fit=2", "folds.split=[0.2,0.2]"):
        assert {one.folds.seed for one in chosen("lite0_head", [setting], 3)} == {0}
    with pytest.raises(RecipeError, match="SEEDS must be 1 or more, got 0"):
        chosen("lite0_head", [], 0)
    with pytest.raises(RecipeError, match="ensemble is several recipes"):
        chosen("ensemble", [], 2)


def test_several_seeds_become_one_run_with_their_mean_logits_and_their_spread(
    drawn_copy: Workspace,
) -> None:
    settings = ["model.backbone=mobilenetv3_small_050", "model.weights=random", "folds.n=2"]
    seeds = chosen("lite0_head", [*settings, "pixels.size_px=64"], 3)
    runs = [train(drawn_copy, one, "cpu", Heard()) for one in seeds]
    heard = Heard()
    folder = predict_all(drawn_copy, COMPETITION, seeds, "cpu", heard)
    for name in ("oof.csv", "test.csv"):
        tables = [
            pd.read_csv(place / name, dtype={"id": str}).set_index("id")["logit"]
            for place in (folder, *(run.folder for run in runs))
        ]
        mean = np.mean([each.loc[tables[0].index] for each in tables[1:]], axis=0)
        assert np.allclose(tables[0], mean, equal_nan=True)
    oofs = [pd.read_csv(run.oof) for run in runs]
    losses = [logit_log_loss(oof["label"], oof["logit"]) for oof in oofs]
    spread = f"mean {np.mean(losses):.5f}, standard deviation {np.std(losses, ddof=1):.5f}"
    assert f"log loss alone: {spread}" in str(heard)
    assert len({round(loss, 6) for loss in losses}) == 3
    assert predict_all(drawn_copy, COMPETITION, seeds, "cpu", heard) == folder
    assert f"{folder.name}: the blend of" in str(heard)
