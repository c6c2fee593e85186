"""A peer: the loop of torchvision's transfer-learning tutorial, as it is written there, over a frozen backbone.

Source: docs.pytorch.org, "Transfer Learning for Computer Vision Tutorial", "ConvNet as fixed feature extractor". The backbone runs in every
epoch and for every fold, in training mode; the head alone is trained, here by Adam at .001. One logit stands for its two outputs.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Subset
from torchvision import transforms
from torchvision.datasets import ImageFolder

from comp.bench.peers import N_WORKERS, loss_of
from comp.bench.rows import Setup
from comp.train.backbone import build, input_of

CROP_PCT = 0.875  # 224 of 256 px


class TutorialLoop:
    """The tutorial's model, optimiser and loaders."""

    def __init__(self, setup: Setup, n_photos: int | None) -> None:
        network: Any = build(setup.model, size_px=setup.size_px)
        for parameter in network.parameters():
            parameter.requires_grad = False
        for parameter in network.get_classifier().parameters():
            parameter.requires_grad = True
        self._network: nn.Module = network
        self._optimiser = torch.optim.Adam(network.get_classifier().parameters(), lr=1e-3)
        cropped = [transforms.RandomResizedCrop(setup.size_px), transforms.RandomHorizontalFlip()]
        self._loader = loader_of(setup, "train", cropped, n_photos)
        self._held = loader_of(setup, "held", centred(setup))
        self.n_photos = len(self._loader.dataset)  # type: ignore[arg-type]  # a Subset has a length

    def epoch(self, number: int, is_over: Callable[[], bool]) -> bool:  # noqa: ARG002  # the tutorial's rate falls after seven
        criterion = nn.BCEWithLogitsLoss()
        self._network.train()
        for images, labels in self._loader:
            self._optimiser.zero_grad()
            criterion(self._network(images).squeeze(1), labels.float()).backward()
            self._optimiser.step()
            if is_over():
                return True
        return False

    def held_loss(self) -> float:
        self._network.eval()
        return loss_of(lambda images: self._network(images).squeeze(1), self._held)


def centred(setup: Setup) -> list[Any]:
    return [
        transforms.Resize(round(setup.size_px / CROP_PCT)),
        transforms.CenterCrop(setup.size_px),
    ]


def loader_of(
    setup: Setup,
    split: str,
    steps: list[Any],
    n_photos: int | None = None,
    n_workers: int = N_WORKERS,
) -> DataLoader[Any]:
    """torchvision's ImageFolder of `n_photos` of a split, evenly over classes, in shuffled batches, through Pillow."""
    shown = input_of(setup.model)
    ends = [transforms.ToTensor(), transforms.Normalize(shown.mean, shown.std)]
    folder = ImageFolder(setup.root / "classes" / split, transforms.Compose(steps + ends))
    some = np.linspace(0, len(folder) - 1, min(n_photos or len(folder), len(folder))).astype(int)
    return DataLoader(
        Subset(folder, some.tolist()), setup.batch, shuffle=True, num_workers=n_workers
    )
