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

_REMEDY = "get the archive from Kaggle again"


def read_sample(data: bytes, competition: Competition) -> list[str]:
    """The ids in the order of the file. Numeric ids are the same id however they are written:
    1e3, "1000", 1000.0 and 1000.

    A byte order mark, UTF-16, CRLF or CR line ends, quotes, spaces around a cell and blank lines
    make no difference. ArchiveError for anything else that is not a list of ids and numbers.
    """
    name = competition.sample
    header, *rows = _rows(data, name) or [[]]
    if tuple(header) != competition.columns:
        found, wanted = ",".join(header), ",".join(competition.columns)
        raise ArchiveError(f"{name} has the columns {found!r}, not {wanted!r}: {_REMEDY}")
    parse = _numeric_id if competition.numeric_ids else _text_id
    ids, wrong = [], []
    for row in rows:
        if len(row) == 2 and (id := parse(row[0])) and _is_number(row[1]):
            ids.append(id)
        else:
            wrong.append(",".join(row)[:80])
    if wrong:
        raise ArchiveError(
            f"{name} has {len(wrong):,} lines that are not an id and a number,"
            f" the first is {wrong[0]!r}: {_REMEDY}"
        )
    twice = [id for id, n in Counter(ids).items() if n > 1]
    if twice:
        raise ArchiveError(
            f"{name} has {len(twice):,} ids more than once, the first is {twice[0]}: {_REMEDY}"
        )
    if not ids:
        raise ArchiveError(f"{name} has no ids: {_REMEDY}")
    return ids


def write_sample(ids: list[str], competition: Competition) -> str:
    """The sample submission in its plain form: LF, no quotes, ids as the photos are named."""
    rows = [competition.columns, *((id, "0.5") for id in ids)]
    return "".join(f"{first},{second}\n" for first, second in rows)


def _rows(data: bytes, name: str) -> list[list[str]]:
    """The cells of all lines that are not blank, without the spaces around them."""
    try:
        text = data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
        rows = list(csv.reader(io.StringIO(text, newline=None), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ArchiveError(f"{name} is not a readable CSV ({error}): {_REMEDY}") from error
    stripped = ([cell.strip() for cell in row] for row in rows)
    return [row for row in stripped if any(row)]


def _numeric_id(cell: str) -> str | None:
    """The number in its plain form; None unless it is whole, not negative and below 10**18."""
    if not re.fullmatch(r"[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]{1,2})?", cell):
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
