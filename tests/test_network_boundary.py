"""Where a partly frozen network is cut: at the right place, and equal with and without the cut."""

from functools import partial
from typing import Any

import pytest
import torch
from tiny import (
    CPU,
    IMAGENET,
    names_with_gradient,
    quiet,
    random_crops,
    random_network,
    trained_names,
    vary_batch_norms,
)
from torch import nn

from comp.errors import RecipeError
from comp.network.batchnorm import fuse_batch_norm
from comp.network.boundary import find_boundary, input_to, resume_from
from comp.network.embedder import BF16_TOLERANCE, make_embedder, network_input
from comp.network.surgery import freeze
from comp.network.views import CENTRE
from comp.recipe import FineTune, Phase
from comp.train.batches import CachedPhotos, batches_of
from comp.train.features import in_memory
from comp.train.finetune import fine_tune, set_training_mode

CASES = [
    ("resnet10t", "last:1", 32, "layer4.0"),
    ("mobilenetv3_small_050", "last:2", 32, "blocks.5.0.conv"),
    ("mobilenetv3_small_050", "head", 32, "classifier"),
    ("vit_tiny_patch16_224", "last:3", 32, "blocks.9"),
    ("eva02_tiny_patch14_224", "from:blocks.11", 28, "blocks.11"),
    ("test_convnext", "from:stages.2", 32, None),
]


def partly_frozen(name: str, trains: str, size_px: int = 32) -> Any:
    network = random_network(name, size_px)
    rng = torch.Generator().manual_seed(0)
    nn.init.normal_(network.get_classifier().weight, std=0.1, generator=rng)
    freeze(network, trains)
    return network


@pytest.mark.parametrize(("name", "trains", "size_px", "module"), CASES)
def test_nothing_trained_runs_before_the_boundary_and_the_rest_gives_the_same_logits(
    name: str, trains: str, size_px: int, module: str | None
) -> None:
    network = partly_frozen(name, trains, size_px)
    boundary = find_boundary(network, size_px)
    assert module in (None, boundary.module)
    images = torch.rand(3, 3, size_px, size_px)
    with torch.no_grad():
        whole = network(images)
    ran: list[str] = []
    for called, part in network.named_modules():
        part.register_forward_pre_hook(lambda *_, called=called: ran.append(called))
    kept = input_to(network, boundary.module, images).detach()
    owners = {called.rpartition(".")[0] for called in trained_names(network)}
    assert not set(ran[:-1]) & owners - {boundary.module}
    names = list(network.state_dict())
    undo = resume_from(network, boundary, size_px)
    torch.testing.assert_close(network(kept), whole)
    network(kept).sum().backward()
    assert names_with_gradient(network) == trained_names(network)
    assert list(network.state_dict()) == names
    undo()
    torch.testing.assert_close(network(images), whole)


def test_a_network_whose_branches_all_take_the_image_is_refused() -> None:
    says = r"coat_tiny cannot be cut where its trained part begins: set training\.cached_views=0"
    with pytest.raises(RecipeError, match=says):
        find_boundary(partly_frozen("coat_tiny", "last:1", 224), 224)


def test_the_boundary_lies_before_what_any_phase_trains() -> None:
    network = partly_frozen("resnet10t", "head")
    training = FineTune(trainable="head", first=Phase(trainable="last:1", epochs=1))
    freeze(network, *(phase.trainable for phase in training.phases()))
    assert find_boundary(network, 32).module == "layer4.0"


@pytest.mark.parametrize("is_fused", [False, True])
def test_training_on_cached_activations_equals_training_on_pixels(is_fused: bool) -> None:
    training = FineTune(trainable="last:2", epochs=3, batch_size=4, peak_lr=1e-3, ema=0.0)
    crops, labels = random_crops(16), [float(row % 2) for row in range(16)]
    losses, weights = [], []
    for is_cached in (False, True):
        network = partly_frozen("mobilenetv3_small_050", "last:2")
        if is_fused:
            assert fuse_batch_norm(network, partial(network, torch.zeros(1, 3, 32, 32))) > 20
            freeze(network, "last:2")
        for module in network.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        boundary, arrays, preprocessing = find_boundary(network, 32), crops.numpy(), IMAGENET
        if is_cached:
            images = network_input(crops, CENTRE, 32, IMAGENET, torch.float32)
            kept = input_to(network, boundary.module, images).detach()
            arrays, preprocessing = kept.half().float().numpy(), None  # as they are stored
            resume_from(network, boundary, 32)
        photos = CachedPhotos([in_memory(arrays)], range(16), labels)
        batches = batches_of(photos, 16, training, 0)
        options = (training, preprocessing, CPU, quiet)
        points = fine_tune(network, batches, len(batches), *options)
        losses.append([point.loss for point in points])
        weights.append(torch.cat([value.detach().flatten() for value in network.parameters()]))
    assert losses[0] == pytest.approx(losses[1], abs=2e-3)
    assert losses[0][0] != losses[0][-1]
    torch.testing.assert_close(weights[0], weights[1], atol=2e-3, rtol=0)


def test_a_batch_norm_at_the_boundary_is_not_fused_into_the_cached_part() -> None:
    network, crops = random_network("mobilenetv3_small_050", 32), random_crops(4)
    vary_batch_norms(network)
    freeze(network, "from:blocks.5.0.bn1")
    boundary = find_boundary(network, 32)
    assert boundary.module == "blocks.5.0.bn1"
    images = network_input(crops, CENTRE, 32, IMAGENET, torch.float32)
    expected = input_to(network, boundary.module, images).detach()
    embedder, _ = make_embedder(network, IMAGENET, CPU, crops.numpy(), boundary)
    made = embedder(crops.numpy())
    assert float((made - expected).norm() / expected.norm()) < BF16_TOLERANCE


def test_frozen_layers_stay_in_evaluation_mode() -> None:
    network = random_network("vit_tiny_patch16_224", 32, drop_path=0.5)
    freeze(network, "last:3")
    set_training_mode(network)
    assert [block.training for block in network.blocks] == [False] * 9 + [True] * 3
