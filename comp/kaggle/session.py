"""Calls through Kaggle's SDK: authenticated, in bounded time, their failures as KaggleErrors.

`kaggle`, the dependency that users know, is a command line: when it is imported, it authenticates,
prints and may exit; it sets no time-outs and returns a failed upload like any other answer. So we
call the SDK that it brings along: `kagglesdk` only sends requests and raises errors.
"""

import io
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import requests
from kagglesdk import KaggleClient, KaggleCredentials, KaggleEnv
from kagglesdk.common.types.http_redirect import HttpRedirect
from kagglesdk.competitions.types import competition_api_service
from kagglesdk.kaggle_http_client import KaggleHttpClient
from kagglesdk.security.types.oauth_service import IntrospectTokenRequest
from requests.adapters import HTTPAdapter
from requests.utils import should_bypass_proxies

from comp.errors import CredentialsError, KaggleError
from comp.kaggle.credentials import RENEW
from comp.kaggle.failures import FAILURES, AnswerError, error_of, seconds_until

if TYPE_CHECKING:
    from comp.kaggle.client import Kaggle, Patience

SERVICE = "competitions.CompetitionApiService"
ENVIRONMENTS = {
    "PROD": (KaggleEnv.PROD, "https://api.kaggle.com"),
    "LOCALHOST": (KaggleEnv.LOCAL, "http://localhost"),
}


class Response:
    """A response type for the SDK that is just the HTTP response.

    The SDK's own types raise KeyError for a submission's status that they do not know.
    """

    @staticmethod
    def prepare_from(response: requests.Response) -> requests.Response:
        return response


@dataclass(frozen=True, slots=True)
class Login:
    """The user name, and what authenticates a call."""

    username: str
    auth: Any  # as `requests` takes it


class Transport(HTTPAdapter):
    """Sends requests in bounded time, through the proxies of `env`."""

    def __init__(self, env: Mapping[str, str], patience: "Patience") -> None:
        super().__init__()
        self.link_headers: dict[str, str] = {}  # for GETs, which only follow signed links
        self.clock_skew_s: float | None = None
        self._patience = patience
        self._ca_bundle = env.get("REQUESTS_CA_BUNDLE") or env.get("CURL_CA_BUNDLE")
        self._proxies = {  # sorted: a name in lower case comes last and wins
            name.lower().removesuffix("_proxy"): value
            for name, value in sorted(env.items())
            if name.lower().endswith("_proxy")
        }

    def carry(self, session: requests.Session) -> None:
        """Takes over all requests of `session`."""
        session.mount("http://", self)
        session.mount("https://", self)
        session.verify = self._ca_bundle or True
        session.trust_env = False  # else entries of ~/.netrc would be sent to signed links

    def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:  # type: ignore[override]
        if request.method == "GET":
            request.headers.update(self.link_headers)
        is_direct = should_bypass_proxies(request.url or "", self._proxies.get("no", ""))
        options["proxies"] = {} if is_direct else self._proxies
        options["timeout"] = (self._patience.connect_s, self._patience.read_s)
        response = super().send(request, **options)
        self.clock_skew_s = seconds_until(response.headers.get("Date", ""))
        if not options["stream"] or response.status_code not in (200, 206):
            response.raw = io.BytesIO(self._body(response.raw))
        return response

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

    def endpoint(self) -> str:
        with self._sdk(self.login.auth) as sdk:
            return str(sdk.http_client()._endpoint)

    def call(self, method: str, **fields: Any) -> dict[str, Any]:
        """The answer as JSON, without secrets."""
        with self._answer(method, Response, **fields) as response:
            return self._json(response)

    def content(self, method: str) -> bytes:
        """The answer as it is."""
        with self._answer(method, Response) as response:
            return response.content

    @contextmanager
    def archive(self, headers: dict[str, str]) -> Iterator[requests.Response]:
        """The answer to a download of the archive, its body unread.

        `headers` are sent to the signed link only, to which Kaggle redirects.
        """
        self.transport.link_headers = headers
        try:
            with self._answer("DownloadDataFiles", HttpRedirect) as response, response:
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
    def login(self) -> Login:
        """CredentialsError unless Kaggle accepts the token; a key is checked by the first call."""
        found = self._kaggle.credentials
        if found.kind == "key":
            return Login(found.username, (found.username, found.secret))
        token = found.secret
        if found.kind == "login":
            with self._sdk(None) as sdk:
                stored = KaggleCredentials(sdk, refresh_token=found.secret)
                token = str(stored.generate_access_token().token)
            self._kaggle.credentials = replace(found, secrets=found.secrets | {token})
        request = IntrospectTokenRequest()
        request.token = token
        auth = KaggleHttpClient.BearerAuth(token)
        about: dict[str, Any] = {}
        with self._sdk(auth) as sdk:
            try:
                service, method = "security.OAuthService", "IntrospectToken"
                about = self._json(_send(sdk, service, method, request, Response))
            except requests.HTTPError as error:
                if error.response is None or error.response.status_code not in (400, 403, 404):
                    raise
        if not (about.get("active") and about.get("username")):
            refused = f"Kaggle does not accept the {found.kind} from {found.source}"
            raise CredentialsError(f"{refused}: {RENEW}")
        return Login(str(about["username"]), auth)

    @contextmanager
    def _answer(self, method: str, kind: type, **fields: Any) -> Iterator[requests.Response]:
        request = getattr(competition_api_service, f"Api{method}Request")()
        if hasattr(request, "competition_name"):
            request.competition_name = self._kaggle.competition.slug
        for name, value in fields.items():
            setattr(request, name, value)
        with self._sdk(self.login.auth) as sdk:
            yield _send(sdk, SERVICE, method, request, kind)

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
        try:
            yield
        except FAILURES as error:
            raise error_of(error, self._kaggle) from None

    def _json(self, response: requests.Response) -> dict[str, Any]:
        answer = response.json()
        if not isinstance(answer, dict):
            raise AnswerError("no JSON object")
        return dict(self._kaggle.credentials.scrub(answer))


def _send(sdk: Any, service: str, method: str, request: Any, kind: type) -> requests.Response:
    try:
        answer: requests.Response = sdk.http_client().call(service, method, request, kind)
    except TypeError as error:  # the SDK looks for a code in any JSON, even in a number
        raise AnswerError("no JSON object") from error
    return answer
