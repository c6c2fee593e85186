"""Files that appear whole or not at all, locks, fingerprints, seeds."""

import hashlib
import json
import math
import os
import re
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock

from comp.errors import DataError, StoreError, UserError
from comp.progress import Reporter

if TYPE_CHECKING:
    import pandas as pd

PACKED_COMMIT = "COMMIT"


class Workspace:
    """The folders of one competition, real or rehearsed; a rehearsal has a root of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.data = root / "data"
        self.raw = self.data / "raw"
        self.photos = self.data / "photos"
        self.pixels = self.data / "pixels"
        self.features = self.data / "features"
        self.verdicts = self.data / "verdicts.csv"
        self.runs = root / "runs"
        self.submissions = root / "submissions"
        self.ledger = self.submissions / "ledger.csv"

    def manifest(self, split: str) -> Path:
        """`data/train.csv` or `data/test.csv`."""
        return self.data / f"{split}.csv"


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A scratch path beside `path` that replaces it if the block succeeds, and vanishes if not.

    A crash leaves the old file or the new one. Where the disk refuses, the OSError names `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        yield scratch
        with scratch.open("rb") as written:
            os.fsync(written.fileno())
        scratch.replace(path)
    except Exception as error:
        cause = _disk_error(error, scratch)
        if cause is None:
            raise
        raise OSError(cause.errno, cause.strerror, str(path)) from error
    finally:
        with suppress(OSError):  # such as a name that is too long, which is being raised already
            scratch.unlink(missing_ok=True)


def _disk_error(error: Exception, scratch: Path) -> OSError | None:
    """The file system's error behind a failed write of `scratch`, if there is one.

    Libraries raise errors of their own: without a number, writing a little more shows the cause.
    """
    if isinstance(error, UserError):
        return None
    if isinstance(error, OSError) and error.errno is not None:
        return error if error.filename in (None, str(scratch)) else None
    if number := re.search(r"\(os error (\d+)\)", str(error)):
        return OSError(int(number[1]), os.strerror(int(number[1])))
    try:
        with scratch.open("ab") as file:
            file.write(bytes(2**16))
    except OSError as found:
        return found
    return None


@contextmanager
def locked(path: Path, reporter: Reporter, *, limit_s: float = math.inf) -> Iterator[None]:
    """Holds the lock file `path`, one process at a time; StoreError after `limit_s` of waiting.

    A killed process leaves nothing locked. A folder that cannot be written to needs no lock.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(path.parent, os.W_OK):
        yield
        return
    lock, started = _lock_at(path, reporter), time.monotonic()
    with suppress(filelock.Timeout):
        lock.acquire(blocking=False)
    try:
        if not lock.is_locked:
            reporter.say(f"waiting for another run that is using {path.parent} ({lock.lock_file})")
            lock.acquire(timeout=-1 if limit_s == math.inf else limit_s)
    except filelock.Timeout:
        raise StoreError(
            f"another run has been using {path.parent} for {time.monotonic() - started:,.0f} s:"
            " wait for it or end it, then run this again"
        ) from None
    try:
        yield
    finally:
        lock.release()


def _lock_at(path: Path, reporter: Reporter) -> filelock.BaseFileLock:
    """A lock of the kernel's; where the file system has none, a file that names its process."""
    lock = filelock.FileLock(path, fallback_to_soft=False)
    try:
        with suppress(filelock.Timeout), lock.acquire(blocking=False):
            pass
    except (NotImplementedError, OSError) as error:  # without locks we go on and say so, below
        if getattr(error, "filename", None):  # the file could not be opened
            raise
        reporter.warn("this file system has no locks: use the workspace from one machine at a time")
        return filelock.SoftFileLock(path.with_name(f"{path.name}.held"))
    return lock


def link(source: Path, target: Path) -> None:
    """`target` becomes another name of `source`, or a copy where hard links do not work."""
    try:
        target.hardlink_to(source)
    except FileExistsError:
        raise
    except OSError:
        with whole(target) as scratch:
            shutil.copyfile(source, scratch)


def require_room(folder: Path, n_bytes: int, what: str, remedy: str = "make room") -> str:
    """A line that says how much room `what` takes in `folder`; DataError if there is not enough."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    line = f"{what} take about {n_bytes / 1e9:.2f} GB, {free / 1e9:.2f} GB are free under {folder}"
    if n_bytes > free:
        raise DataError(f"{line}: {remedy}")
    return line


def free_memory(
    meminfo: Path = Path("/proc/meminfo"), limit: Path = Path("/sys/fs/cgroup/memory.max")
) -> int | None:
    """Bytes that Linux calls available, or the container's limit if that is less; None: unknown."""
    text = meminfo.read_text() if meminfo.exists() else ""
    found = [1024 * int(kib) for kib in re.findall(r"MemAvailable:\s+(\d+) kB", text)]
    if limit.exists() and (most := limit.read_text().strip()) != "max":
        found.append(int(most))
    return min(found, default=None)


def write_text(path: Path, text: str) -> None:
    with whole(path) as scratch:
        scratch.write_text(text, encoding="utf-8", newline="")


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(plain(value), indent=2, sort_keys=True) + "\n")


def read_json(path: Path) -> Any:
    """ValueError if `path` is not JSON in UTF-8."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object at `path`; an empty one if it is missing, damaged or cannot be read."""
    with suppress(OSError, ValueError):
        value = read_json(path)
        return value if isinstance(value, dict) else {}
    return {}


def write_table(path: Path, table: "pd.DataFrame") -> None:
    """`table` as CSV with `\\n` line ends and floats that read back bit for bit."""
    write_text(path, table.to_csv(index=False, lineterminator="\n"))


def plain(value: Any) -> Any:
    """`value` as JSON types; dataclasses become objects that name their type."""
    if is_dataclass(value) and not isinstance(value, type):
        return {"type": type(value).__name__} | {
            item.name: plain(getattr(value, item.name)) for item in fields(value)
        }
    if hasattr(value, "model_dump"):  # options
        return value.model_dump(mode="json")
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def fingerprint(*parts: Any) -> str:
    """Ten hexadecimal digits that change when any of `parts` does."""
    text = json.dumps(plain(parts), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def derive_seed(root: int, *purpose: object) -> int:
    """A seed in [0, 2**63) of its own for each `purpose`, such as ("augment", fold, epoch)."""
    text = repr((root, *map(str, purpose)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 1


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def code_commit(folder: Path) -> str:
    """The git commit of the code in `folder`, with "-dirty" if files differ from it; or "none".

    Code that was packed for another machine has it in a file.
    """
    if (packed := folder / PACKED_COMMIT).exists():
        return packed.read_text(encoding="utf-8")
    git, answers = ["git", "-C", str(folder)], []
    try:
        for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--", "."]):
            command = [*git, *words]
            answers.append(subprocess.check_output(command, stderr=subprocess.DEVNULL, timeout=60))
    except (OSError, subprocess.SubprocessError):
        return "none"
    commit, changes = answers
    return commit.decode().strip() + ("-dirty" if changes.strip() else "")
