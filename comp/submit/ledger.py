"""Every submission and what became of it: one line each in submissions/ledger.csv, which is in git and may be edited by hand."""

import csv
import fcntl
import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from comp.errors import SubmissionError
from comp.store import whole

BOM = "\ufeff"


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerRow:
    """One submission; the fields are the columns, in order. A number that is not known is None, and empty in the file."""

    when: str  # of the upload: UTC, ISO 8601, to the second
    file: str  # name under submissions/
    sha256: str  # of the file
    recipe: str
    fingerprint: str  # of the recipe, as in the run's folder name
    commit: str  # of the code that submitted, "-dirty" where comp/ differed from it, "none" outside a repository
    cv_raw: float | None  # out-of-fold log loss of sigmoid(logit)
    cv_calibrated: float | None  # with the cross-fitted temperature
    cv_clipped: float | None  # and noise rate and clip
    public_score: float | None  # the board's log loss
    status: str  # pending | complete | error
    ref: int | None  # Kaggle's number of the submission
    message: str  # as uploaded; ends in the first 12 digits of sha256


COLUMNS = tuple(field.name for field in fields(LedgerRow))
NUMBERS = {
    "cv_raw": float,
    "cv_calibrated": float,
    "cv_clipped": float,
    "public_score": float,
    "ref": int,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """What could be read of the file."""

    rows: tuple[LedgerRow, ...]  # oldest first
    remarks: tuple[str, ...]  # what could not, line by line


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Alone among the processes of this machine that ask for the lock file `path`; the others wait."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # let go by the operating system, however the process ends
        yield


def read_ledger(path: Path) -> Ledger:
    """The ledger's rows. Lines that a hand has damaged are remarked on; a first line without our columns is a SubmissionError."""
    rows, remarks = [], []
    first, *lines = _lines(path)
    header = _header(first, path)
    for number, line in enumerate(lines, 2):
        if line.strip(b",\r\n\t "):
            row, faults = _parsed(header, _cells(line))
            rows += [row] if row else []
            remarks += [f"{path.name} line {number}: {fault}" for fault in faults]
    return Ledger(rows=tuple(rows), remarks=tuple(remarks))


def write_row(path: Path, row: LedgerRow) -> None:
    """Puts `row` in the place of the line with its `ref`, or else at the end. All other bytes of the file stay as they are.

    The file changes whole or not at all, and processes that write at once take turns.
    """
    with locked(path.with_name(f".{path.name}.lock")):
        lines = _lines(path)
        header = _header(lines[0], path)
        place = _place(header, lines, row.ref)
        if place is None:
            lines.append(_renewed(header, b"", row))
        else:
            lines[place] = _renewed(header, lines[place], row)
        with whole(path) as scratch:
            scratch.write_bytes(
                b"".join(line if line.endswith((b"\n", b"\r")) else line + b"\n" for line in lines)
            )


def _lines(path: Path) -> list[bytes]:
    """The lines of the file, the header first. A row of ours has no line break in it, so that a line is a row."""
    content = path.read_bytes() if path.exists() else b""
    return content.splitlines(keepends=True) if content.strip() else [_line(COLUMNS)]


def _header(line: bytes, path: Path) -> list[str]:
    header = [name.strip() for name in _cells(line)]
    missing = [column for column in COLUMNS if column not in header]
    if missing:
        raise SubmissionError(
            f"{path.name} has no column {', '.join(missing)}: mend its first line, or restore the file from git"
        )
    return header


def _cells(line: bytes) -> list[str]:
    text = line.decode("utf-8", "surrogateescape").strip("\r\n").removeprefix(BOM)
    try:
        return next(csv.reader([text]), [])
    except csv.Error:  # a cell beyond csv's size limit
        return [text]


def _line(cells: Sequence[str]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow([" ".join(cell.split()) for cell in cells])
    return text.getvalue().encode("utf-8", "surrogateescape")


def _texts(row: LedgerRow) -> dict[str, str]:
    return {column: "" if value is None else str(value) for column, value in asdict(row).items()}


def _parsed(header: Sequence[str], cells: Sequence[str]) -> tuple[LedgerRow | None, list[str]]:
    """The row, if it can be told which file it is about, and what is wrong with it."""
    named = dict(zip(header, cells, strict=False))
    if not named.get("sha256"):
        return None, ["names no sha256 and is left out"]
    wrong = (
        [] if len(cells) == len(header) else [f"has {len(cells)} cells for {len(header)} columns"]
    )
    values: dict[str, str | float | None] = {
        column: named.get(column, "").strip() for column in COLUMNS
    }
    for column, kind in NUMBERS.items():
        text = str(values[column])
        values[column] = _number(text, kind)
        if text and values[column] is None:
            wrong.append(f"{column} {text!r} is not a number and counts as unknown")
    return LedgerRow(**values), wrong  # type: ignore[arg-type]


def _number(text: str, kind: type[float]) -> float | None:
    try:
        value = kind(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _place(header: Sequence[str], lines: Sequence[bytes], ref: int | None) -> int | None:
    """Where among `lines`, the header not counted, the row with this `ref` stands."""
    for place, line in enumerate(lines[1:], 1):
        row, _ = _parsed(header, _cells(line))
        if row and row.ref is not None and row.ref == ref:
            return place
    return None


def _renewed(header: Sequence[str], line: bytes, row: LedgerRow) -> bytes:
    """`line` with the cells that `row` changes; what a hand has added, or written in its own way, stays."""
    cells = _cells(line)
    cells += [""] * (len(header) - len(cells))
    old, _ = _parsed(header, cells)
    before, after = _texts(old) if old else {}, _texts(row)
    changed = {column: text for column, text in after.items() if text != before.get(column)}
    return _line(
        [changed.get(column, cell) for column, cell in zip(header, cells, strict=False)]
        + cells[len(header) :]
    )
