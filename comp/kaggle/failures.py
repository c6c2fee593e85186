"""A failed call as an error for a person: one line, chosen by HTTP status and never by words."""

import json
import math
import socket
import time
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

import requests
import urllib3

from comp.errors import CredentialsError, KaggleError, NotFoundError, RulesError, UnavailableError
from comp.kaggle.credentials import RENEW

if TYPE_CHECKING:
    from comp.kaggle.client import Kaggle

FAILURES = (requests.RequestException, urllib3.exceptions.HTTPError, json.JSONDecodeError)
N_WORDS = 300  # characters of someone else's words that fit into a message


class AnswerError(requests.RequestException):
    """An answer that the protocol does not allow: a web page, no JSON, bytes of another file."""


def error_of(error: Exception, kaggle: "Kaggle") -> KaggleError:
    """The error for one of FAILURES. It names no address, whose query may be a signature."""
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return _refusal(error.response, kaggle)
    if isinstance(error, (AnswerError, json.JSONDecodeError)):
        came = _told(error, kaggle) if isinstance(error, AnswerError) else "no JSON object"
        sent = "Kaggle, or a proxy in between, sent something else than was asked for"
        return UnavailableError(f"{sent} ({came})", link_refused=True)
    root: BaseException = error
    while below := root.__cause__ or root.__context__:
        root = below
    words = "the answer broke off"
    if isinstance(root, OSError):
        words = _told(root.strerror or str(root) or type(root).__name__, kaggle)
    is_refused = isinstance(root, (ConnectionRefusedError, socket.gaierror))
    if is_refused or isinstance(error, requests.ConnectTimeout):
        return UnavailableError(f"Kaggle cannot be reached ({words})", not_done=True)
    if isinstance(root, TimeoutError) or isinstance(error, requests.Timeout):
        return UnavailableError(f"Kaggle does not answer ({words})")
    return UnavailableError(f"the connection to Kaggle broke ({words})")


def _refusal(response: requests.Response, kaggle: "Kaggle") -> KaggleError:
    status, words = _status_and_words(response)
    competition, credentials = kaggle.competition, kaggle.credentials
    answer = f'{status}, "{_told(words, kaggle)}"' if words else str(status)
    wait_s = _retry_after_s(response.headers.get("Retry-After", ""))
    if response.history or response.request.method == "PUT":  # a signed link, perhaps expired
        return UnavailableError(
            f"the storage behind Kaggle refuses ({answer})",
            retry_after_s=wait_s,
            link_refused=status < 500 and status != 429,
        )
    if status == 401:
        used = f"the {credentials.kind} from {credentials.source}"
        return CredentialsError(f"Kaggle refuses {used} ({answer}): {RENEW}")
    if status == 403:
        rules = f"accept the rules at {competition.rules_url} with this account"
        typo = f"the answer for a wrong name is the same, so check '{competition.slug}' too"
        return RulesError(f"Kaggle refuses access ({answer}): {rules}; {typo}")
    if status == 404:
        check = f"check the competition's name, '{competition.slug}'"
        return NotFoundError(f"Kaggle does not have what was asked for ({answer}): {check}")
    if status == 429:
        message = f"Kaggle asks for fewer requests ({answer})"
        return UnavailableError(message, retry_after_s=wait_s, not_done=True)
    if status >= 500:
        return UnavailableError(f"Kaggle failed ({answer})", retry_after_s=wait_s)
    return KaggleError(f"Kaggle refuses the request ({answer})")


def _status_and_words(response: requests.Response) -> tuple[int, Any]:
    """Kaggle's own words, and the status, which may be in the body alone."""
    try:
        body = response.json()
    except json.JSONDecodeError:
        body = None
    if not isinstance(body, dict):
        body = {}
    status = response.status_code if response.status_code >= 400 else int(body.get("code") or 0)
    return status, body.get("message") or response.reason


def _told(words: object, kaggle: "Kaggle") -> str:
    """Someone else's words: on one line, without secrets, cut short."""
    return str(kaggle.credentials.scrub(" ".join(str(words).split())))[:N_WORDS]


def _retry_after_s(header: str) -> float | None:
    """Seconds from now, whether the header gives seconds or a date."""
    try:
        wait_s: float | None = float(header)
    except ValueError:
        wait_s = seconds_until(header)
    return max(0.0, wait_s) if wait_s is not None and math.isfinite(wait_s) else None


def seconds_until(date: str) -> float | None:
    """From now to the date of an HTTP header; None if it is not a date."""
    try:
        return parsedate_to_datetime(date).timestamp() - time.time()
    except ValueError:
        return None
