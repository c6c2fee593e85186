"""What a user sees while a stage works: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

LINE_EVERY_S = 15.0  # between two plain progress lines


class Advance(Protocol):
    """Counts `n` more units as done; `note` is worth seeing now, such as the loss."""

    def __call__(self, n: int = 1, note: str = "") -> None: ...


class Reporter:
    """The only place that prints. Progress goes to stderr, results and remarks to stdout."""

    def __init__(self) -> None:
        self._out = Console(file=sys.stdout, soft_wrap=True, highlight=False)
        self._err = Console(file=sys.stderr, highlight=False, soft_wrap=True)

    def say(self, line: str) -> None:
        self._out.print(escape(line))

    def warn(self, line: str) -> None:
        self._out.print(f"[yellow]warning:[/] {escape(line)}")

    def fail(self, line: str) -> None:
        self._err.print(f"[red]error:[/] {escape(line)}", soft_wrap=True)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Columns after the first are right-aligned; a float is shown to five places."""
        table = Table(title=title, title_justify="left", title_style="bold")
        for index, column in enumerate(columns):
            table.add_column(column, justify="left" if index == 0 else "right")
        for row in rows:
            cells = (f"{x:.5f}" if isinstance(x, float) else escape(str(x)) for x in row)
            table.add_row(*cells)
        self._out.print(table)

    @contextmanager
    def track(self, label: str, total: int, unit: str) -> Iterator[Advance]:
        """Progress, throughput and time left: a bar on a terminal, some lines elsewhere."""
        show = self._bar if self._err.is_terminal else self._lines
        with show(label, total, unit) as advance:
            yield advance

    @contextmanager
    def _bar(self, label: str, total: int, unit: str) -> Iterator[Advance]:
        left = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        right = (TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
        note_column = TextColumn("{task.fields[note]}")
        percent = TaskProgressColumn(show_speed=True)
        with Progress(*left, percent, *right, note_column, console=self._err) as progress:
            task = progress.add_task(escape(label), total=total, note="", rate="")

            def advance(n: int = 1, note: str = "") -> None:
                speed = progress.tasks[0].speed
                rate = _rate(speed, unit) if speed else ""
                progress.update(task, advance=n, note=escape(note), rate=rate)

            yield advance

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
                self._err.print(escape(line.rstrip()))

        yield advance
        took = time.monotonic() - start
        rate = _rate(done / max(took, 1e-9), unit)
        self._err.print(escape(f"{label}: {done:,} {unit} in {took:.1f} s ({rate})"))


def counted(n: int, noun: str, plural: str = "") -> str:
    """Such as "1 photo" and "2,000 photos"."""
    return f"{n:,} {noun if n == 1 else plural or noun + 's'}"


def _rate(speed: float, unit: str) -> str:
    """`speed` [1/s] in words that keep two digits of it."""
    return f"{1 / speed:.1f} s each" if 0 < speed < 1 else f"{speed:,.{int(speed < 10)}f} {unit}/s"
