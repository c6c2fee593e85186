"""A peer: fastai's `vision_learner`, `fine_tune` and `tta` with their own defaults.

`make bench-peers` installs it. fastai is imported where it is used, because it changes what other
libraries do and may be missing.
"""

from functools import partial
from typing import Any

import torch

from comp.metric import log_loss
from comp.network.backbone import build, timm_config
from tests.bench.peers import N_WORKERS, Course, loss_of
from tests.bench.rows import Measured, Setup, Work, timed, without_start

TTA_VIEWS = 5  # of a photo: four augmented, one plain


def rate(setup: Setup) -> Work:
    """Training steps of the unfrozen network, as in the second part of `fine_tune`."""
    few, many = (_learner(setup, n) for n in (setup.batch, setup.batch + setup.peer_photos))

    def fit(learner: Any) -> None:
        with learner.no_bar(), learner.no_logging():
            learner.fit(1, cbs=_evaluating(None))

    few.unfreeze()
    many.unfreeze()
    fit(few)
    n_batches = len(many.dls.train) - len(few.dls.train)
    return without_start(partial(fit, few), partial(fit, many), n_batches * setup.batch)


def tta(setup: Setup) -> Work:
    """`Learner.tta` of some photos; a view of each counts as one."""
    learner = _learner(setup, setup.batch)
    photos = learner.dls.valid_ds.items[: setup.peer_photos // 4]

    def predict() -> None:
        with learner.no_bar(), learner.no_logging():
            learner.tta(dl=learner.dls.test_dl(photos))

    with learner.no_bar(), learner.no_logging():
        learner.get_preds(dl=learner.dls.test_dl(photos))
    return lambda: Measured(timed(predict), TTA_VIEWS * len(photos))


def score(setup: Setup) -> Work:
    """`fine_tune(1)`, a frozen and an unfrozen epoch, each evaluated, then `tta`."""

    def work() -> Measured:
        course, learner = Course(), _learner(setup, None)

        def tta_loss() -> float:
            probs, labels = learner.tta()
            return log_loss(labels.numpy(), probs[:, 1].double().numpy())

        with learner.no_bar(), learner.no_logging():
            learner.fine_tune(1, cbs=_evaluating(course))
            course.evaluate(tta_loss)
        return course.measured(2 * len(learner.dls.train_ds))

    return work


def _evaluating(course: Course | None) -> Any:
    """A callback that replaces each validation by an evaluation of `course`, if there is one."""
    from fastai.callback.core import Callback, CancelValidException

    class Evaluating(Callback):
        def before_validate(self) -> None:
            def logits(images: Any) -> Any:
                return self.learn.model(images).diff(dim=1).squeeze(1)

            if course:
                self.learn.model.eval()
                course.evaluate(lambda: loss_of(logits, self.learn.dls.valid))
            raise CancelValidException

    return Evaluating()


def _learner(setup: Setup, n_photos: int | None) -> Any:
    """fastai's usual learner of two classes, on `n_photos` photos, evenly over classes."""
    # all of it, as its users import it: modules add parts to a learner
    from fastai.vision import all as fastai

    config, root = timm_config(setup.model.backbone), setup.root / "classes"
    train = sorted(fastai.get_image_files(root / "train"))
    train = train[:: max(1, len(train) // (n_photos or len(train)))][:n_photos]
    normalise = fastai.Normalize.from_stats(config["mean"], config["std"])
    block = fastai.DataBlock(
        blocks=(fastai.ImageBlock, fastai.CategoryBlock),
        get_items=lambda _: [*train, *fastai.get_image_files(root / "test")],
        get_y=fastai.parent_label,
        splitter=fastai.GrandparentSplitter(valid_name="test"),
        item_tfms=fastai.Resize(round(setup.size_px / 0.875)),
        batch_tfms=[*fastai.aug_transforms(size=setup.size_px), normalise],
    )
    cpu = torch.device("cpu")
    loaders = block.dataloaders(root, bs=setup.batch, num_workers=N_WORKERS, device=cpu)

    def backbone(pretrained: bool) -> Any:  # its weights are ours
        return build(setup.model, size_px=setup.size_px)

    return fastai.vision_learner(loaders, backbone, normalize=False)
