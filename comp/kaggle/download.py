"""One try at a file over HTTP into an open partial file, continued only if it is still the same file. Runs in the client's process.

The client's own `download_file` writes error pages into the archive, does not look at what a 206 contains, and loses up to 1 MiB at each
break. Here:

- What a partial file is a part of stands beside it: the validator (a strong ETag, else Last-Modified) and the length.
- Without a validator nothing is continued. With one, the next try asks for the rest, with If-Range, from a little before the end,
  so that a file that is complete is found to be so, and the two pieces are seen to fit.
- A body is written only if its status is 200 (from byte 0) or 206 (after its Content-Range, validator, encoding and first bytes have been
  compared), and only if it is no web page.
- A body in Content-Encoding gzip, though none was asked for, is unpacked on the way; its length is then not known beforehand, and it is
  not continued.
- Without Content-Length the end of the body is the end of the file. Whoever calls checks the archive's own structure in any case.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from comp.kaggle.failures import Kind

OVERLAP = 4096  # bytes asked for again; small against the loss of a try, enough to tell two archives apart
BLOCK = 1 << 20  # bytes read at most at once; what has arrived is written at once
SPARE = 16 << 20  # bytes that stay free on the disk


class StoppedError(Exception):
    """Why a try ended before the file was complete."""

    kind: ClassVar[Kind]


class DifferentError(StoppedError):
    """An answer that is not the rest of this file. The partial file has been emptied where it may be of another version."""

    kind = "answer"


class CutError(StoppedError):
    """The body ended before the file did."""

    kind = "connection"


class FullError(StoppedError):
    """Too little room on the disk."""

    kind = "space"


class UnwritableError(StoppedError):
    """The disk refused a write."""

    kind = "disk"


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """What tells one version of a remote file from another."""

    validator: str  # a strong ETag, else Last-Modified, else ""
    length: int | None  # bytes

    @classmethod
    def of(cls, headers: Any) -> "Version":
        """The version that a complete answer's headers tell; nothing is certain about one that is packed on the way."""
        if _encoding(headers):
            return cls(validator="", length=None)
        etag, length = headers.get("ETag", ""), headers.get("Content-Length", "")
        strong = etag if etag.startswith('"') else ""
        return cls(
            validator=strong or headers.get("Last-Modified", ""),
            length=int(length) if length.isdigit() else None,
        )


@dataclass(frozen=True, slots=True)
class Part:
    """A partial file, open for reading and writing, with the note beside it."""

    fd: int
    note: Path

    @property
    def n_bytes(self) -> int:
        return os.fstat(self.fd).st_size

    def version(self) -> Version | None:
        """Of what file this is a part; None if that is not known."""
        try:
            return Version(**json.loads(self.note.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def restart(self, version: Version | None) -> None:
        """Empties the file, and then notes what it will be a part of: a crash in between leaves nothing to be continued wrongly."""
        with _disk():
            os.ftruncate(self.fd, 0)
            os.fsync(self.fd)
            self.note.unlink(missing_ok=True)
            if version is not None:
                scratch = self.note.with_suffix(".new")
                scratch.write_text(json.dumps(asdict(version)), encoding="utf-8")
                scratch.replace(self.note)

    def resume_at(self) -> int:
        """The first byte to ask for."""
        version, have = self.version(), self.n_bytes
        if (
            version is None
            or not version.validator
            or (version.length is not None and have > version.length)
        ):
            return 0
        return max(0, have - OVERLAP)


def wanted(part: Part) -> dict[str, str]:
    """The headers that ask for the rest of `part`, or for all of it."""
    headers = {"Accept-Encoding": "identity"}
    if (start := part.resume_at()) and (version := part.version()):
        headers |= {"Range": f"bytes={start}-", "If-Range": version.validator}
    return headers


def receive(
    response: Any,
    part: Part,
    start: int,
    began: Callable[[int, int | None], None],
    advanced: Callable[[int], None],
) -> Version:
    """Writes the body of `response`, to a request for the bytes from `start`, into `part`; returns the version of the then complete file.

    `began` is told where writing starts and the length of the file, `advanced` the position after each block.
    """
    refuse_pages(response.headers)
    if response.status_code == 206:
        version = _continued(response.headers, part, start)
    elif response.status_code == 200:
        start, version = 0, Version.of(response.headers)
        _require_room(part, version.length)
        part.restart(version)
    else:
        raise DifferentError(f"status {response.status_code}")
    began(start, version.length)
    end = _copy(response, part, start, advanced)
    if version.length is not None and end != version.length:
        raise CutError(f"the body ended at byte {end:,} of {version.length:,}")
    with _disk():
        os.fsync(part.fd)
    return version


def _continued(headers: Any, part: Part, start: int) -> Version:
    """The version that the rest belongs to, if it is what was asked for; the partial file is emptied if it is of another version."""
    known = part.version()
    piece = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", headers.get("Content-Range", "").strip())
    if known is None or not start or piece is None or int(piece[1]) != start:
        part.restart(None)  # a server that cannot be trusted with ranges may still send the whole
        came = headers.get("Content-Range", "no Content-Range")
        raise DifferentError(f"bytes from {start} were asked for, and '{came}' came; starting over")
    total = known.length if piece[3] == "*" else int(piece[3])
    validator = headers.get(
        "ETag" if known.validator.startswith('"') else "Last-Modified", known.validator
    )
    if (
        validator != known.validator
        or (known.length is not None and total != known.length)
        or _encoding(headers)
    ):
        part.restart(None)
        raise DifferentError(
            "the file on the server has changed since the first part came; starting over"
        )
    _require_room(part, total)
    return Version(validator=known.validator, length=total)


def _copy(response: Any, part: Part, position: int, advanced: Callable[[int], None]) -> int:
    """The position after the last byte. Bytes that are here already are compared, the others written as soon as they arrive."""
    have, packed = part.n_bytes, bool(_encoding(response.headers))
    while block := response.raw.read1(BLOCK, decode_content=packed):
        n_again = min(len(block), max(0, have - position))
        if n_again and os.pread(part.fd, n_again, position) != block[:n_again]:
            part.restart(None)
            raise DifferentError("the rest does not fit to the part that is here; starting over")
        _write(part.fd, block[n_again:], position + n_again)
        position += len(block)
        advanced(position)
    return position


def _write(fd: int, block: bytes, position: int) -> None:
    """Unbuffered, so that not even SIGKILL loses what has arrived."""
    rest = memoryview(block)
    with _disk():
        while rest:
            n_written = os.pwrite(fd, rest, position)
            rest, position = rest[n_written:], position + n_written


@contextmanager
def _disk() -> Iterator[None]:
    """Tells errors of the disk from those of the network, which are OSErrors too."""
    try:
        yield
    except OSError as error:
        raise UnwritableError(
            f"the disk refuses to be written to ({error.strerror or error})"
        ) from error


def refuse_pages(headers: Any) -> None:
    """A sign-in or error page of a proxy comes with status 200."""
    kind = headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if kind.startswith("text/") or kind in (
        "application/json",
        "application/xhtml+xml",
        "application/xml",
        "multipart/byteranges",
    ):
        raise DifferentError(f"a body of type {kind}")
    if _encoding(headers) not in ("", "gzip", "deflate"):
        raise DifferentError(f"Content-Encoding {_encoding(headers)}")


def _require_room(part: Part, length: int | None) -> None:
    free = shutil.disk_usage(part.note.parent).free
    missing = (length or 0) - part.n_bytes
    if missing + SPARE > free:
        raise FullError(
            f"{missing / 1e6:,.0f} MB are to come and {free / 1e6:,.0f} MB are free in {part.note.parent}"
        )


def _encoding(headers: Any) -> str:
    name = str(headers.get("Content-Encoding", "")).strip().lower()
    return "" if name == "identity" else name
