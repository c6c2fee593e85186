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
from comp.kaggle.archive import ZIP_DAMAGE
from comp.store import whole

if TYPE_CHECKING:
    from comp.kaggle.client import Kaggle

N_PAGES = 1000  # a longer list does not end
PAGE_SIZE = 100  # rows that we ask for
SMALLEST_PAGE = 20  # rows; Kaggle may send fewer than we ask for, but a shorter page is the last
BOARD_BYTES = 64 << 20  # at most, unpacked
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
    for page in range(1, N_PAGES):
        which = {"page_token": token} if token else {"page": page}
        answer = kaggle.call("ListSubmissions", page_size=PAGE_SIZE, **which)
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
    only if nothing has been done; if its answer is lost, the list tells. So `message` must be this
    file's own, best with its hash.
    """
    if not message.strip():
        raise ValueError("a submission needs a message to be found by")
    if not csv.is_file() or not csv.stat().st_size:
        raise SubmissionError(f"{csv} is missing or empty: nothing was uploaded")
    earlier = {known.ref for known in list_submissions(kaggle) if _is_same(known.message, message)}
    token = kaggle.retried(lambda: _upload(kaggle, csv))
    answer, lost = _create(kaggle, token, message)
    if lost:
        kaggle.reporter.warn(f"{lost}; looking whether the submission has arrived all the same")
    ref = _listed_ref(kaggle, int(answer.get("ref") or 0), message, earlier)
    if ref:
        return ref
    url = f"https://www.kaggle.com/competitions/{kaggle.competition.slug}/submissions"
    missing = f"is not in the list of submissions after {kaggle.patience.listed_s:.0f} s"
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


def _create(
    kaggle: "Kaggle", token: str, message: str
) -> tuple[dict[str, Any], UnavailableError | None]:
    """Kaggle's answer to the submission, or why it's not known whether it has been made."""

    def create_once() -> tuple[dict[str, Any], UnavailableError | None]:
        try:
            fields = {"blob_file_tokens": token, "submission_description": message}
            return kaggle.session.call("CreateSubmission", **fields), None
        except UnavailableError as error:
            if error.not_done:
                raise
            return {}, error

    return kaggle.retried(create_once)


def _listed_ref(kaggle: "Kaggle", ref: int, message: str, earlier: set[int]) -> int:
    """The reference of the submission just made, once it is listed; 0 if it takes too long."""
    start, pause_s = time.monotonic(), kaggle.patience.poll_first_s
    while True:
        try:
            for known in list_submissions(kaggle):
                is_new = known.ref not in earlier and _is_same(known.message, message)
                if known.ref == ref or is_new:
                    return known.ref
        except UnavailableError as error:
            kaggle.reporter.warn(str(error))
        if time.monotonic() - start > kaggle.patience.listed_s:
            return 0
        time.sleep(pause_s)
        pause_s = min(1.5 * pause_s, kaggle.patience.poll_most_s)


def wait_for_score(kaggle: "Kaggle", ref: int, limit_s: float) -> Submission:
    """The submission once it is no longer pending, or as it is after `limit_s`."""
    start = said = time.monotonic()
    latest, problem = None, "no answer"
    pause_s = kaggle.patience.poll_first_s
    while True:
        try:
            latest = submission_of(kaggle.session.call("GetSubmission", ref=ref))
        except UnavailableError as error:
            problem = str(error)
        now = time.monotonic()
        left_s = start + limit_s - now
        if latest and (latest.status != "pending" or left_s <= 0):
            return latest
        if left_s <= 0:
            raise UnavailableError(f"no score of submission {ref} in {limit_s:.0f} s: {problem}")
        if now - said > SAY_EVERY_S:
            said = now
            so_far = f"submission {ref} has been pending for {now - start:.0f} s"
            kaggle.reporter.say(f"{so_far}; waiting {left_s:.0f} s more at most")
        time.sleep(min(pause_s, left_s))
        pause_s = min(1.5 * pause_s, kaggle.patience.poll_most_s)


def save_leaderboard(kaggle: "Kaggle", folder: Path) -> Path:
    """The public leaderboard as it is now, in `folder`/leaderboard.csv."""
    content = kaggle.retried(lambda: kaggle.session.content("DownloadLeaderboard"))
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as zipped:
            (member,) = [
                member
                for member in zipped.infolist()
                if member.filename.lower().endswith(".csv") and member.file_size <= BOARD_BYTES
            ]
            table = zipped.read(member)
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
    """A name that is not known yet counts as not final yet; the SDK would raise KeyError."""
    match name.upper().rpartition("_")[2]:
        case "COMPLETE":
            return "complete"
        case "ERROR":
            return "error"
        case _:
            return "pending"


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
