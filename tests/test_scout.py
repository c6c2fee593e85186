"""The scout compares backbones on equal photos, ends in time, and leaves a table whatever happens."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from comp.train.workbench import save_network
from heard import Heard

from comp.__main__ import main
from comp.errors import RecipeError, UserError
from comp.network.backbone import build
from comp.network.device import find_device
from comp.progress import Reporter
from comp.recipe import Head, Model
from comp.store import Workspace
from comp.train import budget, features
from comp.train.scout import Clock, OutOfTimeError, Tried, advice, pareto, scout, seconds_of

CPU = find_device("cpu")
TINY = ("mobilenetv3_small_050=random", "resnet10t=random")
SMALL = ("pixels.size_px=32",)  # not the backbones' own 224, for which tests have no time


@pytest.fixture(autouse=True)
def quick_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of random features nothing can be learnt, and solving for 8 penalties takes its time."""
    monkeypatch.setattr("comp.train.scout.HEAD", Head(views="none", n_inner=2, penalties=(1e-1,)))


def table_of(workspace: Workspace) -> pd.DataFrame:
    return pd.read_csv(workspace.runs / "scout.csv").set_index("backbone")


def test_each_backbone_and_their_features_side_by_side_get_a_row_on_the_same_photos(
    drawn_copy: Workspace,
) -> None:
    heard = Heard()
    scout(drawn_copy, TINY, "cpu", heard, budget_s=600, settings=SMALL)
    table = table_of(drawn_copy)
    both = next(name for name in table.index if " + " in name)
    assert set(table.index) == {"mobilenetv3_small_050", "resnet10t", both}
    assert (table["low"] < table["log_loss"]).all()
    assert (table["log_loss"] < table["high"]).all()
    assert table["n_photos"].eq(79).all()
    assert table["n_parameters"][both] == table["n_parameters"].drop(both).sum()
    assert table["photos_per_s"][both] < table["photos_per_s"].drop(both).min()
    assert heard.lines[-1].startswith("fine-tune ")
    assert list(drawn_copy.features.rglob("*.npy"))


def test_features_come_from_where_training_keeps_them(
    drawn_copy: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = drawn_copy.root / "w.safetensors"
    save_network(weights, build(Model(backbone="mobilenetv3_small_050", weights="random")))
    name = f"mobilenetv3_small_050={weights}"
    first = scout(drawn_copy, [name], "cpu", Reporter(), budget_s=600, settings=SMALL)
    monkeypatch.setattr(
        features.Store, "append", lambda *_: pytest.fail("features were computed again")
    )
    again = scout(drawn_copy, [name], "cpu", Reporter(), budget_s=600, settings=SMALL)
    assert first["log_loss"].equals(again["log_loss"])


def test_a_backbone_without_weights_keeps_its_row_with_the_reason(drawn_copy: Workspace) -> None:
    heard = Heard()
    scout(
        drawn_copy, ["resnet18=/nowhere.pth", TINY[0]], "cpu", heard, budget_s=600, settings=SMALL
    )
    table = table_of(drawn_copy)
    assert "no weights at /nowhere.pth" in table["note"]["resnet18"]
    assert np.isnan(table["log_loss"]["resnet18"])
    assert not table["front"]["resnet18"]
    assert "no weights at /nowhere.pth" in str(heard)


def test_what_does_not_fit_into_the_budget_is_left_out_and_the_table_stays_valid(
    drawn_copy: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed, now = features.Embedder.embed, [0.0]

    def slow(self: features.Embedder, *rest: object) -> object:
        now[0] += 0 if self.network.pretrained_cfg["architecture"].startswith("mobilenet") else 200  # type: ignore[union-attr,index,operator]
        return embed(self, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(features.Embedder, "embed", slow)
    monkeypatch.setattr(budget, "time", SimpleNamespace(monotonic=lambda: now[0]))
    scout(drawn_copy, TINY, "cpu", Reporter(), budget_s=500, settings=SMALL)
    assert now[0] <= 500 + 200
    table = table_of(drawn_copy)
    assert list(table.index) == ["mobilenetv3_small_050", "resnet10t"]
    assert table["log_loss"]["mobilenetv3_small_050"] > 0
    assert table["note"]["resnet10t"].startswith("no time")


def test_nothing_scored_and_names_and_budgets_that_cannot_be_meant_end_in_one_line(
    drawn_copy: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(
        UserError,
        match=r"none of 1 backbones could be scored; resnet18: no weights at /nowhere\.pth",
    ):
        scout(drawn_copy, ["resnet18=/nowhere.pth"], "cpu", Reporter(), budget_s=600)
    with pytest.raises(RecipeError, match="timm knows no backbone 'resnet19x'"):
        scout(drawn_copy, [*TINY, "resnet19x"], "cpu", Reporter(), budget_s=600)
    with pytest.raises(RecipeError, match="at least two per fold"):
        scout(drawn_copy, TINY, "cpu", Reporter(), budget_s=600, settings=["folds.n_photos=5"])
    for text in ("soon", "10", "0m", "-5s"):
        assert main(["scout", "--workspace", str(tmp_path), f"--budget={text}"]) == 1
    assert capsys.readouterr().err.count("a budget reads 90s, 10m or 1.5h") == 4
    assert [seconds_of("90s"), seconds_of("10m"), seconds_of("1.5h")] == [90, 600, 5400]


def test_the_front_is_what_nothing_else_beats_in_one_and_matches_in_the_other() -> None:
    losses, costs = [0.1, 0.2, 0.15, 0.3, np.inf, 0.2], [9.0, 1.0, 3.0, 2.0, 0.1, 1.0]
    assert pareto(losses, costs).tolist() == [True, True, True, False, False, True]
    for one, other in itertools.combinations(np.random.default_rng(0).random((20, 2)), 2):
        assert pareto([one[0], other[0]], [one[1], other[1]]).any()


def test_the_advice_tells_a_difference_from_noise() -> None:
    rng = np.random.default_rng(0)
    shared = rng.exponential(0.03, 2000)
    best = Tried(name="slow", losses=shared, photo_s=0.1)
    near = Tried(name="near", losses=shared + rng.normal(0.0005, 0.03, 2000), photo_s=0.02)
    worse = Tried(name="worse", losses=shared + rng.normal(0.02, 0.03, 2000), photo_s=0.01)
    both = Tried(name="slow + near", losses=shared * 0.8, photo_s=0.12, n_together=2)
    lines = advice([worse, near, both, best], np.arange(2000))
    assert lines[0].startswith(
        "side by side, slow + near beats every single backbone: a gain of +0.0"
    )
    assert lines[-1].startswith("fine-tune slow: log loss 0.03")
    assert "or near, 5.0 times as fast and not measurably worse: " in lines[-1]
    noise = rng.normal(0, 0.03, 2000)
    weak = Tried(
        name="slow + near", losses=shared + noise - noise.mean() - 1e-5, photo_s=0.12, n_together=2
    )
    alike = [
        Tried(name=f"{s} s", losses=shared + noise - noise.mean() + 1e-5, photo_s=s)
        for s in (0.2, 0.07)
    ]
    lines = advice([best, weak, *alike], np.arange(2000))
    assert "does not measurably beat slow alone: a gain of +0.00001" in lines[0]
    assert lines[-1].endswith(f"fine-tune slow: log loss {shared.mean():.5f}")


def test_a_track_that_cannot_end_in_time_is_ended_and_its_first_step_warms_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0
    monkeypatch.setattr(budget, "time", SimpleNamespace(monotonic=lambda: now))

    def walk(clock: Clock, first_s: float, step_s: float) -> Iterator[int]:
        nonlocal now
        with clock.track("steps", 100, "steps") as advance:
            for step in range(100):
                now += step_s if step else first_s
                advance()
                yield step

    assert len(list(walk(Clock(Reporter(), 100), 30, 0.5))) == 100
    done = walk(Clock(Reporter(), 100), 1, 2)
    with pytest.raises(
        OutOfTimeError, match=r"no time: 9\d s of the budget left, about 1\d\d s needed"
    ):
        list(done)
