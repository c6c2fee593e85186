"""submissions/ledger.csv, one row a submission. It is in git and may be edited by hand."""

import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from comp.errors import SubmissionError
from comp.progress import Reporter
from comp.store import locked, write_table

if TYPE_CHECKING:
    from comp.kaggle import Submission


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerRow:
    """One submission; the fields are the columns, in order. An unknown number is None (empty)."""

    when: str = ""  # of the upload: UTC, ISO 8601, to the second
    file: str  # name under submissions/
    sha256: str  # of the file
    recipe: str
    fingerprint: str  # of the recipe, as in the name of the run's folder
    commit: str  # of the submitting code, "-dirty" if comp/ was edited, "none" outside a repository
    cv_raw: float | None  # out-of-fold log loss of sigmoid(logit)
    cv_calibrated: float | None  # the same with the cross-fitted calibration
    cv_clipped: float | None  # and with noise rate and clip
    public_score: float | None = None  # log loss on the public leaderboard
    private_score: float | None = None  # on the private one, which Kaggle shows after the deadline
    status: str = "pending"  # pending | complete | error
    ref: int | None = None  # Kaggle's number of the submission
    message: str  # as uploaded; ends with the first 12 digits of sha256


LEDGER_COLUMNS = tuple(field.name for field in fields(LedgerRow))
_FLOATS = ("cv_raw", "cv_calibrated", "cv_clipped", "public_score", "private_score")
_NUMBERS: dict[str, type[float]] = {"ref": int, **dict.fromkeys(_FLOATS, float)}


def read_ledger(path: Path, reporter: Reporter | None = None) -> list[LedgerRow]:
    """All rows, oldest first; warns of damaged ones. SubmissionError if it is not a ledger."""

    def remark(what: str) -> None:
        if reporter:
            reporter.warn(f"{path.name} line {what} and is ignored")

    rows = []
    for line, cells in enumerate(_read_cells(path).to_dict("records"), 2):
        if not any(cells.values()):
            continue
        if not cells["sha256"]:
            remark(f"{line} has no sha256")
            continue
        values = {column: cells[column] for column in LEDGER_COLUMNS}
        for column, kind in _NUMBERS.items():
            values[column] = _number(cells[column], kind)
            if cells[column] and values[column] is None:
                remark(f"{line}: {column} {cells[column]!r} is not a number")
        rows.append(LedgerRow(**values))
    return rows


def score_text(scored: "LedgerRow | Submission") -> str:
    """The public score, and the private one if it is known."""
    private = "" if scored.private_score is None else f", private {scored.private_score:.5f}"
    return "-" if scored.public_score is None else f"{scored.public_score:.5f}{private}"


def write_row(path: Path, row: LedgerRow, reporter: Reporter) -> None:
    """Append `row`, or update status and scores of the row that has its `ref` already.

    The text of all other cells stays, columns added by hand included. Concurrent writers wait.
    """
    cells = {
        column: "" if value is None else " ".join(str(value).split())
        for column, value in asdict(row).items()
    }
    with locked(path.with_name(f".{path.name}.lock"), reporter):
        table = _read_cells(path)
        known = (table["ref"] == cells["ref"]) & (table["ref"] != "")
        if known.any():
            for column in ("status", "public_score", "private_score"):
                table.loc[known, column] = cells[column]
        else:
            table = pd.concat([table, pd.DataFrame([cells])], ignore_index=True)
        write_table(path, table)


def _read_cells(path: Path) -> pd.DataFrame:
    """Every cell as text, under the file's own header."""
    if not path.exists() or not path.read_bytes().strip():
        return pd.DataFrame(columns=list(LEDGER_COLUMNS), dtype=str)
    try:
        table = pd.read_csv(
            path, header=None, dtype=str, keep_default_na=False, skip_blank_lines=False
        ).map(str.strip)
    except ValueError as error:  # of pandas' parser, or bytes that are not UTF-8
        cause = " ".join(str(error).split())
        raise SubmissionError(
            f"{path.name} cannot be read ({cause}): correct it, or restore it from git"
        ) from None
    header = table.iloc[0].tolist()
    missing = [name for name in LEDGER_COLUMNS if name not in header]
    if missing:
        raise SubmissionError(
            f"{path.name} has no column {', '.join(missing)}: correct its first line,"
            " or restore the file from git"
        )
    return table[1:].set_axis(header, axis="columns").reset_index(drop=True)


def _number(text: str, kind: type[float]) -> float | None:
    try:
        value = kind(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
