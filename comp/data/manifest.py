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
    converted    PNG, GIF, WebP, BMP or TIFF under a .jpg name: the first frame, 16 bits scaled
                 to 8, the palette resolved, transparency over white

    and for photos that cannot be used and get no pixels at all, rather than half of them:

    empty        no bytes
    truncated    cut short, even if an end-of-image marker was added after the cut. Not noticed only
                 if no more than the last block of 16 x 16 px is affected, or if a progressive JPEG
                 was cut exactly between two scans
    huge         more than 50 million pixels according to its header; not decoded
    undecodable  anything else
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, get_args

import pandas as pd

from comp.errors import DataError
from comp.store import Workspace, write_table

DecodeStatus = Literal[
    "ok", "grey", "cmyk", "rotated", "converted", "empty", "truncated", "huge", "undecodable"
]
USABLE: frozenset[DecodeStatus] = frozenset({"ok", "grey", "cmyk", "rotated", "converted"})
SPLITS = ("train", "test")
ID_PATTERN = r"[^/\\\s,]+"
_CELL_PATTERNS = {
    "id": ID_PATTERN,
    "label": r"[01]?",
    "width": r"\d{1,10}",
    "height": r"\d{1,10}",
    "sha256": r"[0-9a-f]{64}",
    "phash": r"(?:[0-9a-f]{16})?",
    "group": r"\d{1,9}",
    "fold": r"\d{0,2}",
    "verdict": "|".join(get_args(DecodeStatus)),
}
MANIFEST_COLUMNS = tuple(_CELL_PATTERNS)
_INTEGERS = {"label": "Int8", "width": "Int64", "height": "Int64", "group": "Int64", "fold": "Int8"}
_REMEDY = "delete the file and run `make data`"


def natural_key(id: str) -> tuple[tuple[int, int, str], ...]:
    """Sorts "2" before "10" and "cat.9" before "cat.10"; different ids never compare equal."""
    parts = (part for part in re.split(r"([0-9]+)", id) if part)
    return (
        *((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts),
        (2, 0, id),
    )


def natural_order(ids: Iterable[str]) -> list[str]:
    return sorted(ids, key=natural_key)


def photo_path(workspace: Workspace, split: str, id: str) -> Path:
    return workspace.photos / split / f"{id}.jpg"


def usable(manifest: pd.DataFrame) -> pd.DataFrame:
    """The rows whose photos can be decoded: the only ones that have pixels."""
    return manifest[manifest["verdict"].isin(USABLE)]


def write_manifest(path: Path, manifest: pd.DataFrame) -> None:
    """Write `manifest` in natural order of ids, after the checks that `read_manifest` will make."""
    order = sorted(range(len(manifest)), key=[natural_key(id) for id in manifest["id"]].__getitem__)
    table = manifest.iloc[order][list(MANIFEST_COLUMNS)].reset_index(drop=True)
    table = table.astype("string").fillna("")
    _checked(table, path)
    write_table(path, table)


def read_manifest(path: Path) -> pd.DataFrame:
    """The manifest: text as str; width, height, group as Int64; label, fold as Int8 with <NA>."""
    if not path.exists():
        raise DataError(f"{path} does not exist: run `make data`")
    try:
        table = pd.read_csv(path, dtype="string", keep_default_na=False, encoding="utf-8-sig")
    except (ValueError, UnicodeError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path} is not a readable CSV ({reason}): {_REMEDY}") from error
    if tuple(table.columns) != MANIFEST_COLUMNS:
        found, wanted = ", ".join(table.columns), ", ".join(MANIFEST_COLUMNS)
        raise DataError(f"{path} has the columns {found}, not {wanted}: {_REMEDY}")
    return _checked(table, path)


def _checked(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """`table` of text with the types of `read_manifest`."""
    if table.empty:
        raise DataError(f"{path} has no rows: {_REMEDY}")
    for column, pattern in _CELL_PATTERNS.items():
        fits = re.compile(pattern).fullmatch
        wrong = [cell for cell in table[column].unique().tolist() if not fits(cell)]
        if wrong:
            rows = table.index[table[column].isin(wrong)]
            raise DataError(
                f"{path}: {len(rows):,} unexpected values in column {column},"
                f" the first is {wrong[0]!r} in line {rows[0] + 2}: {_REMEDY}"
            )
    twice = table["id"][table["id"].duplicated()]
    if len(twice):
        raise DataError(
            f"{path}: {len(twice):,} ids occur more than once, the first is {twice.iloc[0]}:"
            f" {_REMEDY}"
        )
    typed = table.replace("", pd.NA).astype(_INTEGERS)
    text = [column for column in MANIFEST_COLUMNS if column not in _INTEGERS]
    return typed.assign(**{column: table[column].astype(str) for column in text})
