"""A checkpoint is a network of timm's own that computes what was trained, and says what it is."""

import json
from functools import partialmethod
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import safetensors
import safetensors.torch
import timm.models.vgg
import torch
from tiny import CPU, MODEL, TINY, numbers, random_network, vary_batch_norms
from torch import nn

from comp.competition import COMPETITION
from comp.network.layers import last_layer
from comp.network.views import CENTRE
from comp.options import override
from comp.predict.stage import predict
from comp.progress import Reporter
from comp.recipe import FineTune, HeadShape, Recipe
from comp.store import Workspace
from comp.train.checkpoints import arrays_of_network, load_network, new_network, save_tensors
from comp.train.inputs import read_inputs
from comp.train.stage import train


def recipe_of(backbone: str, size_px: int, weights: Path, **training: Any) -> Recipe:
    """A fine-tune from random weights, whose batch norms are such as training leaves."""
    network = random_network(backbone, size_px)
    vary_batch_norms(network)
    safetensors.torch.save_file(network.state_dict(), weights)
    return TINY.replace(
        model=MODEL.replace(backbone=backbone, weights=str(weights)),
        pixels=TINY.pixels.replace(size_px=size_px),
        training=FineTune(**{"head_start": False} | training),
    )


def trained(recipe: Recipe) -> Any:
    """A network of `recipe` with other parameters than it began with."""
    network, rng = new_network(recipe, seed=1), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in network.parameters():
            value *= 1 + 0.1 * torch.randn(value.shape, generator=rng)
            value += 0.01 * torch.randn(value.shape, generator=rng)
        nn.init.normal_(last_layer(network.get_classifier()).weight, generator=rng)
    return network.eval().to(memory_format=torch.channels_last)


@pytest.fixture
def small_vgg(monkeypatch: pytest.MonkeyPatch) -> None:
    vgg = timm.models.vgg
    monkeypatch.setitem(vgg.cfgs, "vgg11", [4, "M", 4, "M", 8, "M", 8, "M", 8, "M"])
    monkeypatch.setattr(vgg.VGG, "__init__", partialmethod(vgg.VGG.__init__, mlp_ratio=1 / 64))


@pytest.mark.usefixtures("small_vgg")
@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize(
    ("backbone", "size_px"),
    [
        ("tf_efficientnet_lite0", 32),
        ("mobilenetv3_small_050", 32),
        ("resnet18", 32),
        ("vgg11_bn", 32),  # its convolutions have biases
        ("densenet121", 32),  # its batch norms come first
        ("convnext_atto", 32),
        ("vit_tiny_patch16_224", 224),
        ("swin_tiny_patch4_window7_224", 224),
    ],
)
def test_timm_loads_a_saved_network_strictly_and_computes_what_was_trained(
    backbone: str, size_px: int, fuse: bool, tmp_path: Path
) -> None:
    options = {"fuse_batch_norm": fuse, "head": HeadShape(dropout=0.5)}
    recipe = recipe_of(backbone, size_px, tmp_path / "w.safetensors", **options)
    network, path = trained(recipe), tmp_path / "fold-0.safetensors"
    save_tensors(path, arrays_of_network(network, recipe), {})
    theirs = timm.create_model(backbone, num_classes=1).eval()
    theirs.load_state_dict(safetensors.torch.load_file(path), strict=True)
    images = numbers(3, 3, size_px, size_px)
    expected = network(images)
    for each in (theirs, load_network(path, recipe, CPU)):
        torch.testing.assert_close(each(images), expected, atol=1e-3, rtol=1e-3)
    assert expected.std() > 0.01


def test_a_channel_that_its_batch_norm_switches_off_is_saved_too(tmp_path: Path) -> None:
    weights = tmp_path / "w.safetensors"
    recipe = recipe_of("resnet18", 32, weights, fuse_batch_norm=True)
    state = safetensors.torch.load_file(weights)
    state["bn1.weight"][::2] = 0
    safetensors.torch.save_file(state, weights)
    network, images = trained(recipe), numbers(3, 3, 32, 32)
    save_tensors(tmp_path / "c", arrays_of_network(network, recipe), {})
    restored = load_network(tmp_path / "c", recipe, CPU)
    torch.testing.assert_close(restored(images), network(images), atol=1e-3, rtol=1e-3)


def test_a_checkpoint_and_what_it_says_of_itself_suffice_to_predict(
    drawn_copy: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: False)
    settings = ["training.fuse_batch_norm=true", "folds.n=2", "prediction.views=none"]
    recipe = override(TINY, [*settings, "training.peak_lr=0.01"])
    run = train(drawn_copy, recipe, "cpu", Reporter())
    assert predict(drawn_copy, COMPETITION, recipe, "cpu", Reporter()).folder == run.folder
    with safetensors.safe_open(run.checkpoint(1), "pt") as file:
        says = json.loads(file.metadata()["comp"])
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no dict
    assert (says["backbone"], says["fold"], says["classes"]) == (MODEL.backbone, 1, ["cat", "dog"])
    assert says["fit"] == run.fit_fingerprint
    assert len(says["commit"]) >= 7
    network = timm.create_model(says["backbone"], num_classes=1).eval()
    network.load_state_dict(state, strict=True)
    inputs, given = read_inputs(run, Reporter()), says["preprocessing"]
    assert (given["fit"], given["interpolation"]) == ("squash", "bicubic")
    assert given["crop_pct"] == pytest.approx(1 / 1.25)
    ids = inputs.held_out_ids(1)
    rows = [int(row) for row in inputs.pixels.rows(ids)]
    crops = torch.from_numpy(CENTRE.crops(inputs.pixels, rows, given["size_px"])) / 255
    images = (crops - torch.tensor(given["mean"])) / torch.tensor(given["std"])
    logits = network(images.permute(0, 3, 1, 2))[:, 0].detach().numpy()
    scored = pd.read_csv(run.oof, dtype={"id": str}).set_index("id")["logit"][ids]
    assert scored.std() > 0
    np.testing.assert_allclose(scored, logits, atol=1e-3)
