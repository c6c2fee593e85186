"""A first phase trains what it names, at its own rate, before the main one does."""

import itertools

import pandas as pd
import pytest
import safetensors.torch
import torch

from comp.errors import RecipeError
from comp.options import override
from comp.progress import Reporter
from comp.recipe import FineTune, Model, Phase, Pixels, Recipe
from comp.store import Workspace, derive_seed
from comp.train import tuning
from comp.train.checkpoints import new_network
from comp.train.finetune import fine_tune
from comp.train.stage import train

TWO = Recipe(
    name="two_phases",
    model=Model(backbone="mobilenetv3_small_050", weights="random"),
    pixels=Pixels(size_px=32, canvas=1.25),
    training=FineTune(
        first=Phase(trainable="head", epochs=2, peak_lr=0.02),
        trainable="last:1",
        epochs=1,
        batch_size=8,
        peak_lr=1e-3,
        head_start=False,
        ema=0.0,
    ),
)


def test_without_epochs_there_is_no_first_phase() -> None:
    assert FineTune().phases() == (FineTune(),)


def test_a_first_phase_shares_everything_but_what_it_names() -> None:
    assert isinstance(TWO.training, FineTune)
    first, main = TWO.training.phases()
    assert (first.trainable, first.epochs, first.peak_lr) == ("head", 2, 0.02)
    assert (main.trainable, main.epochs, main.peak_lr) == ("last:1", 1, 1e-3)
    assert first.batch_size == main.batch_size == 8
    assert first.phases() == (first,)
    assert override(TWO, ["training.first.epochs=0"]).training.phases() == (main,)  # type: ignore[union-attr]
    with pytest.raises(RecipeError, match=r"training\.first\.trainable must be all, head"):
        override(TWO, ["training.first.trainable=tail"])


def test_the_head_alone_changes_first_and_then_what_the_main_phase_names(
    drawn_copy: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = override(TWO, ["folds.n=2", "folds.fit=1"])
    states: list[dict[str, torch.Tensor]] = []

    def watched(network: torch.nn.Module, *rest: object) -> object:
        states.append({key: tensor.clone() for key, tensor in network.state_dict().items()})
        return fine_tune(network, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(tuning, "fine_tune", watched)
    run = train(drawn_copy, recipe, "cpu", Reporter())
    states.append(safetensors.torch.load_file(run.checkpoint(0)))
    fresh = new_network(recipe, seed=derive_seed(recipe.seed, "head", 0)).state_dict()
    assert all(torch.equal(tensor, fresh[key]) for key, tensor in states[0].items())
    changed = [
        {key for key in fresh if not torch.equal(before[key], after[key])}
        for before, after in itertools.pairwise(states)
    ]
    assert changed[0] == {"classifier.weight", "classifier.bias"}
    assert changed[0] < changed[1]
    history = pd.read_csv(run.folder / "fold-0-history.csv")
    is_first = history["step"] <= history["step"].max() * 2 / 3  # of three epochs, two
    assert history["step"].is_monotonic_increasing
    assert history["lr"][is_first].max() == pytest.approx(0.02, rel=0.3)
    assert history["lr"][~is_first].max() <= 1e-3
