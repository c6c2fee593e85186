"""The competition's archive in a folder: whole, checked and the server's current one, or a partial file that the next run continues.

<slug>.zip             complete, its outer members' CRCs checked
<slug>.zip.json        of which version on the server, and its size and time here
<slug>.zip.part        what has arrived so far; locked by the run that writes it
<slug>.zip.part.json   of which version on the server
"""

import json
import os
import struct
import time
import zipfile
import zlib
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comp.errors import ArchiveError, UnavailableError
from comp.kaggle.failures import AgainError
from comp.kaggle.lock import locked
from comp.kaggle.process import Event
from comp.kaggle.retries import GaveUpError, patiently
from comp.kaggle.values import Patience
from comp.progress import Advance, Reporter

N_DOWNLOADS = (
    2  # before an archive that arrives complete but corrupt is believed to be so on the server
)
MB = 1_000_000
# What zipfile raises for damage.
UNSOUND = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    OSError,
    ValueError,
    RuntimeError,
    OverflowError,
)
Ask = Callable[
    ..., Any
]  # one call to the client: ask(call, on_event=, fd=, **arguments); raises AgainError or another UserError


@dataclass(frozen=True, slots=True)
class Archive:
    """Where the archive is or will be, and beside it what we know of it."""

    path: Path

    @property
    def note(self) -> Path:
        return self.path.with_name(f"{self.path.name}.json")

    @property
    def part(self) -> Path:
        return self.path.with_name(f"{self.path.name}.part")

    @property
    def part_note(self) -> Path:
        return self.path.with_name(f"{self.path.name}.part.json")

    def known(self) -> dict[str, Any] | None:
        """The version that is here, if the file has not been touched since it was noted."""
        try:
            note: dict[str, Any] = json.loads(self.note.read_text(encoding="utf-8"))
            return note if note["here"] == _here(self.path) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def remember(self, version: dict[str, Any], file: Path) -> None:
        """Notes of which version on the server `file` is a copy."""
        scratch = self.note.with_suffix(".new")
        scratch.write_text(json.dumps(version | {"here": _here(file)}), encoding="utf-8")
        scratch.replace(self.note)


def fetch(archive: Archive, ask: Ask, reporter: Reporter, patience: Patience) -> Path:
    """The archive, downloaded if need be; `ask` calls the client."""
    archive.path.parent.mkdir(parents=True, exist_ok=True)
    before = _here(archive.path)
    if before and _is_current(archive, ask, reporter, patience):
        return archive.path
    waiting = f"another run is downloading {archive.path.name}"
    with locked(archive.part, waiting, reporter, patience.other_run_s) as fd:
        if _here(archive.path) != before and _is_current(archive, ask, reporter, patience):
            return archive.path  # another run, which held the lock until now, has brought it
        try:
            version = _sound(archive, fd, ask, reporter, patience)
        finally:
            if not os.fstat(fd).st_size:
                archive.part_note.unlink(missing_ok=True)
        archive.remember(version, archive.part)
        archive.part.replace(archive.path)
        archive.part_note.unlink(missing_ok=True)
    return archive.path


def _sound(
    archive: Archive, fd: int, ask: Ask, reporter: Reporter, patience: Patience
) -> dict[str, Any]:
    """Completes the partial file, checks it as a zip, and does so once more if it is corrupt; returns its version."""
    for n in range(1, N_DOWNLOADS + 1):
        version = _complete(archive, fd, ask, reporter, patience)
        problem = zip_problem(archive.part)
        if not problem:
            return version
        os.ftruncate(fd, 0)
        if n < N_DOWNLOADS:
            reporter.warn(
                f"{archive.path.name} arrived complete, but {problem}; downloading it once more"
            )
    again = f"arrived complete {N_DOWNLOADS} times, but {problem}"
    raise ArchiveError(f"{archive.path.name} {again}; nothing of it is kept: try again later")


def zip_problem(path: Path) -> str:
    """What is wrong with a zip, "" if its structure and every member's CRC are right. Members are read, none is written."""
    name = ""
    try:
        with zipfile.ZipFile(path) as outer:
            for member in outer.infolist():
                name = repr(member.filename)
                with outer.open(member) as content:
                    while content.read(1 << 20):
                        pass
    except UNSOUND as error:
        return (
            f"{f'its member {name}' if name else 'it'} is corrupt ({error or type(error).__name__})"
        )
    return ""


def _is_current(archive: Archive, ask: Ask, reporter: Reporter, patience: Patience) -> bool:
    """Whether the file here is still what the server has; says which. Where a validator is missing, the length tells."""
    there = patiently(lambda: ask("version"), patience, reporter.warn)
    here, size = archive.known(), archive.path.stat().st_size
    if here is not None and here["validator"] and there["validator"]:
        if here["validator"] == there["validator"] and there["length"] in (None, size):
            reporter.say(
                f"{archive.path.name} is here ({size / MB:,.1f} MB) and is what the server has"
            )
            return True
    elif there["length"] == size and not zip_problem(archive.path):
        archive.remember(there, archive.path)
        reporter.say(
            f"{archive.path.name} is here, of the server's length ({size / MB:,.1f} MB) and intact"
        )
        return True
    reporter.warn(
        f"{archive.path.name} is here but is not what the server has; downloading that beside it"
    )
    return False


def _complete(
    archive: Archive, fd: int, ask: Ask, reporter: Reporter, patience: Patience
) -> dict[str, Any]:
    """Tries until the partial file is complete; the count starts anew whenever the file has become longer than it ever was in this run."""
    longest = os.fstat(fd).st_size

    def one_try() -> dict[str, Any]:
        with _Bar(archive.path.name, reporter) as bar:
            version: dict[str, Any] = ask(
                "archive", on_event=bar.on_event, fd=fd, note=str(archive.part_note.absolute())
            )
            return version

    def only_without_progress(_: AgainError) -> bool:
        return os.fstat(fd).st_size <= longest

    while True:
        try:
            return patiently(one_try, patience, reporter.warn, only=only_without_progress)
        except GaveUpError as error:
            have = os.fstat(fd).st_size
            if have <= longest:
                kept = f"{have / MB:,.1f} MB have arrived and are kept, and the next run goes on from there"
                raise UnavailableError(
                    f"{error}; {kept if have else 'nothing has arrived'}"
                ) from None
            longest = have
            reporter.warn(f"{error.last} after {have / MB:,.1f} MB; going on from there")
            time.sleep(patience.wait_first_s)


class _Bar:
    """The progress of one try, from the client's events."""

    def __init__(self, name: str, reporter: Reporter) -> None:
        self._name = name
        self._reporter = reporter
        self._stack = ExitStack()
        self._advance: Advance | None = None
        self._start = self._shown = 0

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *exception: Any) -> None:
        self._stack.__exit__(*exception)

    def on_event(self, event: Event) -> None:
        if "start" in event:
            self._start, total = event["start"], event["total"]
            label = f"downloading {self._name}" + (
                f" from {self._start / MB:,.1f} MB on" if self._start else ""
            )
            if total is not None:  # without a length there is nothing to show progress towards
                n_mb = (total - self._start + MB - 1) // MB
                self._advance = self._stack.enter_context(self._reporter.track(label, n_mb, "MB"))
        elif self._advance is not None:
            n_mb = (event["position"] - self._start + MB - 1) // MB
            self._advance(n_mb - self._shown)
            self._shown = n_mb


def _here(path: Path) -> list[int]:
    """Size and time of a file, which change when it does; nothing if there is none."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return []
    return [stat.st_size, stat.st_mtime_ns]
