"""The competition's archive on the disk, whole or partial, and which version on the server it is.

<slug>.zip             complete; the CRCs of its members have been checked
<slug>.zip.json        its version
<slug>.zip.part        what has arrived so far
<slug>.zip.part.json   the version that it is a part of
"""

import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from comp.errors import DataError
from comp.store import read_json, write_json

OVERLAP = 4096  # bytes asked for again: few to send, enough to recognise another file
MB = 1_000_000
MAKE_ROOM = "make room and run this again; what is here already is kept"
ZIP_DAMAGE = (  # what zipfile raises
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    OSError,
    ValueError,
    RuntimeError,
    OverflowError,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """What distinguishes one version of a file on a server from another."""

    validator: str  # a strong ETag, else Last-Modified, else ""
    length: int | None  # bytes, if known

    @classmethod
    def of(cls, headers: Mapping[str, str]) -> "Version":
        """From the headers of a complete answer; those of a compressed one say nothing."""
        if encoding_of(headers):
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
        """Its version on the server, if that is known."""
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
        """Empties the file, now a part of `version`. After a crash halfway, nothing is resumed."""
        with disk_errors():
            self.note.unlink(missing_ok=True)
            self.path.write_bytes(b"")
            if version:
                write_json(self.note, asdict(version))


def zip_problem(path: Path) -> str:
    """What is wrong with a zip; "" if its structure and the CRCs of its members are right."""
    try:
        with zipfile.ZipFile(path) as outer:
            damaged = outer.testzip()
    except ZIP_DAMAGE as error:
        return f"it is corrupt ({error or type(error).__name__})"
    return f"its member {damaged!r} is corrupt (wrong CRC)" if damaged else ""


@contextmanager
def disk_errors() -> Iterator[None]:
    """DataErrors for errors of the disk; those of the network are OSErrors too."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"the disk cannot be written to ({reason}): {MAKE_ROOM}") from error


def encoding_of(headers: Mapping[str, str]) -> str:
    name = headers.get("Content-Encoding", "").strip().lower()
    return "" if name == "identity" else name
