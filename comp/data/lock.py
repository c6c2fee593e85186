"""One process at a time."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from comp.progress import Reporter


@contextmanager
def locked(path: Path, reporter: Reporter) -> Iterator[None]:
    """Waits until no other process is in a block with the same `path`, and says so. A killed process leaves nothing locked."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            reporter.say(f"waiting for another run that works on {path.parent}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
