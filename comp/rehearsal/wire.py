"""HTTP on 127.0.0.1: requests read into values, answers sent as the values say, however rudely."""

import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BufferedIOBase
from socketserver import TCPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from comp.rehearsal.exchange import BLOCK, Ask, Ending, Reply, Slice


@dataclass(slots=True, kw_only=True)
class Request:
    """What was asked and what was sent, for those who look on; the credentials themselves are not kept."""

    method: str
    host: str
    path: str
    target: str  # as in `Ask`
    range: str  # the Range header
    authorization: str  # its scheme: Bearer, Basic or nothing
    n_received: int  # bytes of the body that came
    status: int = 0  # 0: no answer was sent
    n_sent: int = 0  # bytes of the body that were handed to the network


class Listener(ThreadingHTTPServer):
    """A proxy that forwards nothing: whatever is asked of it, `answer` answers."""

    daemon_threads = True

    def __init__(self, answer: Callable[[Ask], Reply]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer = answer
        self.stopping = threading.Event()
        self.requests: list[Request] = []
        self.bugs: list[BaseException] = []
        self._asked: dict[str, int] = {}
        self._connections: dict[threading.Thread, socket.socket] = {}
        self._resets: set[Any] = set()
        self._lock = threading.Lock()

    def server_bind(self) -> None:
        """Without the look-up of this host's name, which HTTPServer makes and which can take seconds."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = "localhost", self.server_address[1]

    def n_before(self, url: str) -> int:
        with self._lock:
            n = self._asked.get(url, 0)
            self._asked[url] = n + 1
        return n

    def process_request(self, request: Any, client_address: Any) -> None:
        thread = threading.Thread(
            target=self.process_request_thread, args=(request, client_address), daemon=True
        )
        with self._lock:
            self._connections = {
                each: peer for each, peer in self._connections.items() if each.is_alive()
            } | {thread: request}
        thread.start()

    def reset(self, request: Any) -> None:
        """Close this connection with a reset when its handler is done."""
        request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with self._lock:
            self._resets.add(request)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            abrupt = request in self._resets
            self._resets.discard(request)
        if abrupt:
            self.close_request(request)  # a shutdown first would end the stream politely
        else:
            super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        """A peer that goes away is its own affair; anything else is a bug here, raised when the server stops."""
        error = sys.exc_info()[1]
        if error is not None and not isinstance(error, (ConnectionError, TimeoutError)):
            self.bugs.append(error)

    def stop(self) -> None:
        """No more requests; those under way are broken off, and their threads end."""
        self.stopping.set()
        self.shutdown()
        with self._lock:
            connections = dict(self._connections)
        for peer in connections.values():
            try:
                peer.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # closed already
        for thread in connections:
            thread.join(timeout=10)
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Listener

    def _exchange(self) -> None:
        body = _receive(
            self.rfile,
            self.headers.get("Content-Length"),
            self.headers.get("Transfer-Encoding", ""),
        )
        ask = _ask(
            self.command,
            self.path,
            {name.lower(): value for name, value in self.headers.items()},
            body,
        )
        ask = replace(ask, n_before=self.server.n_before(self.path))
        reply = self.server.answer(ask)
        seen = Request(
            method=ask.method,
            host=ask.host,
            path=ask.path,
            target=ask.target,
            range=ask.headers.get("range", ""),
            authorization=ask.headers.get("authorization", "").partition(" ")[0],
            n_received=len(body),
        )
        self.server.requests.append(seen)
        if reply.ends_after != -1:
            seen.status = reply.status
            self._head(reply)
            self._body(reply, seen)
        self._end(reply.ending)

    do_GET = do_POST = do_PUT = _exchange  # noqa: N815

    def _head(self, reply: Reply) -> None:
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        if reply.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header(
                "Content-Length",
                str(len(reply.body) if reply.stated_length is None else reply.stated_length),
            )
        self.end_headers()

    def _body(self, reply: Reply, seen: Request) -> None:
        for block in _blocks(reply):
            seen.n_sent += len(block)
            self.wfile.write(b"%x\r\n%b\r\n" % (len(block), block) if reply.chunked else block)
            if reply.mib_per_s and self.server.stopping.wait(len(block) / reply.mib_per_s / 2**20):
                return
        if reply.chunked and reply.ending is Ending.WHOLE:
            self.wfile.write(b"0\r\n\r\n")

    def _end(self, ending: Ending) -> None:
        self.close_connection = self.close_connection or ending is not Ending.WHOLE
        if ending is Ending.RESET:
            self.server.reset(self.connection)
        if ending is Ending.SILENCE:
            self.server.stopping.wait()

    def version_string(self) -> str:
        return "rehearsal"

    def log_message(self, *_: Any) -> None:
        """Nothing: `requests` tells what was asked."""


def _ask(method: str, url: str, headers: dict[str, str], body: bytes) -> Ask:
    parts = urlsplit(url)
    host = parts.hostname or headers.get("host", "").partition(":")[0]
    query = dict(parse_qsl(parts.query))
    return Ask(method=method, host=host, path=parts.path, query=query, headers=headers, body=body)


def _receive(source: BufferedIOBase, length: str | None, encoding: str) -> bytes:
    """The body of a request, as far as it comes; in memory, since a submission has a third of a megabyte."""
    if "chunked" not in encoding.lower():
        return source.read(int(length or 0))
    body = b""
    while n := int(source.readline(20).split(b";")[0] or b"0", 16):
        body += source.read(n)
        source.readline(2)
    source.readline(2)
    return body


def _blocks(reply: Reply) -> Iterator[bytes]:
    """The body up to where the answer ends."""
    body = reply.body
    left = len(body) if reply.ends_after is None else min(reply.ends_after, len(body))
    for block in (
        body.blocks()
        if isinstance(body, Slice)
        else (body[at : at + BLOCK] for at in range(0, len(body), BLOCK))
    ):
        if left <= 0:
            return
        yield block[:left]
        left -= len(block)
