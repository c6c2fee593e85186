"""What Kaggle tells, as values, and how long we wait for it."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

Status = Literal["pending", "complete", "error"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long each kind of silence or refusal is borne; the real client bears a silent peer for ever."""

    connect_s: float = 10.0  # for a connection, and for each piece of an upload
    read_s: float = 60.0  # between two pieces of an answer
    silence_s: float = 300.0  # of the client's process, after which it is ended: several connections and answers in a row
    n_tries: int = 8  # of one call; of a download since its last new byte
    n_links: int = 3  # signed links, which expire, that are tried before the storage behind them is believed to refuse
    retry_s: float = (
        300.0  # for all tries of one call together; a longer Retry-After is not waited for
    )
    wait_first_s: float = 1.0  # before the second try, and the most jitter; doubles from try to try
    wait_most_s: float = 60.0  # before any try, unless Retry-After says more
    poll_first_s: float = 2.0  # between two looks at a submission; grows by half from look to look
    poll_most_s: float = 20.0
    listed_s: float = 60.0  # for an accepted submission to appear in the list
    other_run_s: float = (
        3600.0  # for another run on this machine that is downloading the same archive
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """A file of the competition as Kaggle lists it."""

    name: str
    total_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Submissions of this team since midnight UTC, and how many more are allowed before the next."""

    n_today: int
    n_allowed_now: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """One submission as Kaggle lists it; `error` is Kaggle's reason where the status is error."""

    ref: int
    date: datetime  # aware, UTC
    file_name: str
    message: str
    status: Status
    public_score: float | None
    private_score: float | None
    error: str


def submission(wire: dict[str, Any]) -> Submission:
    """A submission from its JSON form, in which every field that has its default is absent."""
    return Submission(
        ref=int(wire.get("ref") or 0),
        date=_date(str(wire.get("date") or "")),
        file_name=str(wire.get("fileName") or ""),
        message=str(wire.get("description") or ""),
        status=_status(str(wire.get("status") or "")),
        public_score=_score(wire.get("publicScore")),
        private_score=_score(wire.get("privateScore")),
        error=str(wire.get("errorDescription") or ""),
    )


def _status(name: str) -> Status:
    """A name that is not known yet is not final yet. The SDK raises KeyError for it, which would cost us the whole list."""
    match name.upper().rpartition("_")[2]:
        case "COMPLETE":
            return "complete"
        case "ERROR":
            return "error"
        case _:
            return "pending"


def _score(text: object) -> float | None:
    """The wire's string as a number; None where there is none yet, or none at all, as for an error."""
    try:
        return float(str(text))
    except ValueError:
        return None


def _date(text: str) -> datetime:
    if not text:
        return datetime.fromtimestamp(0, UTC)
    date = datetime.fromisoformat(text)
    return date.replace(tzinfo=UTC) if date.tzinfo is None else date.astimezone(UTC)
