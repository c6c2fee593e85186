"""Calls through Kaggle's SDK: authenticated, in bounded time, their failures as KaggleErrors.

`kaggle`, the dependency that users know, is a command line: when it is imported, it authenticates,
prints and may exit; it sets no time-outs and returns a failed upload like any other answer. So we
call the SDK that it brings along: `kagglesdk` only sends requests and raises errors.

What a wrong proxy or certificate causes is not repeated: one line names the variable, not its
value, as proxies have passwords.
"""

import io
import os
import re
import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import requests
import urllib3
from kagglesdk import KaggleClient, KaggleCredentials, KaggleEnv
from kagglesdk.common.types.http_redirect import HttpRedirect
from kagglesdk.competitions.types import competition_api_service
from kagglesdk.kaggle_http_client import KaggleHttpClient
from requests.adapters import HTTPAdapter
from requests.exceptions import InvalidSchema, InvalidURL, ProxyError, SSLError
from requests.utils import should_bypass_proxies
from urllib3.exceptions import LocationValueError

from comp.errors import CredentialsError, KaggleError, NotFoundError, RulesError, UnavailableError
from comp.kaggle.credentials import RENEW, checked, forms

if TYPE_CHECKING:
    from comp.kaggle.client import Kaggle, Patience

SERVICE, DOWNLOAD = "competitions.CompetitionApiService", "DownloadDataFiles"
ENVIRONMENTS = {
    "PROD": (KaggleEnv.PROD, "https://api.kaggle.com"),
    "LOCALHOST": (KaggleEnv.LOCAL, "http://localhost"),
}
CA_VARIABLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")
REMEDY = "set it to http://USER:PASSWORD@HOST:PORT, or unset it to go without a proxy"
N_WORDS = 300  # characters of someone else's words that fit into a message


class AnswerError(requests.RequestException):
    """An answer that the protocol does not allow: a web page, no JSON, bytes of another file."""


class Transport(HTTPAdapter):
    """Sends requests in bounded time, through the proxies and certificates of an environment."""

    def __init__(self, env: Mapping[str, str], patience: "Patience") -> None:
        super().__init__()
        self.link_headers: dict[str, str] = {}  # for GETs, which only follow signed links
        self.proxy = ""  # the variable with the proxy of the latest request
        self._patience = patience
        self._ca_variable = next((name for name in CA_VARIABLES if env.get(name)), "")
        self._ca = env.get(self._ca_variable, "").strip()
        self._proxies = {  # variable and value; sorted: a name in lower case comes last and wins
            name.lower().removesuffix("_proxy"): (name, value.strip())
            for name, value in sorted(env.items())
            if name.lower().endswith("_proxy")
        }

    def carry(self, session: requests.Session) -> None:
        """Takes over all requests of `session`."""
        session.mount("http://", self)
        session.mount("https://", self)
        session.verify = self._ca or True
        session.trust_env = False  # else entries of ~/.netrc would be sent to signed links

    def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:  # type: ignore[override]
        url = request.url or ""
        if request.method == "GET":
            request.headers.update(self.link_headers)
        options["proxies"] = self._choose_proxy(url)
        options["timeout"] = (self._patience.connect_s, self._patience.read_s)
        if self._ca and url.startswith("https:"):
            self._check_certificates()
        try:
            response = super().send(request, **options)
        except (InvalidSchema, InvalidURL, LocationValueError, ProxyError, SSLError) as error:
            if problem := self._wrong_setting(error):
                raise KaggleError(problem) from None
            raise
        if response.status_code == 407:
            raise KaggleError(f"{self.proxy} names a proxy that refuses us (407): {REMEDY}")
        is_archive = request.method == "GET" or url.endswith(f"/{DOWNLOAD}")
        if not is_archive or response.status_code not in (200, 206):
            response.raw = io.BytesIO(self._body(response.raw))
            is_json = "application/json" in response.headers.get("Content-Type", "")
            if is_json and not isinstance(response.json(), dict):
                raise AnswerError("no JSON object")
        return response

    def _choose_proxy(self, url: str) -> dict[str, str]:
        scheme, none = urlsplit(url).scheme, ("", "")
        self.proxy, address = self._proxies.get(scheme, self._proxies.get("all", none))
        if not address or should_bypass_proxies(url, self._proxies.get("no", none)[1]):
            self.proxy = ""
            return {}
        return {scheme: address}

    def _check_certificates(self) -> None:
        file, folder = (None, self._ca) if os.path.isdir(self._ca) else (self._ca, None)
        try:
            ssl.create_default_context(cafile=file, capath=folder)
        except OSError as error:
            problem = f"{self._ca_variable} names no file of certificates ({error.strerror})"
            raise KaggleError(f"{problem}: name one in PEM format, or unset it") from None

    def _wrong_setting(self, error: Exception) -> str:
        """The line about the setting that caused `error`; "" if trying again may help."""
        root = root_of(error)
        is_tls = isinstance(root, ssl.SSLError) and not isinstance(root, ssl.SSLEOFError)
        if is_tls and (isinstance(error, SSLError) or "CERTIFICATE" in str(root)):
            cause = getattr(root, "verify_message", str(root))
            remedy = f"set {self._ca_variable or CA_VARIABLES[0]} to a file with its CA certificate"
            opened = f"if a proxy or a firewall opens TLS here, {remedy}"
            return f"no TLS that can be trusted ({cause}): {opened}; else check this clock's date"
        refusal = re.match(r"Tunnel connection failed: (4\d\d)", str(root))
        package = "needs a package for SOCKS (`.venv/bin/python -m pip install PySocks`)"
        checks = [
            (isinstance(error, InvalidSchema), package),
            (isinstance(error, ValueError), "is no address of a proxy"),
            (is_tls, "says https://, but its proxy speaks no TLS"),
            (refusal, f"names a proxy that refuses us ({refusal and refusal[1]})"),
            (getattr(root, "errno", 0) == socket.EAI_NONAME, "names a proxy that is not known"),
        ]
        problems = [problem for holds, problem in checks if holds and self.proxy]
        return f"{self.proxy} {problems[0]}: {REMEDY}" if problems else ""

    def _body(self, raw: Any) -> bytes:
        """A whole body. `requests` would wait forever for one that trickles."""
        start, blocks = time.monotonic(), []
        with closing(raw):
            while block := raw.read1(1 << 20, decode_content=True):
                blocks.append(block)
                if time.monotonic() - start > self._patience.answer_s:
                    raise requests.ReadTimeout(f"no end after {self._patience.answer_s:.0f} s")
        return b"".join(blocks)


class Session:
    """Calls to Kaggle's API, each made once."""

    def __init__(self, kaggle: "Kaggle") -> None:
        self._kaggle = kaggle
        self.transport = Transport(kaggle.env, kaggle.patience)

    def call(self, method: str, **fields: Any) -> dict[str, Any]:
        """The answer as JSON, without secrets."""
        with self._answer(method, **fields) as response:
            answer = response.json()
            if not isinstance(answer, dict):
                raise AnswerError("no JSON object")
            return dict(self._kaggle.credentials.scrub(answer))

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

    @cached_property
    def _auth(self) -> Any:
        """What authenticates a call, as `requests` takes it. The first call shows if it is good."""
        found = self._kaggle.credentials
        if found.kind == "key":
            return found.username, found.secret
        token = found.secret
        if found.kind == "login":
            with self._sdk(None) as sdk:
                stored = KaggleCredentials(sdk, refresh_token=found.secret)
                token = checked("Kaggle's answer", str(stored.generate_access_token().token))
            self._kaggle.credentials = replace(found, secrets=found.secrets | forms(token))
        return KaggleHttpClient.BearerAuth(token)

    @contextmanager
    def _answer(self, method: str, **fields: Any) -> Iterator[requests.Response]:
        request = getattr(competition_api_service, f"Api{method}Request")()
        if hasattr(request, "competition_name"):
            request.competition_name = self._kaggle.competition.slug
        for name, value in fields.items():
            setattr(request, name, value)
        with self._sdk(self._auth) as sdk:
            yield sdk.http_client().call(SERVICE, method, request, HttpRedirect)

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

    def _error(self, error: Exception) -> KaggleError:
        """It names no address, whose query may be a signature."""
        if isinstance(error, requests.HTTPError) and error.response is not None:
            return self._refusal(error.response)
        if isinstance(error, (AnswerError, requests.JSONDecodeError)):
            came = self._told(error) if isinstance(error, AnswerError) else "no JSON object"
            sent = "Kaggle, or a proxy in between, sent something else than was asked for"
            return UnavailableError(f"{sent} ({came})", link_refused=True)
        root, words = root_of(error), "the answer broke off"
        whom = f"the proxy of {self.transport.proxy}" if isinstance(error, ProxyError) else "Kaggle"
        if isinstance(root, OSError):
            words = self._told(root.strerror or str(root) or type(root).__name__)
        is_refused = isinstance(root, (ConnectionRefusedError, socket.gaierror))
        if is_refused or isinstance(error, requests.ConnectTimeout):
            return UnavailableError(f"{whom} cannot be reached ({words})", not_done=True)
        if isinstance(root, TimeoutError) or isinstance(error, requests.Timeout):
            return UnavailableError(f"{whom} does not answer ({words})")
        return UnavailableError(f"the connection to {whom} broke ({words})")

    def _refusal(self, response: requests.Response) -> KaggleError:
        try:
            body = response.json()
        except requests.JSONDecodeError:
            body = {}
        # The status may be in the body alone.
        status = response.status_code if response.status_code >= 400 else int(body.get("code") or 0)
        words = body.get("message") or response.reason
        answer = f'{status}, "{self._told(words)}"' if words else str(status)
        competition, credentials = self._kaggle.competition, self._kaggle.credentials
        retry_after = response.headers.get("Retry-After", "")  # seconds; a date is ignored
        wait_s = float(retry_after) if re.fullmatch(r"\d+(\.\d+)?", retry_after) else None
        if response.history or response.request.method == "PUT":  # a signed link, perhaps expired
            refused = f"the storage behind Kaggle refuses ({answer})"
            has_expired = status < 500 and status != 429
            return UnavailableError(refused, retry_after_s=wait_s, link_refused=has_expired)
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

    def _told(self, words: object) -> str:
        """Someone else's words: on one line, without secrets, cut short."""
        return str(self._kaggle.credentials.scrub(" ".join(str(words).split())))[:N_WORDS]


def root_of(error: BaseException) -> BaseException:
    """The first cause of `error`. urllib3 keeps some causes as arguments."""
    below = error.__cause__ or error.__context__ or next(iter(error.args), None)
    return root_of(below) if isinstance(below, BaseException) else error
