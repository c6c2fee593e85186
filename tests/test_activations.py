"""Partly frozen networks: cut at the right place, equal with and without the cache, and nothing computed twice."""

import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from comp.competition import COMPETITION
from comp.errors import DataError, RecipeError, StaleError
from comp.options import override
from comp.predict.stage import predict
from comp.progress import Reporter
from comp.recipe import FineTune, Model, Phase, Pixels, Recipe
from comp.store import Workspace
from comp.train import features
from comp.train.activations import find_boundary, given_to, resume
from comp.train.backbone import build, input_of
from comp.train.batches import Draw, InMemory, kept_batches
from comp.train.device import find_device
from comp.train.finetune import fine_tune, set_training
from comp.train.folding import fold_batch_norm
from comp.train.freezing import freeze, freeze_phases
from comp.train.heads import finished
from comp.train.kept import Store
from comp.train.stage import train
from comp.train.views import View, as_images, normalise
from comp.train.workbench import load_network, open_workbench

CPU = find_device("cpu")
TAIL = Recipe(
    name="tiny_tail",
    model=Model(backbone="mobilenetv3_small_050", weights="random"),
    pixels=Pixels(size_px=32, canvas=1.25),
    training=FineTune(trainable="last:2", cached_views=2, epochs=2, batch_size=8, peak_lr=1e-3),
)
CASES = [
    ("resnet10t", "last:1", 32, "layer4.0"),
    ("mobilenetv3_small_050", "last:2", 32, "blocks.5.0.conv"),
    ("mobilenetv3_small_050", "head", 32, "classifier"),
    ("vit_tiny_patch16_224", "last:3", 32, "blocks.9"),
    ("eva02_tiny_patch14_224", "from:blocks.11", 28, "blocks.11"),
    ("test_convnext", "from:stages.2", 32, None),
]


def ready(name: str, trains: str, size_px: int) -> nn.Module:
    torch.manual_seed(0)
    network = build(Model(backbone=name, weights="random"), size_px=size_px)
    freeze(network, trains)
    return network


@pytest.mark.parametrize(("name", "trains", "size_px", "module"), CASES)
def test_nothing_that_trains_runs_before_the_boundary_and_the_rest_says_what_the_whole_says(
    name: str, trains: str, size_px: int, module: str | None
) -> None:
    network = ready(name, trains, size_px)
    boundary = find_boundary(network, size_px)
    assert module in (None, boundary.module)
    images = torch.rand(3, 3, size_px, size_px)
    with torch.no_grad():
        whole = network(images)
    ran: list[str] = []
    for called, part in network.named_modules():
        part.register_forward_pre_hook(lambda *_, called=called: ran.append(called))  # type: ignore[misc]
    kept = given_to(network, boundary.module, images).detach()
    owners = {
        called.rpartition(".")[0]
        for called, parameter in network.named_parameters()
        if parameter.requires_grad
    }
    assert not set(ran[:-1]) & owners - {boundary.module}
    ran.clear()
    names = list(network.state_dict())
    undo = resume(network, boundary, size_px)
    torch.testing.assert_close(network(kept), whole)
    network(kept).sum().backward()
    for called, parameter in network.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, called
    assert list(network.state_dict()) == names
    undo()
    torch.testing.assert_close(network(images), whole)


def test_a_network_whose_parts_all_see_the_input_is_refused() -> None:
    network = ready("coat_tiny", "last:1", 224)
    with pytest.raises(
        RecipeError,
        match=r"coat_tiny cannot be cut where its trained part begins: set training\.cached_views=0",
    ):
        find_boundary(network, 224)


def test_the_boundary_lies_before_what_any_phase_trains() -> None:
    network = ready("resnet10t", "head", 32)
    freeze_phases(network, FineTune(trainable="head", first=Phase(trainable="last:1", epochs=1)))
    assert find_boundary(network, 32).module == "layer4.0"


@pytest.mark.parametrize("fuse_batch_norm", [False, True])
def test_training_on_kept_activations_gives_the_losses_and_weights_of_training_on_pixels(
    fuse_batch_norm: bool,
) -> None:
    size_px, training = (
        32,
        FineTune(
            trainable="last:2",
            epochs=3,
            batch_size=4,
            peak_lr=1e-3,
            ema=0.0,
            fuse_batch_norm=fuse_batch_norm,
        ),
    )
    shown = input_of(TAIL.model)
    squares = torch.from_numpy(
        np.random.default_rng(0).integers(0, 256, (16, size_px, size_px, 3), dtype=np.uint8)
    )
    labels = [float(row % 2) for row in range(16)]
    losses, weights = [], []
    for cached in (False, True):
        network = ready("mobilenetv3_small_050", "last:2", size_px)
        if fuse_batch_norm:
            assert (
                fold_batch_norm(network, partial(network, torch.zeros(1, 3, size_px, size_px))) > 20
            )
        for module in network.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        given, seen = InMemory(squares.numpy()), shown  # type: ignore[arg-type]
        freeze(network, "last:2")
        if cached:
            boundary, state = find_boundary(network, size_px), network.state_dict()
            state["classifier.weight"].zero_()
            state["classifier.bias"].zero_()
            images = normalise(squares.permute(0, 3, 1, 2), shown, torch.float32)
            half = given_to(network, boundary.module, images).detach().half()  # as they are stored
            given, seen = InMemory(half.float().numpy()), None  # type: ignore[assignment]
            resume(network, boundary, size_px)
        batches = kept_batches([given], range(16), labels, training, seed=0)
        points = fine_tune(
            network, batches, len(batches), training, seen, CPU, lambda n=1, note="": None
        )
        losses.append([point.loss for point in points])
        weights.append(
            torch.cat([parameter.detach().flatten() for parameter in network.parameters()])
        )
    assert losses[0] == pytest.approx(losses[1], abs=2e-3)
    assert losses[0][0] != losses[0][-1]
    torch.testing.assert_close(weights[0], weights[1], atol=2e-3, rtol=0)


def test_a_norm_at_which_the_trained_part_begins_is_not_folded_into_what_is_kept() -> None:
    torch.manual_seed(0)
    network = build(Model(backbone="mobilenetv3_small_050", weights="random"), size_px=32)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -1, 1)
            nn.init.uniform_(module.bias, -1, 1)
    freeze(network, "from:blocks.5.0.bn1")
    boundary = find_boundary(network, 32)
    assert boundary.module == "blocks.5.0.bn1"
    example = torch.from_numpy(
        np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    )
    shown = input_of(TAIL.model)
    expected = given_to(
        network, boundary.module, as_images(example, View(name="centre"), 32, shown, torch.float32)
    ).detach()
    embedder, _ = features.make_embedder(network, shown, 32, CPU, example, boundary)
    made = embedder.embed(example, View(name="centre")).float()
    assert float((made - expected).norm() / expected.norm()) < features.BF16_TOLERANCE


def test_frozen_layers_are_left_in_evaluation_mode_so_that_both_paths_see_the_same() -> None:
    network = build(
        Model(backbone="vit_tiny_patch16_224", weights="random", drop_path=0.5), size_px=32
    )
    freeze(network, "last:3")
    set_training(network)
    modes = {
        name: module.training
        for name, module in network.named_modules()
        if name.startswith("blocks.") and name.count(".") == 1
    }
    trains = {
        name: any(parameter.requires_grad for parameter in network.get_submodule(name).parameters())
        for name in modes
    }
    assert modes == trains
    assert set(modes.values()) == {False, True}


def test_a_tail_is_trained_scored_and_predicted_without_the_frozen_part_running_twice(
    drawn_copy: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train(drawn_copy, TAIL, CPU, Reporter())
    oof = pd.read_csv(run.oof)
    assert np.isfinite(oof["logit"]).all()
    assert oof["logit"].std() > 0
    predict(drawn_copy, COMPETITION, TAIL, CPU, Reporter())
    before = pd.read_csv(run.folder / "test.csv")
    shutil.rmtree(drawn_copy.runs)
    monkeypatch.setattr(features, "_compute", lambda *_: pytest.fail("the frozen part ran again"))
    again = train(drawn_copy, TAIL, CPU, Reporter())
    predict(drawn_copy, COMPETITION, TAIL, CPU, Reporter())
    assert pd.read_csv(again.oof)["logit"].equals(oof["logit"])
    assert pd.read_csv(again.folder / "test.csv").equals(before)
    more = override(TAIL, ["training.peak_lr=1e-4", "folds.fit=1"])
    train(drawn_copy, more, CPU, Reporter())  # another rate needs nothing new either


def test_a_tail_scores_as_its_whole_network_does(drawn_copy: Workspace) -> None:
    """What is kept and the fold's last part together say what the fold's checkpoint says of the pixels."""
    recipe = override(TAIL, ["folds.n=2", "prediction.views=none", "training.fuse_batch_norm=true"])
    run = train(drawn_copy, recipe, CPU, Reporter())

    bench = open_workbench(run, CPU, Reporter())
    oof = pd.read_csv(run.oof, dtype={"id": str}).set_index("id")["logit"]
    network = load_network(run.checkpoint(0), recipe, CPU)
    ids = list(bench.photos["id"][bench.photos["fold"] == 0])
    embedder, _ = bench.embedder(network)
    (logits,) = bench.view_logits_of_pixels(
        embedder, finished(network.get_classifier()), ids
    ).values()
    np.testing.assert_allclose(oof[ids], logits, atol=0.02)


def test_draws_are_the_photos_own_and_taken_in_turn() -> None:
    class Photos:
        sha256s = ("a", "b", "c")

        def canvas(self, row: int) -> np.ndarray:
            return np.random.default_rng(row % 2).integers(0, 256, (40, 40, 3), dtype=np.uint8)

    training = FineTune(trainable="head", cached_views=2)
    first, second = (Draw(training, 7, number) for number in range(2))
    both = first.squares(Photos(), [0, 1], 32)
    assert np.array_equal(both[1], first.squares(Photos(), [1], 32)[0])  # whatever it is cut with
    assert not np.array_equal(both[0], second.squares(Photos(), [0], 32)[0])
    assert not np.array_equal(
        both[0], first.squares(Photos(), [2], 32)[0]
    )  # the same canvas of another photo
    assert (
        len(
            {
                first.name,
                second.name,
                Draw(training.replace(colour=0.5), 7, 0).name,
                Draw(training, 8, 0).name,
            }
        )
        == 4
    )
    held = [InMemory(np.full((4, 1), draw, np.float32)) for draw in range(3)]
    batches = list(
        kept_batches(held, range(4), [0.0] * 4, training.replace(epochs=3, batch_size=4), seed=0)
    )
    assert torch.cat([values for values, _ in batches]).flatten().long().bincount().tolist() == [
        4,
        4,
        4,
    ]


def test_what_would_not_fit_is_refused_before_any_work(
    drawn_copy: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "MAX_BYTES", 1000)
    monkeypatch.setattr(features, "_compute", lambda *_: pytest.fail("work was done"))
    with pytest.raises(
        DataError,
        match=r"activations before .* in 4 views take .* the bound is 0 GB: lower training\.cached_views",
    ):
        train(drawn_copy, TAIL, CPU, Reporter())


def test_a_store_gives_back_what_was_kept_across_shards_and_says_so_where_it_is_damaged(
    tmp_path: Path,
) -> None:
    store, rng = Store(tmp_path), np.random.default_rng(0)
    small, large = (
        rng.normal(size=(3, 2, 2)).astype(np.float32),
        np.full((2, 2, 2), 1e6, np.float32),
    )
    store.append(["a", "b", "c"], small)
    store.append(["d", "e"], large)  # more than half precision holds
    rows = store.rows(["e", "a", "c", "a"])
    np.testing.assert_allclose(rows.take([1, 2, 3]), small[[0, 2, 0]], rtol=1e-3)
    assert rows.take([0])[0, 0, 0] == 1e6
    assert rows.shape == (4, 2, 2)
    assert rows.all().shape == (4, 2, 2)
    unfinished = tmp_path / "00002-x.npy"
    unfinished.write_bytes(b"half a shard")
    assert set(store.keys()) == set("abcde")
    next(iter(tmp_path.glob("00000*.npy"))).write_bytes(b"")
    with pytest.raises(StaleError, match="is damaged: delete"):
        store.rows(["a"])


def test_caching_is_refused_where_everything_trains() -> None:
    with pytest.raises(
        RecipeError, match=r"training\.cached_views must be 0 where all layers train, got 2"
    ):
        override(TAIL, ["training.trainable=all"])
    with pytest.raises(RecipeError, match=r"pixels\.normalise"):
        override(TAIL, ["pixels.normalise=measured", "training.head_start=false"])
