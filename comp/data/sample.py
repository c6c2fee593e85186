"""Kaggle's sample submission: which ids to predict, in which order."""

import csv
import io
import math
import re
from collections import Counter
from decimal import Decimal, InvalidOperation

from comp.competition import Competition
from comp.errors import ArchiveError

REMEDY = "get the archive from Kaggle again"


def read_sample(data: bytes, competition: Competition) -> list[str]:
    """The ids in the order of the file, as the photos are called: 1e3, "1000", 1000.0 and 1000 are the same id.

    A byte order mark, CRLF or CR line ends, quotes, spaces around a cell and blank lines make no difference; nonsense is refused.
    """
    rows = _rows(data, competition.sample)
    header = tuple(cell.strip() for cell in rows[0]) if rows else ()
    if header != competition.columns:
        raise ArchiveError(
            f"{competition.sample} has the columns {','.join(header)!r}, not {','.join(competition.columns)!r}: {REMEDY}"
        )
    wrong = [
        row for row in rows[1:] if len(row) != 2 or _id(row[0]) is None or not _is_number(row[1])
    ]
    if wrong:
        line = ",".join(wrong[0])[:80]
        raise ArchiveError(
            f"{competition.sample} has {len(wrong):,} lines that are no id and number, the first is {line!r}: {REMEDY}"
        )
    ids = [id for row in rows[1:] if (id := _id(row[0]))]
    twice = [id for id, n in Counter(ids).items() if n > 1]
    if twice:
        raise ArchiveError(
            f"{competition.sample} names {len(twice):,} ids more than once, the first is {twice[0]}: {REMEDY}"
        )
    if not ids:
        raise ArchiveError(f"{competition.sample} names no id: {REMEDY}")
    return ids


def write_sample(ids: list[str], competition: Competition) -> str:
    """The sample submission in its plain form: LF, no quotes, ids as the photos are called."""
    return "".join(
        f"{first},{second}\n"
        for first, second in [competition.columns, *((id, "0.5") for id in ids)]
    )


def _rows(data: bytes, name: str) -> list[list[str]]:
    try:
        text = data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
        rows = list(csv.reader(io.StringIO(re.sub(r"\r\n?", "\n", text)), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ArchiveError(f"{name} is not a readable CSV ({error}): {REMEDY}") from error
    return [row for row in rows if any(cell.strip() for cell in row)]


def _id(cell: str) -> str | None:
    """The id in its plain form; None if this is none. A number is whole, positive and of at most 18 digits, however it is written."""
    try:
        number = (
            Decimal(cell.strip())
            if re.fullmatch(r"[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]{1,2})?", cell.strip())
            else Decimal("NaN")
        )
    except InvalidOperation:
        return None
    whole = number.is_finite() and 0 <= number < 10**18 and number == int(number)
    return str(int(number)) if whole else None


def _is_number(cell: str) -> bool:
    try:
        return math.isfinite(float(cell))
    except ValueError:
        return False
