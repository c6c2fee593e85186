"""What Kaggle can be asked, and how patiently."""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from comp.competition import Competition
from comp.errors import NotFoundError, RulesError, UnavailableError
from comp.kaggle.credentials import Credentials, first_credentials
from comp.kaggle.download import download_archive, noted_version, remote_version
from comp.kaggle.session import Session
from comp.kaggle.submissions import (
    Limits,
    Submission,
    make_submission,
    save_leaderboard,
    submission_of,
    wait_for_score,
)
from comp.progress import Reporter

_Result = TypeVar("_Result")


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


class Kaggle:
    """One competition as one account sees it. A call that fails raises a KaggleError.

    `env`, by default this process's environment, has the credentials, the proxies and whether to
    ask Kaggle itself or a stand-in.
    """

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

    def whoami(self) -> str:
        """The user name, once Kaggle has accepted the credentials."""
        username, _ = self.retried(lambda: self.session.login)
        if self.credentials.kind == "key":  # which no call of its own checks
            with suppress(RulesError, NotFoundError):
                self.limits()
        return username

    def clock_skew_s(self) -> float | None:
        """How far Kaggle's clock is ahead of ours, by its latest answer; None if unknown."""
        return self.session.transport.clock_skew_s

    def check_rules(self) -> None:
        """RulesError unless they are accepted. Only a download tells, so this begins one."""
        remote_version(self)

    def files(self) -> dict[str, int]:
        """The competition's files: name and size in bytes."""
        rows = self.rows("ListDataFiles", "files")
        return {str(row["name"]): int(row.get("totalBytes") or 0) for row in rows}

    def download(self, folder: Path) -> Path:
        return download_archive(self, folder)

    def has_newer_archive(self, folder: Path) -> bool:
        """Whether the archive that was downloaded to `folder` is not what the server has now."""
        here, there = noted_version(self, folder), remote_version(self)
        return bool(here and here.validator and there.validator not in ("", here.validator))

    def limits(self) -> Limits:
        answer = self.call("GetSubmissionLimits")
        n_today, n_allowed = (int(answer.get(name) or 0) for name in ("numToday", "numAllowedNow"))
        return Limits(n_today=n_today, n_allowed_now=n_allowed)

    def upload(self, csv: Path, message: str) -> int:
        return make_submission(self, csv, message)

    def submissions(self) -> list[Submission]:
        """All submissions, in Kaggle's order."""
        return [submission_of(row) for row in self.rows("ListSubmissions", "submissions")]

    def submission(self, ref: int) -> Submission:
        return submission_of(self.call("GetSubmission", ref=ref))

    def wait(self, ref: int, limit_s: float) -> Submission:
        return wait_for_score(self, ref, limit_s)

    def leaderboard(self, folder: Path) -> Path:
        return save_leaderboard(self, folder)

    def call(self, method: str, **fields: Any) -> dict[str, Any]:
        """The answer to a call that may be made more than once."""
        return self.retried(lambda: self.session.call(method, **fields))

    def rows(self, method: str, key: str) -> Iterator[dict[str, Any]]:
        """All rows of a list, whose pages each bring the token of the next."""
        token = ""
        while True:
            answer = self.call(method, page_token=token, page_size=100)
            rows = answer.get(key) or []
            yield from rows
            token = str(answer.get("nextPageToken") or "")
            if not token or not rows:
                return

    def retried(self, call: Callable[[], _Result]) -> _Result:
        """What `call` returns, repeated while it raises UnavailableError. Prints each wait."""
        patience, start, n_tries, n_refused = self.patience, time.monotonic(), 0, 0
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
