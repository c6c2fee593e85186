"""Fits by gradients: the whole network of a fold, or its last part on cached activations."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import DataLoader

from comp.network.boundary import Boundary, find_boundary, input_to, resume_from
from comp.network.cpu import fuse_activations
from comp.network.device import Room, has_fast_bf16
from comp.network.embedder import make_embedder
from comp.network.layers import ModuleHead, start_from, trained_head
from comp.network.preprocessing import Preprocessing
from comp.network.surgery import freeze
from comp.network.views import CENTRE
from comp.progress import Reporter
from comp.recipe import FineTune, Head
from comp.recipes import ON_CPU
from comp.store import derive_seed, write_table
from comp.train.batches import AugmentedPhotos, Batch, CachedPhotos, Draw, batches_of
from comp.train.checkpoints import Arrays, arrays_of_network, load_network, new_network
from comp.train.features import N_AT_ONCE, CachedRows, FrozenNetwork
from comp.train.finetune import fine_tune, set_training_mode
from comp.train.inputs import Inputs
from comp.train.resume import Bookmark, Point, point_from
from comp.train.solver import solve_fold

BatchesOf = Callable[[int, FineTune, int], DataLoader[Batch]]  # of a fold, a phase and a seed


def train_phases(
    frozen: FrozenNetwork,
    fold: int,
    network: nn.Module,
    make_batches: BatchesOf,
    preprocessing: Preprocessing | None = None,
) -> None:
    """Train `network`, perhaps a head alone, through the recipe's phases; keep the history.

    `preprocessing` normalises crops; None: the batches hold cached arrays.
    """
    inputs, device, reporter = frozen.inputs, frozen.device, frozen.reporter
    book = Bookmark(inputs.run, fold, frozen.weights, frozen.device_name, reporter)
    history = [point_from(point) for point in book.facts["before"]]  # of phases that are done
    n_training, recipe = int(inputs.training_rows(fold).sum()), inputs.run.recipe
    with torch.random.fork_rng(devices=[device.where] if device.is_cuda else []):
        for number, phase in enumerate(fine_tuning(inputs).phases()):
            if number < book.facts["phase"]:
                continue
            freeze_for(phase, network, fold, frozen)
            seed = derive_seed(recipe.seed, "fine-tune", fold, number)
            batches = make_batches(fold, phase, seed)
            if number > book.facts["phase"]:
                book.facts = {"phase": number, "step": 0, "before": history}
            batches.batch_sampler.first = book.facts["step"]  # type: ignore[union-attr]
            n_steps, n_photos = len(batches), min(phase.batch_size, n_training)
            label, n_left = f"fold {fold}", (n_steps - book.facts["step"]) * n_photos
            before = history[-1].step if history else 0
            on_point = partial(_measure, reporter, label, before)
            with reporter.track(label, n_left, "photos") as advance, book.listening():
                what = (network, batches, n_steps, phase, preprocessing, device, advance)
                points = fine_tune(*what, seed=seed, book=book, on_point=on_point)
            history += [replace(point, step=before + point.step) for point in points]
    write_table(inputs.run.history(fold), pd.DataFrame(history))
    first, last = history[0].loss, history[-1].loss
    reporter.say(f"fold {fold}: training loss {first:.4f} at first, {last:.4f} at the end")


def _measure(reporter: Reporter, label: str, before: int, point: Point) -> None:
    figures = {f"{label}/loss": point.loss, f"{label}/learning rate": point.lr}
    reporter.measure(figures, before + point.step)


def freeze_for(phase: FineTune, network: nn.Module, fold: int, frozen: FrozenNetwork) -> None:
    """Freeze what `phase` freezes, and say how much trains; all of a head that is trained alone."""
    total = sum(parameter.numel() for parameter in network.parameters())
    is_whole = hasattr(network, "pretrained_cfg")
    trained = freeze(network, phase.trainable)[0] if is_whole else total
    n_photos = frozen.inputs.training_rows(fold).sum()
    frozen.reporter.say(
        f"fold {fold}: {trained:,} of {total:,} parameters train on {n_photos:,} photos"
    )


def duration(seconds: float) -> str:
    if seconds < 60:
        return "under a minute"
    n, unit = (seconds / 3600, "hour") if seconds > 5400 else (seconds / 60, "minute")
    return f"about {n:.0f} {unit}{'s' * (round(n) != 1)}"


def fine_tuning(inputs: Inputs) -> FineTune:
    training = inputs.run.recipe.training
    assert isinstance(training, FineTune)
    return training


def start_from_solved(
    head: nn.Module, inputs: Inputs, fold: int, features: NDArray[np.float32]
) -> None:
    """Give `head`, which is linear, the weights of a head solved on `features [n, d]`."""
    seed = inputs.run.recipe.seed
    start_from(head, solve_fold(features, inputs.photos, fold, Head(), seed))


def _untrained(inputs: Inputs, fold: int) -> Any:
    recipe = inputs.run.recipe
    return new_network(recipe, seed=derive_seed(recipe.seed, "head", fold))


class NetworkFit:
    """All layers, or those that the recipe names, trained on freshly augmented photos."""

    def __init__(self, frozen: FrozenNetwork) -> None:
        self.frozen, self.inputs = frozen, frozen.inputs

    def announce(self, folds: Sequence[int]) -> None:
        """On a CPU, warn how long fitting `folds` will take."""
        if not self.frozen.device.is_cpu:
            return
        n_photos = sum(int(self.inputs.training_rows(fold).sum()) for fold in folds)
        phases = fine_tuning(self.inputs).phases()
        seconds = sum(n_photos * phase.epochs * self._step_seconds(phase) for phase in phases)
        self.frozen.reporter.warn(
            f"no GPU: {self.inputs.run.recipe.name} will train for {duration(seconds)} on this CPU;"
            f" RECIPE={ON_CPU} is made for CPUs"
        )

    def _step_seconds(self, training: FineTune) -> float:
        """Seconds per photo of a training step, measured on random weights."""
        network = new_network(self.inputs.run.recipe, weights="random")
        freeze(network, training.trainable)
        set_training_mode(network.to(memory_format=torch.channels_last))
        size_px = self.inputs.preprocessing.size_px
        images = torch.zeros(4, 3, size_px, size_px).to(memory_format=torch.channels_last)
        took = []
        for _ in range(2):  # the first pass also warms up
            start = time.perf_counter()
            network(images).sum().backward()
            took.append((time.perf_counter() - start) / len(images))
        return min(took)

    @cached_property
    def _features(self) -> NDArray[np.float32]:
        """From which the heads are solved that training starts with."""
        return self.frozen.mean_features(self.inputs.ids, [CENTRE])

    def start(self, fold: int) -> nn.Module:
        """The network that training of `fold` starts with."""
        training, network = fine_tuning(self.inputs), _untrained(self.inputs, fold)
        if training.head_start:
            start_from_solved(network.get_classifier(), self.inputs, fold, self._features)
        if self.frozen.device.is_cpu and not training.compile:
            self._fuse(network, half=training.fuse_batch_norm and has_fast_bf16())
        return network  # type: ignore[no-any-return]  # timm's networks are untyped

    def _fuse(self, network: nn.Module, *, half: bool) -> None:
        """Activations into their convolutions, in bfloat16 where that works and is fast."""
        size_px, rng = self.inputs.preprocessing.size_px, torch.Generator().manual_seed(0)
        example = torch.rand(1, 3, size_px, size_px, generator=rng)
        if half and fuse_activations(network, example, half=True):
            self.frozen.reporter.say("convolutions train in bfloat16, their weights in float32")
        else:
            fuse_activations(network, example)

    def batches(self, fold: int, phase: FineTune, seed: int) -> DataLoader[Batch]:
        """Freshly augmented photos that train for `fold`."""
        inputs = self.inputs
        photos = inputs.photos[inputs.training_rows(fold)]
        rows = [int(row) for row in inputs.pixels.rows(list(photos["id"]))]
        size_px, targets = inputs.preprocessing.size_px, list(photos["target"])
        augmented = AugmentedPhotos(inputs.pixels, rows, targets, phase.augment, size_px, seed)
        return batches_of(augmented, len(rows), phase, seed, self.frozen.device)

    def fit(self, fold: int) -> Arrays:
        network, preprocessing = self.start(fold), self.inputs.preprocessing_for(fold)
        train_phases(self.frozen, fold, network, self.batches, preprocessing)
        return arrays_of_network(network, self.inputs.run.recipe)

    def logits(self, fold: int, ids: Sequence[str]) -> dict[str, NDArray[np.float64]]:
        """A tuned network's outputs are of use once, so that none is cached."""
        inputs, run, device = self.inputs, self.inputs.run, self.frozen.device
        network = load_network(run.checkpoint(fold), run.recipe, device)
        head = trained_head(network.get_classifier())
        preprocessing, example = inputs.preprocessing_for(fold), inputs.example_crops()
        embedder, _ = make_embedder(network, preprocessing, device, example)
        rows, views = [int(row) for row in inputs.pixels.rows(ids)], inputs.views()
        by_view = {}
        with self.frozen.reporter.track("predicting", len(rows) * len(views), "views") as advance:
            for view in views:
                parts = []
                for batch in embedder.embed_photos(inputs.pixels, rows, view):
                    parts.append(head.logits(batch))
                    advance(len(batch))
                by_view[view.name] = np.concatenate([np.empty(0), *parts])
        return by_view


class TailFit:
    """The last part of the network, trained on cached activations of the frozen part.

    The activations are those of some draws of the augmentation, which epochs use in turn.
    """

    def __init__(self, frozen: FrozenNetwork, boundary: Boundary) -> None:
        """`boundary`: where the network is cut; `frozen` ends there."""
        self.frozen, self.inputs, self._boundary = frozen, frozen.inputs, boundary

    def announce(self, folds: Sequence[int]) -> None:
        """Say what the activations take on disk; DataError if there is not that much."""
        if folds:
            n_views = fine_tuning(self.inputs).cached_views + len(self.inputs.views())
            self.frozen.check_disk(len(self.inputs.photos), n_views)

    def _cut(self, network: nn.Module) -> None:
        """Make `network` take activations."""
        resume_from(network, self._boundary, self.inputs.preprocessing.size_px)

    @cached_property
    def _draws(self) -> list[CachedRows]:
        """The activations of all training photos, draw by draw."""
        training = fine_tuning(self.inputs)
        seed = derive_seed(self.inputs.run.recipe.seed, "draws")
        draws = [Draw(training.augment, seed, n) for n in range(training.cached_views)]
        return [self.frozen.outputs(self.inputs.ids, draw) for draw in draws]

    @cached_property
    def _features(self) -> NDArray[np.float32]:
        """Pooled features [n, d]: cached activations through the untrained rest of the network."""
        activations = self.frozen.outputs(self.inputs.ids, CENTRE)
        where = self.frozen.device.where
        network = new_network(self.inputs.run.recipe).to(where)
        self._cut(network)
        head, room = network.pretrained_cfg["classifier"], Room(N_AT_ONCE)

        def embed(part: NDArray[np.float32], n_photos: int) -> NDArray[np.float32]:
            given = torch.split(torch.from_numpy(part), n_photos)
            found = [input_to(network, head, each.to(where)).cpu() for each in given]
            return torch.cat(found).numpy()

        with torch.inference_mode():
            parts = activations.parts(N_AT_ONCE)
            return np.concatenate([room.run(partial(embed, part)) for part in parts])

    def start(self, fold: int) -> nn.Module:
        """The network that training of `fold` starts with; it takes activations."""
        network = _untrained(self.inputs, fold)
        if fine_tuning(self.inputs).head_start:
            start_from_solved(network.get_classifier(), self.inputs, fold, self._features)
        self._cut(network)
        return network  # type: ignore[no-any-return]  # timm's networks are untyped

    def _batches(self, fold: int, phase: FineTune, seed: int) -> DataLoader[Batch]:
        return cached_batches(self._draws, self.inputs, fold, phase, seed)

    def fit(self, fold: int) -> Arrays:
        network = self.start(fold)
        train_phases(self.frozen, fold, network, self._batches)
        return arrays_of_network(network, self.inputs.run.recipe)

    def logits(self, fold: int, ids: Sequence[str]) -> dict[str, NDArray[np.float64]]:
        run = self.inputs.run
        network = load_network(run.checkpoint(fold), run.recipe, self.frozen.device)
        self._cut(network)
        return self.frozen.logits(ModuleHead(module=network), ids)


def tail_boundary(inputs: Inputs) -> Boundary:
    """Where the network is cut: nothing before it trains in any phase."""
    network: Any = new_network(inputs.run.recipe)
    freeze(network, *(phase.trainable for phase in fine_tuning(inputs).phases()))
    return find_boundary(network, inputs.preprocessing.size_px)


def cached_batches(
    draws: Sequence[CachedRows], inputs: Inputs, fold: int, phase: FineTune, seed: int
) -> DataLoader[Batch]:
    """Batches of the photos that train for `fold`, from cached `draws` of all training photos."""
    rows = np.flatnonzero(inputs.training_rows(fold)).tolist()
    photos = CachedPhotos(draws, rows, list(inputs.photos["target"].iloc[rows]))
    return batches_of(photos, len(rows), phase, seed)
