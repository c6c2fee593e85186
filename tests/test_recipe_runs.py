"""Every recipe goes through all stages with random weights and trains exactly what it says.

Photos, sizes and epochs are small, and so are the backbones: VGGs with a sixteenth of their
channels and narrow dense layers, the smallest of the others' families.
"""

from collections.abc import Iterator
from functools import partialmethod
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import timm.models.vgg
import torch
from conftest import SHARED
from heard import Heard
from tiny import changed_names, names_with_gradient, random_network, trained_names
from torch import nn

from comp.__main__ import main
from comp.competition import COMPETITION
from comp.errors import RecipeError
from comp.kaggle import Kaggle
from comp.network.layers import arrays_of_layers, last_layer
from comp.network.preprocessing import preprocessing_of
from comp.network.surgery import freeze
from comp.options import override
from comp.predict.stage import predict
from comp.recipe import FineTune, Recipe
from comp.recipes import ENSEMBLES, GUIDE, RECIPES, chosen, listed, members, named
from comp.rehearsal.server import RehearsalServer
from comp.rehearsal.stage import check_learning
from comp.store import Workspace, derive_seed, read_json
from comp.submit.ledger import read_ledger
from comp.submit.stage import submit
from comp.train.checkpoints import arrays_of_network, new_network
from comp.train.finetune import set_training_mode
from comp.train.run import Run
from comp.train.stage import train

# one fit on 29 photos, scored on two parts of 10
SMALL = ["folds.n_photos=48", "folds.split=[0.2,0.2]", "model.weights=random"]
SHORT = ["training.epochs=1", "training.batch_size=8"]
TINY = {  # what else is smaller in each recipe; else pixels.size_px=32
    # new blocks of ConvNeXt are scaled by 1e-6, and so are their gradients: at the recipe's rate
    # two steps would round to none
    "convnext_tiny": ["model.backbone=convnext_atto", "pixels.size_px=32", "training.peak_lr=0.01"],
    "convnext_base": ["model.backbone=convnext_atto", "pixels.size_px=32", "training.peak_lr=0.01"],
    "vit_base": ["model.backbone=vit_tiny_patch16_224", "pixels.size_px=32"],
    "eva02_base": ["model.backbone=eva02_tiny_patch14_224", "pixels.size_px=28"],
    "dinov2_small": ["pixels.size_px=28"],
    "vgg16_mlp": ["pixels.size_px=32", "training.head.widths=[16,16]"],
    "vgg16_last_block": ["pixels.size_px=32", "training.clip_norm=1"],
    "inception_bottleneck": ["pixels.size_px=75", "training.peak_lr=1e-3"],
    "inception_last_blocks": ["pixels.size_px=75", "training.peak_lr=0.1", "training.clip_norm=1"],
}


@pytest.fixture(autouse=True)
def small_vggs(monkeypatch: pytest.MonkeyPatch) -> None:
    vgg = timm.models.vgg
    for name in ("vgg16", "vgg19"):
        widths = [layer if layer == "M" else layer // 16 for layer in vgg.cfgs[name]]
        monkeypatch.setitem(vgg.cfgs, name, widths)
    narrow = partialmethod(vgg.VGG.__init__, mlp_ratio=1 / 64)
    monkeypatch.setattr(vgg.VGG, "__init__", narrow)


@pytest.fixture(scope="module")
def inception_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights with batch norms that fit them; with fresh ones features reach 1e13."""
    network = random_network("inception_v3")
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # take the statistics of the next pass
    # photos are smooth, and noise has other statistics
    clouds = torch.randn(32, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    network.train()(torch.nn.functional.interpolate(clouds, size=75, mode="bicubic"))
    path = tmp_path_factory.mktemp("weights") / "inception.safetensors"
    safetensors.torch.save_file(network.state_dict(), path)
    return path


def tiny(name: str, inception_weights: Path) -> Recipe:
    recipe = named(name)
    settings = [*SMALL, *TINY.get(name, ["pixels.size_px=32"])]
    if isinstance(recipe.training, FineTune):
        settings += SHORT
    if name.startswith("inception"):
        settings.append(f"model.weights={inception_weights}")
    return override(recipe, settings)


def completed(workspace: Workspace, recipe: Recipe) -> Run:
    train(workspace, recipe, "cpu", Heard())
    return predict(workspace, COMPETITION, recipe, "cpu", Heard())


@pytest.fixture(scope="module")
def server(edition: tuple[Path, Path]) -> Iterator[RehearsalServer]:
    with RehearsalServer(*edition, daily_limit=100) as running:
        yield running


@pytest.fixture(scope="module")
def kaggle(server: RehearsalServer, tmp_path_factory: pytest.TempPathFactory) -> Kaggle:
    return Kaggle(COMPETITION, Heard(), env=server.environment(tmp_path_factory.mktemp("home")))


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_trained_predicted_and_scored_and_changes_only_the_parameters_it_names(
    name: str, drawn_copy: Workspace, inception_weights: Path, kaggle: Kaggle
) -> None:
    recipe = tiny(name, inception_weights)
    run = completed(drawn_copy, recipe)
    assert np.isfinite(pd.read_csv(run.folder / "test.csv")["prob"]).all()
    assert np.isfinite(pd.read_csv(run.oof)["logit"]).all()
    checkpoint = safetensors.torch.load_file(run.checkpoint(0))
    assert all(bool(torch.isfinite(tensor).all()) for tensor in checkpoint.values())
    assert submit(drawn_copy, COMPETITION, kaggle, run.folder, Heard()).public_score is not None
    if isinstance(recipe.training, FineTune):
        network = new_network(recipe, seed=derive_seed(recipe.seed, "head", 0))
        trained: set[str] = set()
        for phase in recipe.training.phases():
            freeze(network, phase.trainable)
            trained |= trained_names(network)
        arrays = arrays_of_network(network, recipe)
        if recipe.on_features:  # only a head is saved, and all of it trains
            arrays = arrays_of_layers(network.get_classifier())
            trained = set(arrays) - {"penalty"}
        before = {name: torch.from_numpy(array) for name, array in arrays.items()}
        changed = changed_names(before, checkpoint)
        if recipe.training.fuse_batch_norm:  # a batch norm's bias has what its convolution learnt
            assert len(changed) == len(trained)
        else:
            head = network.pretrained_cfg["classifier"]  # saved without the dropout before it
            assert changed == {name.replace(f"{head}.1.", f"{head}.") for name in trained}
        check_gradients(network, preprocessing_of(recipe).size_px)


def check_gradients(network: Any, size_px: int) -> None:
    """What trains gets a finite gradient, nothing else does, and no batch norm statistic moves."""
    nn.init.normal_(last_layer(network.get_classifier()).weight, std=0.1)
    set_training_mode(network)
    before = {key: buffer.clone() for key, buffer in network.named_buffers() if "running" in key}
    network(torch.randn(4, 3, size_px, size_px)).sum().backward()
    assert names_with_gradient(network) == trained_names(network)
    assert not changed_names(before, {key: network.get_buffer(key) for key in before})


def test_an_ensemble_goes_through_the_stages_like_a_recipe(
    drawn_copy: Workspace,
    server: RehearsalServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in server.environment(tmp_path / "home").items():
        monkeypatch.setenv(name, value)
    settings = ["model.weights=random", "pixels.size_px=32", "folds.n_photos=48", "folds.n=2"]

    def call(stage: str) -> int:
        words = ["--workspace", str(drawn_copy.root), "--recipe", "ensemble", "--set", *settings]
        return main([stage, *words])

    assert call("train") == 0
    for recipe in chosen("ensemble", settings):
        predict(drawn_copy, COMPETITION, recipe, "cpu", Heard())
    assert call("submit") == 1
    assert "are not blended yet: run `make predict`" in capsys.readouterr().err
    assert call("predict") == call("forecast") == call("submit") == 0
    (row,) = read_ledger(drawn_copy.ledger)
    assert row.public_score is not None
    blended = read_json(next(drawn_copy.runs.glob("blend-*")) / "run.json")["members"]
    assert {name.partition("-")[0] for name in blended} == set(ENSEMBLES["ensemble"])


def test_ensembles_name_recipes_and_stand_for_them() -> None:
    for name, parts in ENSEMBLES.items():
        assert set(parts) <= set(RECIPES)
        assert members(["x", name]) == ["x", *parts]
        recipes = chosen(name, ["seed=3"])
        assert [(recipe.name, recipe.seed) for recipe in recipes] == [(part, 3) for part in parts]
        says = f"{name} is several recipes, but one is needed here: {parts[0]}"
        with pytest.raises(RecipeError, match=says):
            named(name)


def test_the_guide_names_recipes_and_all_are_listed() -> None:
    assert {name for names in GUIDE.values() for name in names} <= set(RECIPES)
    assert len(GUIDE) == 4
    lines = listed()
    for name in [*RECIPES, *ENSEMBLES]:
        assert any(line.startswith(f"  {name} ") for line in lines)
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("inception_bottleneck", []),
        ("vgg16_last_layer", ["training.optimiser=adam", "training.epochs=20"]),
    ],
)
def test_a_tutorials_method_learns_on_a_backbone_whose_weights_are_packaged(
    name: str, settings: list[str], drawn_copy: Workspace
) -> None:
    small = ["model.backbone=tf_efficientnet_lite0", "pixels.size_px=96", "folds.split=[0.2,0.3]"]
    check_learning(completed(drawn_copy, override(named(name), [*small, *settings])))


def test_a_tutorials_method_takes_xceptions_weights_from_a_file(drawn_copy: Workspace) -> None:
    weights = SHARED / "weights" / "legacy_xception.safetensors"
    if not weights.exists():
        pytest.skip("no weights beside this checkout")
    settings = ["model.backbone=legacy_xception", "pixels.size_px=96", *SMALL]
    recipe = override(named("inception_bottleneck"), [*settings, f"model.weights={weights}"])
    losses = pd.read_csv(train(drawn_copy, recipe, "cpu", Heard()).history(0))["loss"]
    assert losses.iloc[-1] < 0.5 * losses.iloc[0]
