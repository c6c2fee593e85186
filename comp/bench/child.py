"""A process that stays alive and runs rows when asked, so that rows share no allocator, no library's changes and no start-up."""

import multiprocessing
import traceback
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from comp.bench.rows import OURS, Clock, Measured, Setup, Work
from comp.errors import UserError
from comp.progress import Reporter

Result = TypeVar("Result")
GOODBYE_S = 10.0


class RowFailedError(Exception):
    """A row that cannot be measured: the last line says why, those before it where."""


class Child:
    """The other end of a process; starts it."""

    def __init__(self, process: str, setup: Setup) -> None:
        context = multiprocessing.get_context(
            "spawn"
        )  # a fork would inherit our allocator and threads
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=serve, args=(theirs, process, setup, multiprocessing.get_start_method())
        )
        self._process.start()
        theirs.close()

    def prepare(self, row: str) -> None:
        """Let the row warm up."""
        self._ask("prepare", row)

    def measure(self, row: str) -> Measured:
        """One round of the row."""
        answer = self._ask("measure", row)
        assert isinstance(answer, Measured)
        return answer

    def is_alive(self) -> bool:
        return self._process.is_alive()

    def _ask(self, what: str, row: str) -> object:
        try:
            self._connection.send((what, row))
            kind, answer = self._connection.recv()
        except (EOFError, OSError) as error:
            self._process.join(GOODBYE_S)
            code = self._process.exitcode
            raise RowFailedError(
                f"its process ended with status {code}: is there memory enough?"
            ) from error
        if kind == "failed":
            raise RowFailedError(answer)
        return answer

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._connection.close()  # which it takes for goodbye
        self._process.join(0.0 if kind else GOODBYE_S)
        if self._process.is_alive():
            self._process.terminate()
            self._process.join()


class Children:
    """The processes of rows, each started when it is first needed. A row that fails is told of, and left out from then on."""

    def __init__(self, process_of: Mapping[str, str], setup: Setup, reporter: Reporter) -> None:
        self.failed: dict[str, str] = {}  # why, by row
        self._process_of, self._setup, self._reporter = process_of, setup, reporter
        self._children: dict[str, Child] = {}
        self._stack = ExitStack()

    def prepare(self, row: str) -> None:
        self._try(row, Child.prepare)

    def measure(self, row: str) -> Measured | None:
        return self._try(row, Child.measure)

    def _try(self, row: str, what: Callable[[Child, str], Result]) -> Result | None:
        process = self._process_of[row]
        if row in self.failed:
            return None
        if process not in self._children:
            self._children[process] = self._stack.enter_context(Child(process, self._setup))
        try:
            return what(self._children[process], row)
        except RowFailedError as error:
            if not self._children[process].is_alive():
                del self._children[process]  # the next row of its kind gets a new one
            self.failed[row] = str(error)
            self._reporter.warn(
                f"row {row} failed and is left out: {self.failed[row].splitlines()[-1]}"
            )
            return None

    def __enter__(self) -> "Children":
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)


def serve(connection: Connection, process: str, setup: Setup, start_method: str) -> None:
    """Run the rows that are asked for until nobody is there to ask. Loaders start their workers as they would elsewhere."""
    multiprocessing.set_start_method(
        start_method, force=True
    )  # or else as this process was: by spawn, which is slow
    from comp.train.device import keep_big_blocks

    if process.startswith(OURS):
        keep_big_blocks()  # before torch allocates
    warnings.simplefilter("ignore")  # of libraries about each other
    works: dict[str, Work] = {}
    try:
        while True:
            what, row = connection.recv()
            connection.send(_answer(what, row, works, setup))
    except (EOFError, OSError, KeyboardInterrupt):
        return


def _answer(what: str, name: str, works: dict[str, Work], setup: Setup) -> tuple[str, object]:
    from comp.bench.catalogue import row_named

    try:
        if name not in works:
            works[name] = row_named(name).make(setup)
        if what == "prepare":
            return "done", None
        clock = Clock()
        done = works[name](clock)
        return "done", Measured(wall_s=clock.wall_s, core_s=clock.core_s, done=done)
    except UserError as error:
        return "failed", str(error)
    except Exception:  # noqa: BLE001  # told at the other end, with its traceback
        return "failed", traceback.format_exc().strip()
