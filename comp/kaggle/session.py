"""Calls through Kaggle's SDK: authenticated, in bounded time, their failures as KaggleErrors.

`kaggle`, the dependency that users know, is a command line: when it is imported, it authenticates,
prints and may exit; it sets no time-outs and returns a failed upload like any other answer. So we
call the SDK that it brings along: `kagglesdk` only sends requests and raises errors.
"""

import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import requests
import urllib3
from kagglesdk import KaggleClient, KaggleCredentials, KaggleEnv
from kagglesdk.blobs.types import blob_api_service
from kagglesdk.common.types.http_redirect import HttpRedirect
from kagglesdk.competitions.types import competition_api_service
from kagglesdk.datasets.types import dataset_api_service
from kagglesdk.kaggle_http_client import KaggleHttpClient
from kagglesdk.kernels.types import kernels_api_service
from kagglesdk.security.types.oauth_service import IntrospectTokenRequest

from comp.errors import (
    BusyError,
    CredentialsError,
    KaggleError,
    NotFoundError,
    RulesError,
    UnavailableError,
)
from comp.kaggle.credentials import RENEW, checked, forms
from comp.kaggle.transport import DOWNLOAD, AnswerError, Transport, root_of

if TYPE_CHECKING:
    from comp.kaggle.client import Kaggle

SERVICES = {
    "competitions.CompetitionApiService": competition_api_service,
    "kernels.KernelsApiService": kernels_api_service,
    "datasets.DatasetApiService": dataset_api_service,
    "blobs.BlobApiService": blob_api_service,
}
ENVIRONMENTS = {
    "PROD": (KaggleEnv.PROD, "https://api.kaggle.com"),
    "LOCALHOST": (KaggleEnv.LOCAL, "http://localhost"),
}
ENDPOINTS = tuple(endpoint for _, endpoint in ENVIRONMENTS.values())
N_WORDS = 300  # characters of someone else's words that fit into a message


class Session:
    """Calls to Kaggle's API, each made once."""

    def __init__(self, kaggle: "Kaggle") -> None:
        self._kaggle = kaggle
        self.transport = Transport(kaggle.env, kaggle.patience)

    def call(self, method: str, **fields: Any) -> dict[str, Any]:
        """The answer as JSON, without secrets."""
        with self._answer(method, **fields) as response:
            return self._json(response)

    def content(self, method: str) -> bytes:
        """The answer as it is."""
        with self._answer(method) as response:
            return response.content

    @contextmanager
    def archive(self, headers: dict[str, str]) -> Iterator[requests.Response]:
        """The answer to a download, its body unread; `headers` go to the signed link only."""
        self.transport.link_headers = headers
        try:
            with self._answer(DOWNLOAD) as response, response:
                yield response
        finally:
            self.transport.link_headers = {}

    def put(self, link: str, path: Path) -> None:
        """Uploads a file to a signed link, which must not get our credentials."""
        with self._errors(), requests.Session() as session, path.open("rb") as file:
            self.transport.carry(session)
            response = session.put(link, data=file)
            if response.status_code not in (200, 201):
                raise requests.HTTPError(response=response)

    @contextmanager
    def get(self, link: str, headers: dict[str, str]) -> Iterator[requests.Response]:
        """The answer to a download from a signed link, its body unread."""
        with self._errors(), requests.Session() as session:
            self.transport.carry(session)
            response = session.get(link, headers=headers, stream=True)
            response.raise_for_status()
            with response:
                yield response

    @contextmanager
    def log(self, owner: str, slug: str) -> Iterator[requests.Response]:
        """The log of a kernel, its body unread: events while it runs, JSON once it has ended."""
        _, auth = self.login
        with self._sdk(auth) as sdk:
            http = sdk.http_client()
            root, _, _ = http._get_request_url("kernels", "logs").rpartition("/v1/")
            url = f"{root}/v1/kernels/logs/stream/{owner}/{slug}"
            headers = {"Accept": "text/event-stream, */*", "Content-Type": None}
            response = http._session.get(url, headers=headers, stream=True)
            response.raise_for_status()
            with response:
                yield response

    @cached_property
    def login(self) -> tuple[str, Any]:
        """The user name, and what authenticates a call as `requests` takes it.

        CredentialsError unless Kaggle accepts the token; a key is checked by the first call.
        """
        found = self._kaggle.credentials
        if found.kind == "key":
            return found.username, (found.username, found.secret)
        token = found.secret
        if found.kind == "login":
            with self._sdk(None) as sdk:
                stored = KaggleCredentials(sdk, refresh_token=found.secret)
                token = checked("Kaggle's answer", str(stored.generate_access_token().token))
            self._kaggle.credentials = replace(found, secrets=found.secrets | forms(token))
        request = IntrospectTokenRequest()
        request.token = token
        auth = KaggleHttpClient.BearerAuth(token)
        about: dict[str, Any] = {}
        with self._sdk(auth) as sdk:
            try:
                what = ("security.OAuthService", "IntrospectToken", request, HttpRedirect)
                about = self._json(sdk.http_client().call(*what))
            except requests.HTTPError as error:
                if error.response is None or error.response.status_code not in (400, 403, 404):
                    raise
        if not (about.get("active") and about.get("username")):
            refused = f"Kaggle does not accept the {found.kind} from {found.source}"
            raise CredentialsError(f"{refused}: {RENEW}")
        return str(about["username"]), auth

    @contextmanager
    def _answer(self, method: str, **fields: Any) -> Iterator[requests.Response]:
        kind = f"Api{method}Request"
        service, types = next(each for each in SERVICES.items() if hasattr(each[1], kind))
        request = getattr(types, kind)()
        if hasattr(request, "competition_name"):
            request.competition_name = self._kaggle.competition.slug
        for name, value in fields.items():
            setattr(request, name, value)
        _, auth = self.login
        with self._sdk(auth) as sdk:
            yield sdk.http_client().call(service, method, request, HttpRedirect)

    @contextmanager
    def _sdk(self, auth: Any) -> Iterator[Any]:
        """The SDK's client, with nothing taken from this process's environment or files."""
        name = self._kaggle.env.get("KAGGLE_API_ENVIRONMENT") or "PROD"
        if name not in ENVIRONMENTS:
            remedy = "unset it to ask Kaggle, or set it to LOCALHOST to ask a stand-in"
            raise KaggleError(f"KAGGLE_API_ENVIRONMENT={name} is not supported: {remedy}")
        environment, endpoint = ENVIRONMENTS[name]
        # The empty token keeps the SDK from looking for one of its own.
        with self._errors(), KaggleClient(environment, api_token="") as sdk:
            http = sdk.http_client()
            if http._endpoint != endpoint:
                raise AssertionError(f"the SDK would send calls for {name} to {http._endpoint}")
            http._session.auth = auth
            self.transport.carry(http._session)
            yield sdk

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """KaggleErrors of one line, chosen by HTTP status and never by words."""
        try:
            yield
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            raise self._error(error) from None

    def _json(self, response: requests.Response) -> dict[str, Any]:
        answer = response.json()
        if not isinstance(answer, dict):
            raise AnswerError("no JSON object")
        return dict(self._kaggle.credentials.scrub(answer))

    def _error(self, error: Exception) -> KaggleError:
        """It names no address, whose query may be a signature."""
        if isinstance(error, requests.HTTPError) and error.response is not None:
            return self._refusal(error.response)
        if isinstance(error, (AnswerError, requests.JSONDecodeError)):
            came = self._told(error) if isinstance(error, AnswerError) else "no JSON object"
            sent = "Kaggle, or a proxy in between, sent something else than was asked for"
            return UnavailableError(f"{sent} ({came})", link_refused=True)
        root, words = root_of(error), "the answer broke off"
        is_proxy = isinstance(error, requests.exceptions.ProxyError)
        whom = f"the proxy of {self.transport.proxy}" if is_proxy else "Kaggle"
        if isinstance(root, OSError):
            words = self._told(root.strerror or str(root) or type(root).__name__)
        if not is_proxy and self.transport.proxy and self._kaggle.is_real:  # a stand-in has one
            words += f", through the proxy of {self.transport.proxy}"
        is_refused = isinstance(root, (ConnectionRefusedError, socket.gaierror))
        if is_refused or isinstance(error, requests.ConnectTimeout):
            return UnavailableError(f"{whom} cannot be reached ({words})", not_done=True)
        if isinstance(root, TimeoutError) or isinstance(error, requests.Timeout):
            return UnavailableError(f"{whom} does not answer ({words})")
        return UnavailableError(f"the connection to {whom} broke ({words})")

    def _refusal(self, response: requests.Response) -> KaggleError:
        status, words = _status_and_words(response)
        answer = f'{status}, "{self._told(words)}"' if words else str(status)
        competition, credentials = self._kaggle.competition, self._kaggle.credentials
        retry_after = response.headers.get("Retry-After", "")  # seconds; a date is ignored
        wait_s = float(retry_after) if re.fullmatch(r"\d+(\.\d+)?", retry_after) else None
        is_ours = response.url.startswith(ENDPOINTS)
        if response.history or not is_ours or response.request.method == "PUT":  # a signed link
            return UnavailableError(
                f"the storage behind Kaggle refuses ({answer})",
                retry_after_s=wait_s,
                link_refused=status < 500 and status != 429,
            )
        if status == 401:
            used = f"the {credentials.kind} from {credentials.source}"
            return CredentialsError(f"Kaggle refuses {used} ({answer}): {RENEW}")
        if status == 412:  # of a push, as others have seen it
            return BusyError(f"Kaggle runs nothing more for this account now ({answer})")
        if status in (403, 404) and re.search("kernels|datasets|blobs", response.url):
            remedy = "see that it is there and that the credentials are its owner's"
            return NotFoundError(f"Kaggle has no such kernel or dataset ({answer}): {remedy}")
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

    def _told(self, words: object) -> str:
        """Someone else's words: on one line, without secrets, cut short."""
        return str(self._kaggle.credentials.scrub(" ".join(str(words).split())))[:N_WORDS]


def _status_and_words(response: requests.Response) -> tuple[int, Any]:
    """Kaggle's own words, and the status, which may be in the body alone."""
    try:
        body = response.json()
    except requests.JSONDecodeError:
        body = {}
    status = response.status_code if response.status_code >= 400 else int(body.get("code") or 0)
    return status, body.get("message") or response.reason
