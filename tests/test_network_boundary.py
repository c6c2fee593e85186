"""Where a partly frozen network is cut: at the right place, and equal with and without the cut."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from comp.errors import RecipeError
from comp.network.backbone import build
from comp.network.batchnorm import fuse_batch_norm
from comp.network.boundary import find_boundary, input_to, resume_from
from comp.network.device import find_device
from comp.network.embedder import BF16_TOLERANCE, make_embedder
from comp.network.preprocessing import Preprocessing
from comp.network.surgery import freeze
from comp.network.views import CENTRE, network_input, normalise
from comp.recipe import FineTune, Model, Phase
from comp.train.batches import CachedPhotos, batches_of
from comp.train.features import in_memory
from comp.train.finetune import fine_tune, set_training_mode

CPU = find_device("cpu")
SHOWN = Preprocessing(size_px=32, crop_pct=1.0)
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
def test_nothing_trained_runs_before_the_boundary_and_the_rest_gives_the_same_logits(
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
    kept = input_to(network, boundary.module, images).detach()
    owners = {
        called.rpartition(".")[0]
        for called, parameter in network.named_parameters()
        if parameter.requires_grad
    }
    assert not set(ran[:-1]) & owners - {boundary.module}
    ran.clear()
    names = list(network.state_dict())
    undo = resume_from(network, boundary, size_px)
    torch.testing.assert_close(network(kept), whole)
    network(kept).sum().backward()
    for called, parameter in network.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, called
    assert list(network.state_dict()) == names
    undo()
    torch.testing.assert_close(network(images), whole)


def test_a_network_whose_branches_all_take_the_image_is_refused() -> None:
    network = ready("coat_tiny", "last:1", 224)
    with pytest.raises(
        RecipeError,
        match=r"coat_tiny cannot be cut where its trained part begins: set training\.cached_views=0",
    ):
        find_boundary(network, 224)


def test_the_boundary_lies_before_what_any_phase_trains() -> None:
    network = ready("resnet10t", "head", 32)
    training = FineTune(trainable="head", first=Phase(trainable="last:1", epochs=1))
    freeze(network, *(phase.trainable for phase in training.phases()))
    assert find_boundary(network, 32).module == "layer4.0"


@pytest.mark.parametrize("is_fused", [False, True])
def test_training_on_cached_activations_equals_training_on_pixels(
    is_fused: bool,
) -> None:
    size_px, training = (
        32,
        FineTune(
            trainable="last:2",
            epochs=3,
            batch_size=4,
            peak_lr=1e-3,
            ema=0.0,
            fuse_batch_norm=is_fused,
        ),
    )
    squares = torch.from_numpy(
        np.random.default_rng(0).integers(0, 256, (16, size_px, size_px, 3), dtype=np.uint8)
    )
    labels = [float(row % 2) for row in range(16)]
    losses, weights = [], []
    for cached in (False, True):
        network = ready("mobilenetv3_small_050", "last:2", size_px)
        if is_fused:
            assert (
                fuse_batch_norm(network, partial(network, torch.zeros(1, 3, size_px, size_px))) > 20
            )
        for module in network.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        given, shown = squares.numpy(), SHOWN
        freeze(network, "last:2")
        if cached:
            boundary, state = find_boundary(network, size_px), network.state_dict()
            state["classifier.weight"].zero_()
            state["classifier.bias"].zero_()
            images = normalise(squares.permute(0, 3, 1, 2), SHOWN, torch.float32)
            half = input_to(network, boundary.module, images).detach().half()  # as they are stored
            given, shown = half.float().numpy(), None
            resume_from(network, boundary, size_px)
        batches = batches_of(CachedPhotos([in_memory(given)], range(16), labels), 16, training, 0)
        points = fine_tune(
            network, batches, len(batches), training, shown, CPU, lambda n=1, note="": None
        )
        losses.append([point.loss for point in points])
        weights.append(
            torch.cat([parameter.detach().flatten() for parameter in network.parameters()])
        )
    assert losses[0] == pytest.approx(losses[1], abs=2e-3)
    assert losses[0][0] != losses[0][-1]
    torch.testing.assert_close(weights[0], weights[1], atol=2e-3, rtol=0)


def test_a_batch_norm_at_the_boundary_is_not_fused_into_the_cached_part() -> None:
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
    expected = input_to(
        network, boundary.module, network_input(example, CENTRE, 32, SHOWN, torch.float32)
    ).detach()
    embedder, _ = make_embedder(network, SHOWN, CPU, example, boundary)
    made = embedder(example).float()
    assert float((made - expected).norm() / expected.norm()) < BF16_TOLERANCE


def test_frozen_layers_stay_in_evaluation_mode() -> None:
    network = build(
        Model(backbone="vit_tiny_patch16_224", weights="random", drop_path=0.5), size_px=32
    )
    freeze(network, "last:3")
    set_training_mode(network)
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
