"""Fine-tuning: the schedule, what a step changes, and what stops it."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from comp.errors import TrainingError
from comp.network.backbone import build
from comp.network.device import Device, find_device
from comp.network.preprocessing import KNOWN
from comp.network.surgery import freeze
from comp.recipe import Augmentation, FineTune, Model, Phase
from comp.train import finetune
from comp.train.batches import AugmentedPhotos, Batch, batches_of
from comp.train.finetune import ema_decay, fine_tune, smooth_labels

MODEL = Model(backbone="mobilenetv3_small_050", weights="random")
SHOWN = KNOWN["convnext_tiny.in12k_ft_in1k"]  # the mean and std of ImageNet
TRAINING = FineTune(epochs=2, batch_size=4, ema=0.0, peak_lr=1e-3)
CPU = find_device("cpu")


class Canvases:
    """Squares whose brightness is the label's."""

    def __init__(self, n: int, size_px: int = 40) -> None:
        rng = np.random.default_rng(0)
        self.labels = [row % 2 for row in range(n)]
        self._squares = [
            (rng.integers(0, 100, (size_px, size_px, 3)) + 120 * label).astype(np.uint8)
            for label in self.labels
        ]

        self.sha256s = tuple(str(row) for row in range(n))

    def canvas(self, row: int) -> np.ndarray:
        return self._squares[row]


def loader_of(
    canvases: Canvases, training: FineTune, seed: int, device: Device
) -> DataLoader[Batch]:
    n = len(canvases.labels)
    photos = AugmentedPhotos(canvases, range(n), canvases.labels, training.augment, 32, seed)
    return batches_of(photos, n, training, seed, device)


def batches(
    training: FineTune, n: int = 16, seed: int = 0, device: Device = CPU
) -> Iterator[Batch]:
    canvases = Canvases(n)
    return iter(loader_of(canvases, training, seed, device))


def network_of(trains: str = "all") -> nn.Module:
    torch.manual_seed(0)
    network = build(MODEL)
    nn.init.normal_(network.get_classifier().weight, std=0.05)  # type: ignore[operator]
    freeze(network, trains)
    return network


def run(network: nn.Module, training: FineTune, data: Iterator[Batch], n_steps: int) -> list[float]:
    return [
        point.loss
        for point in fine_tune(
            network, data, n_steps, training, SHOWN, CPU, lambda n=1, note="": None
        )
    ]


def test_the_average_forgets_its_start_in_short_runs_and_is_slow_in_long_ones() -> None:
    training = FineTune(ema=0.99)
    assert ema_decay(0, training) == 0.1
    assert ema_decay(10_000, training) == 0.99


def test_smoothing_moves_both_labels_by_as_much() -> None:
    assert smooth_labels(torch.tensor([0.0, 1.0]), 0.1).tolist() == pytest.approx([0.1, 0.9])


@pytest.mark.parametrize("trains", ["all", "head", "last:1", "last:2"])
def test_a_step_changes_exactly_the_parameters_that_train_and_no_batch_norm_statistic(
    trains: str,
) -> None:
    network = network_of(trains)
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    before = {name: value.clone() for name, value in network.state_dict().items()}
    run(network, TRAINING.replace(warmup=0.0, weight_decay=0.5), batches(TRAINING), 8)
    after = network.state_dict()
    assert {
        name for name, value in after.items() if not torch.equal(value, before[name])
    } == trained


def test_every_trained_parameter_gets_a_finite_gradient() -> None:
    network = network_of()
    squares, _ = next(batches(TRAINING))
    network.train()(squares.permute(0, 3, 1, 2).float() / 255).sum().backward()
    assert all(
        parameter.grad is not None and bool(torch.isfinite(parameter.grad).all())
        for parameter in network.parameters()
    )


def test_the_loss_falls_and_the_network_ends_in_evaluation_mode() -> None:
    network = network_of()
    training = TRAINING.replace(epochs=10)
    losses = run(network, training, batches(training), 40)
    assert losses[-1] < 0.7 * losses[0]
    assert not network.training


def test_micro_batches_add_up_to_the_whole_batch() -> None:
    one, four = network_of(), network_of()
    whole = TRAINING.replace(epochs=1, clip_norm=1e9)
    for network, training in ((one, whole), (four, whole.replace(micro_batch=1))):
        for module in network.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        run(network, training, batches(whole), 4)
    for a, b in zip(one.parameters(), four.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=5e-3, rtol=5e-2)


def test_a_batch_that_does_not_fit_is_taken_in_the_largest_parts_that_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, short, room = network_of(), network_of(), 3
    training, notes, loss_of = (
        TRAINING.replace(epochs=1, batch_size=8),
        list[str](),
        finetune._mean_loss,
    )

    def bounded(network: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if len(labels) > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return loss_of(network, images, labels)

    for network in (whole, short):
        for module in network.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    run(whole, training, batches(training), 2)
    monkeypatch.setattr(finetune, "_mean_loss", bounded)
    fine_tune(
        short,
        batches(training),
        2,
        training,
        SHOWN,
        CPU,
        lambda n=1, note="": notes.append(note),
    )
    assert notes[-1].endswith(", 2 photos in memory at once")
    for a, b in zip(whole.parameters(), short.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=5e-3, rtol=5e-2)
    room = 0
    with pytest.raises(TrainingError, match="a single photo does not fit"):
        run(network_of(), training, batches(training), 2)


def test_the_averaged_weights_are_kept_and_lie_behind_the_last_ones() -> None:
    start, last, averaged = network_of(), network_of(), network_of()
    for network, training in ((last, TRAINING), (averaged, TRAINING.replace(ema=0.9))):
        torch.manual_seed(0)
        run(network, training, batches(TRAINING), 8)

    def distance(network: nn.Module) -> float:
        pairs = zip(network.parameters(), start.parameters(), strict=True)
        return sum(float((a - b).detach().square().sum()) for a, b in pairs)

    assert 0 < distance(averaged) < distance(last)


def test_wise_ft_keeps_a_share_of_the_way() -> None:
    start, whole, share = network_of(), network_of(), network_of()
    for network, training in ((whole, TRAINING), (share, TRAINING.replace(wise_ft=0.25))):
        torch.manual_seed(0)
        run(network, training, batches(TRAINING), 8)
    for a, b, c in zip(start.parameters(), whole.parameters(), share.parameters(), strict=True):
        torch.testing.assert_close(c, a + (b - a) / 4)
    assert (
        TRAINING.replace(wise_ft=0.25, first=Phase(epochs=1)).phases()[0].wise_ft == 1
    )  # once is enough


def test_a_loss_that_is_not_finite_stops_the_fold_with_the_remedy() -> None:
    def poisoned() -> Iterator[Batch]:
        for squares, labels in batches(TRAINING):
            yield squares, labels * float("nan")

    with pytest.raises(
        TrainingError, match=r"the loss is nan after 1 steps; set training\.peak_lr below 0\.001"
    ):
        run(network_of(), TRAINING, poisoned(), 8)


def test_a_loss_that_explodes_stops_the_fold() -> None:
    training = TRAINING.replace(peak_lr=1e3, epochs=20, clip_norm=1e9, warmup=0.0)
    with pytest.raises(TrainingError, match="the loss"):
        run(network_of(), training, batches(training), 80)


def test_batches_hold_every_photo_once_an_epoch_in_an_order_that_the_seed_decides() -> None:
    plain = TRAINING.replace(augment=Augmentation(area=1.0, aspect=1.0, flip=False, colour=0.0))
    first = [squares for squares, _ in batches(plain)]
    again = [squares for squares, _ in batches(plain)]
    other = [squares for squares, _ in batches(plain, seed=1)]
    assert len(first) == 8
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    for half in (first[:4], first[4:]):
        sums = sorted(int(square.long().sum()) for square in torch.cat(half))
        assert len(set(sums)) == 16


def test_a_photo_looks_different_in_every_epoch_but_the_same_to_every_worker() -> None:
    training = TRAINING.replace(epochs=2)
    inline = list(batches(training))
    canvases = Canvases(16)
    loader = loader_of(canvases, training, 0, CPU)
    workers = torch.utils.data.DataLoader(
        loader.dataset,
        batch_sampler=loader.batch_sampler,
        collate_fn=loader.collate_fn,
        num_workers=2,
    )
    for (a, la), (b, lb) in zip(inline, workers, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(la, lb)
    assert not torch.equal(
        torch.cat([s for s, _ in inline[:4]]).float().mean(),
        torch.cat([s for s, _ in inline[4:]]).float().mean(),
    )


def test_colour_changes_leave_labels_and_shapes_alone() -> None:
    squares, labels = next(batches(TRAINING.replace(augment=Augmentation(colour=1.0))))
    assert squares.shape == (4, 32, 32, 3)
    assert squares.dtype == torch.uint8
    assert set(labels.tolist()) <= {0.0, 1.0}


@pytest.mark.gpu
def test_on_a_gpu_the_loss_falls_too_in_the_precision_that_the_device_has() -> None:
    device, network = find_device("cuda"), network_of()
    training = TRAINING.replace(epochs=10)
    data = batches(training, device=device)
    points = fine_tune(network, data, 40, training, SHOWN, device, lambda n=1, note="": None)
    assert points[-1].loss < 0.7 * points[0].loss
