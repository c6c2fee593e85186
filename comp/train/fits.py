"""Three ways to fit a fold: a head on features, the last part on activations, the whole network.

Each has `announce(folds)`, which says what fitting them will cost; `fit(fold)`, the fitted weights
for its checkpoint; and `logits(fold, ids)` [n] by that checkpoint, under each of its views.
"""

from collections.abc import Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from comp.errors import DataError
from comp.network.heads import FeatureHead, arrays_of, head_from
from comp.progress import Reporter
from comp.recipe import FineTune, Head, Svm, ViewsName
from comp.store import derive_seed, free_memory
from comp.train.checkpoints import Arrays, head_shape, load_tensors
from comp.train.features import FrozenNetwork, in_memory, read_kept
from comp.train.inputs import Inputs, read_inputs
from comp.train.run import Run
from comp.train.solver import solve_fold

COPIES = 7  # of the features in float32, at the peak of solving a head (LOG.md, 2026-11-27)

# What needs torch is imported where it is used: a head on kept features is solved without it.
if TYPE_CHECKING:
    from comp.train.tuning import NetworkFit, TailFit


class HeadFit:
    """A head on cached features of the frozen backbone: solved, an SVM, or trained by gradients."""

    def __init__(self, frozen: FrozenNetwork) -> None:
        self.frozen, self.inputs = frozen, frozen.inputs

    def announce(self, folds: Sequence[int]) -> None:
        """DataError if the features of all photos do not fit into memory."""
        n_photos, free = len(self.inputs.ids), free_memory()
        need = COPIES * 4 * n_photos * self.frozen.n_outputs if folds else 0
        if free is not None and need > free:
            raise DataError(
                f"heads on {self.frozen.n_outputs:,} features of {n_photos:,} photos need about"
                f" {need / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free: lower"
                " folds.n_photos, or take a backbone with fewer features"
            )

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

    def fit(self, fold: int) -> Arrays:
        photos, recipe = self.inputs.photos, self.inputs.run.recipe
        training, features = recipe.training, self._training_features
        if isinstance(training, FineTune):
            return self._train_layers(fold, training)
        if isinstance(training, Head):
            return arrays_of(solve_fold(features, photos, fold, training, recipe.seed))
        return self._fit_svm(fold, training)

    def _fit_svm(self, fold: int, training: Svm) -> Arrays:
        from comp.train.svm import fit_svm  # scikit-learn takes most of a second to load

        rows = self.inputs.training_rows(fold)
        photos, features = self.inputs.photos[rows], self._training_features[rows]
        groups = [int(group) for group in photos["group"]]
        seed = derive_seed(self.inputs.run.recipe.seed, "inner folds", fold)
        return arrays_of(
            fit_svm(features, photos["target"].to_numpy(), groups, training, seed=seed)
        )

    def _train_layers(self, fold: int, training: FineTune) -> Arrays:
        """A head trained by gradients on the features."""
        from comp.network.layers import arrays_of_layers, make_layers
        from comp.train.tuning import cached_batches, start_from_solved, train_phases

        features, recipe = self._training_features, self.inputs.run.recipe
        seed = derive_seed(recipe.seed, "head", fold)
        layers = make_layers(features.shape[1], training.head, seed)
        if training.head_start:
            start_from_solved(layers, self.inputs, fold, features)
        draws = [in_memory(features)]
        train_phases(self.frozen, fold, layers, partial(cached_batches, draws, self.inputs))
        return arrays_of_layers(layers)

    def logits(self, fold: int, ids: Sequence[str]) -> dict[str, NDArray[np.float64]]:
        return self.frozen.logits(head_of(self.inputs.run, fold), ids)


def head_of(run: Run, fold: int) -> FeatureHead:
    """The fitted head of `fold` of a run on features, from its checkpoint."""
    arrays, shape = load_tensors(run.checkpoint(fold)), head_shape(run.recipe)
    if not shape.widths:
        return head_from(arrays)
    from comp.network.layers import layers_from

    return layers_from(arrays, shape)


def open_fit(
    run: Run,
    device: str | None,
    reporter: Reporter,
    *,
    inputs: Inputs | None = None,
    with_test: bool = True,
    new: bool = False,
) -> "HeadFit | TailFit | NetworkFit":
    """The way that the run's recipe asks for, on today's photos, or on `inputs`.

    UserError for an unknown device before photos are decoded; `new`, where folds will be fitted:
    for the recipe's network, weights, layers and optimiser too.
    """
    recipe, network = run.recipe, None
    if new and isinstance(recipe.training, FineTune):
        from comp.train.finetune import check_optimiser

        check_optimiser(recipe.training)
    if read_kept(run, device) is None:
        from comp.network.backbone import build
        from comp.network.device import find_device
        from comp.network.surgery import freeze

        find_device(device)
        network = build(recipe.model, size_px=recipe.pixels.size_px) if new else None
    if network and isinstance(recipe.training, FineTune) and not recipe.on_features:
        freeze(network, *(phase.trainable for phase in recipe.training.phases()))
    inputs = inputs or read_inputs(run, reporter, with_test=with_test)
    if recipe.on_features:
        return HeadFit(FrozenNetwork(inputs, device, reporter, network=network))
    from comp.train.tuning import NetworkFit, TailFit, tail_boundary

    boundary = tail_boundary(inputs) if recipe.is_cached else None
    frozen = FrozenNetwork(inputs, device, reporter, network=network, boundary=boundary)
    return NetworkFit(frozen) if boundary is None else TailFit(frozen, boundary)
