"""Training batches: augmented crops or cached arrays, and labels, in an order set by a seed."""

import shutil
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from comp.data.photos import n_cores
from comp.errors import TrainingError
from comp.network.device import Device
from comp.network.views import Canvases, Crops
from comp.recipe import Augmentation, FineTune
from comp.store import derive_seed, fingerprint
from comp.train.features import CachedRows

# uint8 crops [b, s, s, 3], or cached arrays float32 [b, ...]; and labels float32 [b]
Batch = tuple[Tensor, Tensor]
MAX_WORKERS = 12  # processes that feed a GPU
PREFETCH = 4  # batches per process
SHARED = Path("/dev/shm")  # where Linux keeps the batches that processes hand over; 64 MB in Docker
Place = tuple[int, int]  # epoch, row of the fold's training photos


class Draw:
    """One draw of the augmentation for every photo, the same in each run with these options."""

    flip = False

    def __init__(self, options: Augmentation, seed: int, number: int) -> None:
        self.name, self.key = f"draw {number}", fingerprint(options, seed, number)
        self._options, self._seed, self._number = options, seed, number

    def crops(self, photos: Canvases, rows: Sequence[int], size_px: int) -> Crops:
        from comp.train.augment import make_augmentation  # albumentations takes .5 s to load

        augment = make_augmentation(self._options, size_px)
        seeds = [derive_seed(self._seed, "draw", self._number, photos.sha256s[row]) for row in rows]
        pairs = zip(rows, seeds, strict=True)
        return np.stack([augment(photos.canvas(row), seed) for row, seed in pairs])


class AugmentedPhotos(Dataset[Batch]):
    """The training photos of one fold, augmented anew in each epoch; indexed by `Place`s."""

    def __init__(
        self,
        canvases: Canvases,
        rows: Sequence[int],
        targets: Sequence[float],
        augmentation: Augmentation,
        size_px: int,
        seed: int,
    ) -> None:
        from comp.train.augment import make_augmentation

        self._canvases, self._rows = canvases, list(rows)
        self._targets = torch.tensor(targets, dtype=torch.float32)
        self._augment, self._seed = make_augmentation(augmentation, size_px), seed
        self.photo_bytes = 3 * size_px**2  # of a crop

    def __getitems__(self, places: list[Place]) -> Batch:
        crops = [self._crop(epoch, self._rows[index]) for epoch, index in places]
        return torch.from_numpy(np.stack(crops)), self._targets[[index for _, index in places]]

    def _crop(self, epoch: int, row: int) -> NDArray[np.uint8]:
        seed = derive_seed(self._seed, "augment", epoch, self._canvases.sha256s[row])
        return self._augment(self._canvases.canvas(row), seed)


class CachedPhotos(Dataset[Batch]):
    """Cached arrays of the training photos of one fold, in some draws that epochs use in turn."""

    def __init__(
        self, draws: Sequence[CachedRows], rows: Sequence[int], targets: Sequence[float]
    ) -> None:
        self._draws, self._rows = draws, np.asarray(rows, np.int64)
        self._targets = torch.tensor(targets, dtype=torch.float32)

    def __getitems__(self, places: list[Place]) -> Batch:
        turns = np.array([(epoch + index) % len(self._draws) for epoch, index in places])
        indices = np.array([index for _, index in places])
        arrays = np.empty((len(indices), *self._draws[0].shape[1:]), np.float32)
        for turn in np.unique(turns):
            here = turns == turn
            arrays[here] = self._draws[turn].take(self._rows[indices[here]])
        return torch.from_numpy(arrays), self._targets[indices]


class _Shuffled:
    """Batches of `Place`s, in a new order in each epoch.

    A last batch that is not full is left out, unless it is the only one.
    """

    def __init__(self, n_photos: int, training: FineTune, seed: int) -> None:
        self._n, self._size = n_photos, min(training.batch_size, n_photos)
        self._epochs, self._seed = training.epochs, seed
        self.first = 0  # the batch to begin with, where training was stopped

    def __len__(self) -> int:
        return self._epochs * (self._n // self._size)

    def __iter__(self) -> Iterator[list[Place]]:
        n_per_epoch = self._n // self._size
        for epoch in range(self.first // n_per_epoch, self._epochs):
            rng = np.random.default_rng(derive_seed(self._seed, "shuffle", epoch))
            order = rng.permutation(self._n).tolist()
            for number in range(n_per_epoch):
                if epoch * n_per_epoch + number < self.first:
                    continue
                start = number * self._size
                yield [(epoch, index) for index in order[start : start + self._size]]


def batches_of(
    photos: AugmentedPhotos | CachedPhotos,
    n_photos: int,
    training: FineTune,
    seed: int,
    device: Device | None = None,
) -> DataLoader[Batch]:
    """All batches of all epochs, in order.

    For a GPU, processes prepare them ahead; on a CPU, or without `device`, the cores are the
    model's. TrainingError if shared memory has no room for them.
    """
    n_workers, n_ahead = 0, 0
    if isinstance(photos, AugmentedPhotos) and device and not device.is_cpu:
        batch_bytes = photos.photo_bytes * min(training.batch_size, n_photos)
        free = shutil.disk_usage(SHARED).free if SHARED.exists() else None
        n_workers, n_ahead = plan_workers(n_cores() - 1, batch_bytes, free)
    return DataLoader(
        photos,
        batch_sampler=_Shuffled(n_photos, training, seed),
        collate_fn=_unchanged,
        num_workers=n_workers,
        worker_init_fn=_leave_signals,
        pin_memory=bool(device and device.is_cuda),
        prefetch_factor=n_ahead or None,
    )


def plan_workers(n_cores: int, batch_bytes: int, shared_bytes: int | None) -> tuple[int, int]:
    """Processes, and batches that each prepares ahead, for which `shared_bytes` have room.

    `shared_bytes`: free shared memory, None where nothing limits it. Two batches are kept for the
    one in use and the one on its way. TrainingError if there is no room for one more.
    """
    n_workers = min(MAX_WORKERS, n_cores)
    if shared_bytes is None or n_workers < 1:
        return max(0, n_workers), PREFETCH * (n_workers > 0)
    n_batches = shared_bytes // batch_bytes - 2
    if n_batches < 1:
        raise TrainingError(
            f"{SHARED} has {shared_bytes / 1e6:,.0f} MB free, and three batches take"
            f" {3 * batch_bytes / 1e6:,.0f}: start the container with --shm-size=2g, or lower"
            " training.batch_size"
        )
    n_workers = min(n_workers, n_batches)
    return n_workers, min(PREFETCH, n_batches // n_workers)


def _leave_signals(_: int) -> None:
    """Ctrl-C reaches all processes of a terminal: this one goes on until the main one ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _unchanged(batch: Any) -> Any:  # __getitems__ makes whole batches
    return batch
