"""The colours that photos are normalised by: the backbone's, constants, or those of the photos."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import TINY, Canvases

from comp.errors import RecipeError
from comp.network.backbone import timm_config
from comp.network.preprocessing import Preprocessing, preprocessing_of
from comp.options import override
from comp.progress import Reporter
from comp.recipe import FineTune
from comp.recipes import named
from comp.store import Workspace
from comp.train import finetune, lr_finder, tuning
from comp.train.inputs import Inputs, measure_colours, read_inputs
from comp.train.run import open_run
from comp.train.stage import train

MEASURED = override(TINY, ["pixels.normalise=measured", "folds.n=2", "folds.fit=1"])


def inputs_of(workspace: Workspace) -> Inputs:
    return read_inputs(open_run(workspace, MEASURED), Reporter())


def test_colours_are_measured_over_all_pixels_of_the_photos_named_and_of_no_others() -> None:
    photos = Canvases(4)
    photos.canvases[2] = photos.canvases[2][:20]
    pixels = np.concatenate([photos.canvas(row).reshape(-1, 3) for row in (0, 2)]) / 255
    mean, std = measure_colours(photos, [0, 2])
    assert np.allclose(mean, pixels.mean(0))
    assert np.allclose(std, pixels.std(0))
    photos.canvases[1][:] = 255
    assert measure_colours(photos, [0, 2]) == (mean, std)
    photos.canvases[2][:] = 255
    assert measure_colours(photos, [0, 2]) != (mean, std)


def test_photos_of_a_single_colour_cause_no_division_by_zero() -> None:
    photos = Canvases(1)
    photos.canvases[0][:] = 7
    assert min(measure_colours(photos, [0])[1]) > 0


def test_colours_are_the_backbones_own_or_constants_and_nothing_else_changes() -> None:
    own = preprocessing_of(TINY)
    assert own == replace(Preprocessing(**timm_config(TINY.model.backbone)), size_px=32)
    settings = ["pixels.normalise=constants", "pixels.mean=[0.1,0.2,0.3]"]
    constants = preprocessing_of(override(TINY, settings))
    assert constants == replace(own, mean=(0.1, 0.2, 0.3), std=(0.5, 0.5, 0.5))


def test_measured_colours_are_those_of_the_photos_that_train_for_the_fold(
    drawn_copy: Workspace,
) -> None:
    inputs = inputs_of(drawn_copy)
    for fold in (0, 1):
        rows = inputs.pixels.rows(list(inputs.photos["id"][inputs.photos["fold"] != fold]))
        made = inputs.preprocessing_for(fold)
        assert (made.mean, made.std) == measure_colours(inputs.pixels, [int(row) for row in rows])
    assert inputs.preprocessing_for(0).mean != inputs.preprocessing_for(1).mean


def test_training_scoring_and_the_range_test_use_the_colours_of_the_fold(
    drawn_copy: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[Preprocessing | None] = []

    class Spied(finetune.Step):
        def __init__(
            self,
            network: torch.nn.Module,
            training: FineTune,
            preprocessing: Preprocessing | None,
            *rest: object,
        ) -> None:
            used.append(preprocessing)
            super().__init__(network, training, preprocessing, *rest)  # type: ignore[arg-type]

    def spied_embedder(
        network: torch.nn.Module, preprocessing: Preprocessing, *rest: object
    ) -> object:
        used.append(preprocessing)
        return make_embedder(network, preprocessing, *rest)  # type: ignore[arg-type]

    make_embedder = tuning.make_embedder
    monkeypatch.setattr(finetune, "Step", Spied)
    monkeypatch.setattr(lr_finder, "Step", Spied)
    monkeypatch.setattr(tuning, "make_embedder", spied_embedder)
    train(drawn_copy, MEASURED, "cpu", Reporter())
    lr_finder.find_lr(drawn_copy, MEASURED, "cpu", Reporter())
    assert used == [inputs_of(drawn_copy).preprocessing_for(0)] * 3


def test_colours_per_fold_are_refused_where_all_folds_share_their_features() -> None:
    says = r"pixels\.normalise must be backbone or constants where all folds share their features"
    shared = ["training.head_start=true"], ["training.trainable=head", "training.cached_views=2"]
    for recipe, settings in (
        (named("lite0_head"), ["pixels.normalise=measured"]),
        *((MEASURED, each) for each in shared),
    ):
        with pytest.raises(RecipeError, match=says):
            override(recipe, settings)
