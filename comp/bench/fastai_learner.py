"""A peer: fastai's `vision_learner`, `fine_tune` and `tta` with their own defaults. `make bench-peers` installs it.

fastai is imported where it is used: it changes what other libraries do, and need not be there.
"""

from functools import partial
from typing import Any

import torch

from comp.bench.peers import N_WORKERS, is_over, loss_of, without_start
from comp.bench.rows import Clock, Course, Done, Setup, Work
from comp.metric import log_loss
from comp.train.backbone import build, input_of

TTA_VIEWS = 5  # of a photo: four augmented, one plain


class _CutOffError(Exception):
    """The time of a fit is over."""


def rate(setup: Setup) -> Work:
    """Training steps of the unfrozen network, as in the second part of `fine_tune`."""
    learners = [
        _learner(setup, n_photos) for n_photos in (setup.batch, setup.batch + setup.peer_photos)
    ]

    def fit(learner: Any) -> None:
        with learner.no_bar(), learner.no_logging():
            learner.fit(1, cbs=_watching(setup, None))

    for learner in learners:
        learner.unfreeze()
    short, long = (partial(fit, learner) for learner in learners)
    short()
    return without_start(
        short, long, (len(learners[1].dls.train) - len(learners[0].dls.train)) * setup.batch
    )


def tta(setup: Setup) -> Work:
    """`Learner.tta` of some photos; a view of each counts as one."""
    learner = _learner(setup, setup.batch)
    photos = learner.dls.valid_ds.items[: setup.peer_photos // 4]

    def work(clock: Clock) -> Done:
        with clock, learner.no_bar(), learner.no_logging():
            learner.tta(dl=learner.dls.test_dl(photos))
        return Done(n_photos=TTA_VIEWS * len(photos))

    with learner.no_bar(), learner.no_logging():
        learner.get_preds(dl=learner.dls.test_dl(photos))
    return work


def score(setup: Setup) -> Work:
    """`fine_tune(1)`, a frozen and an unfrozen epoch, with a look after each, and by `tta` at the end; or until it is cut off."""

    def work(clock: Clock) -> Done:
        course, cut = Course(), False
        with clock:
            learner = _learner(setup, None)
            try:
                with learner.no_bar(), learner.no_logging():
                    learner.fine_tune(1, cbs=_watching(setup, course))
                    with course.look() as found:
                        probs, labels = learner.tta()
                        found(log_loss(labels.numpy(), probs[:, 1].double().numpy()))
            except _CutOffError:
                cut = True
                _look(course, learner)
        return Done(
            n_photos=2 * len(learner.dls.train_ds),
            figures={"cut off": float(cut)},
            looks=tuple(course.looks),
        )

    return work


def _watching(setup: Setup, course: Course | None) -> Any:
    """A callback that puts a look, where there is a `course`, in the place of each validation, and ends the fit when its time is over."""
    from fastai.callback.core import Callback, CancelValidException

    class Watch(Callback):  # type: ignore[misc]  # fastai is not there to be checked
        """What fastai calls at each event."""

        def after_batch(self) -> None:
            if self.training and course and is_over(setup, course):
                raise _CutOffError("time is over")  # fastai adds to what an exception says

        def before_validate(self) -> None:
            if course:
                _look(course, self.learn)
            raise CancelValidException

    return Watch()


def _look(course: Course, learner: Any) -> None:
    """The log loss of the network as it is, by fastai's own loader of the held-out photos."""
    with course.look() as found:
        learner.model.eval()
        found(
            loss_of(lambda images: learner.model(images).diff(dim=1).squeeze(1), learner.dls.valid)
        )


def _learner(setup: Setup, n_photos: int | None) -> Any:
    """fastai's usual learner of two classes, on `n_photos` photos, evenly over classes."""
    from fastai.vision import (
        all as fastai,
    )  # all of it, as its users have it: parts of a learner are added by its modules

    shown, root = input_of(setup.model), setup.root / "classes"
    learnt = sorted(fastai.get_image_files(root / "train"))
    learnt = learnt[:: max(1, len(learnt) // (n_photos or len(learnt)))][:n_photos]
    block = fastai.DataBlock(
        blocks=(fastai.ImageBlock, fastai.CategoryBlock),
        get_items=lambda _: [*learnt, *fastai.get_image_files(root / "held")],
        get_y=fastai.parent_label,
        splitter=fastai.GrandparentSplitter(valid_name="held"),
        item_tfms=fastai.Resize(round(setup.size_px / 0.875)),
        batch_tfms=[
            *fastai.aug_transforms(size=setup.size_px),
            fastai.Normalize.from_stats(shown.mean, shown.std),
        ],
    )
    loaders = block.dataloaders(
        root, bs=setup.batch, num_workers=N_WORKERS, device=torch.device("cpu")
    )

    def backbone(pretrained: bool) -> Any:  # noqa: ARG001  # its weights are ours
        return build(setup.model, size_px=setup.size_px)

    return fastai.vision_learner(loaders, backbone, normalize=False)
