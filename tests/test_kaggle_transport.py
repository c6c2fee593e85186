"""Proxies and certificates: a wrong setting is named at once, and what may pass is tried again.

Kaggle's real address is used, through a proxy on this machine that never lets a byte out.
"""

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from kaggle_stand import HASTE, Notebook, Stand

from comp.competition import COMPETITION
from comp.errors import KaggleError, UnavailableError
from comp.kaggle import Kaggle
from comp.kaggle.transport import CA_VARIABLES

# urllib3 leaves the socket of a failed proxy to the garbage collector
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

CERTIFICATE = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg4ZFWB7m3RgQTi+IX
YMq8J80qxn0by9ksIDZH6ZIHqd+hRANCAARQRhEN7ZExU1UT2dANUEDzXpEyylxr
5LOOgIvzHB8dSknNcK/DuDVJy9L6N+TlbADvAhnN5mlcQoqA5zOg32qu
-----END PRIVATE KEY-----
-----BEGIN CERTIFICATE-----
MIIBozCCAUqgAwIBAgIUJpIEtJMhiIHOyUE9yszqMG1T9VMwCgYIKoZIzj0EAwIw
GTEXMBUGA1UEAwwOYXBpLmthZ2dsZS5jb20wIBcNMjYxMTI1MjAxODAyWhgPMjEy
NjExMDEyMDE4MDJaMBkxFzAVBgNVBAMMDmFwaS5rYWdnbGUuY29tMFkwEwYHKoZI
zj0CAQYIKoZIzj0DAQcDQgAEUEYRDe2RMVNVE9nQDVBA816RMspca+SzjoCL8xwf
HUpJzXCvw7g1ScvS+jfk5WwA7wIZzeZpXEKKgOczoN9qrqNuMGwwHQYDVR0OBBYE
FBfWwTuFLyLopccNrquAToo2z++nMB8GA1UdIwQYMBaAFBfWwTuFLyLopccNrquA
Too2z++nMA8GA1UdEwEB/wQFMAMBAf8wGQYDVR0RBBIwEIIOYXBpLmthZ2dsZS5j
b20wCgYIKoZIzj0EAwIDRwAwRAIgRrD1qwXJaWJ7BAIYfnrrfDyKZcANw4bXJi8o
paAiLY4CIHZkPda/T9hjjXVCgHscNNjrrPW8Tp13QbvreFtHx8y4
-----END CERTIFICATE-----
"""  # of api.kaggle.com, signed by itself, until the year 2126
SECRET = "canary-password"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
ANSWER = HEAD + b'Content-Length: 38\r\n\r\n{"active":true, "username":"somebody"}'


@contextmanager
def listening(serve: Callable[[socket.socket], None]) -> Iterator[str]:
    """The address of a server that reads once, lets `serve` answer, and closes."""

    def run() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection, suppress(OSError):
                    connection.recv(1 << 16)
                    serve(connection)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=run, daemon=True).start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)


def sending(answer: bytes) -> Callable[[socket.socket], None]:
    return lambda connection: connection.sendall(answer)


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    path = tmp_path / "certificate.pem"
    path.write_text(CERTIFICATE)
    return path


def opening_tls(certificate: Path) -> Callable[[socket.socket], None]:
    """What a company's proxy does to look into TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)

    def serve(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        with context.wrap_socket(connection, server_side=True) as opened:
            opened.recv(1 << 16)
            opened.sendall(ANSWER)

    return serve


def ask(**variables: str) -> str:
    """The one line in which a call ends that is made with these variables, and not repeated."""
    notebook, start = Notebook(), time.monotonic()
    kaggle = Kaggle(COMPETITION, notebook, {"KAGGLE_API_TOKEN": "a-token"} | variables, HASTE)
    with pytest.raises(KaggleError) as caught:
        kaggle.whoami()
    assert not isinstance(caught.value, UnavailableError)
    assert notebook.lines == []
    assert time.monotonic() - start < 2
    line = str(caught.value)
    assert "\n" not in line
    assert SECRET not in line
    return line


@pytest.mark.parametrize("variable", ["https_proxy", "HTTPS_PROXY", "ALL_PROXY"])
@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("http://127.0.0.1:99999", "is no address"),
        ("http://127.0.0.1:port", "is no address"),
        ("http://[::1:3128", "is no address"),
        ("http://::1]:3128", "is no address"),
        ("htp://127.0.0.1:9", "is no address"),
        ("http://", "is no address"),
        ("http:/127.0.0.1", "is no address"),
        ("http://.proxy:3128", "is no address"),
        ("http://my proxy:3128", "is no address"),
        (f"http://me:{SECRET}#more@127.0.0.1:9", "is no address"),
        (f"http://me:{SECRET}@127.0.0.1:99999", "is no address"),
        ("http://proxy.invalid:3128", "is not known"),
        ("socks5://127.0.0.1:9", "PySocks"),
        (f"socks5h://me:{SECRET}@127.0.0.1:9", "PySocks"),
    ],
)
def test_an_address_that_is_none_is_named_at_once(
    variable: str, address: str, problem: str
) -> None:
    line = ask(**{variable: address})
    assert [word for word in (f"{variable} ", problem, "unset it") if word not in line] == []


@pytest.mark.parametrize("status", [b"407 Proxy Authentication Required", b"403 Forbidden"])
def test_a_proxy_that_refuses_is_named_at_once_with_a_place_for_its_password(
    scene: Stand, status: bytes
) -> None:
    refusal = b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\n\r\n"
    with listening(sending(refusal)) as address:
        lines = [ask(https_proxy=f"http://me:{SECRET}@{address}")]
        if status.startswith(b"407"):  # a proxy's 403 cannot be told from Kaggle's without TLS
            stand_in = {"KAGGLE_API_ENVIRONMENT": "LOCALHOST"}
            lines.append(ask(**stand_in, HTTP_PROXY=f"http://{address}"))
    for line, variable in zip(lines, ("https_proxy", "HTTP_PROXY"), strict=False):
        assert f"{variable} names a proxy that refuses us ({status[:3].decode()})" in line
        assert "set it to http://USER:PASSWORD@HOST:PORT, or unset it" in line


def test_a_proxy_without_tls_is_not_asked_for_it_twice() -> None:
    with listening(sending(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as address:
        assert "https_proxy says https://, but its proxy" in ask(https_proxy=f"https://{address}")


def test_a_certificate_that_is_not_trusted_is_said_at_once_and_the_remedy_works(
    certificate: Path,
) -> None:
    with listening(opening_tls(certificate)) as address:
        https_proxy = f"http://{address}"
        line = ask(https_proxy=https_proxy)
        for word in ("self-signed", "set REQUESTS_CA_BUNDLE to a file with its CA certificate"):
            assert word in line
        for variable in CA_VARIABLES:
            env = {"KAGGLE_API_TOKEN": "a-token", "https_proxy": https_proxy}
            env[variable] = str(certificate)
            assert Kaggle(COMPETITION, Notebook(), env, HASTE).whoami() == "somebody"
        empty = certificate.parent / "folder"
        empty.mkdir()
        line = ask(https_proxy=https_proxy, SSL_CERT_FILE=str(empty))
        assert "set SSL_CERT_FILE to a file" in line


@pytest.mark.parametrize("variable", CA_VARIABLES)
@pytest.mark.parametrize("content", [None, b"", b"no certificate", b"\x30\x82\x01\x0a\xff"])
def test_a_file_of_certificates_that_is_none_is_named_before_anything_is_sent(
    tmp_path: Path, variable: str, content: bytes | None
) -> None:
    path = tmp_path / "certificates.pem"
    if content is not None:
        path.write_bytes(content)
    line = ask(**{variable: str(path), "https_proxy": "http://127.0.0.1:9"})
    assert f"{variable} names no file of certificates (" in line
    assert "unset it" in line


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", "503"),
        (b"HTTP/1.1 200 Connection established\r\n\r\n", "to Kaggle broke .*of https_proxy"),
        (
            b"SSH-2.0\r\n",
            r"\(the answer broke off, through the proxy of https_proxy\)",
        ),
    ],
)
def test_what_may_pass_in_a_proxy_is_tried_again(answer: bytes, words: str) -> None:
    with listening(sending(answer)) as address:
        env = {"KAGGLE_API_TOKEN": "a-token", "https_proxy": f"http://{address}"}
        with pytest.raises(UnavailableError, match=f"{words}.*4 tries"):
            Kaggle(COMPETITION, Notebook(), env, HASTE).whoami()


def test_a_proxy_that_cannot_be_reached_is_named(scene: Stand) -> None:
    closed, _ = scene.another(http_proxy="http://127.0.0.1:9")
    with pytest.raises(UnavailableError, match=r"the proxy of http_proxy cannot be reached \(Conn"):
        closed.files()
