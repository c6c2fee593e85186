"""HTTP refusals and broken connections as plain fields. Runs in the client's process."""

import math
import socket
import time
from email.utils import parsedate_to_datetime
from typing import Any

import requests

from comp.kaggle.failures import Failure


def failure_of(error: Exception) -> Failure:
    """What `requests` or `urllib3` raised, without the address, whose query may be a signature."""
    if (
        isinstance(error, requests.HTTPError) and error.response is not None
    ):  # a response with status >= 400 is falsy
        return refusal(error.response)
    if isinstance(error, requests.exceptions.InvalidJSONError):
        return Failure(kind="answer", words="no JSON object")
    root = _root(error)
    if not isinstance(root, OSError):
        return Failure(kind="connection", words="the answer broke off")
    words = " ".join((root.strerror or str(root) or type(root).__name__).split())
    if isinstance(root, (ConnectionRefusedError, socket.gaierror)) or isinstance(
        error, requests.ConnectTimeout
    ):
        return Failure(kind="unreached", words=words)
    if isinstance(root, TimeoutError) or isinstance(error, requests.Timeout):
        return Failure(kind="timeout", words=words)
    return Failure(kind="connection", words=words)


def refusal(response: requests.Response, storage: bool = False) -> Failure:
    """An answer that says no. The JSON body may carry the status that the head does not."""
    body = _json(response)
    return Failure(
        kind="http",
        words=" ".join(str(body.get("message") or response.reason or "").split()),
        status=response.status_code
        if response.status_code >= 400
        else int(body.get("code") or response.status_code),
        storage=storage or bool(response.history),
        retry_after_s=_retry_after_s(response.headers.get("Retry-After", "")),
    )


def _json(response: requests.Response) -> dict[str, Any]:
    if "application/json" not in response.headers.get("Content-Type", ""):
        return {}
    try:
        body = response.json()
    except requests.RequestException:
        return {}
    return body if isinstance(body, dict) else {}


def _retry_after_s(header: str) -> float | None:
    """Seconds, or the time from now to a date."""
    try:
        wait_s: float | None = float(header)
    except ValueError:
        wait_s = ahead_s(header)
    return max(0.0, wait_s) if wait_s is not None and math.isfinite(wait_s) else None


def ahead_s(date: str) -> float | None:
    """How far, in seconds, a header's date is ahead of our clock; None if it is no date."""
    try:
        return parsedate_to_datetime(date).timestamp() - time.time()
    except ValueError:
        return None


def _root(error: BaseException) -> BaseException:
    """The system's own error below those that each layer wraps around it."""
    while (below := error.__cause__ or error.__context__) is not None:
        error = below
    return error
