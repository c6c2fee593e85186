"""What Kaggle can be asked, and how patiently. Submissions are made once, whatever happens."""

import io
import os
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

from comp.competition import Competition
from comp.errors import KaggleError, NotFoundError, RulesError, SubmissionError, UnavailableError
from comp.kaggle.credentials import Credentials, first_credentials
from comp.kaggle.download import ZIP_DAMAGE, Archive, download_archive, remote_version
from comp.kaggle.session import Session
from comp.progress import Reporter
from comp.store import whole

_Result = TypeVar("_Result")
SAY_EVERY_S = 15.0  # that a submission is still pending


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long to wait for what. The SDK by itself waits forever."""

    connect_s: float = 10.0  # for a connection, and for each block of an upload
    read_s: float = 60.0  # between two blocks of an answer
    answer_s: float = 300.0  # for the whole of an answer, unless it is the archive
    n_tries: int = 8  # of one call; of a download, since its last new byte
    n_links: int = 3  # tries of one call if the storage refuses the signed links
    retry_s: float = 300.0  # for all tries of one call; a longer Retry-After ends them
    wait_first_s: float = 1.0  # before the second try; doubles from try to try
    wait_most_s: float = 60.0  # before any try, unless Retry-After asks for more
    poll_s: float = 5.0  # between two looks at a submission
    listed_s: float = 60.0  # until an accepted submission is in the list
    other_run_s: float = 3600.0  # for another run that downloads the same archive


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """This team's submissions from midnight UTC to midnight UTC."""

    n_today: int  # made so far
    n_allowed_now: int  # left until then


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """One submission as Kaggle lists it."""

    ref: int
    date: datetime  # UTC, aware
    file_name: str
    message: str
    status: Literal["pending", "complete", "error"]
    public_score: float | None
    private_score: float | None = None  # on the rest of the test set; known after the deadline
    error: str  # Kaggle's reason, where the status is error


class Kaggle:
    """One competition as one account sees it, by the credentials and proxies of `env`."""

    def __init__(
        self,
        competition: Competition,
        reporter: Reporter,
        env: Mapping[str, str] | None = None,
        patience: Patience | None = None,
    ) -> None:
        self.competition = competition
        self.reporter = reporter
        self.patience = patience or Patience()
        self.env = dict(os.environ if env is None else env)
        self.session = Session(self)

    @property
    def is_real(self) -> bool:
        """Whether calls go to Kaggle itself, not to a stand-in on this machine."""
        return self.env.get("KAGGLE_API_ENVIRONMENT") != "LOCALHOST"

    @cached_property
    def credentials(self) -> Credentials:
        """The credentials in use. The first look prints a warning for each trap among them."""
        found = first_credentials(self.env)
        for warning in found.warnings:
            self.reporter.warn(warning)
        return found

    @property
    def owner(self) -> str:
        """The user name, of a key unchecked."""
        return self.retried(lambda: self.session.login)[0]

    def whoami(self) -> str:
        """The user name, once Kaggle has accepted the credentials."""
        username = self.owner
        if self.credentials.kind == "key":  # which no call of its own checks
            with suppress(RulesError, NotFoundError):
                self.limits()
        return username

    def check_rules(self) -> None:
        """RulesError unless they are accepted. Only a download tells, so this begins one."""
        remote_version(self)

    def files(self) -> dict[str, int]:
        """The competition's files: name and size in bytes."""
        rows = self.rows("ListDataFiles", "files")
        return {str(row["name"]): int(row.get("totalBytes") or 0) for row in rows}

    def download(self, folder: Path) -> Path:
        """The competition's archive in `folder`: whole, checked, and the one Kaggle has now."""
        return download_archive(self, folder)

    def has_newer_archive(self, folder: Path) -> bool:
        """Whether the archive of `folder`, deleted or not, differs from the server's."""
        here = Archive(folder / f"{self.competition.slug}.zip").version()
        there = remote_version(self)
        return bool(here and here.validator and there.validator not in ("", here.validator))

    def limits(self) -> Limits:
        answer = self.call("GetSubmissionLimits")
        n_today, n_allowed = (int(answer.get(name) or 0) for name in ("numToday", "numAllowedNow"))
        return Limits(n_today=n_today, n_allowed_now=n_allowed)

    def submissions(self) -> list[Submission]:
        """All submissions, in Kaggle's order."""
        return [submission_of(row) for row in self.rows("ListSubmissions", "submissions")]

    def upload(
        self, csv: Path, message: str, before_submitting: Callable[[], object] = lambda: None
    ) -> int:
        """Submits `csv` once and returns Kaggle's reference, under which it is now listed.

        The upload submits nothing yet and is repeated as needed; then `before_submitting` is
        called. The call that submits is repeated only if it has certainly had no effect. If its
        answer is lost, the list of submissions tells, by a `message` that only this file has.
        """
        if not csv.is_file() or not csv.stat().st_size:
            raise SubmissionError(f"{csv} is missing or empty: nothing was uploaded")
        earlier = {known.ref for known in self._with_message(message)}
        token = self.retried(lambda: self._upload(csv))
        before_submitting()
        lost: list[UnavailableError] = []

        def create() -> dict[str, Any]:
            fields = {"blob_file_tokens": token, "submission_description": message}
            try:
                return self.session.call("CreateSubmission", **fields)
            except UnavailableError as error:
                if error.not_done:
                    raise
                self.reporter.warn(f"{error}; checking if the submission arrived anyway")
                lost.append(error)
                return {}

        said = f'Kaggle said "{self.retried(create).get("message", "")}"'
        for _ in self._looks(self.patience.listed_s):
            try:
                for known in self._with_message(message):
                    if known.ref not in earlier:
                        return known.ref
            except KaggleError as error:
                self.reporter.warn(str(error))
        missing = f"is not in the list of submissions after {self.patience.listed_s:.0f} s"
        url = f"https://www.kaggle.com/competitions/{self.competition.slug}/submissions"
        look = f"look at {url} before submitting again"
        if lost:
            raise UnavailableError(f"{lost[0]}, and the submission {missing}; {look}")
        raise KaggleError(f"{said}, but the submission {missing} and may not count; {look}")

    def wait(self, ref: int, limit_s: float) -> Submission:
        """The submission once it is no longer pending, or as it is after `limit_s`."""
        latest, problem, said_at_s = None, "no answer", limit_s
        for left_s in self._looks(limit_s):
            try:
                latest = submission_of(self.session.call("GetSubmission", ref=ref))
            except UnavailableError as error:
                problem = str(error)
            if latest and latest.status != "pending":
                return latest
            if said_at_s - left_s > SAY_EVERY_S:
                said_at_s = left_s
                so_far = f"submission {ref} has been pending for {limit_s - left_s:.0f} s"
                self.reporter.say(f"{so_far}; waiting for at most {left_s:.0f} s more")
        if latest:
            return latest
        raise UnavailableError(f"no score of submission {ref} in {limit_s:.0f} s: {problem}")

    def leaderboard(self, folder: Path) -> Path:
        """The public leaderboard as it is now, in `folder`/leaderboard.csv."""
        content = self.retried(lambda: self.session.content("DownloadLeaderboard"))
        try:
            with zipfile.ZipFile(io.BytesIO(content)) as zipped:
                (name,) = [name for name in zipped.namelist() if name.lower().endswith(".csv")]
                table = zipped.read(name)
        except ZIP_DAMAGE as error:
            sent = f"Kaggle sent something other than a zip with the leaderboard's CSV ({error})"
            raise KaggleError(f"{sent}: try again later") from error
        with whole(folder / "leaderboard.csv") as scratch:
            scratch.write_bytes(table)
        return folder / "leaderboard.csv"

    def retried(self, call: Callable[[], _Result], since_s: float | None = None) -> _Result:
        """What `call` returns, repeated while it raises UnavailableError. Prints each wait.

        `since_s`, on the monotonic clock, is when the time for all tries began; None: now.
        """
        patience, n_tries, n_refused = self.patience, 0, 0
        start = time.monotonic() if since_s is None else since_s
        while True:
            n_tries += 1
            try:
                return call()
            except UnavailableError as error:
                n_refused += error.link_refused
                took_s, wait_s = time.monotonic() - start, error.retry_after_s
                later = "try again later"
                if wait_s is None:
                    wait_s = min(patience.wait_first_s * 2 ** (n_tries - 1), patience.wait_most_s)
                else:
                    later = f"it asks to wait {wait_s:,.0f} s"
                is_over = took_s + wait_s > patience.retry_s
                if is_over or n_tries >= patience.n_tries or n_refused >= patience.n_links:
                    tries = "1 try" if n_tries == 1 else f"{n_tries} tries"
                    message = f"{error}; {tries} in {took_s:.0f} s; {later}"
                    raise UnavailableError(message) from None
                self.reporter.warn(f"{error}; trying again in {wait_s:.1f} s")
            time.sleep(wait_s)

    def call(self, method: str, **fields: Any) -> dict[str, Any]:
        """The answer to a call that may be made more than once."""
        return self.retried(lambda: self.session.call(method, **fields))

    def rows(self, method: str, key: str, **fields: Any) -> Iterator[dict[str, Any]]:
        """All rows of a list, whose pages each bring the token of the next."""
        token, rows = "", None
        while rows is None or (token and rows):
            answer = self.call(method, page_token=token, page_size=100, **fields)
            rows, token = answer.get(key) or [], str(answer.get("nextPageToken") or "")
            yield from rows

    def _upload(self, csv: Path) -> str:
        """Uploads the bytes and returns the token by which they can be submitted."""
        stat = csv.stat()
        link = self.session.call(
            "StartSubmissionUpload",
            file_name=csv.name,
            content_length=stat.st_size,
            last_modified_epoch_seconds=int(stat.st_mtime),
        )
        self.session.put(str(link.get("createUrl")), csv)
        return str(link.get("token") or "")

    def _with_message(self, message: str) -> list[Submission]:
        """The submissions with this message, spaces aside."""
        return [known for known in self.submissions() if known.message.split() == message.split()]

    def _looks(self, limit_s: float) -> Iterator[float]:
        """The seconds left, at regular times; at last, after `limit_s`, none."""
        end = time.monotonic() + limit_s
        while (left_s := end - time.monotonic()) > 0:
            yield left_s
            time.sleep(min(self.patience.poll_s, left_s))
        yield 0.0


def submission_of(row: dict[str, Any]) -> Submission:
    """A submission from its JSON, in which fields with their default are left out."""
    status = str(row.get("status") or "").lower()  # a name that is not known yet is not final
    date = datetime.fromisoformat(row.get("date") or "1970-01-01")
    return Submission(
        ref=int(row.get("ref") or 0),
        date=date.replace(tzinfo=UTC) if date.tzinfo is None else date.astimezone(UTC),
        file_name=str(row.get("fileName") or ""),
        message=str(row.get("description") or ""),
        status="complete" if "complete" in status else "error" if "error" in status else "pending",
        public_score=float(row["publicScore"]) if row.get("publicScore") else None,
        private_score=float(row["privateScore"]) if row.get("privateScore") else None,
        error=str(row.get("errorDescription") or ""),
    )
