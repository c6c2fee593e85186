"""Cached outputs of the frozen part: shards on disk, and nothing frozen is computed twice."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import TINY
from torch import Tensor

from comp.competition import COMPETITION
from comp.errors import DataError, RecipeError, StaleError
from comp.network.views import CENTRE, View
from comp.options import override
from comp.predict.stage import predict
from comp.progress import Reporter
from comp.recipe import FineTune
from comp.recipes import named
from comp.store import Workspace
from comp.train import tuning
from comp.train.features import ArrayCache, FrozenNetwork
from comp.train.inputs import read_inputs
from comp.train.run import open_run
from comp.train.stage import train
from comp.train.tuning import NetworkFit, TailFit

TAIL = TINY.replace(
    training=FineTune(trainable="last:2", cached_views=2, epochs=2, batch_size=8, peak_lr=1e-3)
)


def test_a_tail_is_trained_scored_and_predicted_without_the_frozen_part_running_twice(
    drawn_copy: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def completed() -> tuple[pd.DataFrame, pd.DataFrame]:
        run = train(drawn_copy, TAIL, "cpu", Reporter())
        predict(drawn_copy, COMPETITION, TAIL, "cpu", Reporter())
        return pd.read_csv(run.oof), pd.read_csv(run.folder / "test.csv")

    oof, test = completed()
    assert np.isfinite(oof["logit"]).all()
    assert oof["logit"].std() > 0
    shutil.rmtree(drawn_copy.runs)
    again = "the frozen part ran again"
    monkeypatch.setattr(FrozenNetwork, "_compute", lambda *_: pytest.fail(again))
    for before, after in zip((oof, test), completed(), strict=True):
        assert after.equals(before)
    other_rate = override(TAIL, ["training.peak_lr=1e-4", "folds.fit=1"])
    train(drawn_copy, other_rate, "cpu", Reporter())
    monkeypatch.setattr("comp.train.features.code_of_outputs", lambda: "changed")
    with pytest.raises(pytest.fail.Exception, match=again):
        train(drawn_copy, override(other_rate, ["training.peak_lr=1e-5"]), "cpu", Reporter())


def test_heads_that_do_not_fit_into_memory_are_refused_before_any_features_are_computed(
    drawn_copy: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ["model.backbone=mobilenetv3_small_050", "model.weights=random", "folds.n=2"]
    recipe = override(named("lite0_head"), [*settings, "pixels.size_px=32"])
    need = 7 * 4 * 1024 * 79  # 79 photos can be decoded
    monkeypatch.setattr("comp.train.fits.free_memory", lambda: need - 1)
    says = "heads on 1,024 features of 79 photos need about 0.0 GB of memory"
    for _ in range(2):
        with pytest.raises(DataError, match=says):
            train(drawn_copy, recipe, "cpu", Reporter())
        assert not list(drawn_copy.features.glob("*/*/*.npy"))
    for free in (need, None):
        monkeypatch.setattr("comp.train.fits.free_memory", lambda free=free: free)
        train(drawn_copy, override(recipe, [f"seed={free or 1}"]), "cpu", Reporter())


def test_a_tail_scores_as_its_whole_network_does(drawn_copy: Workspace) -> None:
    """Cached activations through a fold's tail give the logits of its checkpoint on pixels."""
    recipe = override(TAIL, ["folds.n=2", "prediction.views=none", "training.fuse_batch_norm=true"])
    run = train(drawn_copy, recipe, "cpu", Reporter())
    inputs = read_inputs(run, Reporter())
    oof = pd.read_csv(run.oof, dtype={"id": str}).set_index("id")["logit"]
    ids = inputs.held_out_ids(0)
    whole = NetworkFit(FrozenNetwork(inputs, "cpu", Reporter()))
    (logits,) = whole.logits(0, ids).values()
    np.testing.assert_allclose(oof[ids], logits, atol=0.02)


def test_a_tails_features_are_halved_until_they_fit_into_memory(
    drawn_copy: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = read_inputs(open_run(drawn_copy, TAIL), Reporter())
    boundary = tuning.tail_boundary(inputs)

    def features() -> np.ndarray:
        frozen = FrozenNetwork(inputs, "cpu", Reporter(), boundary=boundary)
        return TailFit(frozen, boundary)._features

    def bounded(network: Any, module: str, images: Tensor) -> Tensor:
        if len(images) > 9:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return input_to(network, module, images)

    expected, input_to = features(), tuning.input_to
    monkeypatch.setattr(tuning, "input_to", bounded)
    np.testing.assert_allclose(features(), expected, atol=1e-5)


def test_cached_features_are_those_that_are_computed_in_the_order_of_the_ids(
    drawn_copy: Workspace,
) -> None:
    settings = ["model.layer=blocks.3", "model.pool=flatten", "model.weights=random"]
    recipe = override(named("lite0_head"), [*settings, "pixels.size_px=64"])
    inputs = read_inputs(open_run(drawn_copy, recipe), Reporter())
    frozen, ids = FrozenNetwork(inputs, "cpu", Reporter()), inputs.ids
    first, again = (frozen.outputs(order, CENTRE).all() for order in (ids, ids[::-1]))
    assert np.array_equal(first, again[::-1])
    rows = [int(row) for row in inputs.pixels.rows(ids)]
    computed = frozen.embedder(CENTRE.crops(inputs.pixels, rows, 64)).numpy()
    assert first.shape == computed.shape == (len(ids), 4 * 4 * 80)
    assert np.abs(first - computed).max() <= 1e-2 * np.abs(computed).max()


def test_a_view_that_shows_something_else_under_the_same_name_is_computed_anew(
    drawn_copy: Workspace,
) -> None:
    inputs = read_inputs(open_run(drawn_copy, TINY), Reporter())
    frozen = FrozenNetwork(inputs, "cpu", Reporter())
    before = frozen.outputs(inputs.ids, View(name="edited")).all()
    after = frozen.outputs(inputs.ids, View(name="edited", x=0.0)).all()
    assert (np.abs(before - after).max(1) > 0).all()


def test_activations_that_do_not_fit_on_disk_are_refused_before_any_work(
    drawn_copy: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(drawn_copy.root)
    full = shutil._ntuple_diskusage(usage.total, usage.total - 1000, 1000)  # type: ignore[attr-defined]
    read_inputs(open_run(drawn_copy, TAIL), Reporter())  # the pixels fit
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    monkeypatch.setattr(FrozenNetwork, "_compute", lambda *_: pytest.fail("work was done"))
    says = (
        r"activations before .* in 4 views take .* are free under .*: lower training\.cached_views"
    )
    with pytest.raises(DataError, match=says):
        train(drawn_copy, TAIL, "cpu", Reporter())


def test_arrays_come_back_from_their_shards_in_any_order(tmp_path: Path) -> None:
    cache, rng = ArrayCache(tmp_path), np.random.default_rng(0)
    small = rng.normal(size=(3, 2, 2)).astype(np.float32)
    large = np.full((2, 2, 2), 1e6, np.float32)  # overflows half precision
    cache.append(["a", "b", "c"], small)
    cache.append(["d", "e"], large)
    for each in (cache, ArrayCache(tmp_path)):
        rows = each.rows(["e", "a", "c", "a"])
        np.testing.assert_allclose(rows.take([1, 2, 3]), small[[0, 2, 0]], rtol=1e-3)
        assert rows.take([0])[0, 0, 0] == 1e6
        assert rows.shape == rows.all().shape == (4, 2, 2)
        assert each.missing(["f", "a", "f", "e"]) == ["f"]


def test_two_processes_can_add_shards_at_once(tmp_path: Path) -> None:
    caches = {name: ArrayCache(tmp_path) for name in "xy"}
    for step in range(3):
        for name, cache in caches.items():
            value = step + 10 * (name == "y")
            cache.append([f"{name}{step}"], np.full((1, 2), value, np.float32))
    rows = ArrayCache(tmp_path).rows(["y0", "x0", "y2", "x2", "x1"])
    assert rows.all()[:, 0].tolist() == [10, 0, 12, 2, 1]


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "another view's"])
def test_a_damaged_shard_is_named_in_one_line(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "view"
    ArrayCache(folder).append(["a", "b", "c"], np.zeros((3, 4), np.float32))
    (path,) = folder.glob("*.npy")
    whole = path.read_bytes()
    damaged = {"empty": b"", "cut": whole[:-4], "flipped": whole[:-2] + b"\1\0"}
    path.write_bytes(damaged.get(damage, whole))
    if damage == "another view's":
        folder = folder.rename(tmp_path / "other")
    with pytest.raises(StaleError, match=f"{path.name} is damaged .*: delete it"):
        ArrayCache(folder)


def test_caching_is_refused_where_everything_trains() -> None:
    says = r"training\.cached_views must be 0 where all layers train, got 2"
    with pytest.raises(RecipeError, match=says):
        override(TAIL, ["training.trainable=all"])
