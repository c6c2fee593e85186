"""What a row is, and how rows are measured: once a round each, in the process they belong to.

Every round has a new order, which spreads what other programs on the machine do over all rows.
"""

import io
import multiprocessing
import os
import random
import resource
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from comp.errors import UserError
from comp.network.device import tune_malloc
from comp.progress import Reporter
from comp.recipe import Model

# The processes that rows share, other than a peer's own. What is measured as others write it must
# run without our allocator settings.
AS_IS, OURS = "as it is", "ours"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What all rows work with: the photos, the network, and how much of it a round does."""

    root: Path  # of the photos, laid out as photos.py says
    model: Model = field(default_factory=lambda: Model(backbone="tf_efficientnet_lite0"))
    size_px: int = 224
    tail: str = "from:blocks.6"  # what trains on cached activations
    batch: int = 32  # photos
    peer_photos: int = 128  # that a peer's loop is timed on in each round
    epochs: int = 2  # of a peer that runs for its score and has no number of its own


@dataclass(frozen=True, slots=True)
class Spent:
    """Wall seconds, and core-seconds of this process and of its children that have ended."""

    wall_s: float
    core_s: float

    def __sub__(self, other: "Spent") -> "Spent":
        return Spent(self.wall_s - other.wall_s, self.core_s - other.core_s)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The log loss on the held-out photos, and what it took from raw photos to it."""

    spent: Spent
    log_loss: float


@dataclass(frozen=True, slots=True)
class Measured:
    """One round of one row."""

    spent: Spent
    n_photos: int  # or views of photos
    figures: dict[str, float] = field(default_factory=dict)  # anything else that was found
    evaluations: tuple[Evaluation, ...] = ()


Work = Callable[[], Measured]
Rounds = list[dict[str, Measured]]  # by row; what is measured once is in all of them


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    name: str  # on the command line
    process: str  # rows of the same process run in it one after the other
    make: Callable[..., Work]  # prepares and warms up; the result is called once a round
    amounts: Mapping[str, Any]  # keyword arguments of `make`
    once: bool = False  # after the rounds, instead of in each of them


def now() -> Spent:
    """A reading of both clocks; only differences mean something."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return Spent(time.perf_counter(), sum(usage.ru_utime + usage.ru_stime for usage in usages))


def timed(work: Callable[[], object]) -> Spent:
    """What a call of `work` takes."""
    start = now()
    work()
    return now() - start


def without_start(short: Callable[[], object], long: Callable[[], object], n_photos: int) -> Work:
    """What `long`, which handles `n_photos` more than `short`, takes beyond it.

    Both start and stop a loader or a network, which would weigh too much in a few steps.
    """

    def work() -> Measured:
        start = timed(short)
        return Measured(timed(long) - start, n_photos)

    return work


def measure(
    rows: Sequence[Row], setup: Setup, n_rounds: int, reporter: Reporter
) -> tuple[Rounds, dict[str, str]]:
    """All rounds; and by row why it failed, which stops no other row. UserError if all fail."""
    rounds: Rounds = [{} for _ in range(n_rounds)]
    turns: list[tuple[Row, Rounds]] = []  # with the rounds that the result is for
    for number, one in enumerate(rounds):
        order = [row for row in rows if not row.once]
        random.Random(number).shuffle(order)
        turns += [(row, [one]) for row in order]
    turns += [(row, rounds) for row in rows if row.once]
    failed: dict[str, str] = {}
    pools: dict[str, ProcessPoolExecutor] = {}  # of one process each
    with ExitStack() as stack, reporter.track("rows", len(turns), "rows") as advance:
        for row, into in turns:
            if row.name not in failed:
                if row.process not in pools:
                    pools[row.process] = stack.enter_context(_start(row.process))
                future = pools[row.process].submit(_run, row, setup)
                error = future.exception()
                if error is None:
                    for one in into:
                        one[row.name] = future.result()
                else:
                    failed[row.name] = _reason(error)
                    reporter.warn(f"row {row.name} failed: {failed[row.name].splitlines()[-1]}")
                if isinstance(error, BrokenProcessPool):
                    del pools[row.process]  # the next row gets a new one
            advance(note=row.name)
    if len(failed) == len(rows):
        raise UserError(f"none of {len(rows)} rows could be measured: see the lines above")
    return rounds, failed


def _reason(error: BaseException) -> str:
    """Why a row failed; the last line says it in short."""
    if isinstance(error, BrokenProcessPool):
        return "its process was killed or crashed: is there enough memory?"
    if isinstance(error, UserError):
        return str(error)
    return "".join(traceback.format_exception(error)).strip()


def _start(process: str) -> ProcessPoolExecutor:
    # a fork would inherit our allocator settings and threads
    spawn = multiprocessing.get_context("spawn")
    arguments = (process, multiprocessing.get_start_method())
    return ProcessPoolExecutor(1, spawn, initializer=_begin, initargs=arguments)


_works: dict[str, Work] = {}  # in a process: its rows that are prepared


def _begin(process: str, start_method: str) -> None:
    # a spawned process would spawn the workers of its loaders, which no other program does
    multiprocessing.set_start_method(start_method, force=True)
    sys.stdout = sys.stderr = io.StringIO()  # only a row's figures are wanted
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if process.startswith(OURS):
        tune_malloc()  # before torch allocates


def _end_with_parent() -> None:
    """A pool's process outlives a parent that is killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run(row: Row, setup: Setup) -> Measured:
    if row.name not in _works:
        _works[row.name] = row.make(setup, **row.amounts)
    return _works[row.name]()
