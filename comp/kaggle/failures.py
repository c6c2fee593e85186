"""What went wrong in the client's process, as plain fields, and the error for a person, chosen by HTTP status and never by words."""

from dataclasses import dataclass
from typing import Literal

from comp.competition import Competition
from comp.errors import (
    CredentialsError,
    DataError,
    KaggleError,
    NotFoundError,
    RulesError,
    UnavailableError,
)
from comp.kaggle.credentials import EVERY_WAY, RENEW, Credentials

Kind = Literal[
    "http",  # an answer with status 4xx or 5xx
    "unreached",  # no connection: whatever was asked for has not been done
    "connection",  # broken before the answer was complete: whatever was asked for may have been done
    "timeout",
    "answer",  # an answer that is not what the protocol says: a web page, no JSON, another piece of the file
    "anonymous",  # the client has authenticated by none of its methods
    "client",  # the client cannot be imported
    "ended",  # the client's process ended or fell silent
    "space",  # too little room on the disk
    "disk",  # the disk refused a write
]
N_WORDS = 300  # characters of the far side's own words that fit into a message


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why one call came to nothing."""

    kind: Kind
    words: str = ""  # the far side's or the system's own, on one line, free of secrets
    status: int = 0  # HTTP
    storage: bool = (
        False  # from behind a signed link, where a refusal means that the link has expired
    )
    retry_after_s: float | None = None  # as the server asked


class FailedError(Exception):
    """A call to the client came to nothing."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.kind)
        self.failure = failure


class AgainError(UnavailableError):
    """A failure after which the same call may succeed."""

    def __init__(self, message: str, failure: Failure) -> None:
        super().__init__(message)
        self.failure = failure

    @property
    def is_refused_link(self) -> bool:
        """A signed link led to a refusal or to a web page: a fresh link may help, but not for long."""
        return self.failure.kind == "answer" or (
            self.failure.storage and self.failure.status < 500 and self.failure.status != 429
        )

    @property
    def is_certain(self) -> bool:
        """Whether nothing has been done at the far side, so that even a call that must not be done twice may be made again."""
        return self.failure.kind == "unreached" or self.failure.status == 429


def error_of(
    failure: Failure, competition: Competition, credentials: Credentials
) -> KaggleError | DataError:
    """The error for a person: one line with the cause and the remedy."""
    words = failure.words[:N_WORDS]
    match failure.kind:
        case "http" if failure.storage:
            return AgainError(f"the storage behind Kaggle refuses ({_answer(failure)})", failure)
        case "http":
            return _refusal(failure, competition, credentials)
        case "anonymous":
            return CredentialsError(
                f"Kaggle does not accept the {credentials.kind} from {credentials.source}: {RENEW}"
            )
        case "client":
            return KaggleError(
                f"the Kaggle client cannot be imported ({words}): set up the environment again, with kaggle==2.2.4 and six"
            )
        case "space" | "disk":
            return DataError(f"{words}: make room and run this again; what is here already is kept")
        case "answer":
            return AgainError(
                f"Kaggle, or a proxy in between, sent something else than was asked for ({words})",
                failure,
            )
        case "timeout":
            return AgainError(f"Kaggle does not answer ({words})", failure)
        case "ended":
            return AgainError(f"the Kaggle client {words}", failure)
        case "unreached":
            return AgainError(f"Kaggle cannot be reached ({words})", failure)
        case "connection":
            return AgainError(f"the connection to Kaggle broke ({words})", failure)


def _refusal(failure: Failure, competition: Competition, credentials: Credentials) -> KaggleError:
    answer = _answer(failure)
    match failure.status:
        case 401:
            return CredentialsError(
                f"Kaggle refuses the {credentials.kind} from {credentials.source} ({answer}): {RENEW}"
            )
        case 403:
            wrong = f"a competition that does not exist, if '{competition.slug}' does not, is refused in the same way"
            return RulesError(
                f"Kaggle refuses access ({answer}): accept the rules at {competition.rules_url} with this account; {wrong}"
            )
        case 404:
            return NotFoundError(
                f"Kaggle has no such thing in '{competition.slug}' ({answer}): check the competition's name"
            )
        case 429:
            return AgainError(f"Kaggle asks for fewer requests ({answer})", failure)
        case status if status >= 500:
            return AgainError(f"Kaggle is out of order ({answer})", failure)
        case _:
            return KaggleError(f"Kaggle refuses the request ({answer})")


def _answer(failure: Failure) -> str:
    """Status and the far side's own words."""
    return (
        f'{failure.status}, "{failure.words[:N_WORDS]}"' if failure.words else str(failure.status)
    )


def none_found() -> CredentialsError:
    return CredentialsError(f"no Kaggle credentials found: {EVERY_WAY}")
