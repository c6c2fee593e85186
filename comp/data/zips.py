"""Zip archives from an untrusted source: no name, size or checksum in them is taken on trust."""

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

MAX_RATIO = 100  # unpacked to packed bytes: JPEGs have 1, text 3 to 10, deflate's limit is 1,032
FREE_BYTES = 2**20  # members up to this size may have any ratio; the limit on the total still holds
PIECE_BYTES = 2**20
JUNK = re.compile(
    r"(^|/)(__MACOSX(/|$)|\.DS_Store$|\._[^/]*$|Thumbs\.db$|desktop\.ini$)", re.IGNORECASE
)
_DAMAGE = (  # what zipfile raises for damaged archives
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    RuntimeError,
    ValueError,
    OverflowError,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ZipLimits:
    """The most that an honest archive can contain."""

    n_members: int
    member_bytes: int
    total_bytes: int


@contextmanager
def open_zip(file: Path | IO[bytes], name: str) -> Iterator[zipfile.ZipFile]:
    """The archive, called `name` in errors."""
    with _damage_as_error(name):
        archive = zipfile.ZipFile(file)
        if min((info.header_offset for info in archive.infolist()), default=0):
            # If an archive lost its end, zipfile takes the directory of a zip stored inside it.
            archive.close()
            raise zipfile.BadZipFile("it does not begin with its first member")
    with archive:
        yield archive


@contextmanager
def _damage_as_error(name: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise ArchiveError(f"{name} does not exist: run `make data`") from error
    except _DAMAGE as error:
        reason = " ".join(str(error).split())
        raise ArchiveError(
            f"{name} is cut or corrupt ({reason}): delete it and run `make data` again"
        ) from error


def list_members(
    archive: zipfile.ZipFile, name: str, packed_bytes: int, limits: ZipLimits
) -> tuple[list[zipfile.ZipInfo], list[str]]:
    """The files in an archive of `packed_bytes`, without junk, and the names of the junk.

    ArchiveError if anything in the directory is hostile or beyond `limits`.
    """
    infos = archive.infolist()
    faults = _total_faults(infos, packed_bytes, limits)
    seen: dict[str, str] = {}
    for info in infos:
        fault = _fault(info, limits)
        key = unicodedata.normalize("NFC", info.filename.rstrip("/")).casefold()
        if key in seen:
            fault = fault or f"the same name as {seen[key]!r}, if case is ignored"
        seen[key] = info.filename
        if fault:
            faults.append(f"member {info.orig_filename[:80]!r}: {fault}")
    if faults:
        count = "1 fault" if len(faults) == 1 else f"{len(faults):,} faults, the first"
        raise ArchiveError(f"{name} is refused for {count}: {faults[0]}; get it from Kaggle again")
    junk = [info.filename for info in infos if JUNK.search(info.filename)]
    return [info for info in infos if not info.is_dir() and not JUNK.search(info.filename)], junk


def _total_faults(infos: list[zipfile.ZipInfo], packed_bytes: int, limits: ZipLimits) -> list[str]:
    n, total = len(infos), sum(info.file_size for info in infos)
    shared = sum(info.compress_size for info in infos) > packed_bytes
    faults = [
        (n > limits.n_members, f"{n:,} members, more than {limits.n_members:,}"),
        (total > limits.total_bytes, f"{total:,} bytes, more than {limits.total_bytes:,}"),
        (shared, "members that share their bytes"),
    ]
    return [fault for found, fault in faults if found]


def _fault(info: zipfile.ZipInfo, limits: ZipLimits) -> str | None:
    """The first thing about a member that no honest one has; its name is as in the archive."""
    name, kind = info.orig_filename, stat.S_IFMT(info.external_attr >> 16)
    parts = name.removesuffix("/").split("/")
    is_known = info.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
    size, most, packed = info.file_size, limits.member_bytes, info.compress_size
    is_bomb = size > FREE_BYTES and size > MAX_RATIO * packed
    faults = [
        (
            not name or re.search(r"[\\\x00-\x1f\x7f]", name),
            "an empty name, backslashes or control characters",
        ),
        (re.match(r"/|[A-Za-z]:", name), "an absolute path"),
        ({"", ".", ".."} & set(parts), "a path that leaves its folder"),
        (kind == stat.S_IFLNK, "a link"),
        (kind not in (0, stat.S_IFREG, stat.S_IFDIR), "neither a file nor a folder"),
        (not is_known, "a compression method that zipfile inflates without a limit"),
        (info.flag_bits & 1, "encrypted"),
        (size > most, f"{size:,} bytes unpacked, more than {most:,}"),
        (is_bomb, f"{size:,} bytes in {packed:,}, which no photo compresses to"),
    ]
    return next((fault for found, fault in faults if found), None)


def read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str) -> Iterator[bytes]:
    """The bytes of a member of the archive `name` in pieces, never more than it declares.

    ArchiveError, at the latest after the last piece, if the length or the CRC is wrong.
    """
    n_left = info.file_size
    with _damage_as_error(name):
        file = archive.open(info)
    with file:
        while n_left:
            with _damage_as_error(name):
                # Not read(), which inflates everything before it compares the declared size.
                piece = file.read(min(n_left, PIECE_BYTES))
                if not piece:
                    raise zipfile.BadZipFile(f"{info.filename} ends {n_left:,} bytes early")
            n_left -= len(piece)
            yield piece


@contextmanager
def open_inner_zip(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str, scratch: Path
) -> Iterator[zipfile.ZipFile]:
    """An archive inside the archive `name`, copied to a nameless file in the folder `scratch`."""
    with tempfile.TemporaryFile(dir=scratch) as file:
        file.writelines(read_member(archive, info, name))
        with open_zip(file, f"{info.filename} in {name}") as inner:
            yield inner
