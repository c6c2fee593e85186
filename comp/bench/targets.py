"""What is asked of speed, as ratios between rows of the same round. A target whose rows did not run has no figure."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

from comp.bench.catalogue import GPU_BACKBONES, PEERS, STORES
from comp.bench.rows import Look, Measured

Round = Mapping[str, Measured]  # by row: what was measured in one round, and what is measured once
Figure = Callable[
    [Round, str], float
]  # by wall time or by core-seconds. KeyError or NotMeasuredError where rows are not there
FORWARDS = (
    "forward-tutorial",
    "forward-channels-last",
    "forward-allocator",
    "forward-folded",
    "forward-bf16",
)
DECODINGS = ("decode-fastest", "decode-allocator")
HEADS = ("head-one-view", "head")
FULL_PHOTOS = 25_000


class NotMeasuredError(Exception):
    """What a target is about did not run, or did not come far enough."""


@dataclass(frozen=True, slots=True)
class Target:
    """A figure of one round, and the bound that is asked for, if any."""

    text: str
    figure: Figure
    at_least: float | None = None
    at_most: float | None = None

    @property
    def asked(self) -> str:
        return " ".join(
            f"{word} {bound:g}"
            for word, bound in (("at least", self.at_least), ("at most", self.at_most))
            if bound is not None
        )

    def met(self, figure: float | None) -> str:
        """yes or no; empty where nothing is asked or was measured."""
        if figure is None or not self.asked:
            return ""
        return (
            "yes" if (self.at_least or -math.inf) <= figure <= (self.at_most or math.inf) else "no"
        )

    def found(self, rounds: Sequence[Round], kind: str) -> float | None:
        """The median over rounds: a ratio is taken within each, because its rows had the same neighbours. None: not measured."""
        figures = []
        for one in rounds:
            try:
                figures.append(self.figure(one, kind))
            except (KeyError, NotMeasuredError):
                continue
        return median(figures) if figures else None


def _seconds(row: str) -> Figure:
    return lambda one, kind: one[row].spent(kind)


def _speed(ours: str, theirs: str) -> Figure:
    """How many times as many photos a second, or views, `ours` does."""
    return lambda one, kind: one[theirs].cost(kind) / one[ours].cost(kind)


def _losses(ours: str, other: str) -> Figure:
    return lambda one, _: (
        one[ours].done.figures["out of fold"] / one[other].done.figures["out of fold"]
    )


def _floor(one: Round, rows: Sequence[str], kind: str) -> float:
    """The least seconds a photo of those of `rows` that ran."""
    if not any(row in one for row in rows):
        raise NotMeasuredError
    return min(one[row].cost(kind) for row in rows if row in one)


def _to_floor(floor: Sequence[str], row: str) -> Figure:
    return lambda one, kind: _floor(one, floor, kind) / one[row].cost(kind)


def _head_to_floor(one: Round, kind: str, forwards: Sequence[str] = FORWARDS) -> float:
    head = one["head"].done
    forward, decode = _floor(one, forwards, kind), _floor(one, DECODINGS, kind)
    return one["head"].spent(kind) / (head.n_photos * decode + head.figures["views"] * forward)


def _tutorial_to_head(one: Round, kind: str, n_epochs: int) -> float:
    """Extrapolated from the measured rate: five folds of `n_epochs` over four fifths of the photos, then one pass over the fifth."""
    passes = 5 * (n_epochs * 0.8 + 0.2) * one["head"].done.figures["out-of-fold photos"]
    return passes * one["tutorial"].cost(kind) / one["head"].spent(kind)


def time_to(looks: Sequence[Look], loss: float, kind: str) -> float | None:
    """From raw photos to the first look with at most this log loss; None: there was none."""
    return next((look.spent(kind) for look in looks if look.log_loss <= loss), None)


def _our_time(one: Round, kind: str, loss: float) -> float:
    if not any(row in one for row in HEADS):
        raise NotMeasuredError
    times = [time_to(one[row].done.looks, loss, kind) for row in HEADS if row in one]
    return min((time for time in times if time is not None), default=math.inf)


def _time_to_peers(one: Round, kind: str, loss: float) -> float:
    """Over the best peer's. One that never came there counts with all the time that it had: the true ratio is then smaller."""
    runs = [one[f"score-{peer}"].done.looks for peer in PEERS if f"score-{peer}" in one]
    if not runs:
        raise NotMeasuredError
    return _our_time(one, kind, loss) / min(
        time_to(looks, loss, kind) or looks[-1].spent(kind) for looks in runs
    )


def _loss_to_peers(one: Round, kind: str) -> float:
    """Over the best peer's, among ours that took no longer. Only if all peers came to their end."""
    runs = [one[f"score-{peer}"].done for peer in PEERS]
    if any(run.figures["cut off"] for run in runs):
        raise NotMeasuredError
    best = min((look for run in runs for look in run.looks), key=lambda look: look.log_loss)
    ours = [
        look
        for row in HEADS
        if row in one
        for look in one[row].done.looks
        if look.spent(kind) <= best.spent(kind)
    ]
    return min((look.log_loss for look in ours), default=math.inf) / best.log_loss


def _growth(what: str, figure: str) -> Figure:
    small, large = (f"memory-{what}-{n_photos}" for n_photos in STORES)
    return lambda one, _: one[large].done.figures[figure] / one[small].done.figures[figure]


def _full_minutes(name: str) -> Figure:
    return lambda one, kind: 5 * 3 * 0.8 * FULL_PHOTOS * one[f"gpu-finetune-{name}"].cost(kind) / 60


TARGETS = (
    Target(
        "decoding into the store / fastest decode and resize",
        _to_floor(DECODINGS, "decode"),
        at_least=0.8,
    ),
    Target("the same with manifest, groups and folds", _to_floor(DECODINGS, "data")),
    Target("head recipe / (decode floor + forward floor a view)", _head_to_floor, at_most=1.15),
    Target(
        "the same, with activations in their convolutions",
        partial(_head_to_floor, forwards=("forward-packed",)),
    ),
    Target(
        "tutorial, 5 folds x 2 epochs (extrapolated) / head recipe",
        partial(_tutorial_to_head, n_epochs=2),
        at_least=25,
    ),
    Target(
        "tutorial, 5 folds x 5 epochs (extrapolated) / head recipe",
        partial(_tutorial_to_head, n_epochs=5),
        at_least=50,
    ),
    Target("head recipe again, seconds", _seconds("head-again"), at_most=5),
    Target(
        "fine-tuning / bare step, batch norm frozen",
        _speed("finetune", "step-frozen"),
        at_least=0.95,
    ),
    Target(
        "fine-tuning, batch norm folded / bare step, folded",
        _speed("finetune-folded", "step-folded"),
        at_least=0.95,
    ),
    Target("fine-tuning / timm", _speed("finetune", "timm"), at_least=2),
    Target("fine-tuning, batch norm folded / timm", _speed("finetune-folded", "timm"), at_least=2),
    Target("fine-tuning / fastai", _speed("finetune", "fastai"), at_least=4),
    Target(
        "fine-tuning, batch norm folded / fastai", _speed("finetune-folded", "fastai"), at_least=4
    ),
    Target(
        "last stage on cached activations / all layers",
        _speed("finetune-tail", "finetune"),
        at_least=15,
    ),
    Target("the same / all layers, batch norm folded", _speed("finetune-tail", "finetune-folded")),
    Target("out-of-fold log loss: tail / head", _losses("score-tail", "head"), at_most=1),
    Target("four views / bare forward floor", _to_floor(FORWARDS, "predict"), at_least=0.95),
    Target("four views / fastai's tta, per view", _speed("predict", "fastai-tta"), at_least=5),
    Target("seconds from raw photos to log loss .06", partial(_our_time, loss=0.06), at_most=15),
    Target("the same / the best peer's", partial(_time_to_peers, loss=0.06), at_most=0.1),
    Target("time to log loss .03 / the best peer's", partial(_time_to_peers, loss=0.03)),
    Target("log loss / the best peer's, in no more time", _loss_to_peers, at_most=0.3),
    *(
        Target(
            f"{figure}, {what}: {STORES[1]:,} / {STORES[0]:,} photos",
            _growth(what, figure),
            at_most=1.1,
        )
        for what in ("features", "finetune")
        for figure in ("peak MB", "of that no file's")
    ),
    *(
        Target(
            f"{name}: fine-tuning / bare step",
            _speed(f"gpu-finetune-{name}", f"gpu-step-{name}"),
            0.95,
        )
        for name in GPU_BACKBONES
    ),
    *(
        Target(
            f"{name}: loader alone / bare step", _speed(f"gpu-loader-{name}", f"gpu-step-{name}")
        )
        for name in GPU_BACKBONES
    ),
    *(
        Target(
            f"{name}: minutes of 25,000 photos, 5 folds, 3 epochs (extrapolated)",
            _full_minutes(name),
        )
        for name in GPU_BACKBONES
    ),
)
