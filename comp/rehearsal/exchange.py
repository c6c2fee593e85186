"""One request and its answer, as plain values: what the service decides, what faults alter, what the wire sends."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path
from typing import Any

API_HOST = "localhost"  # where the client's LOCALHOST environment sends its calls
STORAGE_HOST = (
    "storage.localhost"  # another name, so that requests drops Authorization on the way there
)
API_PATH = "/api/v1/"
BLOCK = 64 * 2**10  # bytes read, and sent, at a time
INVERTED = bytes(range(255, -1, -1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A request, read whole."""

    method: str
    host: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)  # names in lower case
    body: bytes = b""
    unscorable: str = ""  # why this submission shall not be scored, where a fault says so
    n_before: int = 0  # how often this very URL was asked for earlier

    @property
    def target(self) -> str:
        """The API's method, `file` for a download from storage, `upload` for an upload to it, or nothing."""
        if self.host == STORAGE_HOST:
            return {"GET": "file", "PUT": "upload"}.get(self.method, "")
        return (
            self.path.rpartition("/")[2]
            if self.method == "POST" and self.path.startswith(API_PATH)
            else ""
        )

    @property
    def fields(self) -> dict[str, Any]:
        """The body as JSON; a body that is not an object has no fields."""
        try:
            value = json.loads(self.body or b"{}")
        except ValueError:
            return {}
        return value if isinstance(value, dict) else {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """Bytes `start` up to `stop` of a file, read as they are sent; those within `damage` arrive inverted."""

    path: Path
    start: int
    stop: int
    damage: range = range(0)  # positions in the file

    def __len__(self) -> int:
        return self.stop - self.start

    def blocks(self) -> Iterator[bytes]:
        with self.path.open("rb") as file:
            file.seek(self.start)
            for at in range(self.start, self.stop, BLOCK):
                block = bytearray(file.read(min(BLOCK, self.stop - at)))
                first, last = max(self.damage.start - at, 0), max(self.damage.stop - at, 0)
                block[first:last] = block[first:last].translate(INVERTED)
                yield bytes(block)


class Ending(Enum):
    """How an answer ends."""

    WHOLE = auto()  # all of it, and the connection stays open for the next request
    CUT = auto()  # the connection is closed
    RESET = auto()  # the connection is reset: the peer sees ECONNRESET
    SILENCE = auto()  # nothing more comes, and the connection stays open until the server stops


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """An answer, and how the wire is to mistreat it."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | Slice = b""
    ending: Ending = Ending.WHOLE
    ends_after: int | None = (
        None  # bytes of the body sent before `ending`; None: all, -1: not even the head
    )
    stated_length: int | None = None  # Content-Length, where it is not the body's
    chunked: bool = False  # sent in chunks, without Content-Length
    mib_per_s: float | None = None  # None: as fast as the peer reads

    @property
    def carries_file(self) -> bool:
        return isinstance(self.body, Slice)


def json_reply(value: Mapping[str, Any], status: int = 200) -> Reply:
    return Reply(
        status=status, headers={"Content-Type": "application/json"}, body=json.dumps(value).encode()
    )


def page_reply(status: int, title: str) -> Reply:
    """A page of HTML, as gateways answer."""
    page = f"<html><head><title>{title}</title></head><body><h1>{title}</h1></body></html>"
    return Reply(
        status=status, headers={"Content-Type": "text/html; charset=UTF-8"}, body=page.encode()
    )


class RefusedError(Exception):
    """A request that the service turns down, with the status and the words that Kaggle sends."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status

    def reply(self) -> Reply:
        return json_reply({"code": self.status, "message": str(self)}, self.status)
