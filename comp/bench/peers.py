"""What the loops of peers have in common: how their rate is measured, and how they run for their score."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from comp.bench.rows import Clock, Course, Done, Setup, Work
from comp.metric import logit_log_loss

N_WORKERS = 2  # as many as tutorials and scripts name, or fewer


class Loop(Protocol):
    """A peer's training loop, made ready on some photos."""

    n_photos: int  # of an epoch

    def epoch(self, number: int, is_over: Callable[[], bool]) -> bool:
        """Train one epoch, or until `is_over` after a step; whether that cut it off."""
        ...

    def held_loss(self) -> float:
        """The log loss on the held-out photos now."""
        ...


Maker = Callable[[Setup, int | None], Loop]  # of a loop over so many of the photos; None: all


def rate(setup: Setup, make: Maker) -> Work:
    """Training steps with the peer's own loader."""
    loops = [make(setup, n_photos) for n_photos in (setup.batch, setup.batch + setup.peer_photos)]
    short, long = (partial(loop.epoch, 0, lambda: False) for loop in loops)
    short()
    return without_start(short, long, loops[1].n_photos - loops[0].n_photos)


def without_start(short: Callable[[], object], long: Callable[[], object], n_photos: int) -> Work:
    """What an epoch of `n_photos` more takes: start and end of loaders are in both, and would weigh too much in so few steps."""

    def work(clock: Clock) -> Done:
        start = Clock()
        with start:
            short()
        with clock:
            long()
        clock.take_off(start)
        return Done(n_photos=n_photos)

    return work


def score(setup: Setup, make: Maker) -> Work:
    """The log loss on the held-out photos after each epoch, and when it is cut off."""

    def work(clock: Clock) -> Done:
        course, number, cut = Course(), 0, False
        with clock:
            loop = make(setup, None)
            while number < setup.epochs and not cut:
                cut = loop.epoch(number, lambda: is_over(setup, course))
                number += 1
                with course.look() as found:
                    found(loop.held_loss())
        return Done(
            n_photos=number * loop.n_photos,
            figures={"cut off": float(cut)},
            looks=tuple(course.looks),
        )

    return work


def is_over(setup: Setup, course: Course) -> bool:
    return setup.limit_s is not None and course.run_s() > setup.limit_s


@torch.no_grad()
def loss_of(logits_of: Callable[[Tensor], Tensor], batches: Iterable[Any]) -> float:
    """The log loss of a network's logits over (images, labels)."""
    pairs = [(logits_of(images), labels) for images, labels in batches]
    logits, labels = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    return logit_log_loss(labels.numpy(), logits.numpy())
