"""On a real GPU: the numbers of a CPU, and training that goes on after a stop. `make gpu`."""

import shutil
import signal
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from heard import Heard
from test_finetune import TRAINING, network_of
from test_finetune import run as tune
from test_resume import RECIPE, stopped_at
from tiny import CPU, IMAGENET, Canvases, random_network

from comp.competition import COMPETITION
from comp.network.device import Device, find_device
from comp.network.embedder import make_embedder
from comp.network.views import CENTRE
from comp.options import override
from comp.predict.stage import predict
from comp.recipes import named
from comp.store import Workspace
from comp.train.run import open_run
from comp.train.stage import train

pytestmark = pytest.mark.gpu
FLOAT16 = torch.float16  # a T4 has no bfloat16


def embedded(device: Device, backbone: str) -> np.ndarray:
    torch.manual_seed(0)
    photos, network = Canvases(12), random_network(backbone, 32).to(device.where)
    crops = np.stack([photos.canvas(row) for row in range(2)])
    embedder, _ = make_embedder(network, IMAGENET, device, crops)
    return np.concatenate(list(embedder.embed_photos(photos, range(12), CENTRE)))


@pytest.mark.parametrize("backbone", ["mobilenetv3_small_050", "test_vit", "test_convnext"])
def test_features_are_a_cpus_but_for_the_precision(backbone: str) -> None:
    here, there = (embedded(device, backbone) for device in (CPU, find_device("cuda")))
    assert np.corrcoef(here.ravel(), there.ravel())[0, 1] > 0.999


@pytest.mark.parametrize("dtype", [None, FLOAT16], ids=["its own", "float16"])
def test_a_network_trains_in_the_precision_of_the_device_and_in_float16(
    dtype: torch.dtype | None,
) -> None:
    cuda = find_device("cuda")
    device = replace(cuda, train_dtype=dtype or cuda.train_dtype)
    losses = tune(network_of(), TRAINING.replace(epochs=10), device=device)
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_fold_that_was_stopped_ends_as_near_as_two_runs_are(
    number: int, drawn_copy: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def logits() -> pd.Series:
        train(drawn_copy, RECIPE, "cuda", Heard())
        return pd.read_csv(open_run(drawn_copy, RECIPE).oof)["logit"]

    whole = logits()
    shutil.rmtree(open_run(drawn_copy, RECIPE).folder)
    again = logits()
    shutil.rmtree(open_run(drawn_copy, RECIPE).folder)
    stopped_at(9, number, drawn_copy, monkeypatch, "cuda")
    heard = Heard()
    train(drawn_copy, RECIPE, "cuda", heard)
    resumed = pd.read_csv(open_run(drawn_copy, RECIPE).oof)["logit"]
    assert "fold 0 goes on after step" in str(heard)
    assert (resumed - whole).abs().max() <= 3 * (again - whole).abs().max() + 0.01


def test_the_stages_run_on_it_and_a_second_run_is_near(drawn_copy: Workspace) -> None:
    settings = ["model.weights=random", "pixels.size_px=64", "folds.n=2"]
    recipe = override(named("lite0_head"), settings)
    found = []
    for _ in range(2):
        train(drawn_copy, recipe, "cuda", Heard())
        folder = predict(drawn_copy, COMPETITION, recipe, "cuda", Heard()).folder
        found.append(pd.read_csv(folder / "test.csv")["logit"])
        shutil.rmtree(drawn_copy.runs)
    assert (found[0] - found[1]).abs().max() < 0.05
