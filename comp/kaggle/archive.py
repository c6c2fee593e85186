"""The competition's archive: downloaded, verified, and whole or not there.

<slug>.zip             complete; the CRCs of its members have been checked
<slug>.zip.json        which version on the server it is
<slug>.zip.part        what has arrived so far
<slug>.zip.part.json   which version on the server it is a part of
"""

import struct
import time
import zipfile
import zlib
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from comp.errors import ArchiveError, UnavailableError
from comp.kaggle.download import BLOCK, MB, Archive, Version, receive, refuse_pages
from comp.store import locked, write_json

if TYPE_CHECKING:
    from comp.kaggle.client import Kaggle

N_DOWNLOADS = 2  # that arrive corrupt before we believe that the server's archive is
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
    """The version that the server has now, from the head of a download that is not read."""

    def look() -> Version:
        with kaggle.session.archive({"Accept-Encoding": "identity"}) as response:
            refuse_pages(response.headers)
            return Version.of(response.headers)

    return kaggle.retried(look)


def zip_problem(path: Path) -> str:
    """What is wrong with a zip: "" if its structure and the CRC of every member are right."""
    name = "it"
    try:
        with zipfile.ZipFile(path) as outer:
            for member in outer.infolist():
                name = f"its member {member.filename!r}"
                with outer.open(member) as content:
                    while content.read(BLOCK):
                        pass
    except ZIP_DAMAGE as error:
        return f"{name} is corrupt ({error or type(error).__name__})"
    return ""


def _is_current(archive: Archive, kaggle: "Kaggle") -> bool:
    """Whether the archive is what the server has. Without validators, its length decides."""
    name, size = archive.path.name, archive.n_bytes
    here, there = archive.version() if archive.is_checked() else None, remote_version(kaggle)
    here_is = f"{name} is here ({size / MB:,.1f} MB)"
    if here and here.validator and there.validator:
        if here.validator == there.validator and there.length in (None, size):
            kaggle.reporter.say(f"{here_is} and is what the server has")
            return True
    elif there.length == size and not zip_problem(archive.path):
        write_json(archive.note, asdict(there))
        kaggle.reporter.say(f"{here_is}, is intact and as long as what the server has")
        return True
    kaggle.reporter.warn(f"{here_is} but is not what the server has; downloading that")
    return False


def _fetch_intact(part: Archive, kaggle: "Kaggle") -> Version:
    """Completes the part and checks it as a zip; once more if it is corrupt."""
    name = part.path.stem
    for n_left in reversed(range(N_DOWNLOADS)):
        version = _fetch(part, kaggle)
        problem = zip_problem(part.path)
        if not problem:
            return version
        part.restart(None)
        if n_left:
            kaggle.reporter.warn(f"{name} is complete, but {problem}; downloading it once more")
    times = f"{name} arrived {N_DOWNLOADS} times, but {problem}"
    raise ArchiveError(f"{times}; nothing of it is kept: try again later")


def _fetch(part: Archive, kaggle: "Kaggle") -> Version:
    """Tries until the part is complete. The count starts anew when it is longer than ever."""
    longest = part.n_bytes

    def try_once() -> Version | None:
        """None if the part has grown but is not complete."""
        nonlocal longest
        try:
            with kaggle.session.archive(part.request_headers()) as response:
                return receive(response, part, kaggle.reporter)
        except UnavailableError as error:
            if part.n_bytes <= longest:
                raise
            longest = part.n_bytes
            kaggle.reporter.warn(f"{error} after {longest / MB:,.1f} MB; going on from there")
            return None

    try:
        while (version := kaggle.retried(try_once)) is None:
            time.sleep(kaggle.patience.wait_first_s)
    except UnavailableError as error:
        kept = f"{part.n_bytes / MB:,.1f} MB are kept, and the next run goes on from there"
        raise UnavailableError(f"{error}; {kept if part.n_bytes else 'nothing arrived'}") from None
    return version
