"""The scout compares backbones on the same photos, ends in time and always leaves a table."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
from heard import Heard
from tiny import MODEL, random_network

from comp.__main__ import main
from comp.errors import RecipeError, UserError
from comp.network.embedder import Embedder
from comp.progress import Reporter
from comp.recipe import Head
from comp.store import Workspace
from comp.train import scout as scouting
from comp.train.features import ArrayCache
from comp.train.scout import Clock, OutOfTimeError, Tried, advice, scout, seconds_of

BACKBONES = ("mobilenetv3_small_050=random", "resnet10t=random")


@pytest.fixture(autouse=True)
def quick_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random features teach nothing, and solving for 8 penalties takes time."""
    monkeypatch.setattr(scouting, "HEAD", Head(views="none", n_inner=2, penalties=(1e-1,)))


def table_of(
    workspace: Workspace,
    backbones: Sequence[str] = BACKBONES,
    reporter: Reporter | None = None,
    budget: str = "10m",
    settings: Sequence[str] = ("pixels.size_px=32",),  # the backbones' own 224 takes longer
) -> pd.DataFrame:
    options: dict[str, Any] = {"budget": budget, "settings": settings}
    scout(workspace, backbones, "cpu", reporter or Reporter(), **options)
    return pd.read_csv(workspace.runs / "scout.csv").set_index("backbone")


def test_each_backbone_gets_a_row_on_the_same_photos(drawn_copy: Workspace) -> None:
    heard = Heard()
    table = table_of(drawn_copy, reporter=heard)
    assert set(table.index) == {"mobilenetv3_small_050", "resnet10t"}
    assert (table["low"] < table["log_loss"]).all()
    assert (table["log_loss"] < table["high"]).all()
    assert table["n_photos"].eq(79).all()
    assert heard.lines[-1].startswith("fine-tune ")


def test_features_are_cached_under_the_key_of_the_weights(
    drawn_copy: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = drawn_copy.root / "w.safetensors"
    safetensors.torch.save_file(random_network(MODEL.backbone).state_dict(), weights)
    first = table_of(drawn_copy, [f"{MODEL.backbone}={weights}"])
    monkeypatch.setattr(ArrayCache, "append", lambda *_: pytest.fail("computed again"))
    again = table_of(drawn_copy, [f"{MODEL.backbone}={weights}"])
    assert first["log_loss"].equals(again["log_loss"])


def test_a_backbone_without_weights_keeps_its_row_with_the_reason(drawn_copy: Workspace) -> None:
    heard = Heard()
    table = table_of(drawn_copy, ["resnet18=/nowhere.pth", BACKBONES[0]], heard)
    assert "no weights at /nowhere.pth" in table["note"]["resnet18"]
    assert np.isnan(table["log_loss"]["resnet18"])
    assert "no weights at /nowhere.pth" in str(heard)


def test_what_does_not_fit_into_the_budget_is_left_out_and_the_table_stays_valid(
    drawn_copy: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed, now = Embedder.__call__, 0.0

    def slow(self: Embedder, *rest: Any) -> object:
        nonlocal now
        name = self.network.pretrained_cfg["architecture"]  # type: ignore[index]
        now += 0.1 if name.startswith("mobilenet") else 200  # type: ignore[union-attr,operator]
        return embed(self, *rest)

    monkeypatch.setattr(Embedder, "__call__", slow)
    monkeypatch.setattr(scouting, "time", SimpleNamespace(monotonic=lambda: now))
    table = table_of(drawn_copy, budget="500s")
    assert now <= 500 + 200
    assert list(table.index) == ["mobilenetv3_small_050", "resnet10t"]
    assert table["log_loss"]["mobilenetv3_small_050"] > 0
    assert table["note"]["resnet10t"].startswith("no time")


def test_a_scout_that_scores_nothing_and_bad_names_and_budgets_end_in_one_line(
    drawn_copy: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    says = r"no backbone could be scored \(1 tried\); resnet18: no weights at /nowhere\.pth"
    with pytest.raises(UserError, match=says):
        table_of(drawn_copy, ["resnet18=/nowhere.pth"])
    with pytest.raises(RecipeError, match="timm knows no backbone 'resnet19x'"):
        table_of(drawn_copy, [*BACKBONES, "resnet19x"])
    with pytest.raises(RecipeError, match="at least two per fold"):
        table_of(drawn_copy, settings=["folds.n_photos=5"])
    for text in ("soon", "10", "0m", "-5s"):
        assert main(["scout", "--workspace", str(tmp_path), f"--budget={text}"]) == 1
    assert capsys.readouterr().err.count("a budget reads 90s, 10m or 1.5h") == 4
    assert [seconds_of("90s"), seconds_of("10m"), seconds_of("1.5h")] == [90, 600, 5400]


def test_the_advice_distinguishes_a_difference_from_noise() -> None:
    rng = np.random.default_rng(0)
    shared = rng.exponential(0.03, 2000)
    best = Tried(name="slow", losses=shared, photo_s=0.1)
    near = Tried(name="near", losses=shared + rng.normal(0.0005, 0.03, 2000), photo_s=0.02)
    worse = Tried(name="worse", losses=shared + rng.normal(0.02, 0.03, 2000), photo_s=0.01)
    line = advice([worse, near, best], np.arange(2000))
    assert line.startswith("fine-tune slow: log loss 0.03")
    assert "or near, 5.0 times as fast and not measurably worse: " in line
    alike = [Tried(name=f"{s} s", losses=shared + 1e-5, photo_s=s) for s in (0.2, 0.07)]
    line = advice([best, *alike], np.arange(2000))
    assert line == f"fine-tune slow: log loss {shared.mean():.5f}"


def test_work_that_cannot_end_in_time_is_ended_and_its_first_step_is_a_warm_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0
    monkeypatch.setattr(scouting, "time", SimpleNamespace(monotonic=lambda: now))

    def steps(first_s: float, step_s: float) -> Iterator[int]:
        nonlocal now
        with Clock(100).track("steps", 100, "steps") as advance:
            for step in range(100):
                now += step_s if step else first_s
                advance()
                yield step

    assert len(list(steps(30, 0.5))) == 100
    says = r"no time: 9\d s of the budget left, about 1\d\d s needed"
    with pytest.raises(OutOfTimeError, match=says):
        list(steps(1, 2))
