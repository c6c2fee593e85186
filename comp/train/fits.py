"""Three ways to fit a fold: a head on features, the last part on activations, the whole network.

Each has `announce(folds)`, which says what fitting them will cost; `fit(fold)`, the fitted weights
for its checkpoint; and `logits(fold, ids)` [n] by that checkpoint, under each of its views.
"""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader

from comp.network.device import Device
from comp.network.heads import FeatureHead, head_from, make_layers, tensors_of, trained_head
from comp.progress import Reporter
from comp.recipe import FineTune, Head, Svm, ViewsName
from comp.store import derive_seed
from comp.train.batches import Batch
from comp.train.checkpoints import head_shape, load_tensors
from comp.train.features import FrozenNetwork, in_memory
from comp.train.inputs import read_inputs
from comp.train.run import Run
from comp.train.solver import solve_fold
from comp.train.tuning import (
    NetworkFit,
    TailFit,
    cached_batches,
    start_from_solved,
    tail_boundary,
    train_phases,
)


class HeadFit:
    """A head on cached features of the frozen backbone: solved, an SVM, or trained by gradients."""

    def __init__(self, frozen: FrozenNetwork) -> None:
        self.frozen, self.inputs = frozen, frozen.inputs

    def announce(self, folds: Sequence[int]) -> None:
        """Features take a few kB per photo and seconds per fold: nothing to warn of."""

    def mean_features(
        self, ids: Sequence[str], views: ViewsName | None = None
    ) -> NDArray[np.float32]:
        """Features [n, d] averaged over `views`; None: those that the recipe predicts with."""
        return self.frozen.mean_features(ids, self.inputs.views(views))

    @cached_property
    def _training_features(self) -> NDArray[np.float32]:
        training = self.inputs.run.recipe.training
        views: ViewsName = "none" if isinstance(training, FineTune) else training.views
        return self.mean_features(self.inputs.ids, views)

    def fit(self, fold: int) -> dict[str, Tensor]:
        return tensors_of(self._fit_head(fold))

    def _fit_head(self, fold: int) -> FeatureHead:
        photos, recipe = self.inputs.photos, self.inputs.run.recipe
        training, features = recipe.training, self._training_features
        if isinstance(training, Head):
            return solve_fold(features, photos, fold, training, recipe.seed)
        if isinstance(training, FineTune):
            return self._train_layers(fold, training)
        return self._fit_svm(fold, training)

    def _fit_svm(self, fold: int, training: Svm) -> FeatureHead:
        from comp.train.svm import fit_svm  # scikit-learn takes most of a second to load

        rows = self.inputs.training_rows(fold)
        photos, features = self.inputs.photos[rows], self._training_features[rows]
        groups = [int(group) for group in photos["group"]]
        seed = derive_seed(self.inputs.run.recipe.seed, "inner folds", fold)
        return fit_svm(features, photos["target"].to_numpy(), groups, training, seed=seed)

    def _train_layers(self, fold: int, training: FineTune) -> FeatureHead:
        """A head trained by gradients on the features."""
        features, recipe = self._training_features, self.inputs.run.recipe
        seed = derive_seed(recipe.seed, "head", fold)
        layers = make_layers(features.shape[1], training.head, seed)
        if training.head_start:
            start_from_solved(layers, self.inputs, fold, features)
        train_phases(self.frozen, fold, layers, self._batches)
        return trained_head(layers)

    def _batches(self, fold: int, phase: FineTune, seed: int) -> DataLoader[Batch]:
        return cached_batches([in_memory(self._training_features)], self.inputs, fold, phase, seed)

    def head(self, fold: int) -> FeatureHead:
        """The fitted head of `fold`, from its checkpoint."""
        run = self.inputs.run
        return head_from(load_tensors(run.checkpoint(fold)), head_shape(run.recipe))

    def logits(self, fold: int, ids: Sequence[str]) -> dict[str, NDArray[np.float64]]:
        return self.frozen.logits(self.head(fold), ids)


def open_fit(
    run: Run,
    device: Device,
    reporter: Reporter,
    *,
    with_test: bool = True,
    network: nn.Module | None = None,
) -> HeadFit | TailFit | NetworkFit:
    """The way that the run's recipe asks for, on today's photos.

    `network`: the untrained backbone, if it is built already; consumed.
    """
    inputs, recipe = read_inputs(run, reporter, with_test=with_test), run.recipe
    has_tail = recipe.is_cached and not recipe.on_features
    boundary = tail_boundary(inputs) if has_tail else None
    frozen = FrozenNetwork(inputs, device, reporter, network=network, boundary=boundary)
    if boundary is not None:
        return TailFit(frozen, boundary)
    return HeadFit(frozen) if recipe.on_features else NetworkFit(frozen)
