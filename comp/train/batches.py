"""Batches for training: augmented uint8 squares or features, and labels, in an order that a seed decides."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from comp.recipe import FineTune
from comp.seeds import derive_seed
from comp.train.device import Device, n_cores
from comp.train.views import Canvases

Batch = tuple[Tensor, Tensor]  # uint8 [b, s, s, 3], or features float32 [b, d]; and labels float32 [b]
MAX_WORKERS = 12  # processes that feed a GPU


class _Augmented(Dataset[Batch]):
    """The training photos of one fold; an index is (epoch, place)."""

    def __init__(
        self, canvases: Canvases, rows: Sequence[int], labels: Sequence[float], training: FineTune, size_px: int, seed: int
    ) -> None:
        self._canvases, self._rows, self._labels, self._seed = canvases, list(rows), list(labels), seed
        from comp.train.augment import make_augmentation  # albumentations takes half a second to load, and heads have no use for it

        self._augment = make_augmentation(training, size_px)

    def __getitems__(self, indices: list[tuple[int, int]]) -> Batch:
        squares = [
            self._augment(self._canvases.canvas(self._rows[place]), derive_seed(self._seed, "augment", epoch, place))
            for epoch, place in indices
        ]
        labels = torch.tensor([self._labels[place] for _, place in indices], dtype=torch.float32)
        return torch.from_numpy(np.stack(squares)), labels


class _Held(Dataset[Batch]):
    """Features of the training photos of one fold; an index is (epoch, place)."""

    def __init__(self, features: NDArray[np.float32], labels: Sequence[float]) -> None:
        self._features, self._labels = features, torch.tensor(labels, dtype=torch.float32)

    def __getitems__(self, indices: list[tuple[int, int]]) -> Batch:
        places = [place for _, place in indices]
        return torch.from_numpy(self._features[places]), self._labels[places]


class _Shuffled:
    """For each epoch, batches of (epoch, place) in a new order; a last batch that is not full is left out, unless it is the only one."""

    def __init__(self, n_photos: int, training: FineTune, seed: int) -> None:
        self._n, self._size, self._epochs, self._seed = n_photos, min(training.batch_size, n_photos), training.epochs, seed

    def __len__(self) -> int:
        return self._epochs * (self._n // self._size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for epoch in range(self._epochs):
            order = np.random.default_rng(derive_seed(self._seed, "shuffle", epoch)).permutation(self._n)
            for start in range(0, self._n - self._size + 1, self._size):
                yield [(epoch, int(place)) for place in order[start : start + self._size]]


def training_batches(
    canvases: Canvases, rows: Sequence[int], labels: Sequence[float], training: FineTune, size_px: int, device: Device, seed: int
) -> DataLoader[Batch]:
    """All batches of all epochs of one fold, in order. On a GPU, processes prepare them ahead; on a CPU the cores are the model's."""
    n_workers = min(MAX_WORKERS, n_cores() - 1) if device.where.type != "cpu" else 0
    return DataLoader(
        _Augmented(canvases, rows, labels, training, size_px, seed),
        batch_sampler=_Shuffled(len(rows), training, seed),
        collate_fn=_as_is,
        num_workers=n_workers,
        pin_memory=device.is_cuda,
        prefetch_factor=4 if n_workers else None,
    )


def feature_batches(features: NDArray[np.float32], labels: Sequence[float], training: FineTune, seed: int) -> DataLoader[Batch]:
    """The same of `features [n, d]`, which are the same in every epoch."""
    return DataLoader(_Held(features, labels), batch_sampler=_Shuffled(len(labels), training, seed), collate_fn=_as_is)


def _as_is(batch: Any) -> Any:  # __getitems__ has made the batch already
    return batch
