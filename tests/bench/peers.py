"""Two peers, as their authors write them: torchvision's tutorial, and timm's train.py.

The tutorial is docs.pytorch.org, "Transfer Learning for Computer Vision Tutorial", "ConvNet as
fixed feature extractor". The backbone runs in training mode in every epoch; only the head is
trained, here by Adam at .001. One logit replaces its two outputs.

The script is in timm's repository and not in its package, so its loop is written out here, by
timm's own loader, optimiser and schedule: `train.py --channels-last --opt adamw --lr 1e-4 --sched
cosine --warmup-epochs 0 --workers 2`, with the script's own augmentation (random-resized-crop from
8 %, flip, colour).
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
import torch
from timm.data import ImageDataset, create_loader
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from torchvision import transforms
from torchvision.datasets import ImageFolder

from comp.data.photos import n_cores
from comp.metric import logit_log_loss
from comp.network.backbone import build, timm_config
from tests.bench.rows import Evaluation, Measured, Setup, Work, now, timed, without_start

N_WORKERS = 2  # at most as many as tutorials and scripts set


class TutorialLoop:
    """The tutorial's model, optimiser and loaders, on `n_photos`, None: all."""

    def __init__(self, setup: Setup, n_photos: int | None) -> None:
        self._network: Any = build(setup.model, size_px=setup.size_px)
        self._network.requires_grad_(False)
        head = self._network.get_classifier().requires_grad_(True)
        self._optimiser = torch.optim.Adam(head.parameters(), lr=1e-3)
        steps = [transforms.RandomResizedCrop(setup.size_px), transforms.RandomHorizontalFlip()]
        self._loader = _tutorial_loader(setup, "train", steps, n_photos)
        self._held_out = _tutorial_loader(setup, "test", _centred(setup))
        self.n_photos = len(self._loader.dataset)

    def train_epoch(self, number: int) -> None:
        criterion = nn.BCEWithLogitsLoss()
        self._network.train()
        for images, labels in self._loader:
            self._optimiser.zero_grad()
            criterion(self._network(images).squeeze(1), labels.float()).backward()
            self._optimiser.step()

    def held_out_loss(self) -> float:
        self._network.eval()
        return loss_of(lambda images: self._network(images).squeeze(1), self._held_out)


def _centred(setup: Setup) -> list[Any]:
    whole_px = round(setup.size_px / 0.875)  # the tutorial's 256 for 224
    return [transforms.Resize(whole_px), transforms.CenterCrop(setup.size_px)]


def _tutorial_loader(
    setup: Setup, split: str, steps: list[Any], n_photos: int | None = None, workers: int = 0
) -> DataLoader[Any]:
    """ImageFolder of `n_photos` of a split, evenly over classes, shuffled, through Pillow."""
    config = timm_config(setup.model.backbone)
    ends = [transforms.ToTensor(), transforms.Normalize(config["mean"], config["std"])]
    folder = ImageFolder(setup.root / "classes" / split, transforms.Compose(steps + ends))
    some = np.linspace(0, len(folder) - 1, min(n_photos or len(folder), len(folder))).astype(int)
    photos = Subset(folder, some.tolist())
    return DataLoader(photos, setup.batch, shuffle=True, num_workers=workers or N_WORKERS)


def decode(setup: Setup) -> Work:
    """Pillow, Resize, CenterCrop, ToTensor and Normalize, in a DataLoader, a worker per core."""
    n_workers, steps = n_cores(), _centred(setup)
    loader = _tutorial_loader(setup, "train", steps, 2 * setup.peer_photos, n_workers)
    return lambda: Measured(timed(lambda: list(map(len, loader))), len(loader.dataset))


class ScriptLoop:
    """train.py's model, optimiser, schedule and loaders, on `n_photos`, None: all."""

    def __init__(self, setup: Setup, n_photos: int | None) -> None:
        network: Any = build(setup.model, size_px=setup.size_px)
        network.reset_classifier(2)
        self._network = network.to(memory_format=torch.channels_last)
        self._loader = _script_loader(setup, "train", n_photos)
        self._held_out = _script_loader(setup, "test", None)
        self.n_photos = len(self._loader) * setup.batch  # the script drops a last partial batch
        self._optimiser = create_optimizer_v2(network, opt="adamw", lr=1e-4, weight_decay=2e-5)
        steps = {"step_on_epochs": False, "updates_per_epoch": len(self._loader)}
        self._schedule, _ = create_scheduler_v2(
            self._optimiser, "cosine", num_epochs=setup.epochs, **steps
        )

    def train_epoch(self, number: int) -> None:
        criterion = nn.CrossEntropyLoss()
        self._network.train()
        self._optimiser.zero_grad()
        for n_updates, (images, labels) in enumerate(self._loader, number * len(self._loader) + 1):
            criterion(self._outputs(images), labels).backward()
            self._optimiser.step()
            self._schedule.step_update(num_updates=n_updates)
            self._optimiser.zero_grad()

    def held_out_loss(self) -> float:
        self._network.eval()
        return loss_of(lambda images: self._outputs(images).diff(dim=1).squeeze(1), self._held_out)

    def _outputs(self, images: Tensor) -> Any:
        return self._network(images.contiguous(memory_format=torch.channels_last))


def _script_loader(setup: Setup, split: str, n_photos: int | None) -> Any:
    dataset = ImageDataset(str(setup.root / "classes" / split))
    config, is_training = timm_config(setup.model.backbone), split == "train"
    if n_photos is not None:
        every = max(1, len(dataset) // n_photos)
        dataset.reader.samples = dataset.reader.samples[::every][:n_photos]
    return create_loader(
        dataset,
        (3, setup.size_px, setup.size_px),
        setup.batch,
        is_training=is_training,
        interpolation="random" if is_training else config["interpolation"],
        mean=config["mean"],
        std=config["std"],
        num_workers=N_WORKERS,
        crop_pct=config["crop_pct"],
        device=torch.device("cpu"),
        persistent_workers=False,  # so that their core-seconds are counted when an epoch ends
    )


Loop = type[TutorialLoop] | type[ScriptLoop]


def rate(setup: Setup, loop: Loop) -> Work:
    """Training steps with the peer's own loader."""
    few, many = (loop(setup, n) for n in (setup.batch, setup.batch + setup.peer_photos))
    few.train_epoch(0)
    short, long = (partial(one.train_epoch, 0) for one in (few, many))
    return without_start(short, long, many.n_photos - few.n_photos)


def score(setup: Setup, loop: Loop) -> Work:
    """The log loss on the held-out photos after each epoch."""

    def work() -> Measured:
        course, peer = Course(), loop(setup, None)
        for number in range(setup.epochs):
            peer.train_epoch(number)
            course.evaluate(peer.held_out_loss)
        return course.measured(setup.epochs * peer.n_photos)

    return work


class Course:
    """The evaluations of a peer that runs for its score; each excludes the time of earlier ones."""

    def __init__(self) -> None:
        self._evaluations: list[Evaluation] = []
        self._began = self._start = now()

    def evaluate(self, log_loss: Callable[[], float]) -> None:
        before = now()
        loss = log_loss()
        after = now()
        self._evaluations.append(Evaluation(after - self._start, loss))
        self._start = after - (before - self._start)

    def measured(self, n_photos: int) -> Measured:
        return Measured(now() - self._began, n_photos, evaluations=tuple(self._evaluations))


@torch.no_grad()
def loss_of(logits_of: Callable[[Tensor], Tensor], batches: Iterable[Any]) -> float:
    """The log loss of a network's logits over (images, labels)."""
    pairs = [(logits_of(images), labels) for images, labels in batches]
    logits, labels = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    return logit_log_loss(labels.numpy(), logits.numpy())
