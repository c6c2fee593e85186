"""What we ask of speed: figures of one round, mostly ratios between its rows, and their bounds."""

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from statistics import median
from typing import Any

from tests.bench.catalogue import GPU_BACKBONES, MEMORY_PHOTOS
from tests.bench.rows import Evaluation, Measured, Rounds

FORWARDS = ("tutorial", "channels-last", "allocator", "folded", "bf16")
FLOOR = tuple(f"forward-{name}" for name in FORWARDS)
DECODERS = ("decode-fastest", "decode-allocator")
HEADS = ("head-one-view", "head")
SCORES = ("score-tutorial", "score-timm", "score-fastai")
LEAST, MOST = "at least", "at most"
FULL_PHOTOS = 25_000


class NotMeasuredError(Exception):
    """A row that a figure needs did not run, or did not get far enough."""


class Round:
    """What was measured in one round, in wall seconds or in core-seconds."""

    def __init__(self, measured: Mapping[str, Measured], unit: str) -> None:
        """`unit` is wall_s or core_s."""
        self._measured, self._unit = measured, unit

    def __getitem__(self, row: str) -> Measured:
        return self.ran([row])[0]

    def ran(self, rows: Iterable[str]) -> list[Measured]:
        """Those of `rows` that ran, at least one."""
        found = [self._measured[row] for row in rows if row in self._measured]
        if not found:
            raise NotMeasuredError
        return found

    def seconds(self, what: Measured | Evaluation) -> float:
        return float(getattr(what.spent, self._unit))

    def cost(self, *rows: str) -> float:
        """Seconds per photo, or per view, of the fastest of `rows`."""
        return min(self.seconds(one) / one.n_photos for one in self.ran(rows))

    def time_to(self, measured: Measured, loss: float) -> float | None:
        """From raw photos to the first evaluation of at most `loss`; None: there was none."""
        reached = (self.seconds(one) for one in measured.evaluations if one.log_loss <= loss)
        return next(reached, None)


def seconds(round: Round, row: str) -> float:
    return round.seconds(round[row])


def speed(round: Round, row: str, *others: str) -> float:
    """How many times as many photos per second `row` does as the fastest of `others`."""
    return round.cost(*others) / round.cost(row)


def ratio(round: Round, figure: str, row: str, other: str) -> float:
    """A figure of `row` over that of `other`."""
    return round[row].figures[figure] / round[other].figures[figure]


def head_to_floor(round: Round, *forwards: str) -> float:
    """The head recipe over one decoding per photo and one forward pass per view."""
    head, decode, forward = round["head"], round.cost(*DECODERS), round.cost(*forwards)
    return round.seconds(head) / (head.n_photos * decode + head.figures["views"] * forward)


def tutorial_to_head(round: Round, n_epochs: int) -> float:
    """Extrapolated: 5 folds, `n_epochs` over four fifths of the photos, one pass over a fifth."""
    n_passes = 5 * (n_epochs * 0.8 + 0.2) * round["head"].figures["out-of-fold photos"]
    return n_passes * round.cost("tutorial") / round.seconds(round["head"])


def our_time(round: Round, loss: float) -> float:
    """Seconds from raw photos to `loss`, infinite if it is not reached."""
    times = [round.time_to(one, loss) for one in round.ran(HEADS)]
    return min((time for time in times if time is not None), default=math.inf)


def time_to_peers(round: Round, loss: float) -> float:
    """Our time over the best peer's.

    A peer that never got there counts with all the time it had: the true ratio is then smaller.
    """
    peers = round.ran(SCORES)
    times = [round.time_to(one, loss) or round.seconds(one.evaluations[-1]) for one in peers]
    return our_time(round, loss) / min(times)


def loss_to_peers(round: Round) -> float:
    """Our best log loss in no more time than the best peer took, over that peer's."""
    peers = [round[row] for row in SCORES]
    best = min((one for peer in peers for one in peer.evaluations), key=lambda one: one.log_loss)
    ours = [one for head in round.ran(HEADS) for one in head.evaluations]
    losses = [one.log_loss for one in ours if round.seconds(one) <= round.seconds(best)]
    return min(losses, default=math.inf) / best.log_loss


def full_minutes(round: Round, row: str) -> float:
    """Of five folds of three epochs over four fifths of the full edition."""
    return 5 * 3 * 0.8 * FULL_PHOTOS * round.cost(row) / 60


@dataclass(frozen=True, slots=True)
class Target:
    """A figure of one round, and the bound that we ask for, if any."""

    text: str
    asked: tuple[str, float] | None
    figure: Callable[..., float]  # of a Round and `arguments`
    arguments: tuple[Any, ...]

    def median(self, rounds: Rounds, unit: str) -> float | None:
        """The median over rounds, None if not measured; `unit` is wall_s or core_s.

        A ratio is taken within a round, because its rows ran under the same load.
        """
        figures = []
        for measured in rounds:
            with suppress(NotMeasuredError):
                figures.append(self.figure(Round(measured, unit), *self.arguments))
        return median(figures) if figures else None

    def is_met(self, figure: float) -> bool | None:
        """None where nothing is asked."""
        if self.asked is None:
            return None
        word, bound = self.asked
        return figure >= bound if word == LEAST else figure <= bound


def _target(text: str, asked: tuple[str, float] | None, figure: Any, *arguments: Any) -> Target:
    return Target(text, asked, figure, arguments)


_FEW, _MANY = MEMORY_PHOTOS
TARGETS = (
    _target("decoding into the store / fastest", (LEAST, 0.8), speed, "decode", *DECODERS),
    _target("the same with manifest, groups and folds", None, speed, "data", *DECODERS),
    _target("head / (decode floor + forward floor a view)", (MOST, 1.15), head_to_floor, *FLOOR),
    _target("the same, activations fused", None, head_to_floor, "forward-packed"),
    _target("tutorial, 5 folds x 2 epochs (extrapolated) / head", (LEAST, 25), tutorial_to_head, 2),
    _target("tutorial, 5 folds x 5 epochs (extrapolated) / head", (LEAST, 50), tutorial_to_head, 5),
    _target("head again, seconds", (MOST, 5), seconds, "head-again"),
    _target("fine-tuning / bare step", (LEAST, 0.95), speed, "finetune", "step-frozen"),
    _target("the same, norms fused", (LEAST, 0.95), speed, "finetune-folded", "step-folded"),
    _target("fine-tuning / timm", (LEAST, 2), speed, "finetune", "timm"),
    _target("fine-tuning, norms fused / timm", (LEAST, 2), speed, "finetune-folded", "timm"),
    _target("fine-tuning / fastai", (LEAST, 4), speed, "finetune", "fastai"),
    _target("fine-tuning, norms fused / fastai", (LEAST, 4), speed, "finetune-folded", "fastai"),
    _target("cached tail / all layers", (LEAST, 15), speed, "finetune-tail", "finetune"),
    _target("cached tail / all, norms fused", None, speed, "finetune-tail", "finetune-folded"),
    _target("log loss, tail / head", (MOST, 1), ratio, "out of fold", "score-tail", "head"),
    _target("four views / forward floor", (LEAST, 0.95), speed, "predict", *FLOOR),
    _target("four views / fastai's tta, per view", (LEAST, 5), speed, "predict", "fastai-tta"),
    _target("seconds from raw photos to log loss .06", (MOST, 15), our_time, 0.06),
    _target("the same / the best peer's", (MOST, 0.1), time_to_peers, 0.06),
    _target("time to log loss .03 / the best peer's", None, time_to_peers, 0.03),
    _target("log loss / the best peer's, in no more time", (MOST, 0.3), loss_to_peers),
    *(
        _target(f"{figure}, {what}: {_MANY:,} / {_FEW:,} photos", (MOST, 1.1), ratio, figure, *rows)
        for what in ("features", "finetune")
        for rows in [[f"memory-{what}-{n}" for n in (_MANY, _FEW)]]
        for figure in ("peak MB", "of that no file's")
    ),
    *(
        _target(f"{name}: {text}", asked, figure, *(f"gpu-{row}-{name}" for row in rows))
        for name in GPU_BACKBONES
        for text, asked, figure, *rows in (
            ("fine-tuning / bare step", (LEAST, 0.95), speed, "finetune", "step"),
            ("compiled / not", None, speed, "compiled", "finetune"),
            ("loader alone / bare step", None, speed, "loader", "step"),
            ("minutes of 25,000 photos, 5 folds, 3 epochs", None, full_minutes, "finetune"),
        )
    ),
)
