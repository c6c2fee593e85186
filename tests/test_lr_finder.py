"""The range test raises the learning rate until the loss diverges, and changes no file."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from heard import Heard
from PIL import Image
from tiny import TINY, contents, quiet
from torch import Tensor

from comp import plots
from comp.__main__ import main
from comp.errors import RecipeError, TrainingError
from comp.options import override
from comp.progress import Reporter
from comp.recipes import named
from comp.store import Workspace
from comp.train.lr_finder import HIGHEST, LOWEST, RangeTest, find_lr, range_test, smooth
from comp.train.run import open_run
from comp.train.stage import train

ONE_FOLD = override(TINY, ["folds.fit=1"])
RATES = np.geomspace(LOWEST, HIGHEST, 100)


def endless() -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        yield torch.zeros(1), torch.zeros(1)


def costs(losses: list[float]) -> Callable[..., Tensor]:
    """A step that costs one of `losses` after the other."""
    left = iter(losses)
    return lambda *_: torch.tensor(next(left))


def result_of(losses: list[float]) -> RangeTest:
    return range_test(costs(losses), endless(), len(losses), quiet)


def bowl(best: float, explodes: float) -> list[float]:
    """Losses of 100 steps that fall towards `best` and explode beyond `explodes`."""
    falling = 0.7 - 0.5 / (1 + (best / RATES) ** 1.5)
    return list(falling + (RATES / explodes) ** 4)


def test_smoothing_leaves_a_constant_alone_from_its_first_step_on() -> None:
    assert smooth([0.3] * 50) == pytest.approx(0.3)
    assert smooth([1.0, 0.0])[-1] == pytest.approx(0.9 / 1.9)


def test_the_learning_rate_grows_by_a_constant_factor_until_the_loss_diverges() -> None:
    rates: list[float] = []
    cost = costs(bowl(1e-4, 1e-2))

    def take_step(_: Tensor, __: Tensor, rate: float) -> Tensor:
        rates.append(rate)
        return cost()

    found = range_test(take_step, endless(), 100, quiet)
    assert np.diff(np.log(rates)) == pytest.approx(math.log(HIGHEST / LOWEST) / 99)
    assert found.diverged
    assert found.falls
    assert 1e-2 < found.rates[-1] < 1e-1
    steepest, tenth, divergence = found.suggestions().values()
    assert 1e-5 < steepest < 1e-3
    assert steepest < tenth * 10
    assert tenth == pytest.approx(found.rates[found.least] / 10)
    assert divergence == found.rates[-1]


def test_the_end_that_diverges_is_not_shown_because_it_would_flatten_the_curve() -> None:
    found = range_test(costs(bowl(1e-4, 1e-2)), endless(), 100, quiet)
    shown = found.smoothed[found.shown]
    assert found.smoothed[-1] > 1.2 * shown.max()
    assert found.least < len(shown) < len(found.losses)
    assert shown.max() == found.smoothed[: found.least + 1].max()
    flat = result_of([0.5] * 40)
    assert len(flat.losses[flat.shown]) == 40


def test_a_loss_that_never_diverges_is_followed_to_the_highest_rate() -> None:
    found = result_of([0.5] * 40)
    assert not found.diverged
    assert found.rates[-1] == HIGHEST


def test_a_loss_that_becomes_infinite_ends_the_test_and_one_that_starts_so_is_refused() -> None:
    found = result_of([0.5] * 30 + [math.nan] * 70)
    assert found.diverged
    assert len(found.losses) == 30
    with pytest.raises(TrainingError, match="not finite after 0 steps"):
        result_of([math.nan] * 100)


def test_steepest_descent_is_where_the_smoothed_loss_falls_fastest() -> None:
    losses = np.array([0.7] * 50 + [0.2] * 10 + [0.2 + step * 0.01 for step in range(40)])
    found = RangeTest(rates=RATES, losses=losses, diverged=False)
    assert RATES[48] < found.suggestions()["steepest descent"] < RATES[54]


def test_a_loss_that_is_least_at_the_start_is_noticed_and_one_odd_photo_does_not_end_it() -> None:
    rng = np.random.default_rng(0)
    losses = [float(loss) for loss in rng.exponential(0.005, 60)] + [5.0] * 40
    losses[30] = 0.9
    found = result_of(losses)
    assert 60 < len(found.losses) < 65
    assert not found.falls


def test_files_are_unchanged_and_a_curve_is_drawn(drawn_copy: Workspace) -> None:
    train(drawn_copy, ONE_FOLD, "cpu", Reporter())
    before, heard = contents(drawn_copy.root), Heard()
    found = find_lr(drawn_copy, ONE_FOLD, "cpu", heard, n_steps=40)
    after = contents(drawn_copy.root)
    (png,) = set(after) - set(before)
    assert {path: after[path] for path in before} == before
    with Image.open(png) as image:
        assert image.format == "PNG"
    assert png.name == f"lr-{open_run(drawn_copy, ONE_FOLD).name}-40.png"
    other = override(ONE_FOLD, ["training.batch_size=4"])
    for recipe in (ONE_FOLD, other):
        find_lr(drawn_copy, recipe, "cpu", Reporter(), n_steps=30)
    assert len(list(drawn_copy.runs.glob("lr-*.png"))) == 3
    assert "steepest descent" in str(heard)
    assert "a tenth of the minimum's" in str(heard)
    assert len(found.losses) > 10


@pytest.mark.parametrize(("y", "ticks"), [([0.68, 0.7], {"0.69"}), ([5, 0.02], {"0.1", "1"})])
def test_a_curves_ticks_are_plain_numbers(
    y: list[float], ticks: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plots.plt, "close", lambda _: None)
    words = dict.fromkeys(("title", "x_label", "y_label"), "")
    plots.curve_png(tmp_path / "a.png", [1e-6, 1.0], {"loss": y}, {}, **words)
    axes = plots.plt.gcf().axes[0]
    labels = (axes.get_xticklabels(which="both"), axes.get_yticklabels(which="both"))
    x_ticks, y_ticks = ({label.get_text() for label in each} - {""} for each in labels)
    assert {"1e-06", "0.01", "1"} <= {tick.replace("\N{MINUS SIGN}", "-") for tick in x_ticks}
    assert ticks <= y_ticks
    assert "$" not in str(x_ticks | y_ticks)


def test_recipes_that_take_no_steps_and_tests_of_too_few_end_in_one_line(
    drawn_copy: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RecipeError, match="lite0_head solves its head and has no learning rate"):
        find_lr(drawn_copy, named("lite0_head"), "cpu", Reporter())
    with pytest.raises(RecipeError, match="at least 30 steps, got 3"):
        find_lr(drawn_copy, TINY, "cpu", Reporter(), n_steps=3)
    assert main(["lr", "--workspace", str(drawn_copy.root), "--recipe", "lite0_head"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
