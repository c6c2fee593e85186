"""Fits by gradients: the whole network of a fold, or its last part on cached activations."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader

from comp.network.boundary import Boundary, find_boundary, input_to, resume_from
from comp.network.cpu import fuse_activations
from comp.network.device import Device, has_fast_bf16
from comp.network.embedder import make_embedder
from comp.network.heads import N_AT_ONCE, ModuleHead, start_from, trained_head
from comp.network.preprocessing import Preprocessing
from comp.network.surgery import freeze
from comp.network.views import CENTRE, View
from comp.progress import Reporter
from comp.recipe import FineTune, Head
from comp.recipes import ON_CPU
from comp.store import derive_seed, write_table
from comp.train.batches import AugmentedPhotos, Batch, CachedPhotos, Draw, batches_of
from comp.train.checkpoints import load_network, new_network
from comp.train.features import CachedRows, FrozenNetwork
from comp.train.finetune import Point, fine_tune, set_training_mode
from comp.train.inputs import Inputs
from comp.train.solver import solve_fold

BatchesOf = Callable[[FineTune, int], DataLoader[Batch]]  # of a phase and a seed


def train_phases(
    inputs: Inputs,
    fold: int,
    network: nn.Module,
    make_batches: BatchesOf,
    preprocessing: Preprocessing | None,
    device: Device,
    reporter: Reporter,
) -> None:
    """Train `network`, perhaps a head alone, through the recipe's phases; keep the history."""
    history: list[Point] = []
    n_training, recipe = int(inputs.training_rows(fold).sum()), inputs.run.recipe
    with torch.random.fork_rng(devices=[device.where] if device.is_cuda else []):
        for number, phase in enumerate(fine_tuning(inputs).phases()):
            seed = derive_seed(recipe.seed, "fine-tune", fold, number)
            batches = make_batches(phase, seed)
            # of dropout and stochastic depth; a GPU's order of summation is not seeded
            torch.manual_seed(derive_seed(seed, "dropout"))
            n_steps, n_photos = len(batches), min(phase.batch_size, n_training)
            with reporter.track(f"fold {fold}", n_steps * n_photos, "photos") as advance:
                points = fine_tune(network, batches, n_steps, phase, preprocessing, device, advance)
            before = history[-1].step if history else 0
            history += [replace(point, step=before + point.step) for point in points]
    columns = {name: [getattr(point, name) for point in history] for name in ("step", "loss", "lr")}
    write_table(inputs.run.history(fold), pd.DataFrame(columns))
    reporter.say(
        f"fold {fold}: training loss {history[0].loss:.4f} at first, {history[-1].loss:.4f} at the"
        " end"
    )


def fine_tuning(inputs: Inputs) -> FineTune:
    training = inputs.run.recipe.training
    assert isinstance(training, FineTune)
    return training


class NetworkFit:
    """All layers, or those that the recipe names, trained on freshly augmented photos."""

    def __init__(
        self,
        inputs: Inputs,
        views: Sequence[View],
        device: Device,
        reporter: Reporter,
        network: nn.Module | None = None,
    ) -> None:
        """`network`: the untrained backbone, if it is built already; consumed."""
        self.inputs, self._views, self._device, self._reporter = inputs, views, device, reporter
        self._frozen = FrozenNetwork(inputs, device, reporter, network=network)

    def announce(self, folds: Sequence[int]) -> None:
        """On a CPU, warn how long fitting `folds` will take."""
        if not self._device.is_cpu:
            return
        n_photos = sum(int(self.inputs.training_rows(fold).sum()) for fold in folds)
        phases = fine_tuning(self.inputs).phases()
        seconds = sum(n_photos * phase.epochs * self._step_seconds(phase) for phase in phases)
        took = f"{seconds / 3600:.1f} hours" if seconds > 5400 else f"{seconds / 60:.0f} minutes"
        self._reporter.warn(
            f"no GPU: {self.inputs.run.recipe.name} will train for about {took} on this CPU;"
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
        return self._frozen.mean_features(self.inputs.ids, [CENTRE])

    def start(self, fold: int) -> nn.Module:
        """The network that training of `fold` starts with."""
        training, recipe = fine_tuning(self.inputs), self.inputs.run.recipe
        network = new_network(recipe, seed=derive_seed(recipe.seed, "head", fold))
        if training.head_start:
            head = solve_fold(self._features, self.inputs.photos, fold, Head(), recipe.seed)
            start_from(network.get_classifier(), head)
        if self._device.is_cpu and not training.compile:
            self._fuse(network, half=training.fuse_batch_norm and has_fast_bf16())
        return network  # type: ignore[no-any-return]  # timm's networks are untyped

    def _fuse(self, network: nn.Module, *, half: bool) -> None:
        """Activations into their convolutions, in bfloat16 where that works and is fast."""
        size_px, rng = self.inputs.preprocessing.size_px, torch.Generator().manual_seed(0)
        example = torch.rand(1, 3, size_px, size_px, generator=rng)
        if half and fuse_activations(network, example, half=True):
            self._reporter.say("convolutions train in bfloat16, their weights in float32")
        else:
            fuse_activations(network, example)

    def batches(
        self, fold: int, network: nn.Module, phase: FineTune, seed: int
    ) -> DataLoader[Batch]:
        """Freeze what `phase` freezes, say so, and give its batches."""
        inputs = self.inputs
        photos = inputs.photos[inputs.training_rows(fold)]
        rows = [int(row) for row in inputs.pixels.rows(list(photos["id"]))]
        _freeze(network, phase, fold, len(rows), self._reporter)
        size_px, targets = inputs.preprocessing.size_px, list(photos["target"])
        augmented = AugmentedPhotos(inputs.pixels, rows, targets, phase.augment, size_px, seed)
        return batches_of(augmented, len(rows), phase, seed, self._device)

    def fit(self, fold: int) -> dict[str, Tensor]:
        network = self.start(fold)

        def make_batches(phase: FineTune, seed: int) -> DataLoader[Batch]:
            return self.batches(fold, network, phase, seed)

        preprocessing = self.inputs.preprocessing_for(fold)
        arguments = (make_batches, preprocessing, self._device, self._reporter)
        train_phases(self.inputs, fold, network, *arguments)
        return dict(network.state_dict())

    def logits(self, fold: int, ids: Sequence[str]) -> dict[str, NDArray[np.float64]]:
        """A tuned network's outputs are of use once, so that none is cached."""
        inputs, run = self.inputs, self.inputs.run
        network = load_network(run.checkpoint(fold), run.recipe, self._device)
        head = trained_head(network.get_classifier())
        preprocessing, example = inputs.preprocessing_for(fold), inputs.example_crops()
        embedder, _ = make_embedder(network, preprocessing, self._device, example)
        rows = [int(row) for row in inputs.pixels.rows(ids)]
        by_view = {}
        total = len(rows) * len(self._views)
        with self._reporter.track("predicting", total, "views") as advance:
            for view in self._views:
                parts = []
                for batch in embedder.embed_photos(inputs.pixels, rows, view):
                    parts.append(head.logits(batch))
                    advance(len(batch))
                by_view[view.name] = torch.cat(parts).numpy()
        return by_view


class TailFit:
    """The last part of the network, trained on cached activations of the frozen part.

    The activations are those of some draws of the augmentation, which epochs use in turn.
    """

    def __init__(
        self,
        inputs: Inputs,
        views: Sequence[View],
        device: Device,
        reporter: Reporter,
        network: nn.Module | None = None,
    ) -> None:
        """`network`: the untrained backbone, if it is built already; consumed."""
        self.inputs, self._views, self._device, self._reporter = inputs, views, device, reporter
        self._size_px = inputs.preprocessing.size_px
        trained: Any = new_network(inputs.run.recipe)
        freeze(trained, *(phase.trainable for phase in fine_tuning(inputs).phases()))
        self.boundary: Boundary = find_boundary(trained, self._size_px)
        self._frozen = FrozenNetwork(
            inputs, device, reporter, network=network, boundary=self.boundary
        )

    def announce(self, folds: Sequence[int]) -> None:
        """Say what the activations take on disk; DataError if there is not that much."""
        if folds:
            n_views = fine_tuning(self.inputs).cached_views + len(self._views)
            self._frozen.check_disk(len(self.inputs.photos), n_views)

    @cached_property
    def draws(self) -> list[CachedRows]:
        """The activations of all training photos, draw by draw."""
        training = fine_tuning(self.inputs)
        seed = derive_seed(self.inputs.run.recipe.seed, "draws")
        draws = [Draw(training.augment, seed, n) for n in range(training.cached_views)]
        return [self._frozen.outputs(self.inputs.ids, draw) for draw in draws]

    @cached_property
    def _features(self) -> NDArray[np.float32]:
        """Pooled features [n, d]: cached activations through the untrained rest of the network."""
        activations = self._frozen.outputs(self.inputs.ids, CENTRE)
        network = new_network(self.inputs.run.recipe).to(self._device.where)
        resume_from(network, self.boundary, self._size_px)
        head = network.pretrained_cfg["classifier"]
        parts = []
        with torch.inference_mode():
            for start in range(0, len(activations), N_AT_ONCE):
                rows = range(start, min(start + N_AT_ONCE, len(activations)))
                part = torch.from_numpy(activations.take(rows)).to(self._device.where)
                parts.append(input_to(network, head, part).cpu())
        return torch.cat(parts).numpy()

    def start(self, fold: int) -> nn.Module:
        """The network that training of `fold` starts with; it takes activations."""
        recipe = self.inputs.run.recipe
        network = new_network(recipe, seed=derive_seed(recipe.seed, "head", fold))
        if fine_tuning(self.inputs).head_start:
            head = solve_fold(self._features, self.inputs.photos, fold, Head(), recipe.seed)
            start_from(network.get_classifier(), head)
        resume_from(network, self.boundary, self._size_px)
        return network  # type: ignore[no-any-return]  # timm's networks are untyped

    def fit(self, fold: int) -> dict[str, Tensor]:
        draws, network = self.draws, self.start(fold)
        rows = np.flatnonzero(self.inputs.training_rows(fold))
        cached = CachedPhotos(draws, rows.tolist(), list(self.inputs.photos["target"].iloc[rows]))

        def make_batches(phase: FineTune, seed: int) -> DataLoader[Batch]:
            _freeze(network, phase, fold, len(rows), self._reporter)
            return batches_of(cached, len(rows), phase, seed)

        arguments = (make_batches, None, self._device, self._reporter)
        train_phases(self.inputs, fold, network, *arguments)
        return dict(network.state_dict())

    def logits(self, fold: int, ids: Sequence[str]) -> dict[str, NDArray[np.float64]]:
        run = self.inputs.run
        network = load_network(run.checkpoint(fold), run.recipe, self._device)
        resume_from(network, self.boundary, self._size_px)
        head = ModuleHead(module=network)
        return {view.name: self._frozen.logits(head, ids, view) for view in self._views}


def _freeze(
    network: nn.Module, phase: FineTune, fold: int, n_photos: int, reporter: Reporter
) -> None:
    trained, total = freeze(network, phase.trainable)
    reporter.say(f"fold {fold}: {trained:,} of {total:,} parameters train on {n_photos:,} photos")
