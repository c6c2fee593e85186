"""One try at a file over HTTP, resumed where the try before broke off.

`kaggle` itself appends whatever a server sends, error pages too. Here a file is resumed only if
its part has a validator (a strong ETag, else Last-Modified): with Range and If-Range, and from a
little before its end, so that the pieces are seen to fit. An answer is written only if it is no web
page and has status 200, or 206 with the Content-Range, validator and length expected.
"""

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import requests

from comp.errors import DataError
from comp.kaggle.failures import AnswerError
from comp.progress import Reporter
from comp.store import read_json, write_json

OVERLAP = 4096  # bytes asked for again: few to send, enough to recognise another file
BLOCK = 1 << 20  # bytes read at most at once; what has arrived is written at once
SPARE = 16 << 20  # bytes that stay free on the disk
MB = 1_000_000
MAKE_ROOM = "make room and run this again; what is here already is kept"
PAGES = ("application/json", "application/xhtml+xml", "application/xml", "multipart/byteranges")


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """What distinguishes one version of a file on a server from another."""

    validator: str  # a strong ETag, else Last-Modified, else ""
    length: int | None  # bytes, if known

    @classmethod
    def of(cls, headers: Mapping[str, str]) -> "Version":
        """From the headers of a complete answer; those of a compressed one say nothing."""
        if _encoding(headers):
            return cls(validator="", length=None)
        etag, length = headers.get("ETag", ""), headers.get("Content-Length", "")
        validator = etag if etag.startswith('"') else headers.get("Last-Modified", "")
        return cls(validator=validator, length=int(length) if length.isdigit() else None)


@dataclass(frozen=True, slots=True)
class Archive:
    """A file from a server, complete or partial, with a note of its version beside it."""

    path: Path

    @property
    def part(self) -> "Archive":
        return Archive(self.path.with_name(f"{self.path.name}.part"))

    @property
    def note(self) -> Path:
        return self.path.with_name(f"{self.path.name}.json")

    @property
    def n_bytes(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def version(self) -> Version | None:
        """The version on the server, if it is known."""
        try:
            return Version(**read_json(self.note))
        except (OSError, ValueError, TypeError):
            return None

    def is_checked(self) -> bool:
        """Whether the file is as it was when its download was complete."""
        return self.note.exists() and self.note.stat().st_mtime >= self.path.stat().st_mtime

    def resume_at(self) -> int:
        """The first byte to ask for."""
        version, have = self.version(), self.n_bytes
        if not version or not version.validator or have > (version.length or have):
            return 0
        return max(0, have - OVERLAP)

    def request_headers(self) -> dict[str, str]:
        """Those that ask for the rest, or for everything."""
        headers = {"Accept-Encoding": "identity"}
        if (start := self.resume_at()) and (version := self.version()):
            headers |= {"Range": f"bytes={start}-", "If-Range": version.validator}
        return headers

    def restart(self, version: Version | None) -> None:
        """Empties the file, to be a part of `version`. Without a note it is not resumed."""
        with _disk_errors():
            self.note.unlink(missing_ok=True)
            self.path.write_bytes(b"")
            if version:
                write_json(self.note, asdict(version))


def receive(response: requests.Response, part: Archive, reporter: Reporter) -> Version:
    """Writes the answer to `part.request_headers()` and returns the version, now complete."""
    refuse_pages(response.headers)
    if response.status_code == 206:
        start = part.resume_at()
        version = _continued(response.headers, part, start)
    elif response.status_code == 200:
        start, version = 0, Version.of(response.headers)
    else:
        raise AnswerError(f"status {response.status_code}")
    _require_room(part, version)
    if not start:
        part.restart(version)
    end = _copy(response, part, start, version.length, reporter)
    if version.length not in (None, end):
        raise requests.ConnectionError(f"the body ended at byte {end:,} of {version.length:,}")
    return version


def refuse_pages(headers: Mapping[str, str]) -> None:
    """AnswerError if this is no archive: a proxy's sign-in page, too, comes with status 200."""
    kind = headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if kind.startswith("text/") or kind in PAGES:
        raise AnswerError(f"a body of type {kind}")
    if _encoding(headers) not in ("", "gzip", "deflate"):
        raise AnswerError(f"Content-Encoding {_encoding(headers)}")


def _continued(headers: Mapping[str, str], part: Archive, start: int) -> Version:
    """The version that a rest is of. Unless it is the rest of `part`, nothing is kept of it."""
    known, came = part.version(), headers.get("Content-Range", "no Content-Range")
    piece = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", came.strip())
    if not known or not start or not piece or int(piece[1]) != start:
        part.restart(None)  # a server that sends wrong ranges may still send the whole
        raise AnswerError(f"'{came}' instead of the bytes from {start}; starting over")
    length = known.length if piece[3] == "*" else int(piece[3])
    name = "ETag" if known.validator.startswith('"') else "Last-Modified"
    is_same = headers.get(name, known.validator) == known.validator
    if not is_same or known.length not in (None, length) or _encoding(headers):
        part.restart(None)
        raise AnswerError("the file has changed since its first part arrived; starting over")
    return Version(validator=known.validator, length=length)


def _copy(
    response: requests.Response,
    part: Archive,
    position: int,
    length: int | None,
    reporter: Reporter,
) -> int:
    """Where the body ends. Bytes that are here already are compared, not written."""
    have, is_packed = part.n_bytes, bool(_encoding(response.headers))
    label = f"downloading {part.path.stem}"
    if position:
        label += f" from {position / MB:,.1f} MB on"
    n_mb = (length or 0) // MB - position // MB
    progress = nullcontext() if length is None else reporter.track(label, n_mb, "MB")
    with progress as advance, part.path.open("r+b", buffering=0) as file:
        while block := response.raw.read1(BLOCK, decode_content=is_packed):
            file.seek(position)
            n_again = min(len(block), max(0, have - position))
            if file.read(n_again) != block[:n_again]:
                part.restart(None)
                raise AnswerError("its bytes differ from those already here; starting over")
            rest = memoryview(block)[n_again:]
            with _disk_errors():
                while rest:
                    rest = rest[file.write(rest) :]
            if advance:
                advance((position + len(block)) // MB - position // MB)
            position += len(block)
        with _disk_errors():
            os.fsync(file.fileno())
    return position


@contextmanager
def _disk_errors() -> Iterator[None]:
    """DataErrors for errors of the disk; those of the network are OSErrors too."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"the disk cannot be written to ({reason}): {MAKE_ROOM}") from error


def _require_room(part: Archive, version: Version) -> None:
    free = shutil.disk_usage(part.path.parent).free
    missing = (version.length or 0) - part.n_bytes
    if missing + SPARE > free:
        room = f"{missing / MB:,.0f} MB are to come, {free / MB:,.0f} MB are free"
        raise DataError(f"{room} in {part.path.parent}: {MAKE_ROOM}")


def _encoding(headers: Mapping[str, str]) -> str:
    name = headers.get("Content-Encoding", "").strip().lower()
    return "" if name == "identity" else name
