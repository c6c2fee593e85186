"""What was submitted to a rehearsal, kept in a journal from one run to the next."""

import json
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from comp.errors import UserError
from comp.rehearsal.exchange import RefusedError

FIRST_REF = 40_000_001


def wire_time(moment: datetime) -> str:
    """As Kaggle writes a moment: UTC, seven digits after the seconds."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f0Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """One upload and what became of it."""

    ref: int
    date: str  # as `wire_time` writes it
    file_name: str
    description: str
    sha256: str  # of the file
    n_bytes: int
    score: float | None  # public, over all ids; None: it could not be scored
    error: str  # why there is no score

    def wire(self, submitted_by: str) -> dict[str, Any]:
        """The fields that the client reads."""
        return {
            "ref": self.ref,
            "totalBytes": self.n_bytes,
            "date": self.date,
            "description": self.description,
            "errorDescription": self.error,
            "fileName": self.file_name,
            "publicScore": "" if self.score is None else f"{self.score:.5f}",
            "privateScore": "",  # a rehearsal has no private part
            "status": "ERROR" if self.score is None else "COMPLETE",
            "submittedBy": submitted_by,
            "submittedByRef": submitted_by,
            "teamName": submitted_by,
            "url": f"/submissions/{self.ref}/{self.ref}.raw",
        }


class Submissions:
    """All submissions, oldest first, with the daily limit; with a `journal`, those of earlier servers too."""

    def __init__(
        self, journal: Path | None, daily_limit: int, clock: Callable[[], datetime]
    ) -> None:
        self._journal = journal
        self._daily_limit = daily_limit
        self._clock = clock
        self._lock = threading.Lock()
        self._all = _read_journal(journal) if journal else []

    def all(self) -> list[Submission]:
        with self._lock:
            return list(self._all)

    def find(self, ref: int) -> Submission:
        for submission in self.all():
            if submission.ref == ref:
                return submission
        raise RefusedError(404, f"Submission {ref} not found")

    def limits(self) -> dict[str, Any]:
        n_today = self._n_today()
        return {
            "numToday": n_today,
            "numTotal": len(self.all()),
            "numAllowedNow": max(self._daily_limit - n_today, 0),
            "limitedByTotal": False,
        }

    def add(self, **fields: Any) -> Submission:
        """The submission made of `fields`, recorded; refused when the day's allowance is used up."""
        with self._lock:
            if self._n_today() >= self._daily_limit:
                raise RefusedError(400, allowance_message(self._daily_limit))
            ref = max((each.ref for each in self._all), default=FIRST_REF - 1) + 1
            submission = Submission(ref=ref, date=wire_time(self._clock()), **fields)
            self._all.append(submission)
            if self._journal:
                _append(self._journal, asdict(submission))
        return submission

    def _n_today(self) -> int:
        """Failed ones count too; whether they do on Kaggle is not known. The day is UTC's."""
        today = wire_time(self._clock())[:10]
        return sum(each.date.startswith(today) for each in self._all)


def allowance_message(daily_limit: int) -> str:
    return f"Your team has used its daily Submission allowance ({daily_limit}) today, please try again tomorrow UTC."


def _append(journal: Path, row: Mapping[str, Any]) -> None:
    """One line more, in one write, on disk before anybody is told of it."""
    journal.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        os.write(handle, (json.dumps(row) + "\n").encode())
        os.fsync(handle)
    finally:
        os.close(handle)


def _read_journal(journal: Path) -> list[Submission]:
    """A last line without an end was cut by a crash before anybody was told of it: it goes."""
    if not journal.exists():
        return []
    content = journal.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        os.truncate(journal, len(whole))
    try:
        return [Submission(**json.loads(line)) for line in whole.splitlines()]
    except (ValueError, TypeError) as error:
        raise UserError(f"{journal}: not a rehearsal's journal ({error}); move it away") from None
