"""What networks are shown: colours normalised as the recipe says, and features kept under keys that tell one from the other."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from comp.train.colours import measured
from comp.train.views import View, normalise
from comp.train.workbench import Workbench, input_for, open_workbench
from torch import nn

from comp.errors import RecipeError
from comp.network.backbone import build
from comp.network.device import Device, find_device
from comp.options import override
from comp.progress import Reporter
from comp.recipe import FineTune, Model, Pixels, Recipe
from comp.recipes import named
from comp.store import Workspace
from comp.train import lr_finder
from comp.train.features import Embedder, make_embedder
from comp.train.labels import training_rows
from comp.train.run import open_run
from comp.train.stage import train

CPU = find_device("cpu")
TINY = Recipe(
    name="measured",
    model=Model(backbone="mobilenetv3_small_050", weights="random"),
    pixels=Pixels(size_px=32, canvas=1.0, normalise="measured"),
    training=FineTune(epochs=1, batch_size=16, head_start=False),
)


def bench_of(workspace: Workspace, recipe: Recipe) -> Workbench:
    return open_workbench(open_run(workspace, recipe), CPU, Reporter())


def test_colours_are_the_backbones_own_or_constants() -> None:
    recipe = override(TINY, ["pixels.normalise=backbone"])
    assert input_for(recipe) == input_of(recipe.model)
    constants = override(TINY, ["pixels.normalise=constants", "pixels.mean=[0.1,0.2,0.3]"])
    assert (input_for(constants).mean, input_for(constants).std) == (
        (0.1, 0.2, 0.3),
        (0.5, 0.5, 0.5),
    )
    assert replace(
        input_for(constants), mean=input_for(recipe).mean, std=input_for(recipe).std
    ) == input_for(recipe)


def test_measured_colours_are_those_of_the_photos_that_train_for_the_fold(
    drawn_copy: Workspace,
) -> None:
    bench = bench_of(drawn_copy, TINY)
    for fold in (0, 1):
        rows = bench.pixels.rows(list(bench.photos["id"][training_rows(bench.photos, fold)]))
        assert (bench.shown_for(fold).mean, bench.shown_for(fold).std) == measured(
            bench.pixels, [int(row) for row in rows]
        )
    assert bench.shown_for(0).mean != bench.shown_for(1).mean


def test_a_network_is_scored_with_the_colours_that_it_was_trained_with(
    drawn_copy: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = override(TINY, ["folds.n=2", "folds.fit=1"])
    seen: list[Input | None] = []
    real = Workbench.embedder

    def watched(
        bench: Workbench, network: nn.Module, shown: Input | None = None
    ) -> tuple[Embedder, str]:
        seen.append(shown)
        return real(bench, network, shown)

    monkeypatch.setattr(Workbench, "embedder", watched)
    train(drawn_copy, recipe, CPU, Reporter())
    assert seen == [bench_of(drawn_copy, recipe).shown_for(0)]


def test_a_learning_rate_is_sought_with_the_colours_that_training_will_see(
    drawn_copy: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Input | None] = []
    real = lr_finder.Step

    def watched(
        network: nn.Module, training: FineTune, shown: Input | None, device: Device
    ) -> lr_finder.Step:
        seen.append(shown)
        return real(network, training, shown, device)

    monkeypatch.setattr(lr_finder, "Step", watched)
    lr_finder.find_lr(drawn_copy, TINY, CPU, Reporter())
    assert seen == [bench_of(drawn_copy, TINY).shown_for(0)]


def test_colours_by_fold_are_refused_where_folds_share_features() -> None:
    with pytest.raises(
        RecipeError,
        match=r"pixels\.normalise must be backbone or constants where all folds share their features",
    ):
        override(named("lite0_head"), ["pixels.normalise=measured"])
    with pytest.raises(RecipeError, match="normalise must be"):
        override(TINY, ["training.head_start=true"])


def test_features_of_other_colours_are_kept_under_another_key() -> None:
    shown = input_of(TINY.model)
    example = torch.zeros(2, 32, 32, 3, dtype=torch.uint8)
    keys = {
        make_embedder(build(TINY.model, size_px=32), replace(shown, mean=mean), 32, CPU, example)[
            0
        ].key
        for mean in (shown.mean, (0.5, 0.5, 0.5))
    }
    assert len(keys) == 2


def test_features_that_are_kept_are_those_that_are_computed(drawn_copy: Workspace) -> None:
    recipe = override(
        named("lite0_head"),
        ["model.layer=blocks.3", "model.pool=flatten", "pixels.size_px=64", "model.weights=random"],
    )
    bench = bench_of(drawn_copy, recipe)
    embedder, _ = bench.embedder(bench.network())
    ids, view = list(bench.photos["id"]), View(name="centre")
    first, again = (bench.features(embedder, order, view).all() for order in (ids, ids[::-1]))
    assert np.array_equal(first, again[::-1])
    square = torch.from_numpy(
        view.squares(bench.pixels, [int(row) for row in bench.pixels.rows(ids)], bench.size_px)
    )
    with torch.inference_mode():
        computed = embedder.embed(square, view).float().numpy()
    assert first.shape == computed.shape == (len(ids), 4 * 4 * 80)
    assert np.abs(first - computed).max() <= 1e-2 * np.abs(computed).max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_colours_are_normalised_channel_by_channel_whatever_the_layout(dtype: torch.dtype) -> None:
    shown = input_of(Model(backbone="resnet18"))
    squares = torch.from_numpy(
        np.random.default_rng(0).integers(0, 256, (2, 6, 5, 3), dtype=np.uint8)
    )
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (shown.mean, shown.std))
    for images in (
        squares.permute(0, 3, 1, 2),
        squares.permute(0, 3, 1, 2).flip(3),
        squares.permute(0, 3, 1, 2).contiguous(),
    ):
        made = normalise(images, shown, dtype)
        torch.testing.assert_close(
            made,
            ((images / 255 - mean) / std).to(dtype),
            check_stride=False,
            atol=1e-6 if dtype == torch.float32 else 0.02,
            rtol=0,
        )
        assert made.is_contiguous(memory_format=torch.channels_last)
