"""`data/verdicts.csv`: what people have decided about labels of training photos, for runs that ask for it by `folds.label_fixes`.

id       a training photo; never a test photo, whose labels are not ours to give
verdict  keep: the label is right; drop: learn nothing from the photo; flip: learn the other class; soft:0.3: learn P(positive) = .3
reason   for people; so is `by`, who decided

A verdict changes what is learnt, never what is scored: every run is scored on the original labels of all its photos, so that two runs
with and without it can be compared photo by photo.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from comp.errors import DataError

COLUMNS = ("id", "verdict", "reason", "by")
KINDS = ("keep", "drop", "flip", "soft")


def read_verdicts(path: Path) -> dict[str, str]:
    """The verdict on each photo, in the file's order; none where there is no file."""
    if not path.exists():
        return {}
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (ValueError, UnicodeError) as error:
        raise DataError(f"{path} is not a readable CSV: {str(error).splitlines()[0]}") from error
    if tuple(table.columns) != COLUMNS:
        raise DataError(
            f"{path} has the columns {', '.join(table.columns)}, not {', '.join(COLUMNS)}: mend its first line"
        )
    if table["id"].duplicated().any():
        raise DataError(
            f"{path} has more than one verdict on {table['id'][table['id'].duplicated()].iloc[0]}: keep one"
        )
    verdicts = {
        str(id): str(verdict) for id, verdict in zip(table["id"], table["verdict"], strict=True)
    }
    for id, verdict in verdicts.items():
        if verdict not in KINDS[:3] and not _is_soft(verdict):
            raise DataError(
                f"{path} says {verdict!r} of {id}: a verdict is keep, drop, flip or soft:P with P from 0 to 1"
            )
    return verdicts


def _is_soft(verdict: str) -> bool:
    kind, _, share = verdict.partition(":")
    try:
        return kind == "soft" and 0 <= float(share) <= 1
    except ValueError:
        return False


def chosen_verdicts(path: Path, wanted: str) -> dict[str, str]:
    """The verdicts that change a label and that `wanted` names: all, one kind of them, or one photo's. DataError if it names none."""
    verdicts = read_verdicts(path)
    chosen = {
        id: text
        for id, text in verdicts.items()
        if text != "keep" and wanted in ("all", text.partition(":")[0], id)
    }
    if not chosen:
        raise DataError(
            f"folds.label_fixes={wanted} names none of the {len(verdicts)} verdicts in {path}: all, drop, flip, soft or a photo's id"
        )
    return chosen


def targets(photos: pd.DataFrame, verdicts: Mapping[str, str]) -> NDArray[np.float64]:
    """What is learnt of each of `photos` (id, label): P(positive), the label itself without a verdict; NaN where nothing is."""
    learnt = photos["label"].to_numpy(np.float64)
    for row, id in enumerate(photos["id"]):
        kind, _, share = verdicts.get(id, "keep").partition(":")
        learnt[row] = (
            {"keep": learnt[row], "drop": np.nan, "flip": 1 - learnt[row]}[kind]
            if kind != "soft"
            else float(share)
        )
    return learnt


def refuse_unknown(verdicts: Mapping[str, str], ids: "pd.Series[str]") -> None:
    """DataError if a verdict is on no training photo."""
    unknown = sorted(set(verdicts) - set(ids))
    if unknown:
        raise DataError(
            f"{len(unknown)} verdicts are on no training photo, {unknown[0]} first: mend data/verdicts.csv"
        )


def summed_up(verdicts: Mapping[str, str]) -> str:
    """How many verdicts of each kind, such as "2 drop, 1 flip"."""
    return ", ".join(
        f"{n} {kind}"
        for kind, n in Counter(text.partition(":")[0] for text in verdicts.values()).items()
    )
