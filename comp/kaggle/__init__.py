"""The only door to Kaggle: its files, its limits, our submissions and their scores. Each call has an end, each failure a remedy."""

import base64
import io
import os
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from comp.competition import Competition
from comp.errors import KaggleError, SubmissionError, UnavailableError
from comp.kaggle.archive import UNSOUND, Archive, fetch
from comp.kaggle.credentials import Credentials, find, secrets
from comp.kaggle.failures import AgainError, FailedError, error_of, none_found
from comp.kaggle.process import Event, OnEvent, Process
from comp.kaggle.retries import GaveUpError, patiently
from comp.kaggle.values import Limits, Patience, RemoteFile, Submission, submission
from comp.progress import Reporter

__all__ = ["Credentials", "Kaggle", "Limits", "Patience", "RemoteFile", "Submission"]

N_PAGES = 1000  # of any list; more is a list that does not end
SMALLEST_PAGE = 20  # rows; the service may send fewer than we ask for at once, but a page shorter than its default is the last
BOARD_BYTES = 64 << 20  # a leaderboard larger than this is none
SAY_EVERY_S = 15.0  # that a submission is still pending


def _ignore(_: Event) -> None:
    """Most calls tell nothing before their result."""


class Kaggle:
    """One account's view of one competition, through the real client; `env`, by default this program's, says who we are and whom to ask."""

    def __init__(
        self,
        competition: Competition,
        reporter: Reporter,
        env: Mapping[str, str] | None = None,
        patience: Patience | None = None,
    ) -> None:
        self._competition = competition
        self._reporter = reporter
        self._env = dict(os.environ if env is None else env)
        self._patience = patience or Patience()

    @property
    def is_real(self) -> bool:
        """Whether calls go to Kaggle, not to a stand-in. LOCALHOST is where else the client can be sent; TEST does not redirect it."""
        return self._env.get("KAGGLE_API_ENVIRONMENT") != "LOCALHOST"

    @cached_property
    def credentials(self) -> Credentials:
        """Which credentials are used, with a warning for each trap among them."""
        found = find(self._env)
        if found is None:
            raise none_found()
        for warning in found.warnings:
            self._reporter.warn(warning)
        return found

    def endpoint(self) -> str:
        """Where the client sends its calls, as the client itself has it."""
        return str(self._ask("endpoint"))

    def whoami(self) -> str:
        """The user name that goes with the credentials, once Kaggle has accepted them."""
        return str(self._patiently("whoami"))

    def check_rules(self) -> None:
        """RulesError, with the link, unless they are accepted. Listings work without: so a download is begun, and left at its head."""
        self._patiently("version")

    def clock_skew_s(self) -> float | None:
        """By how many seconds the other side's clock is ahead of ours, by its latest answer; None if there was none, or it did not tell."""
        skew_s: float | None = self._ask("skew")
        return skew_s

    def files(self) -> list[RemoteFile]:
        found: list[RemoteFile] = []
        token = ""
        for _ in range(N_PAGES):
            answer = self._patiently("files", page_token=token)
            found += [
                RemoteFile(name=str(row["name"]), total_bytes=int(row.get("totalBytes", 0)))
                for row in answer.get("files") or []
            ]
            token = str(answer.get("nextPageToken") or "")
            if not token:
                break
        return found

    def download(self, folder: Path) -> Path:
        """The competition's archive, complete and with sound CRCs; downloads what is missing of it, or nothing if it is here already."""
        archive = Archive(folder / f"{self._competition.slug}.zip")
        return fetch(archive, self._ask, self._reporter, self._patience)

    def limits(self) -> Limits:
        answer = self._patiently("limits")
        return Limits(
            n_today=int(answer.get("numToday", 0)),
            n_allowed_now=int(answer.get("numAllowedNow", 0)),
        )

    def upload(self, csv: Path, message: str) -> int:
        """Submits `csv` once and returns Kaggle's reference, by which it is now listed.

        Uploading the bytes submits nothing and is repeated as needed. The call that submits them is made once; if its answer is lost, the
        list of submissions tells whether it has been carried out. `message` must be this file's own, best with its hash.
        """
        if not message.strip():
            raise ValueError("a submission needs a message by which it can be found again")
        if not csv.is_file() or not csv.stat().st_size:
            raise SubmissionError(f"{csv} is missing or empty: nothing was uploaded")
        before = {known.ref for known in self._listed() if _is_same(known.message, message)}
        token = self._patiently("put", path=str(csv.resolve()))
        lost: GaveUpError | None = None
        answer: dict[str, Any] = {}
        try:
            answer = self._patiently("create", only=_nothing_was_done, token=token, message=message)
        except GaveUpError as error:
            if _nothing_was_done(error.last):
                raise
            lost = error
            self._reporter.warn(
                f"{error.last}; looking whether the submission has arrived all the same"
            )
        ref = self._appears(int(answer.get("ref") or 0), message, before)
        if ref:
            return ref
        where = f"look at https://www.kaggle.com/competitions/{self._competition.slug}/submissions before submitting again"
        within = f"is not in the list of submissions after {self._patience.listed_s:.0f} s"
        if lost is not None:
            raise UnavailableError(f"{lost.last}, and the submission {within}; {where}")
        raise KaggleError(
            f'Kaggle said "{answer.get("message", "")}", but the submission {within}: it may not count; {where}'
        )

    def submissions(self) -> list[Submission]:
        """All of them, in Kaggle's order."""
        return list(self._listed())

    def find(self, message: str) -> Submission | None:
        """The latest submission with this message, spaces aside."""
        return max(
            (known for known in self._listed() if _is_same(known.message, message)),
            key=lambda known: known.date,
            default=None,
        )

    def submission(self, ref: int) -> Submission:
        return submission(self._patiently("submission", ref=ref))

    def wait(self, ref: int, limit_s: float) -> Submission:
        """The submission once it is no longer pending, or as it is after `limit_s`."""
        start = said = time.monotonic()
        latest: Submission | None = None
        pause_s = self._patience.poll_first_s
        while True:
            problem = "no answer"
            try:
                latest = submission(self._ask("submission", ref=ref))
            except AgainError as error:
                problem = str(error)
            now = time.monotonic()
            left_s = start + limit_s - now
            if latest is not None and (latest.status != "pending" or left_s <= 0):
                return latest
            if left_s <= 0:
                raise UnavailableError(
                    f"the score of submission {ref} could not be asked for within {limit_s:.0f} s: {problem}"
                )
            if now - said > SAY_EVERY_S:
                said = now
                self._reporter.say(
                    f"submission {ref} is pending, {now - start:.0f} s so far, at most {left_s:.0f} s more"
                )
            time.sleep(min(pause_s, left_s))
            pause_s = min(1.5 * pause_s, self._patience.poll_most_s)

    def leaderboard(self, folder: Path) -> Path:
        """The public leaderboard of now, as `leaderboard.csv` in `folder`. (The client would write it over the data's archive.)"""
        from comp.store import (
            whole,
        )  # brings pandas, which the client's process, which imports this module too, does not need

        content = base64.b64decode(self._patiently("leaderboard"))
        with whole(folder / "leaderboard.csv") as scratch:
            scratch.write_bytes(_only_csv(content))
        return folder / "leaderboard.csv"

    def close(self) -> None:
        """Ends the client's process, which otherwise ends with this object."""
        self._process.close()

    def _listed(self) -> Iterator[Submission]:
        """Submissions page by page. The client's own wrapper drops the token of the next page, and so all but the first 20."""
        seen: set[int] = set()
        token, by_token = "", False
        for page in range(1, N_PAGES):
            answer = self._patiently("submissions", page=page, page_token=token)
            rows = [submission(row) for row in answer.get("submissions") or []]
            new = [row for row in rows if row.ref not in seen]
            yield from new
            seen |= {row.ref for row in new}
            token = str(answer.get("nextPageToken") or "")
            if not new or not (token or (not by_token and len(rows) >= SMALLEST_PAGE)):
                return
            by_token = bool(token)

    def _appears(self, ref: int, message: str, before: set[int]) -> int:
        """The reference of the submission just made, once it is listed; 0 if it is not for too long."""
        start, pause_s = time.monotonic(), self._patience.poll_first_s
        while True:
            try:
                for known in self._listed():
                    if known.ref == ref or (
                        known.ref not in before and _is_same(known.message, message)
                    ):
                        return known.ref
            except GaveUpError as error:
                self._reporter.warn(str(error))
            if time.monotonic() - start > self._patience.listed_s:
                return 0
            time.sleep(pause_s)
            pause_s = min(1.5 * pause_s, self._patience.poll_most_s)

    @cached_property
    def _process(self) -> Process:
        return Process(self._env, self._competition.slug, self._patience, secrets(self._env))

    def _patiently(
        self, call: str, only: Callable[[AgainError], bool] = lambda _: True, **arguments: Any
    ) -> Any:
        return patiently(
            lambda: self._ask(call, **arguments), self._patience, self._reporter.warn, only
        )

    def _ask(
        self, call: str, *, on_event: OnEvent = _ignore, fd: int | None = None, **arguments: Any
    ) -> Any:
        """One call, made once, with failures as errors for a person."""
        credentials = self.credentials  # without any there is nothing to try
        try:
            return self._process.ask(call, on_event, fd, arguments)
        except FailedError as failed:
            raise error_of(failed.failure, self._competition, credentials) from None


def _nothing_was_done(error: AgainError) -> bool:
    return error.is_certain


def _is_same(one: str, other: str) -> bool:
    return one.split() == other.split()


def _only_csv(content: bytes) -> bytes:
    """The table in the zip that Kaggle sends."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as zipped:
            (table,) = [
                member
                for member in zipped.infolist()
                if member.filename.lower().endswith(".csv") and member.file_size <= BOARD_BYTES
            ]
            return zipped.read(table)
    except UNSOUND as error:
        raise KaggleError(
            f"Kaggle sent something else than a zip with the leaderboard's CSV ({error}): try again later"
        ) from error
