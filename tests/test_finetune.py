"""Fine-tuning: what a step changes, in what memory, and what stops it; phases follow each other."""

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import pandas as pd
import pytest
import safetensors.torch
import torch
from tiny import CPU, IMAGENET, TINY, Canvases, changed_names, quiet, trained_names
from torch import Tensor, nn

from comp.errors import RecipeError, TrainingError, UserError
from comp.network.backbone import build
from comp.network.device import Device
from comp.network.surgery import freeze
from comp.options import override
from comp.progress import Reporter
from comp.recipe import FineTune, Phase
from comp.store import Workspace, derive_seed
from comp.train import finetune, tuning
from comp.train.batches import AugmentedPhotos, Batch, batches_of
from comp.train.checkpoints import new_network
from comp.train.finetune import ema_decay, fine_tune, smooth_labels
from comp.train.stage import train

TRAINING = FineTune(epochs=2, batch_size=4, ema=0.0, peak_lr=1e-3)
PHASES = TINY.replace(
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


def batches(training: FineTune, device: Device = CPU) -> Iterable[Batch]:
    """Of 16 photos."""
    photos = Canvases(16)
    augmented = AugmentedPhotos(photos, range(16), photos.labels, training.augment, 32, 0)
    return batches_of(augmented, 16, training, 0, device)


def network_of(trains: str = "all", dropout: bool = True) -> Any:
    network: Any = build(TINY.model)
    rng = torch.Generator().manual_seed(0)
    nn.init.normal_(network.get_classifier().weight, std=0.05, generator=rng)
    freeze(network, trains)
    for module in network.modules():
        if isinstance(module, nn.Dropout) and not dropout:
            module.p = 0.0
    return network


def run(
    network: nn.Module,
    training: FineTune,
    data: Iterable[Batch] | None = None,
    device: Device = CPU,
    advance: Any = quiet,
) -> list[float]:
    """The losses of training on `data`, by default the batches that `training` asks for."""
    n_steps = len(batches(training))  # type: ignore[arg-type]
    torch.manual_seed(0)  # of dropout
    data = data or batches(training, device)
    points = fine_tune(network, data, n_steps, training, IMAGENET, device, advance)
    return [point.loss for point in points]


def assert_near(network: nn.Module, other: nn.Module) -> None:
    for a, b in zip(network.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=5e-3, rtol=5e-2)


def test_the_average_forgets_its_start_in_short_runs_and_is_slow_in_long_ones() -> None:
    assert ema_decay(0, FineTune(ema=0.99)) == 0.1
    assert ema_decay(10_000, FineTune(ema=0.99)) == 0.99


def test_smoothing_moves_both_labels_by_the_same_amount() -> None:
    assert smooth_labels(torch.tensor([0.0, 1.0]), 0.1).tolist() == pytest.approx([0.1, 0.9])


@pytest.mark.parametrize("trains", ["all", "head", "last:1", "last:2"])
def test_a_step_changes_exactly_the_parameters_that_train_and_no_batch_norm_statistic(
    trains: str,
) -> None:
    network = network_of(trains)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    run(network, TRAINING.replace(warmup=0.0, weight_decay=0.5))
    assert changed_names(before, network.state_dict()) == trained_names(network)


def test_the_loss_falls_and_the_network_ends_in_evaluation_mode() -> None:
    network = network_of()
    losses = run(network, TRAINING.replace(epochs=10))
    assert losses[-1] < 0.7 * losses[0]
    assert not network.training


def test_micro_batches_add_up_to_the_whole_batch_also_where_memory_decides_their_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, small, short = (network_of(dropout=False) for _ in range(3))
    training = TRAINING.replace(epochs=1, batch_size=8, clip_norm=1e9)
    notes, room, mean_loss = list[str](), 3, finetune._mean_loss

    def bounded(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        if len(labels) > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return mean_loss(network, images, labels)

    run(whole, training)
    run(small, training.replace(micro_batch=1))
    monkeypatch.setattr(finetune, "_mean_loss", bounded)
    run(short, training, advance=lambda n=1, note="": notes.append(note))
    assert notes[-1].endswith(", 2 photos in memory at once")
    assert_near(whole, small)
    assert_near(whole, short)
    room = 0
    with pytest.raises(UserError, match="a single photo does not fit"):
        run(network_of(), training)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "under a minute"),
        (59, "under a minute"),
        (61, "about 1 minute"),
        (1000, "about 17 minutes"),
        (7200, "about 2 hours"),
    ],
)
def test_a_duration_is_told_in_round_words(seconds: float, words: str) -> None:
    assert tuning.duration(seconds) == words


def test_averaged_weights_and_wise_ft_stay_nearer_to_the_initial_ones() -> None:
    start, last, averaged, quarter = (network_of() for _ in range(4))
    run(last, TRAINING)
    run(averaged, TRAINING.replace(ema=0.9))
    run(quarter, TRAINING.replace(wise_ft=0.25))

    def distance(network: nn.Module) -> float:
        pairs = zip(network.parameters(), start.parameters(), strict=True)
        return sum(float((a - b).detach().square().sum()) for a, b in pairs)

    assert 0 < distance(averaged) < distance(last)
    triples = zip(start.parameters(), last.parameters(), quarter.parameters(), strict=True)
    for a, b, c in triples:
        torch.testing.assert_close(c, a + (b - a) / 4)
    # only the last of two phases interpolates
    first, main = TRAINING.replace(wise_ft=0.25, first=Phase(epochs=1)).phases()
    assert (first.wise_ft, main.wise_ft) == (1, 0.25)


def test_a_loss_that_is_not_finite_or_explodes_stops_the_fold_with_the_remedy() -> None:
    def poisoned() -> Iterator[Batch]:
        for crops, labels in batches(TRAINING):
            yield crops, labels * float("nan")

    says = r"the loss is nan after step 1; set training\.peak_lr below 0\.001"
    with pytest.raises(TrainingError, match=says):
        run(network_of(), TRAINING, poisoned())
    wild = TRAINING.replace(peak_lr=1e3, epochs=20, clip_norm=1e9, warmup=0.0)
    with pytest.raises(TrainingError, match="the loss"):
        run(network_of(), wild)


def test_a_first_phase_shares_everything_but_what_it_names() -> None:
    assert FineTune().phases() == (FineTune(),)
    first, main = PHASES.training.phases()  # type: ignore[union-attr]
    assert (first.trainable, first.epochs, first.peak_lr) == ("head", 2, 0.02)
    assert (main.trainable, main.epochs, main.peak_lr) == ("last:1", 1, 1e-3)
    assert first.batch_size == main.batch_size == 8
    assert first.phases() == (first,)
    alone = override(PHASES, ["training.first.epochs=0"]).training
    assert alone.phases() == (main,)  # type: ignore[union-attr]
    with pytest.raises(RecipeError, match=r"training\.first\.trainable must be all, head"):
        override(PHASES, ["training.first.trainable=tail"])


def test_the_head_alone_changes_first_and_then_what_the_main_phase_names(
    drawn_copy: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = override(PHASES, ["folds.n=2", "folds.fit=1"])
    states: list[dict[str, Tensor]] = []

    def watched(network: nn.Module, *rest: Any, **how: Any) -> object:
        states.append({key: tensor.clone() for key, tensor in network.state_dict().items()})
        return fine_tune(network, *rest, **how)

    monkeypatch.setattr(tuning, "fine_tune", watched)
    fitted = train(drawn_copy, recipe, "cpu", Reporter())
    states.append(safetensors.torch.load_file(fitted.checkpoint(0)))
    fresh = new_network(recipe, seed=derive_seed(recipe.seed, "head", 0)).state_dict()
    assert not changed_names(fresh, states[0])
    first, main = (changed_names(*pair) for pair in itertools.pairwise(states))
    assert first == {"classifier.weight", "classifier.bias"}
    assert first < main
    history = pd.read_csv(fitted.history(0))
    is_first = history["step"] <= history["step"].max() * 2 / 3  # two of three epochs
    assert history["step"].is_monotonic_increasing
    assert history["lr"][is_first].max() == pytest.approx(0.02, rel=0.3)
    assert history["lr"][~is_first].max() <= 1e-3
