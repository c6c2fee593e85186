"""A budget of time: work that reports its progress is ended when it is spent, or as soon as it shows that it will be."""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager

from comp.errors import UserError
from comp.progress import Advance, Reporter

PATIENCE_S = 3.0  # that a rate is watched before it is believed
_UNITS = {"s": 1, "m": 60, "h": 3600}


class OutOfTimeError(UserError):
    """The budget does not reach for what was begun."""


def seconds(text: str) -> float:
    """`text` such as 90s, 10m or 1.5h; UserError if it is something else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text.strip())
    if not found or not float(found[1]):
        raise UserError(f"a budget reads 90s, 10m or 1.5h, got {text!r}")
    return float(found[1]) * _UNITS[found[2]]


class Clock(Reporter):
    """Hands on to `reporter` what it is told; a track that cannot end within `budget_s` raises OutOfTimeError."""

    def __init__(self, reporter: Reporter, budget_s: float) -> None:
        super().__init__()
        self._reporter = reporter
        self._end = time.monotonic() + budget_s

    def check(self, more_s: float = 0.0) -> None:
        """OutOfTimeError unless `more_s` seconds are left."""
        left = self._end - time.monotonic()
        if left <= more_s:
            raise OutOfTimeError(
                f"no time: {max(left, 0):.0f} s of the budget left"
                + (f", about {more_s:.0f} s needed" if more_s else "")
            )

    def say(self, line: str) -> None:
        self._reporter.say(line)

    def warn(self, line: str) -> None:
        self._reporter.warn(line)

    @contextmanager
    def track(self, label: str, total: int, unit: str) -> Iterator[Advance]:
        """As the reporter's; the first step warms up and has no say in how long the rest will take."""
        done, first = 0, (0.0, 0)
        with self._reporter.track(label, total, unit) as inner:

            def advance(n: int = 1, note: str = "") -> None:
                nonlocal done, first
                done += n
                inner(n, note)
                now = time.monotonic()
                first = first if first[1] else (now, done)
                took = now - first[0]
                self.check(took * (total - done) / (done - first[1]) if took > PATIENCE_S else 0.0)

            yield advance
