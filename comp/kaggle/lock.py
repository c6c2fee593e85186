"""An open file that one run at a time writes to and at last gives its final name."""

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from comp.errors import UnavailableError
from comp.progress import Reporter

LOOK_EVERY_S = 0.2  # whether the other run has finished


@contextmanager
def locked(path: Path, waiting: str, reporter: Reporter, limit_s: float) -> Iterator[int]:
    """The file at `path`, created if need be, open and locked against other runs on this machine; an empty one does not stay.

    The lock belongs to the open file, also in the hands of a process that it is handed to, and ends when all have closed it.
    """
    since: float | None = None
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if _is_free(fd) and _is_at(
                path, fd
            ):  # not at its path: the other run has finished it, and it has its final name
                try:
                    yield fd
                finally:
                    if _is_at(path, fd) and not os.fstat(fd).st_size:
                        path.unlink()
                return
        finally:
            os.close(fd)
        if since is None:
            since = time.monotonic()
            reporter.say(f"{waiting}; waiting for it")
        if time.monotonic() - since > limit_s:
            raise UnavailableError(
                f"{waiting}, and has been for {limit_s:,.0f} s: end it, or wait for it, and run this again"
            )
        time.sleep(LOOK_EVERY_S)


def _is_free(fd: int) -> bool:
    """Takes the lock if nobody has it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (
            errno.ENOLCK,
            errno.ENOTSUP,
            errno.ENOSYS,
        ):  # some network folders have no locks: unguarded, then
            raise
    return True


def _is_at(path: Path, fd: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(fd))
    except FileNotFoundError:
        return False
