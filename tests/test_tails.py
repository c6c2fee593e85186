"""Tails: cached draws of the augmentation, shards on disk, and nothing frozen computed twice."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from comp.competition import COMPETITION
from comp.errors import DataError, RecipeError, StaleError
from comp.network.device import find_device
from comp.options import override
from comp.predict.stage import predict
from comp.progress import Reporter
from comp.recipe import Augmentation, FineTune, Model, Pixels, Recipe
from comp.store import Workspace
from comp.train import features
from comp.train.batches import CachedPhotos, Draw, batches_of
from comp.train.features import ArrayCache, FrozenNetwork, in_memory
from comp.train.fits import recipe_views
from comp.train.inputs import read_inputs
from comp.train.run import open_run
from comp.train.stage import train
from comp.train.tuning import NetworkFit

TAIL = Recipe(
    name="tiny_tail",
    model=Model(backbone="mobilenetv3_small_050", weights="random"),
    pixels=Pixels(size_px=32, canvas=1.25),
    training=FineTune(trainable="last:2", cached_views=2, epochs=2, batch_size=8, peak_lr=1e-3),
)


def test_a_tail_is_trained_scored_and_predicted_without_the_frozen_part_running_twice(
    drawn_copy: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train(drawn_copy, TAIL, "cpu", Reporter())
    oof = pd.read_csv(run.oof)
    assert np.isfinite(oof["logit"]).all()
    assert oof["logit"].std() > 0
    predict(drawn_copy, COMPETITION, TAIL, "cpu", Reporter())
    before = pd.read_csv(run.folder / "test.csv")
    shutil.rmtree(drawn_copy.runs)
    monkeypatch.setattr(
        FrozenNetwork, "_compute", lambda *_: pytest.fail("the frozen part ran again")
    )
    again = train(drawn_copy, TAIL, "cpu", Reporter())
    predict(drawn_copy, COMPETITION, TAIL, "cpu", Reporter())
    assert pd.read_csv(again.oof)["logit"].equals(oof["logit"])
    assert pd.read_csv(again.folder / "test.csv").equals(before)
    more = override(TAIL, ["training.peak_lr=1e-4", "folds.fit=1"])
    train(drawn_copy, more, "cpu", Reporter())  # another rate needs nothing new either


def test_a_tail_scores_as_its_whole_network_does(drawn_copy: Workspace) -> None:
    """Cached activations through a fold's tail give the logits of its checkpoint on pixels."""
    recipe = override(TAIL, ["folds.n=2", "prediction.views=none", "training.fuse_batch_norm=true"])
    run = train(drawn_copy, recipe, "cpu", Reporter())
    inputs = read_inputs(run, Reporter())
    oof = pd.read_csv(run.oof, dtype={"id": str}).set_index("id")["logit"]
    ids = inputs.held_out_ids(0)
    whole = NetworkFit(inputs, recipe_views(inputs), find_device("cpu"), Reporter())
    (logits,) = whole.logits(0, ids).values()
    np.testing.assert_allclose(oof[ids], logits, atol=0.02)


class Photos:
    """Three photos, of which the first and the last have the same canvas."""

    sha256s = ("a", "b", "c")

    def canvas(self, row: int) -> np.ndarray:
        return np.random.default_rng(row % 2).integers(0, 256, (40, 40, 3), dtype=np.uint8)


def test_a_draw_depends_on_the_photo_and_its_number_and_not_on_the_batch() -> None:
    first, second = (Draw(Augmentation(), 7, number) for number in range(2))
    both = first.crops(Photos(), [0, 1], 32)
    assert np.array_equal(both[1], first.crops(Photos(), [1], 32)[0])
    assert not np.array_equal(both[0], second.crops(Photos(), [0], 32)[0])
    assert not np.array_equal(both[0], first.crops(Photos(), [2], 32)[0])


def test_every_option_of_the_augmentation_gives_a_draw_another_name() -> None:
    other = {"crop": "pad-and-crop", "area": 0.5, "aspect": 1.5, "pad_px": 9}
    other |= {"flip": False, "colour": 0.9}
    assert set(other) == set(Augmentation.model_fields)
    changed = [Augmentation(**{name: value}) for name, value in other.items()]
    names = {Draw(options, 7, 0).name for options in [Augmentation(), *changed]}
    names |= {Draw(Augmentation(), 8, 0).name, Draw(Augmentation(), 7, 1).name}
    assert len(names) == len(other) + 3


def test_epochs_use_the_draws_in_turn() -> None:
    draws = [in_memory(np.full((4, 1), draw, np.float32)) for draw in range(3)]
    training = FineTune(epochs=3, batch_size=4)
    batches = batches_of(CachedPhotos(draws, range(4), [0.0] * 4), 4, training, seed=0)
    values = torch.cat([values for values, _ in batches]).flatten().long()
    assert values.bincount().tolist() == [4, 4, 4]


def test_activations_that_do_not_fit_on_disk_are_refused_before_any_work(
    drawn_copy: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(drawn_copy.root)
    full = shutil._ntuple_diskusage(usage.total, usage.total - 1000, 1000)  # type: ignore[attr-defined]
    inputs = read_inputs(open_run(drawn_copy, TAIL), Reporter())
    assert inputs.photos is not None  # the pixels fit
    monkeypatch.setattr(features.shutil, "disk_usage", lambda _: full)
    monkeypatch.setattr(FrozenNetwork, "_compute", lambda *_: pytest.fail("work was done"))
    says = r"activations before .* in 4 views take .* are free: lower training\.cached_views"
    with pytest.raises(DataError, match=says):
        train(drawn_copy, TAIL, "cpu", Reporter())


def test_arrays_come_back_from_their_shards_in_any_order(tmp_path: Path) -> None:
    cache, rng = ArrayCache(tmp_path), np.random.default_rng(0)
    small = rng.normal(size=(3, 2, 2)).astype(np.float32)
    large = np.full((2, 2, 2), 1e6, np.float32)  # more than half precision holds
    cache.append(["a", "b", "c"], small)
    cache.append(["d", "e"], large)
    for each in (cache, ArrayCache(tmp_path)):
        rows = each.rows(["e", "a", "c", "a"])
        np.testing.assert_allclose(rows.take([1, 2, 3]), small[[0, 2, 0]], rtol=1e-3)
        assert rows.take([0])[0, 0, 0] == 1e6
        assert rows.shape == rows.all().shape == (4, 2, 2)
        assert each.missing(["f", "a", "f", "e"]) == ["f"]


def test_two_processes_can_add_shards_at_once(tmp_path: Path) -> None:
    one, two = ArrayCache(tmp_path), ArrayCache(tmp_path)
    for step in range(3):
        for cache, name in ((one, "x"), (two, "y")):
            value = step + 10 * (name == "y")
            cache.append([f"{name}{step}"], np.full((1, 2), value, np.float32))
    rows = ArrayCache(tmp_path).rows(["y0", "x0", "y2", "x2", "x1"])
    assert rows.all()[:, 0].tolist() == [10, 0, 12, 2, 1]


@pytest.mark.parametrize("damage", ["empty", "cut", "one key less"])
def test_a_damaged_shard_is_named_in_one_line(tmp_path: Path, damage: str) -> None:
    ArrayCache(tmp_path).append(["a", "b", "c"], np.zeros((3, 4), np.float32))
    (path,) = tmp_path.glob("*.npy")
    if damage == "one key less":
        with path.open("wb") as file:
            np.save(file, np.array(["a", "b"], "S64"))
            np.save(file, np.zeros((3, 4), np.float16))
    else:
        path.write_bytes(path.read_bytes()[: 0 if damage == "empty" else -4])
    with pytest.raises(StaleError, match=f"{path.name} is damaged .*: delete it"):
        ArrayCache(tmp_path)


def test_caching_is_refused_where_everything_trains() -> None:
    says = r"training\.cached_views must be 0 where all layers train, got 2"
    with pytest.raises(RecipeError, match=says):
        override(TAIL, ["training.trainable=all"])
    with pytest.raises(RecipeError, match=r"pixels\.normalise"):
        override(TAIL, ["pixels.normalise=measured", "training.head_start=false"])
