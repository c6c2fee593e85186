"""Batches for training: augmented uint8 squares, or what was kept of them, and labels, in an order that a seed decides."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from comp.data.photos import n_cores
from comp.recipe import FineTune
from comp.seeds import derive_seed
from comp.store import fingerprint
from comp.train.device import Device
from comp.train.views import Canvases, Photos

Batch = tuple[
    Tensor, Tensor
]  # uint8 [b, s, s, 3], or features or activations float32 [b, ...]; and labels float32 [b]
MAX_WORKERS = 12  # processes that feed a GPU


class Kept(Protocol):
    """What was made of photos before; `comp.train.kept.Rows` is it on disk."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def take(self, places: NDArray[np.int64]) -> NDArray[np.float32]:
        """The arrays [n, ...] at `places`."""
        ...


class InMemory:
    """What was made of photos before, in memory."""

    def __init__(self, arrays: NDArray[np.float32]) -> None:
        self._arrays, self.shape = arrays, arrays.shape

    def take(self, places: NDArray[np.int64]) -> NDArray[np.float32]:
        return self._arrays[places]


class Draw:
    """A way to see every photo: one draw of the augmentation in training, the same for a photo in every run."""

    flip = False

    def __init__(self, training: FineTune, seed: int, number: int) -> None:
        crop = (training.crop, training.crop_area, training.crop_aspect, training.crop_pad_px)
        self.name = f"draw-{fingerprint(crop, training.flip, training.colour, seed)}-{number}"
        self._training, self._seed, self._number = training, seed, number

    def squares(self, photos: Photos, rows: Sequence[int], size_px: int) -> NDArray[np.uint8]:
        from comp.train.augment import make_augmentation

        augment = make_augmentation(self._training, size_px)
        seeds = (derive_seed(self._seed, "draw", self._number, photos.sha256s[row]) for row in rows)
        return np.stack(
            [augment(photos.canvas(row), seed) for row, seed in zip(rows, seeds, strict=True)]
        )


class _Augmented(Dataset[Batch]):
    """The training photos of one fold; an index is (epoch, place)."""

    def __init__(
        self,
        canvases: Canvases,
        rows: Sequence[int],
        labels: Sequence[float],
        training: FineTune,
        size_px: int,
        seed: int,
    ) -> None:
        self._canvases, self._rows, self._labels, self._seed = (
            canvases,
            list(rows),
            list(labels),
            seed,
        )
        from comp.train.augment import (
            make_augmentation,
        )  # albumentations takes half a second to load, and heads have no use for it

        self._augment = make_augmentation(training, size_px)

    def __getitems__(self, indices: list[tuple[int, int]]) -> Batch:
        squares = [
            self._augment(
                self._canvases.canvas(self._rows[place]),
                derive_seed(self._seed, "augment", epoch, place),
            )
            for epoch, place in indices
        ]
        labels = torch.tensor([self._labels[place] for _, place in indices], dtype=torch.float32)
        return torch.from_numpy(np.stack(squares)), labels


class _Held(Dataset[Batch]):
    """What is kept of the training photos of one fold, in one or more draws; an index is (epoch, place)."""

    def __init__(
        self, draws: Sequence[Kept], places: Sequence[int], labels: Sequence[float]
    ) -> None:
        self._draws, self._places, self._labels = (
            draws,
            np.asarray(places, np.int64),
            torch.tensor(labels, dtype=torch.float32),
        )

    def __getitems__(self, indices: list[tuple[int, int]]) -> Batch:
        turns = np.array([(epoch + place) % len(self._draws) for epoch, place in indices])
        places = np.array([place for _, place in indices])
        kept = np.empty((len(places), *self._draws[0].shape[1:]), np.float32)
        for turn in np.unique(turns):
            here = turns == turn
            kept[here] = self._draws[turn].take(self._places[places[here]])
        return torch.from_numpy(kept), self._labels[places]


class _Shuffled:
    """For each epoch, batches of (epoch, place) in a new order; a last batch that is not full is left out, unless it is the only one."""

    def __init__(self, n_photos: int, training: FineTune, seed: int) -> None:
        self._n, self._size, self._epochs, self._seed = (
            n_photos,
            min(training.batch_size, n_photos),
            training.epochs,
            seed,
        )

    def __len__(self) -> int:
        return self._epochs * (self._n // self._size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for epoch in range(self._epochs):
            order = np.random.default_rng(derive_seed(self._seed, "shuffle", epoch)).permutation(
                self._n
            )
            for start in range(0, self._n - self._size + 1, self._size):
                yield [(epoch, int(place)) for place in order[start : start + self._size]]


def training_batches(
    canvases: Canvases,
    rows: Sequence[int],
    labels: Sequence[float],
    training: FineTune,
    size_px: int,
    device: Device,
    seed: int,
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


def kept_batches(
    draws: Sequence[Kept],
    places: Sequence[int],
    labels: Sequence[float],
    training: FineTune,
    seed: int,
) -> DataLoader[Batch]:
    """The same of the photos at `places` in what is kept of them; each epoch takes the next of the `draws` of a photo, in turn."""
    return DataLoader(
        _Held(draws, places, labels),
        batch_sampler=_Shuffled(len(labels), training, seed),
        collate_fn=_as_is,
    )


def _as_is(batch: Any) -> Any:  # __getitems__ has made the batch already
    return batch
