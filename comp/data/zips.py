"""Zip archives that nobody vouches for: opened, looked through and read without trusting a name, a size or a checksum in them."""

import io
import os
import re
import stat
import struct
import tempfile
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from comp.errors import ArchiveError

MAX_RATIO = 100  # unpacked to packed; JPEGs have 1, text 3 to 10, deflate's limit is 1,032
FREE_BYTES = (
    2**20
)  # members this small may have any ratio: ten thousand of them are 10 GB, which the limit on the total sees
PIECE_BYTES = 2**20
JUNK = re.compile(
    r"(^|/)(__MACOSX(/|$)|\.DS_Store$|\._[^/]*$|Thumbs\.db$|desktop\.ini$)", re.IGNORECASE
)

_BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    RuntimeError,
    ValueError,
    OverflowError,
)  # what zipfile raises for damage


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What an archive may hold at most; beyond it it is not what it says."""

    n_members: int
    member_bytes: int
    total_bytes: int


@contextmanager
def opened(file: Path | IO[bytes], name: str) -> Iterator[zipfile.ZipFile]:
    """The archive, called `name` in errors."""
    with _trusting_nothing(name):
        archive = zipfile.ZipFile(file)
        if min((info.header_offset for info in archive.infolist()), default=0):
            # Of an archive that lost its end zipfile finds the directory of a stored archive within it, and is content.
            archive.close()
            raise zipfile.BadZipFile("it does not begin with its first member")
    with archive:
        yield archive


@contextmanager
def _trusting_nothing(name: str) -> Iterator[None]:
    """Turns what zipfile raises for damage into one line about `name`."""
    try:
        yield
    except FileNotFoundError as error:
        raise ArchiveError(f"{name} is not there: run `make data`") from error
    except _BROKEN as error:
        raise ArchiveError(
            f"{name} is cut or corrupt ({' '.join(str(error).split())}): delete it and run `make data` again"
        ) from error


def members(
    archive: zipfile.ZipFile, name: str, packed_bytes: int, limits: Limits
) -> tuple[list[zipfile.ZipInfo], list[str]]:
    """The files in an archive of `packed_bytes`, junk and folders aside, and the names of the junk. Refuses what no honest archive has."""
    infos = archive.infolist()
    faults = _crowd_faults(infos, packed_bytes, limits)
    seen: dict[str, str] = {}
    for info in infos:
        fault = _name_fault(info.orig_filename) or _kind_fault(info) or _size_fault(info, limits)
        key = unicodedata.normalize("NFC", info.filename.rstrip("/")).casefold()
        if key in seen:
            fault = fault or (
                f"the same name as {seen[key]!r}"
                if seen[key] == info.filename
                else f"differs from {seen[key]!r} only by case"
            )
        seen[key] = info.filename
        if fault:
            faults.append(f"member {info.orig_filename[:80]!r}: {fault}")
    if faults:
        raise ArchiveError(
            f"{name} is refused for {_count(len(faults), 'fault')}, the first: {faults[0]}; get it from Kaggle again"
        )
    junk = [info.filename for info in infos if JUNK.search(info.filename)]
    return [info for info in infos if not info.is_dir() and not JUNK.search(info.filename)], junk


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def _crowd_faults(infos: list[zipfile.ZipInfo], packed_bytes: int, limits: Limits) -> list[str]:
    total = sum(info.file_size for info in infos)
    faults = {
        f"{len(infos):,} members, more than {limits.n_members:,}": len(infos) > limits.n_members,
        f"{total:,} bytes unpacked, more than {limits.total_bytes:,}": total > limits.total_bytes,
        "members that share their bytes": sum(info.compress_size for info in infos) > packed_bytes,
    }
    return [fault for fault, found in faults.items() if found]


def _name_fault(name: str) -> str | None:
    """What is wrong with a member's name, as it stands in the archive and before zipfile mends it."""
    parts = name.removesuffix("/").split("/")
    if not name or "\\" in name or any(ord(letter) < 32 or letter == "\x7f" for letter in name):
        return "a name with backslashes or control characters, or none"
    if name.startswith("/") or re.match(r"[A-Za-z]:", name):
        return "an absolute path"
    if any(part in ("", ".", "..") for part in parts):
        return "a path that leaves its folder"
    return None


def _kind_fault(info: zipfile.ZipInfo) -> str | None:
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "a link" if kind == stat.S_IFLNK else "neither a file nor a folder"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "a packing method of which zipfile inflates without a limit"
    return "encrypted" if info.flag_bits & 1 else None


def _size_fault(info: zipfile.ZipInfo, limits: Limits) -> str | None:
    if info.file_size > limits.member_bytes:
        return f"{info.file_size:,} bytes unpacked, more than {limits.member_bytes:,}"
    if info.file_size > FREE_BYTES and info.file_size > MAX_RATIO * info.compress_size:
        return f"{info.file_size:,} bytes packed into {info.compress_size:,}, as no photo can be"
    return None


def pieces(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str) -> Iterator[bytes]:
    """The bytes of a member of the archive `name`, never more than it declares; its end comes only if length and CRC are right."""
    n_left = info.file_size
    with _trusting_nothing(name):
        file = archive.open(info)
    with file:
        while n_left:
            with _trusting_nothing(name):
                piece = file.read(
                    min(n_left, PIECE_BYTES)
                )  # never read(): that inflates first and looks at the declared size later
                if not piece:
                    raise zipfile.BadZipFile(f"{info.filename} ends {n_left:,} bytes early")
            n_left -= len(piece)
            yield piece


@contextmanager
def inner(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str, scratch: Path
) -> Iterator[zipfile.ZipFile]:
    """An archive within the archive `name`, its CRC checked.

    Stored, as Kaggle's are, it is read where it lies; only a deflated one is unpacked, into a nameless file in the folder `scratch`.
    """
    with (
        tempfile.TemporaryFile(dir=scratch)
        if info.compress_type
        else Path(str(archive.filename)).open("rb") as file
    ):
        for piece in pieces(archive, info, name):
            if info.compress_type:
                file.write(piece)
        start = 0 if info.compress_type else _data_start(file, info)
        with opened(
            io.BufferedReader(_Window(file, start, info.file_size)), f"{info.filename} in {name}"
        ) as found:
            yield found


def _data_start(file: IO[bytes], info: zipfile.ZipInfo) -> int:
    file.seek(info.header_offset + 26)
    n_name, n_extra = struct.unpack("<HH", file.read(4))
    return info.header_offset + 30 + int(n_name) + int(n_extra)


class _Window(io.RawIOBase):
    """Part of an open file, as a file of its own."""

    def __init__(self, file: IO[bytes], start: int, length: int) -> None:
        file.flush()
        self._file, self._start, self._length, self._at = file, start, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(
            0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._length}[whence]
        )
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # any buffer will do; io only ever passes a memoryview
        n_wanted = max(0, min(len(buffer), self._length - self._at))
        data = os.pread(self._file.fileno(), n_wanted, self._start + self._at)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)
