"""Files that appear whole or not at all, locks, fingerprints, seeds."""

import errno
import hashlib
import json
import math
import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock

from comp.errors import DataError, StoreError
from comp.progress import Reporter

if TYPE_CHECKING:
    import pandas as pd

NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP)  # what flock says on some network folders


@dataclass(frozen=True, slots=True)
class Workspace:
    """The folders of one competition, real or rehearsed; a rehearsal has a root of its own."""

    root: Path

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def raw(self) -> Path:
        return self.data / "raw"

    @property
    def photos(self) -> Path:
        return self.data / "photos"

    @property
    def pixels(self) -> Path:
        return self.data / "pixels"

    @property
    def features(self) -> Path:
        return self.data / "features"

    @property
    def verdicts(self) -> Path:
        return self.data / "verdicts.csv"

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    @property
    def submissions(self) -> Path:
        return self.root / "submissions"

    @property
    def ledger(self) -> Path:
        return self.submissions / "ledger.csv"

    def manifest(self, split: str) -> Path:
        """`data/train.csv` or `data/test.csv`."""
        return self.data / f"{split}.csv"


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A scratch path beside `path` that replaces it if the block succeeds, and vanishes if not.

    The bytes reach the disk before the name does, so that a crash leaves the old file or the new
    one, never a piece.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        yield scratch
        with scratch.open("rb") as written:
            os.fsync(written.fileno())
        scratch.replace(path)
    except OSError as error:  # a full disk: numpy gives no number, and Python no name
        number, cause = error.errno or errno.ENOSPC, error.strerror or str(error)
        raise OSError(number, cause, str(path)) from error
    finally:
        scratch.unlink(missing_ok=True)


@contextmanager
def locked(path: Path, reporter: Reporter, *, limit_s: float = math.inf) -> Iterator[None]:
    """Holds the lock file `path`: one process at a time. A killed process leaves nothing locked.

    Says so when it has to wait. StoreError after `limit_s`, or where the file system has no locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path, fallback_to_soft=False)
    started = time.monotonic()
    try:
        try:
            lock.acquire(blocking=False)
        except filelock.Timeout:
            reporter.say(f"waiting for another run that is using {path.parent}")
            lock.acquire(timeout=-1 if limit_s == math.inf else limit_s)
    except filelock.Timeout:
        raise StoreError(
            f"another run has been using {path.parent} for {time.monotonic() - started:,.0f} s:"
            " wait for it or end it, then run this again"
        ) from None
    # without flock filelock raises NotImplementedError, the kernel one of NO_LOCKS
    except (NotImplementedError, OSError) as error:
        if getattr(error, "errno", errno.ENOSYS) not in NO_LOCKS:
            raise
        raise StoreError(
            f"the file system of {path.parent} has no file locks: use a local folder"
        ) from None
    try:
        yield
    finally:
        lock.release()


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


def write_text(path: Path, text: str) -> None:
    with whole(path) as scratch:
        scratch.write_text(text, encoding="utf-8", newline="")


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(plain(value), indent=2, sort_keys=True) + "\n")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


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
    """The git commit of the code in `folder`, with "-dirty" if files differ from it; or "none"."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(folder), *words]
        return subprocess.check_output(
            command, stderr=subprocess.DEVNULL, text=True, timeout=60
        ).strip()

    try:
        commit = git("rev-parse", "HEAD")
        return f"{commit}-dirty" if git("status", "--porcelain", "--", ".") else commit
    except (OSError, subprocess.SubprocessError):
        return "none"
