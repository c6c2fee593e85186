"""The archive downloaded: resumed where a try broke off, verified, and whole or not there.

<slug>.zip             complete; the CRCs of its members have been checked
<slug>.zip.json        its version on the server
<slug>.zip.part        what has arrived so far
<slug>.zip.part.json   the version that it is a part of

A part is resumed only if it has a validator (a strong ETag, else Last-Modified): with Range and
If-Range, and from a little before its end, so that the pieces are seen to fit. An answer is written
only if it is no web page and has status 200, or 206 with the range, validator and length expected.
"""

import os
import re
import struct
import time
import zlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from zipfile import BadZipFile, ZipFile

import requests

from comp.errors import ArchiveError, DataError, UnavailableError
from comp.kaggle.transport import AnswerError
from comp.progress import Advance, Reporter
from comp.store import locked, read_json, require_room, write_json

if TYPE_CHECKING:
    from comp.kaggle.client import Kaggle

N_DOWNLOADS = 2  # that arrive corrupt before we believe that the server's archive is
OVERLAP = 4096  # bytes asked for again: few to send, enough to recognise another file
STEP = 4 << 20  # bytes that must come within Patience.retry_s
BLOCK = 1 << 20  # bytes read at most at once; what has arrived is written at once
SPARE = 16 << 20  # bytes that stay free on the disk
MB = 1_000_000
MAKE_ROOM = "make room and run this again; what is here already is kept"
PAGES = ("application/json", "application/xhtml+xml", "application/xml", "multipart/byteranges")
Ask = Callable[[dict[str, str]], AbstractContextManager[requests.Response]]
ZIP_DAMAGE: tuple[type[Exception], ...] = (BadZipFile, zlib.error, struct.error, EOFError)
ZIP_DAMAGE += (OSError, ValueError, RuntimeError, OverflowError)  # zipfile raises these, too


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """What distinguishes one version of a file on a server from another."""

    validator: str  # a strong ETag, else Last-Modified, else ""
    length: int | None  # bytes, if known


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
        self.note.unlink(missing_ok=True)
        self.path.write_bytes(b"")
        if version:
            write_json(self.note, asdict(version))


@dataclass(slots=True)
class Pace:
    """Whether a download makes progress: STEP bytes in `limit_s`, over all its tries."""

    limit_s: float
    n_bytes: int  # that were here at the latest step
    since_s: float = field(default_factory=time.monotonic)  # when that was

    @property
    def is_slow(self) -> bool:
        return time.monotonic() - self.since_s > self.limit_s

    def check(self, n_bytes: int) -> None:
        """requests.Timeout if too little has come; `n_bytes` are here now."""
        if n_bytes >= self.n_bytes + STEP:
            self.n_bytes, self.since_s = n_bytes, time.monotonic()
        if self.is_slow:
            raise requests.Timeout(f"less than {STEP / MB:.0f} MB in {self.limit_s:.0f} s")


def zip_problem(path: Path) -> str:
    """What is wrong with a zip; "" if its structure and the CRCs of its members are right."""
    try:
        with ZipFile(path) as outer:
            damaged = outer.testzip()
    except ZIP_DAMAGE as error:
        return f"it is corrupt ({error or type(error).__name__})"
    return f"its member {damaged!r} is corrupt (wrong CRC)" if damaged else ""


def download_archive(kaggle: "Kaggle", folder: Path) -> Path:
    """The competition's archive in `folder`: whole, checked, and the one Kaggle has now."""
    archive = Archive(folder / f"{kaggle.competition.slug}.zip")
    part = archive.part
    with locked(folder / ".lock", kaggle.reporter, limit_s=kaggle.patience.other_run_s):
        if archive.path.exists() and _is_current(archive, kaggle):
            return archive.path
        try:
            version = _fetch_intact(part, kaggle)
            part.path.replace(archive.path)
            write_json(archive.note, asdict(version))
        finally:
            if not part.n_bytes:
                part.path.unlink(missing_ok=True)
                part.note.unlink(missing_ok=True)
    return archive.path


def remote_version(kaggle: "Kaggle") -> Version:
    """The version that the server has now, from a download of which only the head is read."""

    def look() -> Version:
        with kaggle.session.archive({"Accept-Encoding": "identity"}) as response:
            return _version_of(response.headers)

    return kaggle.retried(look)


def _is_current(archive: Archive, kaggle: "Kaggle") -> bool:
    """Whether the archive is what the server has. Without validators, its length decides."""
    here, there = archive.version() if archive.is_checked() else None, remote_version(kaggle)
    here_is = f"{archive.path.name} is here ({archive.n_bytes / MB:,.1f} MB)"
    has_length = there.length in (None, archive.n_bytes)
    if here and here.validator and there.validator:
        if here.validator == there.validator and has_length:
            kaggle.reporter.say(f"{here_is} and is what the server has")
            return True
    elif there.length and has_length and not zip_problem(archive.path):
        write_json(archive.note, asdict(there))
        kaggle.reporter.say(f"{here_is}, intact and of the same length as the server's")
        return True
    kaggle.reporter.warn(f"{here_is} but is not what the server has; downloading that")
    return False


def _fetch_intact(part: Archive, kaggle: "Kaggle") -> Version:
    """Completes the part and checks it as a zip; once more if it is corrupt."""
    name = part.path.stem
    for n_left in reversed(range(N_DOWNLOADS)):
        version = fetch_whole(part, kaggle, kaggle.session.archive)
        problem = zip_problem(part.path)
        if not problem:
            return version
        part.restart(None)
        if n_left:
            kaggle.reporter.warn(f"{name} is complete, but {problem}; downloading it once more")
    times = f"{name} arrived {N_DOWNLOADS} times, but {problem}"
    raise ArchiveError(f"{times}; nothing of it is kept: try again later")


def fetch_whole(part: Archive, kaggle: "Kaggle", ask: Ask) -> Version:
    """Tries until the part is complete. A try after which it is longer does not count."""
    longest, pace = part.n_bytes, Pace(kaggle.patience.retry_s, part.n_bytes)

    def try_once() -> Version | None:
        """None if the part has grown but is not complete."""
        nonlocal longest
        try:
            with ask(part.request_headers()) as response:
                return receive(response, part, pace, kaggle.reporter)
        except UnavailableError as error:
            if part.n_bytes <= longest or pace.is_slow:
                raise
            longest = part.n_bytes
            kaggle.reporter.warn(f"{error} after {longest / MB:,.1f} MB; going on from there")
            return None
        except OSError as error:  # of the disk; those of the network are UnavailableErrors
            reason = error.strerror or error
            raise DataError(f"the disk cannot be written to ({reason}): {MAKE_ROOM}") from error

    try:
        while (version := kaggle.retried(try_once, pace.since_s)) is None:
            time.sleep(kaggle.patience.wait_first_s)
    except UnavailableError as error:
        kept = f"{part.n_bytes / MB:,.1f} MB are kept, and the next run goes on from there"
        raise UnavailableError(f"{error}; {kept if part.n_bytes else 'nothing arrived'}") from None
    return version


def receive(response: requests.Response, part: Archive, pace: Pace, reporter: Reporter) -> Version:
    """Writes the answer to `part.request_headers()` and returns the version, now complete."""
    start, version = 0, _version_of(response.headers)
    if response.status_code == 206:
        start = part.resume_at()
        version = _continued(response.headers, part, start)
    elif response.status_code != 200:
        raise AnswerError(f"status {response.status_code}")
    n_missing = (version.length or 0) - part.n_bytes
    require_room(part.path.parent, n_missing + SPARE, "the bytes to come", MAKE_ROOM)
    if not start:
        part.restart(version)
    label = f"downloading {part.path.stem}"
    label += f" from {start / MB:,.1f} MB on" if start else ""
    with reporter.track(label, max(0, (version.length or 0) // MB - start // MB), "MB") as advance:
        end = _copy(response, part, start, pace, advance)
    if version.length not in (None, end):
        raise requests.ConnectionError(f"the body ended at byte {end:,} of {version.length:,}")
    return version


def _version_of(headers: Mapping[str, str]) -> Version:
    """The version of a whole file; AnswerError for a web page, such as a proxy's to sign in."""
    kind = headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if kind.startswith("text/") or kind in PAGES:
        raise AnswerError(f"a body of type {kind}")
    if _is_packed(headers):
        return Version(validator="", length=None)
    etag, length = headers.get("ETag", ""), headers.get("Content-Length", "")
    validator = etag if etag.startswith('"') else headers.get("Last-Modified", "")
    return Version(validator=validator, length=int(length) if length.isdigit() else None)


def _is_packed(headers: Mapping[str, str]) -> bool:
    return headers.get("Content-Encoding", "identity").strip().lower() != "identity"


def _continued(headers: Mapping[str, str], part: Archive, start: int) -> Version:
    """The version that the rest belongs to. If it is not the rest of `part`, that is emptied."""
    known, came = part.version(), headers.get("Content-Range", "no Content-Range")
    piece = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", came.strip())
    if not known or not start or not piece or int(piece[1]) != start:
        part.restart(None)  # a server that sends wrong ranges may still send the whole
        raise AnswerError(f"'{came}' instead of the bytes from {start}; starting over")
    version = Version(validator=known.validator, length=int(piece[2]))
    name = "ETag" if known.validator.startswith('"') else "Last-Modified"
    is_same = headers.get(name, known.validator) == known.validator
    if not is_same or known.length not in (None, version.length) or _is_packed(headers):
        part.restart(None)
        raise AnswerError("the file has changed since its first part arrived; starting over")
    return version


def _copy(
    response: requests.Response, part: Archive, offset: int, pace: Pace, advance: Advance
) -> int:
    """Where the body ends. Bytes that are here already are compared, not written."""
    have = part.n_bytes
    with part.path.open("r+b") as file:
        while block := response.raw.read1(BLOCK, decode_content=True):
            file.seek(offset)
            n_again = min(len(block), max(0, have - offset))
            if file.read(n_again) != block[:n_again]:
                part.restart(None)
                raise AnswerError("its bytes differ from those already here; starting over")
            file.write(block[n_again:])
            file.flush()
            if n_mb := (offset + len(block)) // MB - offset // MB:
                advance(n_mb)
            offset += len(block)
            pace.check(offset)
        os.fsync(file.fileno())
    return offset
