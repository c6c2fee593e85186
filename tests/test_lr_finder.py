"""The range test grows the learning rate by a constant factor, stops where the loss diverges, and leaves every file as it was."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from heard import Heard
from PIL import Image
from torch import Tensor

from comp.__main__ import main
from comp.errors import RecipeError, TrainingError
from comp.network.device import find_device
from comp.plots import text_curve
from comp.progress import Reporter
from comp.recipe import FineTune, Folds, Model, Pixels, Recipe
from comp.recipes import named
from comp.store import Workspace
from comp.train.lr_finder import HIGHEST, LOWEST, RangeTest, find_lr, range_test, smoothed
from comp.train.stage import train

CPU = find_device("cpu")
TINY = Recipe(
    name="tiny",
    model=Model(backbone="mobilenetv3_small_050", weights="random"),
    pixels=Pixels(size_px=32, canvas=1.25),
    folds=Folds(fit=1),
    training=FineTune(epochs=1, batch_size=8, head_start=False),
)


def endless() -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        yield torch.zeros(1), torch.zeros(1)


def quiet(n: int = 1, note: str = "") -> None:
    pass


def costs(losses: list[float]) -> Callable[..., Tensor]:
    """A step that costs one of `losses` after the other."""
    left = iter(losses)
    return lambda *_: torch.tensor(next(left))


def bowl(best: float, explodes: float) -> list[float]:
    """Losses of 100 steps that fall towards `best` and explode beyond `explodes`."""
    return [
        0.7 - 0.5 / (1 + (best / rate) ** 1.5) + (rate / explodes) ** 4
        for rate in np.geomspace(LOWEST, HIGHEST, 100)
    ]


def test_smoothing_leaves_a_constant_alone_from_its_first_step_on() -> None:
    assert smoothed([0.3] * 50) == pytest.approx(0.3)
    assert smoothed([1.0, 0.0])[-1] == pytest.approx(0.9 / 1.9)


def test_the_learning_rate_grows_by_a_constant_factor_until_the_loss_diverges() -> None:
    seen: list[float] = []
    losses = bowl(1e-4, 1e-2)

    def take_step(_: Tensor, __: Tensor, rate: float) -> Tensor:
        seen.append(rate)
        return torch.tensor(losses[len(seen) - 1])

    found = range_test(take_step, endless(), 100, quiet)
    assert np.diff(np.log(seen)) == pytest.approx(math.log(HIGHEST / LOWEST) / 99)
    assert found.diverged
    assert 1e-2 < found.rates[-1] < 1e-1
    assert 1e-5 < found.steepest < 1e-3
    assert found.steepest < found.tenth * 10
    assert found.tenth == pytest.approx(found.rates[found.least] / 10)


def test_a_loss_that_never_diverges_is_followed_to_the_highest_rate() -> None:
    found = range_test(lambda *_: torch.tensor(0.5), endless(), 40, quiet)
    assert not found.diverged
    assert found.rates[-1] == HIGHEST


def test_a_loss_that_is_not_finite_ends_the_test_and_one_that_never_was_is_refused() -> None:
    found = range_test(costs([0.5] * 30 + [math.nan] * 70), endless(), 100, quiet)
    assert found.diverged
    assert len(found.losses) == 30
    with pytest.raises(TrainingError, match="not finite after 0 steps"):
        range_test(lambda *_: torch.tensor(math.nan), endless(), 100, quiet)


def test_steepest_descent_is_where_the_smoothed_loss_falls_fastest() -> None:
    rates = np.geomspace(LOWEST, HIGHEST, 100)
    losses = np.where(
        np.arange(100) < 50,
        0.7,
        np.where(np.arange(100) < 60, 0.2, 0.2 + (np.arange(100) - 60) * 0.01),
    )
    found = RangeTest(rates=rates, losses=losses, diverged=False)
    assert rates[48] < found.steepest < rates[54]


def test_a_test_that_begins_at_the_least_loss_says_so_and_one_odd_photo_does_not_end_it() -> None:
    rng = np.random.default_rng(0)
    solved = [float(loss) for loss in rng.exponential(0.005, 60)] + [5.0] * 40
    solved[30] = 0.9
    found = range_test(costs(solved), endless(), 100, quiet)
    assert 60 < len(found.losses) < 65
    assert not found.falls
    assert range_test(costs(bowl(1e-4, 1e-2)), endless(), 100, quiet).falls


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_weights_on_disk_are_untouched_and_a_curve_is_drawn(drawn_copy: Workspace) -> None:
    train(drawn_copy, TINY, "cpu", Reporter())
    before, heard = contents(drawn_copy.root), Heard()
    found = find_lr(drawn_copy, TINY, "cpu", heard, n_steps=40)
    after = contents(drawn_copy.root)
    (png,) = set(after) - set(before)
    assert {path: after[path] for path in before} == before
    with Image.open(png) as image:
        assert image.format == "PNG"
    assert png.name == "lr-tiny.png"
    assert "steepest descent" in str(heard)
    assert "a tenth of the minimum's" in str(heard)
    assert any("█" in line for line in heard.lines)
    assert len(found.losses) > 10


def test_text_curves_rise_to_their_largest_value_and_fall_to_their_least() -> None:
    assert text_curve([0.0, 1.0], height=2) == [" █", "▁█"]
    assert text_curve([5.0, 5.0], height=1) == ["▁▁"]
    assert {len(line) for line in text_curve(np.random.default_rng(0).random(500), width=60)} == {
        60
    }


def test_recipes_that_take_no_steps_and_tests_of_too_few_end_in_one_line(
    drawn_copy: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(
        RecipeError,
        match="lite0_head solves its head, without steps: it has no learning rate to find",
    ):
        find_lr(drawn_copy, named("lite0_head"), "cpu", Reporter())
    with pytest.raises(RecipeError, match="at least 30 steps, got 3"):
        find_lr(drawn_copy, TINY, "cpu", Reporter(), n_steps=3)
    assert main(["lr", "--workspace", str(drawn_copy.root), "--recipe", "lite0_head"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
