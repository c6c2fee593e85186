"""Three ways to fit a fold: a head on features, the last part on activations, the whole network."""

from collections.abc import Sequence
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader

from comp.network.device import Device
from comp.network.heads import (
    FeatureHead,
    head_from,
    make_layers,
    start_from,
    tensors_of,
    trained_head,
)
from comp.network.preprocessing import canvas_ratio
from comp.network.views import View, views_of
from comp.progress import Reporter
from comp.recipe import FineTune, Head, Svm, ViewsName
from comp.store import derive_seed
from comp.train.batches import Batch, CachedPhotos, batches_of
from comp.train.checkpoints import head_shape, load_tensors
from comp.train.features import FrozenNetwork, in_memory
from comp.train.inputs import Inputs, read_inputs
from comp.train.run import Run
from comp.train.solver import solve_fold
from comp.train.tuning import NetworkFit, TailFit, train_phases


class Fit(Protocol):
    """A way to fit the folds of one run."""

    inputs: Inputs

    def announce(self, folds: Sequence[int]) -> None:
        """Say what fitting `folds` will cost, before it starts."""
        ...

    def fit(self, fold: int) -> dict[str, Tensor]:
        """The fitted weights of `fold`, which go into its checkpoint."""
        ...

    def logits(self, fold: int, ids: Sequence[str]) -> dict[str, NDArray[np.float64]]:
        """Logits [n] of `ids` by the checkpoint of `fold`, under each of the recipe's views."""
        ...


def open_fit(
    run: Run,
    device: Device,
    reporter: Reporter,
    *,
    with_test: bool = True,
    network: nn.Module | None = None,
) -> Fit:
    """The way that the run's recipe asks for, on today's photos.

    `network`: the untrained backbone, if it is built already; consumed.
    """
    inputs = read_inputs(run, reporter, with_test=with_test)
    if run.recipe.on_features:
        return HeadFit(inputs, device, reporter, network)
    kind = TailFit if run.recipe.is_cached else NetworkFit
    return kind(inputs, recipe_views(inputs), device, reporter, network)


def recipe_views(inputs: Inputs, name: ViewsName | None = None) -> tuple[View, ...]:
    """The views called `name`, or those that the recipe predicts with."""
    recipe = inputs.run.recipe
    has_room = canvas_ratio(recipe, inputs.preprocessing) > 1
    return views_of(name or recipe.prediction.views, has_room=has_room)


class HeadFit:
    """A head on cached features of the frozen backbone: solved, an SVM, or trained by gradients."""

    def __init__(
        self, inputs: Inputs, device: Device, reporter: Reporter, network: nn.Module | None = None
    ) -> None:
        """`network`: the untrained backbone, if it is built already; consumed."""
        self.inputs, self._device, self._reporter = inputs, device, reporter
        self._views = recipe_views(inputs)
        self.frozen = FrozenNetwork(inputs, device, reporter, network=network)

    def announce(self, folds: Sequence[int]) -> None:
        """Features take a few kB per photo and seconds per fold: nothing to warn of."""

    def views(self, name: ViewsName | None = None) -> tuple[View, ...]:
        """The views called `name`, or those that the recipe predicts with."""
        return recipe_views(self.inputs, name)

    def mean_features(self, ids: Sequence[str], views: Sequence[View]) -> NDArray[np.float32]:
        """Features [n, d] averaged over `views`."""
        return self.frozen.mean_features(ids, views)

    @cached_property
    def _training_features(self) -> NDArray[np.float32]:
        training = self.inputs.run.recipe.training
        views = "none" if isinstance(training, FineTune) else training.views
        return self.mean_features(self.inputs.ids, self.views(views))

    def fit(self, fold: int) -> dict[str, Tensor]:
        return tensors_of(self._fit_head(fold))

    def _fit_head(self, fold: int) -> FeatureHead:
        photos, recipe = self.inputs.photos, self.inputs.run.recipe
        training, features = recipe.training, self._training_features
        if isinstance(training, Head):
            return solve_fold(features, photos, fold, training, recipe.seed)
        rows = self.inputs.training_rows(fold)
        if isinstance(training, Svm):
            from comp.train.svm import fit_svm  # scikit-learn takes most of a second to load

            groups = [int(group) for group in photos["group"][rows]]
            seed = derive_seed(recipe.seed, "inner folds", fold)
            return fit_svm(
                features[rows], photos["target"].to_numpy()[rows], groups, training, seed=seed
            )
        return self._train_layers(fold, features[rows], training)

    def _train_layers(
        self, fold: int, features: NDArray[np.float32], training: FineTune
    ) -> FeatureHead:
        """A head trained by gradients on `features [n, d]` of the fold's training photos."""
        photos, recipe = self.inputs.photos, self.inputs.run.recipe
        seed = derive_seed(recipe.seed, "head", fold)
        layers = make_layers(features.shape[1], training.head, seed).to(self._device.where)
        if training.head_start:
            solved = solve_fold(self._training_features, photos, fold, Head(), recipe.seed)
            start_from(layers, solved)
        n_parameters = sum(parameter.numel() for parameter in layers.parameters())
        self._reporter.say(
            f"fold {fold}: {n_parameters:,} parameters of the head train on features of"
            f" {len(features):,} photos"
        )
        targets = list(photos["target"][self.inputs.training_rows(fold)])
        cached = CachedPhotos([in_memory(features)], range(len(features)), targets)

        def make_batches(phase: FineTune, seed: int) -> DataLoader[Batch]:
            return batches_of(cached, len(features), phase, seed)

        arguments = (make_batches, None, self._device, self._reporter)
        train_phases(self.inputs, fold, layers, *arguments)
        return trained_head(layers)

    def head(self, fold: int) -> FeatureHead:
        """The fitted head of `fold`, from its checkpoint."""
        run = self.inputs.run
        return head_from(load_tensors(run.checkpoint(fold)), head_shape(run.recipe))

    def logits(self, fold: int, ids: Sequence[str]) -> dict[str, NDArray[np.float64]]:
        head = self.head(fold)
        return {view.name: self.frozen.logits(head, ids, view) for view in self._views}
