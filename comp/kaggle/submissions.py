"""Submissions: uploaded and made once, listed, waited for; and the leaderboard they end up on."""

import io
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from comp.errors import KaggleError, SubmissionError, UnavailableError
from comp.kaggle.download import ZIP_DAMAGE
from comp.store import whole

if TYPE_CHECKING:
    from comp.kaggle.client import Kaggle

SAY_EVERY_S = 15.0  # that a submission is still pending


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


def make_submission(kaggle: "Kaggle", csv: Path, message: str) -> int:
    """Submits `csv` once and returns Kaggle's reference, under which it is now listed.

    The upload submits nothing yet and is repeated as needed. The call that submits it is repeated
    only if it has certainly had no effect. If its answer is lost, the list of submissions tells; so
    `message` must be this file's own, best with its hash.
    """
    if not csv.is_file() or not csv.stat().st_size:
        raise SubmissionError(f"{csv} is missing or empty: nothing was uploaded")
    earlier = {known.ref for known in _with_message(kaggle, message)}
    token = kaggle.retried(lambda: _upload(kaggle, csv))
    lost: list[UnavailableError] = []

    def create() -> dict[str, Any]:
        fields = {"blob_file_tokens": token, "submission_description": message}
        try:
            return kaggle.session.call("CreateSubmission", **fields)
        except UnavailableError as error:
            if error.not_done:
                raise
            kaggle.reporter.warn(f"{error}; checking if the submission arrived anyway")
            lost.append(error)
            return {}

    said = f'Kaggle said "{kaggle.retried(create).get("message", "")}"'
    for _ in _looks(kaggle, kaggle.patience.listed_s):
        try:
            for known in _with_message(kaggle, message):
                if known.ref not in earlier:
                    return known.ref
        except KaggleError as error:
            kaggle.reporter.warn(str(error))
    missing = f"is not in the list of submissions after {kaggle.patience.listed_s:.0f} s"
    url = f"https://www.kaggle.com/competitions/{kaggle.competition.slug}/submissions"
    look = f"look at {url} before submitting again"
    if lost:
        raise UnavailableError(f"{lost[0]}, and the submission {missing}; {look}")
    raise KaggleError(f"{said}, but the submission {missing} and may not count; {look}")


def _upload(kaggle: "Kaggle", csv: Path) -> str:
    """Uploads the bytes and returns the token by which they can be submitted."""
    stat = csv.stat()
    link = kaggle.session.call(
        "StartSubmissionUpload",
        file_name=csv.name,
        content_length=stat.st_size,
        last_modified_epoch_seconds=int(stat.st_mtime),
    )
    kaggle.session.put(str(link.get("createUrl")), csv)
    return str(link.get("token") or "")


def _with_message(kaggle: "Kaggle", message: str) -> list[Submission]:
    """The submissions with this message, spaces aside."""
    words = message.split()
    return [known for known in kaggle.submissions() if known.message.split() == words]


def wait_for_score(kaggle: "Kaggle", ref: int, limit_s: float) -> Submission:
    """The submission once it is no longer pending, or as it is after `limit_s`."""
    latest, problem, said_at_s = None, "no answer", limit_s
    for left_s in _looks(kaggle, limit_s):
        try:
            latest = submission_of(kaggle.session.call("GetSubmission", ref=ref))
        except UnavailableError as error:
            problem = str(error)
        if latest and latest.status != "pending":
            return latest
        if said_at_s - left_s > SAY_EVERY_S:
            said_at_s = left_s
            so_far = f"submission {ref} has been pending for {limit_s - left_s:.0f} s"
            kaggle.reporter.say(f"{so_far}; waiting for at most {left_s:.0f} s more")
    if latest:
        return latest
    raise UnavailableError(f"no score of submission {ref} in {limit_s:.0f} s: {problem}")


def _looks(kaggle: "Kaggle", limit_s: float) -> Iterator[float]:
    """The seconds left, at regular times; at last, after `limit_s`, none."""
    end = time.monotonic() + limit_s
    while (left_s := end - time.monotonic()) > 0:
        yield left_s
        time.sleep(min(kaggle.patience.poll_s, left_s))
    yield 0.0


def save_leaderboard(kaggle: "Kaggle", folder: Path) -> Path:
    """The public leaderboard as it is now, in `folder`/leaderboard.csv."""
    content = kaggle.retried(lambda: kaggle.session.content("DownloadLeaderboard"))
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
