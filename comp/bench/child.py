"""A process that stays alive and runs rows when asked, so that rows share no allocator, no library's changes and no start-up."""

import multiprocessing
import traceback
import warnings
from multiprocessing.connection import Connection

from comp.bench.rows import OURS, Clock, Measured, Setup, Work
from comp.errors import UserError

GOODBYE_S = 10.0


class RowFailedError(RuntimeError):
    """A bug in a row, with the traceback of its process."""


class Child:
    """The other end of a process; starts it."""

    def __init__(self, process: str, setup: Setup) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would inherit our allocator and threads
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, process, setup, multiprocessing.get_start_method()))
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

    def _ask(self, what: str, row: str) -> object:
        try:
            self._connection.send((what, row))
            kind, answer = self._connection.recv()
        except (EOFError, OSError) as error:
            self._process.join(GOODBYE_S)
            code = self._process.exitcode
            raise UserError(f"the process of row {row} ended with status {code}: is there memory enough? leave the row out") from error
        if kind == "refused":
            raise UserError(f"row {row}: {answer}")
        if kind == "failed":
            raise RowFailedError(f"row {row}\n{answer}")
        return answer

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._connection.close()  # which it takes for goodbye
        self._process.join(0.0 if kind else GOODBYE_S)
        if self._process.is_alive():
            self._process.terminate()
            self._process.join()


def serve(connection: Connection, process: str, setup: Setup, start_method: str) -> None:
    """Run the rows that are asked for until nobody is there to ask. Loaders start their workers as they would elsewhere."""
    multiprocessing.set_start_method(start_method, force=True)  # or else as this process was: by spawn, which is slow
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
        return "refused", str(error)
    except Exception:  # noqa: BLE001  # raised again at the other end, with its traceback
        return "failed", traceback.format_exc()
