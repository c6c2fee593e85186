"""A peer: what timm's train.py does, by timm's own loader, optimiser and schedule; channels-last, all layers.

The script is in timm's repository and not in its package, so its loop is written out here: `train.py --channels-last --opt adamw --lr 1e-4
--sched cosine --warmup-epochs 0 --workers 2`, with the script's own augmentation (random-resized-crop from 8 %, flip, colour).
"""

from collections.abc import Callable
from typing import Any

import torch
from timm.data import ImageDataset, create_loader
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import Tensor, nn

from comp.bench.peers import N_WORKERS, loss_of
from comp.bench.rows import Setup
from comp.train.backbone import build, input_of


class ScriptLoop:
    """train.py's model, optimiser, schedule and loaders."""

    def __init__(self, setup: Setup, n_photos: int | None) -> None:
        network: Any = build(setup.model, size_px=setup.size_px)
        network.reset_classifier(2)
        self._network: nn.Module = network.to(memory_format=torch.channels_last)
        self._loader = _loader(setup, "train", n_photos)
        self._held = _loader(setup, "held", None)
        self.n_photos = (
            len(self._loader) * setup.batch
        )  # the script leaves out a last batch that is not full
        self._optimiser = create_optimizer_v2(
            self._network, opt="adamw", lr=1e-4, weight_decay=2e-5
        )
        timing = {
            "num_epochs": setup.epochs,
            "step_on_epochs": False,
            "updates_per_epoch": len(self._loader),
        }
        self._schedule, _ = create_scheduler_v2(self._optimiser, "cosine", **timing)

    def epoch(self, number: int, is_over: Callable[[], bool]) -> bool:
        criterion, n_updates = nn.CrossEntropyLoss(), number * len(self._loader)
        self._network.train()
        self._optimiser.zero_grad()
        for images, labels in self._loader:
            criterion(self._outputs(images), labels).backward()
            self._optimiser.step()
            n_updates += 1
            self._schedule.step_update(num_updates=n_updates)
            self._optimiser.zero_grad()
            if is_over():
                return True
        return False

    def held_loss(self) -> float:
        self._network.eval()
        return loss_of(lambda images: self._outputs(images).diff(dim=1).squeeze(1), self._held)

    def _outputs(self, images: Tensor) -> Tensor:
        outputs: Tensor = self._network(images.contiguous(memory_format=torch.channels_last))
        return outputs


def _loader(setup: Setup, split: str, n_photos: int | None) -> Any:
    dataset, shown = ImageDataset(str(setup.root / "classes" / split)), input_of(setup.model)
    if n_photos is not None:
        dataset.reader.samples = dataset.reader.samples[:: max(1, len(dataset) // n_photos)][
            :n_photos
        ]
    return create_loader(
        dataset,
        (3, setup.size_px, setup.size_px),
        setup.batch,
        is_training=split == "train",
        interpolation="random" if split == "train" else shown.interpolation,
        mean=shown.mean,
        std=shown.std,
        num_workers=N_WORKERS,
        crop_pct=shown.crop_pct,
        device=torch.device("cpu"),
        persistent_workers=False,  # so that their core-seconds are counted when an epoch ends
    )
