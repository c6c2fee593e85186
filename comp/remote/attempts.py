"""Sessions on Kaggle one after the other, of which there is never a second beside the first.

The note of an attempt is written before the push. Whatever happens then, the next call finds the
kernel by its name: it attaches to it, or knows that it never came to be.
"""

import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from comp.errors import BusyError, KaggleError, NotAttachedError, NotFoundError, UnavailableError
from comp.kaggle import Kaggle
from comp.kaggle.kernels import (
    ENDED,
    Script,
    appears,
    delete,
    log_of,
    push,
    status_of,
    url_of,
)
from comp.store import read_object, write_json

N_NAMES = 3  # that are tried: Kaggle refuses a few for reasons of its own
N_UNREADABLE = 10  # answers in a row, after which waiting ends
LOOK_S = 600.0  # at the log, before the session's status is asked for again
GRACE_S = 3600.0  # in the queue and for packing, beyond a session's limit
BUSY_S = 12 * 3600.0  # for a session to end: none lasts longer


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """A session, and what it goes on from."""

    slug: str = ""  # of its kernel; "": none was pushed
    accepted: bool = False  # Kaggle said so
    pushed: float = 0.0  # s since 1970
    limit_s: int = 0
    source: str = ""  # the kernel whose output it takes up
    carry: bool = False  # this machine's manifests go with it: Kaggle's image makes others


class Note:
    """The file that says which attempt is under way."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> Attempt:
        with suppress(TypeError):
            return Attempt(**read_object(self.path))
        return Attempt()

    def write(self, attempt: Attempt) -> Attempt:
        write_json(self.path, asdict(attempt))
        return attempt

    def forget(self) -> None:
        self.path.unlink(missing_ok=True)


def find(kaggle: Kaggle, note: Note) -> Attempt:
    """The attempt that is under way on Kaggle; one without a slug if there is none.

    KaggleError, once, if its kernel was accepted and is gone.
    """
    attempt = note.read()
    if not attempt.slug or appears(kaggle, attempt.slug):
        return attempt
    if attempt.accepted:
        raise _gone(note, attempt)
    return note.write(Attempt(source=attempt.source, carry=attempt.carry))


def _gone(note: Note, attempt: Attempt) -> KaggleError:
    note.write(Attempt(source=attempt.source, carry=attempt.carry))
    lost = f"the kernel {attempt.slug} is gone from Kaggle, and its output with it"
    return KaggleError(f"{lost}: the same command pushes another")


def begin(
    kaggle: Kaggle, note: Note, name: str, limit_s: int, script: Callable[[str, Attempt], Script]
) -> Attempt:
    """Pushes a session that goes on from what `note` names, once Kaggle lets it in.

    `script` makes it, given a title. Its words are `name` and some that no other attempt has.
    """
    end, n_names = time.monotonic() + BUSY_S, 0
    while True:
        title = f"comp {name} {secrets.token_hex(3)}"
        attempt = replace(note.read(), limit_s=limit_s, pushed=time.time())
        text = script(title, attempt)
        attempt = note.write(replace(attempt, slug=text.slug))
        try:
            slug = push(kaggle, text)
            return note.write(replace(attempt, slug=slug, accepted=True))
        except UnavailableError:
            raise  # it may have arrived: the note keeps its name
        except KaggleError as error:
            note.write(replace(attempt, slug=""))
            n_names += isinstance(error, (NotFoundError, NotAttachedError))
            is_over = n_names >= N_NAMES or time.monotonic() > end
            if is_over or not isinstance(error, (BusyError, NotFoundError, NotAttachedError)):
                raise
            if isinstance(error, NotAttachedError) and error.kind == "Kernel":
                note.write(replace(attempt, slug="", source=""))
            kaggle.reporter.warn(f"{error}; trying again until it goes")
        time.sleep(kaggle.patience.wait_most_s)


def follow(kaggle: Kaggle, note: Note, attempt: Attempt) -> tuple[str, str]:
    """Prints the session's log until it has ended: its status, and why it failed.

    One that runs long past its limit is deleted: nothing else stops it. KaggleError then;
    UnavailableError if Kaggle gives no readable answers, in which case the session goes on.
    """
    log, n_unreadable = Log(kaggle, attempt.slug), 0
    while True:
        try:
            status, why = status_of(kaggle, attempt.slug)
            n_unreadable = 0
        except UnavailableError as error:
            n_unreadable += 1
            if n_unreadable >= N_UNREADABLE:
                on = f"the session goes on at {url_of(kaggle, attempt.slug)}"
                raise UnavailableError(f"{error}; {on}: run this again to attach") from None
            status, why = "", ""
        except NotFoundError:  # just pushed, or for a moment, until that has lasted
            if not appears(kaggle, attempt.slug):
                raise _gone(note, attempt) from None
            continue
        log.print_news()
        if status in ENDED:
            return status, why
        if time.time() > attempt.pushed + attempt.limit_s + GRACE_S:
            delete(kaggle, attempt.slug)
            note.write(Attempt(source=attempt.source, carry=attempt.carry))
            raise KaggleError(
                f"the session {attempt.slug} was {status.lower() or 'silent'} long past its limit"
                f" of {attempt.limit_s:,} s and is deleted: run this again for a new one"
            )
        time.sleep(kaggle.patience.poll_s)


class Log:
    """A session's log, each line printed once although each look begins at its start."""

    def __init__(self, kaggle: Kaggle, slug: str) -> None:
        self._kaggle, self._slug = kaggle, slug
        self._n_read, self._rest = 0, ""

    def print_news(self) -> None:
        """What has come since the last look, and comes for a while. A log may be missing."""
        end = time.monotonic() + LOOK_S
        with suppress(KaggleError):
            for at, piece in enumerate(log_of(self._kaggle, self._slug)):
                if time.monotonic() > end:
                    return
                if at >= self._n_read:
                    self._n_read += 1
                    *lines, self._rest = (self._rest + piece).split("\n")
                    for line in filter(str.strip, lines):
                        self._kaggle.reporter.say(f"  {line}")
