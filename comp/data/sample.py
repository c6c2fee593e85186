"""Kaggle's sample submission: which ids to predict, in which order."""

import csv
import io
import math
import re
from collections import Counter
from decimal import Decimal

from comp.competition import Competition
from comp.data.manifest import ID_PATTERN
from comp.errors import ArchiveError


def read_sample(
    data: bytes, competition: Competition, remedy: str = "run `make data`"
) -> list[str]:
    """The ids in the order of the file. Numeric ids are the same id however they are written:
    1e3, "1000", 1000.0 and 1000; but not 01000, which is no number that Kaggle writes.

    A byte order mark, UTF-16, CRLF or CR line ends, quotes, spaces around a cell and blank lines
    make no difference. ArchiveError for anything else that is not a list of ids and numbers.
    """
    try:
        text = data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
        rows = list(csv.reader(io.StringIO(text, newline=None), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ArchiveError(
            f"{competition.sample} is not a readable CSV ({error}): {remedy}"
        ) from error
    stripped = ([cell.strip() for cell in row] for row in rows)
    header, *rows = [row for row in stripped if any(row)] or [[]]
    parse = _numeric_id if competition.numeric_ids else _text_id
    ids = [parse(row[0]) if len(row) == 2 and _is_number(row[1]) else None for row in rows]
    wrong = [",".join(row)[:80] for id, row in zip(ids, rows, strict=True) if id is None]
    twice = [id for id, n in Counter(ids).items() if n > 1]
    problem = None
    if tuple(header) != competition.columns:
        found, wanted = ",".join(header), ",".join(competition.columns)
        problem = f"the columns {found[:80]!r}, not {wanted!r}"
    elif wrong:
        problem = f"lines without an id and a number ({len(wrong):,}), the first {wrong[0]!r}"
    elif twice:
        problem = f"ids more than once ({len(twice):,}), the first is {twice[0]}"
    elif not ids:
        problem = "no ids"
    if problem:
        raise ArchiveError(f"{competition.sample} has {problem}: {remedy}")
    return [id for id in ids if id is not None]


def write_sample(ids: list[str], competition: Competition) -> str:
    """The sample submission in its plain form: LF, no quotes, ids as the photos are named."""
    rows = [competition.columns, *((id, "0.5") for id in ids)]
    return "".join(f"{first},{second}\n" for first, second in rows)


def _numeric_id(cell: str) -> str | None:
    """The number in its plain form; None unless it is whole, not negative and below 10**18."""
    if not re.fullmatch(r"(0|[1-9][0-9]*)(\.[0-9]*)?([eE][+-]?[0-9]{1,2})?", cell):
        return None
    number = Decimal(cell)
    return str(int(number)) if number < 10**18 and number == int(number) else None


def _text_id(cell: str) -> str | None:
    return cell if re.fullmatch(ID_PATTERN, cell) else None


def _is_number(cell: str) -> bool:
    try:
        return math.isfinite(float(cell))
    except ValueError:
        return False
