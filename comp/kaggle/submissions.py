"""Submissions: uploaded and made once, listed, waited for; and the leaderboard they end up on."""

import io
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from comp.errors import KaggleError, SubmissionError, UnavailableError
from comp.kaggle.archive import ZIP_DAMAGE
from comp.store import whole

if TYPE_CHECKING:
    from comp.kaggle.client import Kaggle

SMALLEST_PAGE = 20  # rows; Kaggle may send fewer than we ask for, but a shorter page is the last
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
    private_score: float | None
    error: str  # Kaggle's reason, where the status is error


def list_submissions(kaggle: "Kaggle") -> Iterator[Submission]:
    """All submissions, in Kaggle's order.

    A page is asked for by the token that came with the page before, or by number if none came.
    """
    seen: set[int] = set()
    token, by_token = "", False
    for page in count(1):
        which = {"page_token": token} if token else {"page": page}
        answer = kaggle.call("ListSubmissions", page_size=100, **which)
        rows = [submission_of(row) for row in answer.get("submissions") or []]
        new = [row for row in rows if row.ref not in seen]
        yield from new
        seen |= {row.ref for row in new}
        token = str(answer.get("nextPageToken") or "")
        is_last = not token and (by_token or len(rows) < SMALLEST_PAGE)
        if is_last or not new:
            return
        by_token = bool(token)


def make_submission(kaggle: "Kaggle", csv: Path, message: str) -> int:
    """Submits `csv` once and returns Kaggle's reference, under which it is now listed.

    The upload submits nothing yet and is repeated as needed. The call that submits it is repeated
    only if it has certainly had no effect. If its answer is lost, the list of submissions tells; so
    `message` must be this file's own, best with its hash.
    """
    if not message.strip():
        raise ValueError("a submission needs a message to be found by")
    if not csv.is_file() or not csv.stat().st_size:
        raise SubmissionError(f"{csv} is missing or empty: nothing was uploaded")
    earlier = {known.ref for known in list_submissions(kaggle) if _is_same(known.message, message)}
    token = kaggle.retried(lambda: _upload(kaggle, csv))
    lost: UnavailableError | None = None

    def create() -> dict[str, Any]:
        nonlocal lost
        fields = {"blob_file_tokens": token, "submission_description": message}
        try:
            return kaggle.session.call("CreateSubmission", **fields)
        except UnavailableError as error:
            if error.not_done:
                raise
            kaggle.reporter.warn(f"{error}; checking if the submission arrived anyway")
            lost = error
            return {}

    answer = kaggle.retried(create)
    if ref := _listed_ref(kaggle, int(answer.get("ref") or 0), message, earlier):
        return ref
    missing = f"is not in the list of submissions after {kaggle.patience.listed_s:.0f} s"
    url = f"https://www.kaggle.com/competitions/{kaggle.competition.slug}/submissions"
    look = f"look at {url} before submitting again"
    if lost:
        raise UnavailableError(f"{lost}, and the submission {missing}; {look}")
    said = f'Kaggle said "{answer.get("message", "")}"'
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


def _listed_ref(kaggle: "Kaggle", ref: int, message: str, earlier: set[int]) -> int:
    """The reference of the submission just made, once it is listed; 0 if it takes too long."""
    for _ in _looks(kaggle, kaggle.patience.listed_s):
        try:
            for known in list_submissions(kaggle):
                is_new = known.ref not in earlier and _is_same(known.message, message)
                if known.ref == ref or is_new:
                    return known.ref
        except KaggleError as error:
            kaggle.reporter.warn(str(error))
    return 0


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
    """The seconds left, now and then after growing pauses; at last, after `limit_s`, none."""
    start, pause_s = time.monotonic(), kaggle.patience.poll_first_s
    while True:
        left_s = max(0.0, start + limit_s - time.monotonic())
        yield left_s
        if not left_s:
            return
        time.sleep(min(pause_s, left_s))
        pause_s = min(1.5 * pause_s, kaggle.patience.poll_most_s)


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
    return Submission(
        ref=int(row.get("ref") or 0),
        date=_date(str(row.get("date") or "")),
        file_name=str(row.get("fileName") or ""),
        message=str(row.get("description") or ""),
        status=_status(str(row.get("status") or "")),
        public_score=_score(row.get("publicScore")),
        private_score=_score(row.get("privateScore")),
        error=str(row.get("errorDescription") or ""),
    )


def _status(name: str) -> Literal["pending", "complete", "error"]:
    """A name that is not known yet is not final; the SDK would raise KeyError."""
    name = name.lower()
    return "complete" if "complete" in name else "error" if "error" in name else "pending"


def _score(text: object) -> float | None:
    """A score arrives as text, which is empty if there is none."""
    try:
        return float(str(text))
    except ValueError:
        return None


def _date(text: str) -> datetime:
    date = datetime.fromisoformat(text or "1970-01-01")
    return date.replace(tzinfo=UTC) if date.tzinfo is None else date.astimezone(UTC)


def _is_same(one: str, other: str) -> bool:
    """Whether two messages are the same, spaces aside."""
    return one.split() == other.split()
