"""Archives from an untrusted source: no name, size or checksum in them is taken on trust."""

import os
import re
import stat
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from comp.errors import ArchiveError
from comp.progress import counted

MAX_RATIO = 10  # unpacked to packed bytes: JPEGs have 1, text 3 to 10, deflate's limit is 1,032
FREE_BYTES = 4 * 2**20  # may be unpacked whatever the ratio
MIN_BYTES = 500  # of an archive for each member: an empty one takes about 110, a photo 20,000
FREE_MEMBERS = 1000  # may be there whatever their size
PIECE_BYTES = 2**20
GET_AGAIN = "delete it and run `make data`, or get it from Kaggle again"
JUNK = re.compile(r"(?i)(^|/)(__MACOSX(/|$)|\.DS_Store$|\._[^/]*$|Thumbs\.db$|desktop\.ini$)")
BAD_PATH = re.compile(r"/|[A-Za-z]:|(.*/)?\.{0,2}(/|$)|.*[\\\x00-\x1f\x7f]", re.DOTALL)
_DAMAGE: tuple[type[Exception], ...] = (zipfile.BadZipFile, zlib.error, struct.error, EOFError)
_DAMAGE += (RuntimeError, ValueError, OverflowError)  # zipfile raises these too


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
    except _DAMAGE as error:
        reason = " ".join(str(error).split())
        raise ArchiveError(f"{name} is cut or corrupt ({reason}): {GET_AGAIN}") from error


def list_members(
    archive: zipfile.ZipFile, name: str, most_members: int, most_each: int
) -> tuple[list[zipfile.ZipInfo], list[str]]:
    """The files in the archive `name`, without junk, and the names of the junk.

    ArchiveError if anything in the directory is hostile, or more than can be in as many bytes, than
    `most_members`, or than `most_each` bytes of one member.
    """
    infos, packed_bytes = archive.infolist(), archive.fp.seek(0, os.SEEK_END) if archive.fp else 0
    n_packed, n_bytes = sum(i.compress_size for i in infos), sum(i.file_size for i in infos)
    most_members = min(most_members, FREE_MEMBERS + packed_bytes // MIN_BYTES)
    checks = [
        (len(infos) > most_members, f"{len(infos):,} members, more than {most_members:,}"),
        (n_packed > packed_bytes, "members that share their bytes"),
        _growth(n_bytes, packed_bytes),
    ]
    faults = [fault for is_bad, fault in checks if is_bad]
    seen: dict[str, str] = {}
    for info in infos:
        key = unicodedata.normalize("NFC", info.filename.rstrip("/")).casefold()
        found = [fault for is_bad, fault in _checks(info, most_each, seen.get(key)) if is_bad]
        seen[key] = info.filename
        faults += [f"member {info.orig_filename[:80]!r}: {fault}" for fault in found[:1]]
    if faults:
        n_faults = counted(len(faults), "fault")
        raise ArchiveError(f"{name} is refused for {n_faults}: {faults[0]}; {GET_AGAIN}")
    junk = [info.filename for info in infos if JUNK.search(info.filename)]
    return [info for info in infos if not info.is_dir() and not JUNK.search(info.filename)], junk


def _checks(info: zipfile.ZipInfo, most: int, twin: str | None) -> list[tuple[object, str]]:
    """What no honest member has; its name is as in the archive."""
    kind, size = stat.S_IFMT(info.external_attr >> 16), info.file_size
    is_known = info.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
    return [
        (BAD_PATH.match(info.orig_filename.removesuffix("/")), "a path that no photo has"),
        (kind not in (0, stat.S_IFREG, stat.S_IFDIR), "a link, or neither a file nor a folder"),
        (not is_known, "a compression method that zipfile inflates without a limit"),
        (info.flag_bits & 1, "encrypted"),
        (size > most, f"{size:,} bytes unpacked, more than {most:,}"),
        _growth(size, info.compress_size),
        (twin, f"the same name as {twin!r}, if case is ignored"),
    ]


def _growth(n_bytes: int, packed_bytes: int) -> tuple[bool, str]:
    is_bomb = n_bytes > FREE_BYTES + MAX_RATIO * packed_bytes
    return is_bomb, f"{n_bytes:,} bytes in {packed_bytes:,}, which no photo compresses to"


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
