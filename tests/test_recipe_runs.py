"""Every named recipe runs through training, prediction and submission with random weights, and trains what it says and nothing else.

Photos, sizes and epochs are small, and so are the backbones: VGGs with a sixteenth of their channels and few numbers between
their dense layers, the smallest of the others' families.
"""

from collections.abc import Iterator
from functools import partialmethod
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import timm.models.vgg
import torch
from conftest import SHARED
from heard import Heard
from torch import nn

from comp.__main__ import main
from comp.competition import COMPETITION
from comp.errors import RecipeError
from comp.kaggle import Kaggle
from comp.network.backbone import build
from comp.network.freezing import freeze
from comp.network.heads import last_layer, tensors_of, trained_head
from comp.network.preprocessing import preprocessing_of
from comp.options import override
from comp.predict.stage import predict
from comp.recipe import FineTune, Model, Recipe
from comp.recipes import ENSEMBLES, GUIDE, RECIPES, chosen, listed, members, named
from comp.rehearsal.drawing import write_edition
from comp.rehearsal.server import RehearsalServer
from comp.rehearsal.stage import check_learning
from comp.seeds import derive_seed
from comp.store import Workspace, read_json
from comp.submit.ledger import read_ledger
from comp.submit.stage import submit
from comp.train.checkpoints import new_network
from comp.train.finetune import set_training_mode
from comp.train.run import Run
from comp.train.stage import train

# One fit of 29 photos, scored on two parts of 10.
SMALL = [
    "folds.n_photos=48",
    "folds.split=[0.2,0.2]",
    "model.weights=random",
    "training.epochs=1",
    "training.batch_size=8",
]
TINY = {  # what is smaller in each recipe, besides
    # Fresh blocks of ConvNeXt are scaled by 1e-6, and so are their gradients: at the recipe's rate two steps would round to none.
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
    for name in ("vgg16", "vgg19"):
        layers = timm.models.vgg.cfgs[name]
        monkeypatch.setitem(
            timm.models.vgg.cfgs, name, [layer if layer == "M" else layer // 16 for layer in layers]
        )
    monkeypatch.setattr(
        timm.models.vgg.VGG,
        "__init__",
        partialmethod(timm.models.vgg.VGG.__init__, mlp_ratio=1 / 64),
    )


@pytest.fixture(scope="module")
def settled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of InceptionV3 with batch norms that fit them: with fresh ones its features are of the order of 1e13."""
    network = build(Model(backbone="inception_v3", weights="random"))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the statistics of the next pass, and of nothing before it
    clouds = torch.randn(
        32, 3, 5, 5, generator=torch.Generator().manual_seed(0)
    )  # photos are smooth: noise has other statistics
    network.train()(torch.nn.functional.interpolate(clouds, size=75, mode="bicubic"))
    path = tmp_path_factory.mktemp("weights") / "inception.safetensors"
    safetensors.torch.save_file(network.state_dict(), path)
    return path


def tiny(name: str, weights: Path | None = None) -> Recipe:
    recipe = named(name)
    settings = [
        knob
        for knob in SMALL
        if isinstance(recipe.training, FineTune) or not knob.startswith("training")
    ]
    given = [f"model.weights={weights}"] if weights and name.startswith("inception") else []
    return override(recipe, [*settings, *TINY.get(name, ["pixels.size_px=32"]), *given])


def completed(workspace: Workspace, recipe: Recipe) -> Run:
    train(workspace, recipe, "cpu", Heard())
    return predict(workspace, COMPETITION, recipe, "cpu", Heard())


@pytest.fixture(scope="module")
def edition(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_edition(
        tmp_path_factory.mktemp("edition"), seed=2, n_train=80, n_test=20
    )  # the same as `drawn` is of


@pytest.fixture(scope="module")
def server(edition: tuple[Path, Path]) -> Iterator[RehearsalServer]:
    with RehearsalServer(*edition, daily_limit=100) as running:
        yield running


@pytest.fixture(scope="module")
def kaggle(server: RehearsalServer, tmp_path_factory: pytest.TempPathFactory) -> Kaggle:
    return Kaggle(COMPETITION, Heard(), env=server.environment(tmp_path_factory.mktemp("home")))


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_trains_predicts_and_is_scored_and_changes_the_parameters_that_it_names_and_no_others(
    name: str, drawn_copy: Workspace, settled: Path, kaggle: Kaggle
) -> None:
    recipe = tiny(name, settled)
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
            trained |= {
                key for key, parameter in network.named_parameters() if parameter.requires_grad
            }
        before = network.state_dict()
        if recipe.on_features:  # then nothing but a head is kept, and all of it trains
            before = tensors_of(trained_head(network.get_classifier()))  # type: ignore[operator]
            trained = set(before) - {"penalty"}
        assert {
            key for key, tensor in checkpoint.items() if not torch.equal(tensor, before[key])
        } == trained
        check_gradients(network, preprocessing_of(recipe).size_px)


def check_gradients(network: nn.Module, size_px: int) -> None:
    """What trains gets a finite gradient, nothing else gets one, and no statistic of a batch norm moves."""
    nn.init.normal_(last_layer(network.get_classifier()).weight, std=0.1)  # type: ignore[operator]
    set_training_mode(network)
    statistics = {
        key: buffer.clone() for key, buffer in network.named_buffers() if "running" in key
    }
    network(torch.randn(4, 3, size_px, size_px)).sum().backward()
    for key, parameter in network.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, key
        assert parameter.grad is None or bool(torch.isfinite(parameter.grad).all()), key
    assert all(
        torch.equal(buffer, statistics[key])
        for key, buffer in network.named_buffers()
        if key in statistics
    )


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

    def called(stage: str) -> int:
        return main(
            [stage, "--workspace", str(drawn_copy.root), "--recipe", "ensemble", "--set", *settings]
        )

    assert called("train") == 0
    for recipe in chosen("ensemble", settings):
        predict(drawn_copy, COMPETITION, recipe, "cpu", Heard())
    assert called("submit") == 1
    assert "are not blended yet: run `make predict`" in capsys.readouterr().err
    assert called("predict") == called("forecast") == called("submit") == 0
    (row,) = read_ledger(drawn_copy.ledger)
    assert row.public_score is not None
    made_of = read_json(next(drawn_copy.runs.glob("blend-*")) / "run.json")["members"]
    assert {name.partition("-")[0] for name in made_of} == set(ENSEMBLES["ensemble"])


def test_the_guide_and_the_ensembles_name_recipes() -> None:
    assert {name for names in GUIDE.values() for name in names} <= set(RECIPES)
    assert len(GUIDE) == 4
    for name, parts in ENSEMBLES.items():
        assert set(parts) <= set(RECIPES)
        assert members(["x", name]) == ["x", *parts]
        assert [recipe.name for recipe in chosen(name, ["seed=3"])] == list(parts)
        assert {recipe.seed for recipe in chosen(name, ["seed=3"])} == {3}
        with pytest.raises(
            RecipeError, match=f"{name} is several recipes, but one is needed here: {parts[0]}"
        ):
            named(name)
    cells = [
        line.split("|")
        for line in (Path(__file__).parents[1] / "README.md").read_text().splitlines()
        if " photos |" in line
    ]
    readme = {
        (row[1].split()[0], like): row[column]
        for row in cells
        for column, like in ((2, "like"), (3, "unlike"))
        if len(row) == 5
    }
    assert all(f"`{name}`" in readme[case] for case, names in GUIDE.items() for name in names)
    lines = listed()
    assert all(
        any(line.startswith(f"  {name} ") for line in lines) for name in [*RECIPES, *ENSEMBLES]
    )
    assert max(map(len, lines)) <= 110


@pytest.mark.parametrize("name", ["inception_bottleneck", "vgg16_last_layer"])
def test_a_tutorials_method_learns_on_a_backbone_whose_weights_come_as_a_package(
    name: str, drawn_copy: Workspace
) -> None:
    settings = [
        "model.backbone=tf_efficientnet_lite0",
        "pixels.size_px=96",
        "folds.split=[0.2,0.3]",
    ]
    more = ["training.optimiser=adam", "training.epochs=20"] if name == "vgg16_last_layer" else []
    check_learning(completed(drawn_copy, override(named(name), [*settings, *more])))


def test_a_tutorials_method_takes_xceptions_weights_from_a_file(drawn_copy: Workspace) -> None:
    weights = SHARED / "weights" / "legacy_xception.safetensors"
    if not weights.exists():
        pytest.skip("no weights beside this checkout")
    settings = [
        "model.backbone=legacy_xception",
        f"model.weights={weights}",
        "pixels.size_px=96",
        "folds.n_photos=48",
    ]
    run = trained_head(
        drawn_copy, override(named("inception_bottleneck"), [*settings, "folds.split=[0.2,0.2]"])
    )
    losses = pd.read_csv(run.folder / "fold-0-history.csv")["loss"]
    assert losses.iloc[-1] < 0.5 * losses.iloc[0]
