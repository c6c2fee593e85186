"""The rehearsal's server with faults: `Twin(archive, solution)`, then `arm(["cut:1", "503:2"])`."""

import base64
import secrets
import socket
import struct
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from comp.rehearsal.server import FIRST_REF, Handler, Reply, Request
from twin.faults import NO_HEAD, Armed, BadReply, Seen, spoil, target_of
from twin.kernels import KernelService

BLOCK = 16 * 2**10  # bytes sent at a time


class TwinHandler(Handler):
    """Sends replies as badly as they say."""

    server: "Twin"

    def send(self, reply: Reply) -> None:
        assert isinstance(reply, BadReply)
        if reply.ends_after != NO_HEAD:
            reply.seen.status = reply.status
            self.send_head(reply)
            self.send_body(reply)
        self.close_connection = self.close_connection or reply.ending != ""
        if reply.ending == "silence":
            self.server.stopping.wait()
        if reply.ending == "reset":
            no_linger = struct.pack("ii", 1, 0)  # whereupon closing the connection resets it
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, no_linger)
            self.rfile.close()
            self.connection.close()

    def send_head(self, reply: BadReply) -> None:
        length = {"Content-Length": str(len(reply.body))}
        self.send_response(reply.status)
        for name, value in (length | dict(reply.headers)).items():
            if not (reply.chunked and name == "Content-Length"):
                self.send_header(name, value)
        if reply.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def send_body(self, reply: BadReply) -> None:
        body = reply.body[: reply.ends_after]
        for at in range(0, len(body), BLOCK):
            block = body[at : at + BLOCK]
            reply.seen.n_sent += len(block)
            self.wfile.write(b"%x\r\n%b\r\n" % (len(block), block) if reply.chunked else block)
            if reply.mib_per_s and self.server.stopping.wait(len(block) / reply.mib_per_s / 2**20):
                return
        if reply.chunked and not reply.ending:
            self.wfile.write(b"0\r\n\r\n")


class Twin(KernelService):
    """The server, its faults, and a record of all requests."""

    handler = TwinHandler

    def __init__(self, archive: Path, solution: Path, *, token: str = "", **settings: Any) -> None:
        super().__init__(archive, solution, **settings)
        self.token = token or self.token
        self.account = SimpleNamespace(
            token=self.token, username="rehearsal", key=secrets.token_hex(16)
        )
        self.requests: list[Seen] = []  # in the order of their answers
        self.n_asked: Counter[str] = Counter()  # by URL
        self.stopping = threading.Event()
        self.bugs: list[BaseException] = []
        self.arm(())

    def __exit__(self, *error: object) -> None:
        self.stopping.set()
        super().__exit__(*error)
        if self.bugs and error[0] is None:
            raise self.bugs[0]

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(error := sys.exception(), ConnectionError) and error:
            self.bugs.append(error)

    def arm(self, faults: Sequence[str]) -> None:
        """From the next request on these faults, the first outermost, and no others."""
        self._armed = [Armed(word) for word in faults]

    @property
    def struck(self) -> list[str]:
        """The armed faults that have hit a request."""
        return [armed.name for armed in self._armed if armed.n_struck]

    @property
    def submissions(self) -> list[SimpleNamespace]:
        """The journal, with `score` as a number."""
        scores = [row.get("publicScore") for row in self.journal]
        return [
            SimpleNamespace(**row, score=float(score) if score else None)
            for row, score in zip(self.journal, scores, strict=True)
        ]

    @property
    def n_uploads(self) -> int:
        return sum((seen.target, seen.status) == ("upload", 201) for seen in self.requests)

    def add(self, file_name: str, description: str, score: float) -> SimpleNamespace:
        """Records a submission that was not made through the client."""
        date = datetime.now(UTC).isoformat()
        row = {
            "ref": FIRST_REF + len(self.journal),
            "date": date,
            "sha256": "",
            "status": "COMPLETE",
        }
        row |= {"fileName": file_name, "description": description, "publicScore": str(score)}
        self.journal.append(row)
        return self.submissions[-1]

    def answer(self, request: Request) -> Reply:
        pair = base64.b64encode(f"{self.account.username}:{self.account.key}".encode()).decode()
        if request.headers.get("authorization") == f"Basic {pair}":
            as_token = {"authorization": f"Bearer {self.account.token}"}
            request = replace(request, headers={**request.headers, **as_token})
        self.n_asked[request.url] += 1
        proceed = super().answer
        for armed in reversed(self._armed):
            proceed = partial(armed.answer, self, proceed)
        reply = proceed(request)
        seen = Seen(target=target_of(request), range=request.headers.get("range", ""))
        self.requests.append(seen)
        return spoil(reply, seen=seen)
