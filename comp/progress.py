"""What a user sees while a stage works: a bar on a terminal, plain lines elsewhere; and its log."""

import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from functools import partial
from io import TextIOWrapper
from pathlib import Path
from textwrap import wrap
from typing import Protocol

from rich import progress as bars
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

LINE_EVERY_S = 15.0  # between two plain progress lines
QUIET_S = 2.0  # work that took less leaves no line
LOG = "log.txt"  # in a run's folder
Measure = Callable[[Mapping[str, float], int], None]  # figures by name, and their step


class Advance(Protocol):
    """Counts `n` more units as done; `note` is worth seeing now, such as the loss."""

    def __call__(self, n: int = 1, note: str = "") -> None: ...


class Reporter:
    """The only place that prints: progress and failures to stderr, the rest to stdout.

    What a terminal cannot print, or would obey, is written as an escape: a team's name, a path.
    """

    def __init__(self) -> None:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        self._out = Console(file=sys.stdout, soft_wrap=True, highlight=False)
        self._err = Console(file=sys.stderr, soft_wrap=True, highlight=False)
        self._warned: set[str] = set()
        self._log: Path | None = None
        self._unlogged: list[str] = []
        self._bars: bars.Progress | None = None  # while a bar is shown
        self.tracker: Measure | None = None

    def measure(self, figures: Mapping[str, float], step: int) -> None:
        """Figures by name for a tracker, if there is one."""
        if self.tracker:
            self.tracker(figures, step)

    @contextmanager
    def logged(self, folder: Path) -> Iterator[None]:
        """What is shown in the block, and what stops it, is added to LOG of the run in `folder`."""
        before, self._log = self._log, folder / LOG
        self._unlogged.clear()
        try:
            yield
        except BaseException as error:
            self._note(f"stopped by {type(error).__name__}: {error}")
            raise
        finally:
            self._log = before

    def _note(self, line: str) -> None:
        now = datetime.now(UTC).isoformat(" ", "seconds")
        self._unlogged.append(f"{now} {_printable(line)}\n")
        if self._log and self._log.parent.exists():  # a run that is refused gets no folder
            with suppress(OSError), self._log.open("a", encoding="utf-8") as file:
                file.writelines(self._unlogged)  # what is worth more than a log fails by itself
                self._unlogged.clear()

    def say(self, line: str) -> None:
        self._note(line)
        self._out.print(Text(_printable(line)))

    def warn(self, line: str) -> None:
        """Say it once, however often it is noticed."""
        if line not in self._warned:
            self._warned.add(line)
            self._note(f"warning: {line}")
            self._out.print(Text.assemble(("warning:", "yellow"), " ", _printable(line)))

    def fail(self, line: str) -> None:
        self._err.print(Text.assemble(("error:", "red"), " ", _printable(line)))

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Columns after the first are right-aligned; a float is shown to five places."""
        cells = [
            [f"{x:.5f}" if isinstance(x, float) else _printable(str(x)) for x in row]
            for row in rows
        ]
        width = self._out.width if self._out.is_terminal else math.inf
        for line in (title, *table_lines(columns, cells)):
            self._note(line)
        self._out.print(Text(_printable(title), "bold"))
        for line in table_lines(columns, cells, width):
            self._out.print(Text(line))

    @contextmanager
    def track(self, label: str, total: int, unit: str) -> Iterator[Advance]:
        """Progress, throughput and time left: a bar on a terminal, some lines elsewhere."""
        is_watched = self._err.is_interactive and sys.stderr.isatty() and "CI" not in os.environ
        show = self._bar if is_watched else self._lines
        start, done, is_inner = time.monotonic(), 0, self._bars is not None
        with show(label, total, unit) as inner:

            def advance(n: int = 1, note: str = "") -> None:
                nonlocal done
                done += n
                inner(n, note)

            yield advance
        took = time.monotonic() - start
        rate = _rate(done / max(took, 1e-9), unit)
        amount = counted(done, unit.removesuffix("s"), unit)
        line = f"{label}: {amount} in {took:.1f} s ({rate})"
        self._note(line)
        if took >= QUIET_S and (is_inner or not is_watched):  # other bars stay
            self._err.print(Text(_printable(line)))

    @contextmanager
    def _bar(self, label: str, total: int, unit: str) -> Iterator[Advance]:
        text = partial(bars.TextColumn, markup=False)
        left = (text("{task.description}"), bars.BarColumn(12), bars.MofNCompleteColumn())
        right = (bars.TimeRemainingColumn(), text("{task.fields[note]}"))
        outer = self._bars
        progress = outer or bars.Progress(*left, *right, console=self._err)
        with nullcontext() if outer else progress:
            self._bars = progress
            task = progress.add_task(_printable(label), total=total, note="")
            shown = next(each for each in progress.tasks if each.id == task)

            def advance(n: int = 1, note: str = "") -> None:
                rate = _rate(shown.speed, unit) if shown.speed else ""
                progress.update(task, advance=n, note=_printable(f"{rate} {note}"))

            try:
                yield advance
            finally:
                self._bars = outer
                if outer:
                    outer.remove_task(task)

    @contextmanager
    def _lines(self, label: str, total: int, unit: str) -> Iterator[Advance]:
        start = last = time.monotonic()
        done = 0

        def advance(n: int = 1, note: str = "") -> None:
            nonlocal done, last
            done += n
            now = time.monotonic()
            if now - last > LINE_EVERY_S and done < total:
                last = now
                left = (total - done) * (now - start) / done
                line = f"{label}: {done:,}/{total:,} {unit}, {left:.0f} s left {note}"
                self._err.print(Text(_printable(line.rstrip())))

        yield advance


def counted(n: int, noun: str, plural: str = "") -> str:
    """Such as "1 photo" and "2,000 photos"."""
    return f"{n:,} {noun if n == 1 else plural or noun + 's'}"


def _rate(speed: float, unit: str) -> str:
    """`speed` [1/s] in words that keep two digits of it."""
    return f"{1 / speed:.1f} s each" if 0 < speed < 1 else f"{speed:,.{int(speed < 10)}f} {unit}/s"


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def table_lines(
    columns: Sequence[str], rows: Sequence[Sequence[str]], width: float = math.inf
) -> list[str]:
    """A table. To fit, headers wrap; if that is not enough, each row becomes a paragraph."""
    cells = [max([0, *(cell_len(row[at]) for row in rows)]) for at in range(len(columns))]
    sizes = [max(n, len(column)) for n, column in zip(cells, columns, strict=True)]
    if sum(sizes) + 2 * len(sizes) - 2 > width:
        sizes = [max([n, *map(len, x.split())]) for n, x in zip(cells, columns, strict=True)]
    if sum(sizes) + 2 * len(sizes) - 2 > width:
        named = [list(zip(columns[1:], row[1:], strict=True)) for row in rows]
        shown = [[f"  {name}: {cell}" for name, cell in row if cell] for row in named]
        return [line for row, below in zip(rows, shown, strict=True) for line in (row[0], *below)]
    heads = [wrap(column, max(n, 1)) for column, n in zip(columns, sizes, strict=True)]
    height = max(map(len, heads))
    head = zip(*([""] * (height - len(lines)) + lines for lines in heads), strict=True)
    return [_row(row, sizes) for row in (*head, ["-" * n for n in sizes], *rows)]


def _row(cells: Sequence[str], sizes: Sequence[int]) -> str:
    pads = [" " * (n - cell_len(cell)) for cell, n in zip(cells, sizes, strict=True)]
    others = [pad + cell for pad, cell in zip(pads[1:], cells[1:], strict=True)]
    return "  ".join([cells[0] + pads[0], *others]).rstrip()
