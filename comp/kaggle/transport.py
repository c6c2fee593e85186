"""Requests sent in bounded time, through the proxies and with the certificates of an environment.

A wrong setting ends in one line that names the variable, not its value: proxies have passwords.
"""

import io
import os
import re
import socket
import ssl
import time
from collections.abc import Mapping
from contextlib import closing
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from requests.exceptions import InvalidSchema, InvalidURL, ProxyError, SSLError
from requests.utils import should_bypass_proxies
from urllib3.exceptions import LocationValueError

from comp.errors import KaggleError

if TYPE_CHECKING:
    from comp.kaggle.client import Patience

DOWNLOAD = "DownloadDataFiles"
CA_VARIABLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")
REMEDY = "set it to http://USER:PASSWORD@HOST:PORT, or unset it to go without a proxy"


class AnswerError(requests.RequestException):
    """An answer that the protocol does not allow: a web page, no JSON, bytes of another file."""


class Transport(HTTPAdapter):
    """Carries the requests of any number of sessions."""

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


def root_of(error: BaseException) -> BaseException:
    """The first cause of `error`. urllib3 keeps some causes as arguments."""
    below = error.__cause__ or error.__context__ or next(iter(error.args), None)
    return root_of(below) if isinstance(below, BaseException) else error
