"""What a row of the bench is: some work, in a process that suits it, done once a round and timed by a clock."""

import importlib.util
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from comp.progress import Advance, Reporter
from comp.recipe import Model

# The processes that rows share; each peer has one of its own. What is measured as others write it must not see our allocator settings.
AS_IS, OURS = "as it is", "ours"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What all rows work with: the photos, the network, and how much of it a round does."""

    root: Path  # of the photos, as comp/bench/photos.py lays them out
    model: Model
    size_px: int = 224
    tail: str = "from:blocks.6"  # what trains on cached activations
    batch: int = 32  # photos
    peer_photos: int = (
        128  # on which a peer's loop is timed in each round, beside one batch to start it
    )
    limit_s: float | None = (
        120.0  # after which a peer that runs for its score is cut off; None: never
    )
    epochs: int = 2  # of a peer that runs for its score and has no number of its own


@dataclass(frozen=True, slots=True)
class Look:
    """The log loss on the held-out photos, and what it took from raw photos to their logits."""

    wall_s: float
    core_s: float
    log_loss: float

    def spent(self, kind: str) -> float:
        """Seconds; `kind` is wall or core."""
        return self.wall_s if kind == "wall" else self.core_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """What one round of a row did within its clock."""

    n_photos: int  # or views of photos
    figures: dict[str, float] = field(default_factory=dict)  # what else was found out
    looks: tuple[Look, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One round of one row."""

    wall_s: float
    core_s: float
    done: Done

    def spent(self, kind: str) -> float:
        return self.wall_s if kind == "wall" else self.core_s

    def cost(self, kind: str) -> float:
        """Seconds a photo."""
        return self.spent(kind) / self.done.n_photos


def spent() -> tuple[float, float]:
    """Now, and the core-seconds of this process and of the children that it has waited for."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return time.perf_counter(), sum(usage.ru_utime + usage.ru_stime for usage in usages)


class Clock:
    """Adds up the wall seconds and core-seconds of the blocks that are entered with it."""

    def __init__(self) -> None:
        self.wall_s = self.core_s = 0.0
        self._began = (0.0, 0.0)

    def __enter__(self) -> None:
        self._began = spent()

    def __exit__(self, *_: object) -> None:
        wall, core = spent()
        self.wall_s += wall - self._began[0]
        self.core_s += core - self._began[1]

    def take_off(self, other: "Clock") -> None:
        """Less what another clock has counted."""
        self.wall_s -= other.wall_s
        self.core_s -= other.core_s


class Course:
    """The looks at a contender on its way. What a look cost counts in itself and not in those after it."""

    def __init__(self) -> None:
        self.looks: list[Look] = []
        self._began = spent()  # moved on by every look

    def run_s(self) -> float:
        """Wall seconds so far, without looks."""
        return spent()[0] - self._began[0]

    @contextmanager
    def look(self) -> Iterator[Callable[[float], None]]:
        """A block that scores the held-out photos and tells the log loss to what it is given."""
        before, found = spent(), list[float]()
        yield found.append
        now = spent()
        self.looks.append(Look(now[0] - self._began[0], now[1] - self._began[1], found[0]))
        self._began = (self._began[0] + now[0] - before[0], self._began[1] + now[1] - before[1])


Work = Callable[[Clock], Done]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    name: str  # on the command line
    process: str  # rows of one process run in it one after the other
    what: str  # for people
    make: Callable[[Setup], Work]  # prepares and warms up; what it gives is called once a round
    once: bool = False  # after the rounds, not in each of them
    needs: str | None = None  # a library that is not among our own

    def is_runnable(self) -> bool:
        return self.needs is None or importlib.util.find_spec(self.needs) is not None


class Silent(Reporter):
    """Says nothing: a row's figures are all that is wanted of it."""

    def say(self, line: str) -> None: ...

    def warn(self, line: str) -> None: ...

    def table(self, *_: object) -> None: ...

    @contextmanager
    def track(self, *_: object) -> Iterator[Advance]:
        yield unheard


def unheard(n: int = 1, note: str = "") -> None:
    """Progress that nobody sees."""
