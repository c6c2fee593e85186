"""`data/train.csv` and `data/test.csv`: one row a photo, in natural order of ids.

id      the file name without .jpg: "cat.0", "10"
label   1 for the positive class; empty in test.csv
width   of the upright photo; 0 where not even the header can be read. So is height
sha256  of the file
phash   perceptual hash, 16 hexadecimal digits; empty for an unusable photo
group   number of the near-duplicate group, common to both files
fold    0, 1, ...; empty in test.csv and for a training photo that is set aside
verdict see comp/data/photos.py
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import get_args

import pandas as pd

from comp.data.verdict import USABLE, Verdict
from comp.errors import DataError
from comp.store import Workspace, write_table

COLUMNS = ("id", "label", "width", "height", "sha256", "phash", "group", "fold", "verdict")
SPLITS = ("train", "test")
_SHAPES = {  # of each cell, as text
    "id": r"[^/\\\s,]+",
    "label": r"[01]?",
    "width": r"\d{1,9}",
    "height": r"\d{1,9}",
    "sha256": r"[0-9a-f]{64}",
    "phash": r"(?:[0-9a-f]{16})?",
    "group": r"\d{1,9}",
    "fold": r"\d{0,2}",
    "verdict": "|".join(get_args(Verdict)),
}
_REMEDY = "delete the file and run `make data`"


def natural_key(id: str) -> tuple[tuple[int, int, str], ...]:
    """Sorts "2" before "10" and "cat.9" before "cat.10"; different ids never compare as equal."""
    parts = re.split(r"([0-9]+)", id)
    return (
        *((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part),
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
    """Writes `manifest` in natural order of ids, after the checks that `read_manifest` will make."""
    order = sorted(range(len(manifest)), key=[natural_key(id) for id in manifest["id"]].__getitem__)
    table = manifest.iloc[order][list(COLUMNS)].reset_index(drop=True).astype("string").fillna("")
    _typed(table, path)
    write_table(path, table)


def read_manifest(path: Path) -> pd.DataFrame:
    """COLUMNS with the types str (id, sha256, phash, verdict), Int64 (width, height, group) and Int8 with <NA> (label, fold)."""
    if not path.exists():
        raise DataError(f"{path} does not exist: run `make data`")
    try:
        table = pd.read_csv(
            path, dtype="string", keep_default_na=False, encoding="utf-8-sig", skip_blank_lines=True
        )
    except (ValueError, UnicodeError) as error:
        raise DataError(
            f"{path} is not a readable CSV ({str(error).splitlines()[0]}): {_REMEDY}"
        ) from error
    if list(table.columns) != list(COLUMNS):
        raise DataError(
            f"{path} has the columns {', '.join(table.columns)}, not {', '.join(COLUMNS)}: {_REMEDY}"
        )
    return _typed(table, path)


def _typed(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    if table.empty:
        raise DataError(f"{path} names no photo: {_REMEDY}")
    for column, shape in _SHAPES.items():
        wrong = table[~table[column].str.fullmatch(shape).fillna(False)]
        if len(wrong):
            row, cell = wrong.index[0] + 2, wrong[column].iloc[0]
            raise DataError(
                f"{path}: {len(wrong):,} unexpected values in column {column}, the first is {cell!r} in line {row}: {_REMEDY}"
            )
    twice = table["id"].duplicated()
    if twice.any():
        raise DataError(
            f"{path}: {twice.sum():,} ids stand there more than once, the first is {table['id'][twice].iloc[0]}: {_REMEDY}"
        )
    typed: dict[str, pd.Series] = {name: table[name].astype(str) for name in COLUMNS}
    typed |= {
        name: table[name].replace("", pd.NA).astype("Int64")
        for name in ("width", "height", "group")
    }
    typed |= {name: table[name].replace("", pd.NA).astype("Int8") for name in ("label", "fold")}
    return pd.DataFrame(typed)
