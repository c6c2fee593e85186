"""`data/train.csv` and `data/test.csv`: one row per photo, in natural order of ids.

id       the photo's name: data/photos/<split>/<id>.jpg
label    1 for the positive class; empty in test.csv
width    of the upright photo, px; 0 if the header cannot be read. The same goes for height
sha256   of the file
phash    perceptual hash, 16 hexadecimal digits; empty for an unusable photo
group    number of the near-duplicate group, shared by both files
fold     0, 1, ...; empty in test.csv and for a training photo that is set aside
verdict  how decoding went (DecodeStatus), one of

    ok           a three-channel JPEG
    grey         a JPEG with one channel, decoded to R = G = B
    cmyk         a JPEG with four channels, converted by Pillow
    rotated      a JPEG that its EXIF orientation turns or mirrors; it is stored upright
    unclosed     a JPEG that lacks its end marker and nothing else
    converted    PNG, GIF, WebP, BMP or TIFF under a .jpg name: the first frame, 16 bits scaled
                 to 8, the palette resolved, transparency over white

    and for photos that cannot be used and get no pixels at all, rather than half of them:

    empty        no bytes
    truncated    cut short, even if an end marker was added after the cut; unnoticed only if the
                 last 16 x 16 px alone are affected, or if it lies between two progressive scans
    huge         more than 50 million pixels by its header, or over a million and 100 for each byte
    undecodable  anything else
"""

import re
from pathlib import Path
from typing import Literal, get_args

import pandas as pd

from comp.errors import DataError
from comp.store import Workspace, write_table

_Usable = Literal["ok", "grey", "cmyk", "rotated", "unclosed", "converted"]
DecodeStatus = Literal[_Usable, "empty", "truncated", "huge", "undecodable"]
USABLE: frozenset[DecodeStatus] = frozenset(get_args(_Usable))
SPLITS = ("train", "test")
ID_PATTERN = r"[^/\\\s,]+"
_CELL_PATTERNS = {
    "id": ID_PATTERN,
    "label": r"[01]?",
    "width": r"0|[1-9]\d{0,9}",
    "height": r"0|[1-9]\d{0,9}",
    "sha256": r"[0-9a-f]{64}",
    "phash": r"(?:[0-9a-f]{16})?",
    "group": r"\d{1,9}",
    "fold": r"\d{0,2}",
    "verdict": "|".join(get_args(DecodeStatus)),
}
MANIFEST_COLUMNS = tuple(_CELL_PATTERNS)
_INTEGERS = {"label": "Int8", "width": "Int64", "height": "Int64", "group": "Int64", "fold": "Int8"}
_REMEDY = "correct it, or delete the file and run `make data`"


def natural_key(id: str) -> tuple[str, str]:
    """Sorts "2" before "10" and "cat.9" before "cat.10"; different ids never compare equal."""
    return re.sub("[0-9]+", lambda number: number[0].zfill(20), id), id


def photo_path(workspace: Workspace, split: str, id: str) -> Path:
    return workspace.photos / split / f"{id}.jpg"


def usable(manifest: pd.DataFrame) -> pd.DataFrame:
    """The rows whose photos can be decoded: the only ones that have pixels."""
    return manifest[manifest["verdict"].isin(USABLE)]


def write_manifest(path: Path, manifest: pd.DataFrame) -> None:
    """Write `manifest` in natural order of ids, checked as `read_manifest` will check it."""
    table = manifest[list(MANIFEST_COLUMNS)].astype("string").fillna("")
    write_table(path, _checked(table.reset_index(drop=True), path))


def read_manifest(path: Path) -> pd.DataFrame:
    """Text as str, the rest as _INTEGERS; in natural order of ids, whatever that of the file."""
    if not path.exists():
        raise DataError(f"{path} does not exist: run `make data`")
    try:
        table = pd.read_csv(path, dtype="string", keep_default_na=False, encoding="utf-8-sig")
    except (ValueError, UnicodeError) as error:
        reason = str(error).partition("\n")[0]
        raise DataError(f"{path} is not a readable CSV ({reason}): {_REMEDY}") from error
    if tuple(table.columns) != MANIFEST_COLUMNS:
        found, wanted = ", ".join(table.columns), ", ".join(MANIFEST_COLUMNS)
        raise DataError(f"{path} has the columns {found[:80]!r}, not {wanted!r}: {_REMEDY}")
    return _checked(table.fillna(""), path)


def _checked(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """`table` of text with the types and the order of `read_manifest`; DataError names a row."""
    if table.empty:
        raise DataError(f"{path} has no rows: {_REMEDY}")
    faults = [  # column, the rows that are wrong, why
        (column, ~table[column].str.fullmatch(pattern), "unexpected values")
        for column, pattern in _CELL_PATTERNS.items()
    ]
    is_usable, is_test = table["verdict"].isin(USABLE), path.stem == "test"
    what = "values, which test photos do not have," if is_test else "missing values"
    faults += [
        ("id", table["id"].duplicated(), "repeated values"),
        ("label", (table["label"] == "") != is_test, what),
        ("width", is_usable & (table["width"] == "0"), "sizes of 0"),
        ("height", is_usable & (table["height"] == "0"), "sizes of 0"),
    ]
    for column, rows, what in faults:
        if rows.any():
            row = int(rows.argmax())
            raise DataError(
                f"{path} has {rows.sum():,} {what} in column {column}, the first is"
                f" {table[column][row]!r} in line {row + 2}: {_REMEDY}"
            )
    if not is_usable.any():
        raise DataError(f"{path}: none of its {len(table):,} photos can be decoded: {_REMEDY}")
    typed = table.replace("", pd.NA).astype(_INTEGERS)
    text = [column for column in MANIFEST_COLUMNS if column not in _INTEGERS]
    typed = typed.assign(**{column: table[column].astype(str) for column in text})
    return typed.sort_values("id", key=lambda ids: ids.map(natural_key), ignore_index=True)
