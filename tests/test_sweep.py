"""A sweep searches options, ends bad trials early, goes on after a stop, and knows noise."""

from typing import Any

import numpy as np
import optuna
import pytest
from heard import Heard

from comp.errors import RecipeError, UserError
from comp.metric import gain
from comp.options import override
from comp.recipe import Recipe
from comp.recipes import named
from comp.store import Workspace
from comp.train import sweep as module
from comp.train.run import open_run, run_folders
from comp.train.sweep import chosen_in_other_folds, space_of, sweep

SETTINGS = ["model.backbone=mobilenetv3_small_050", "model.weights=random", "pixels.size_px=64"]
RECIPE = override(named("lite0_head"), [*SETTINGS, "folds.n=3", "training.penalties=[0.01]"])
GRID = ["training.penalties=[0.1],[0.2],[0.5]", "training.views=none,flip"]


def searched(workspace: Workspace, n_trials: int, over: list[str] = GRID) -> Heard:
    heard = Heard()
    sweep(workspace, RECIPE, over, n_trials, "cpu", heard)
    return heard


def test_ranges_of_a_factor_of_ten_are_logarithmic_and_commas_in_brackets_separate_nothing() -> (
    None
):
    over = ["training.peak_lr=1e-5..1e-3", "training.wise_ft=0.2..1", "training.epochs=2..8"]
    space = space_of([*over, "pixels.mean=[0,0,0],[0.5,0.5,0.5]"], named("lite0_tail"))
    peak_lr, wise_ft, epochs, mean = space.values()
    assert (peak_lr.low, peak_lr.high, peak_lr.log) == (1e-5, 1e-3, True)
    assert (wise_ft.low, wise_ft.high, wise_ft.log) == (0.2, 1, False)
    assert isinstance(epochs, optuna.distributions.IntDistribution)
    assert mean.choices == ("[0,0,0]", "[0.5,0.5,0.5]")


@pytest.mark.parametrize(
    ("over", "says"),
    [
        ([], "needs options to search: OVER="),
        (["training.penalty=1,2"], "training.penalty"),
        (["training.n_inner=1..4"], "training.n_inner"),
        (["training.n_inner=4..2"], "LOW below HIGH, got 'training.n_inner=4..2'"),
        (["training.views=none..flip"], "LOW below HIGH"),
    ],
)
def test_what_cannot_be_searched_is_refused_in_one_line(over: list[str], says: str) -> None:
    with pytest.raises(RecipeError, match=says) as caught:
        space_of(over, RECIPE)
    assert "\n" not in str(caught.value)


def test_each_combination_is_one_run_and_more_trials_go_on(
    drawn_copy: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optuna.Trial, "should_prune", lambda _: False)
    assert "2 trials (2 complete)" in str(searched(drawn_copy, 2))
    said = str(searched(drawn_copy, 5))
    assert "5 trials (5 complete)" in said
    assert "trial 2:" not in said
    said = str(searched(drawn_copy, 100))
    assert "6 trials (6 complete)" in said
    assert len(run_folders(drawn_copy, "oof.csv")) == 7  # with the recipe's own
    assert "the best trial, chosen in the other folds, over lite0_head" in said
    assert "the best: make train predict RECIPE=lite0_head SET=" in said


def test_a_trial_that_is_bad_after_a_fold_ends_there(
    drawn_copy: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_bad(trial: optuna.Trial) -> bool:
        return trial.number == 1

    monkeypatch.setattr(optuna.Trial, "should_prune", is_bad)
    assert "3 trials (2 complete, 1 pruned)" in str(searched(drawn_copy, 3))
    scored = [len(list(folder.glob("fold-?-oof.csv"))) for folder in run_folders(drawn_copy)]
    assert sorted(scored) == [1, 3, 3, 3]


def test_a_search_that_was_stopped_begins_with_the_trial_it_was_in(
    drawn_copy: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    over, tried = ["training.n_inner=2..20", "training.views=none,flip"], list[Recipe]()
    train = module.train

    def stopped(workspace: Workspace, recipe: Recipe, *rest: Any, **options: Any) -> Any:
        tried.append(recipe)
        if len(tried) == 3:
            raise KeyboardInterrupt
        return train(workspace, recipe, *rest, **options)

    monkeypatch.setattr(module, "train", stopped)
    with pytest.raises(KeyboardInterrupt):
        searched(drawn_copy, 2, over)
    searched(drawn_copy, 2, over)
    assert tried[4].key() == tried[2].key()
    assert open_run(drawn_copy, tried[2]).is_trained()


def test_without_a_complete_trial_or_a_second_fold_there_is_no_result(
    drawn_copy: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = override(RECIPE, ["folds.fit=1"])
    with pytest.raises(RecipeError, match="needs 2 or more"):
        sweep(drawn_copy, one, GRID, 2, "cpu", Heard())
    monkeypatch.setattr(optuna.Trial, "should_prune", lambda _: True)
    with pytest.raises(UserError, match=r"no trial of the sweep is complete \(2 pruned\)"):
        searched(drawn_copy, 2)


def test_the_best_of_many_trials_that_are_noise_gains_nothing() -> None:
    rng = np.random.default_rng(0)
    losses, folds = rng.exponential(size=(500, 40)), np.arange(500.0) % 5
    reference, groups = rng.exponential(size=500), np.arange(500)
    flattered = losses[:, losses.mean(0).argmin()]
    assert gain(reference, flattered, groups).mean > 0.05
    assert abs(gain(reference, chosen_in_other_folds(losses, folds), groups).mean) < 0.05
    losses[:, 7] -= 1
    assert np.array_equal(chosen_in_other_folds(losses, folds), losses[:, 7])
