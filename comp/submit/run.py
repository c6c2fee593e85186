"""What a submission takes from a finished run: its folder, read and made sure of."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from comp.errors import StaleError, SubmissionError
from comp.store import file_sha256, read_json


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedRun:
    """A run whose test photos are predicted."""

    folder: str  # <recipe>-<fingerprint>
    recipe: str
    fingerprint: str
    clip: float  # that the probabilities keep
    cv_raw: float  # out-of-fold log loss of sigmoid(logit)
    cv_calibrated: float  # with the cross-fitted temperature
    cv_clipped: float  # and noise rate and clip
    predictions: pd.DataFrame  # id, prob
    oof: pd.DataFrame  # id, label, fold, logit
    oof_sha256: str  # of the file that `oof` is read from
    made_from: Mapping[str, str] | None  # first digits of the hashes of the files behind `predictions`; None: the run does not say


def read_run(folder: Path) -> FinishedRun:
    """The run in `folder`; SubmissionError where a file is missing or cannot be made sense of, StaleError where the name is another's."""
    if not folder.is_dir():
        raise SubmissionError(f"there is no run {folder.name} in {folder.parent.name}/: run `make train predict` first")
    origin, calibration = _json(folder, "run.json"), _json(folder, "calibration.json")
    recipe, fingerprint = str(origin.get("name")), str(origin.get("fingerprint"))
    if folder.name != f"{recipe}-{fingerprint}":
        raise StaleError(f"the folder {folder.name} holds the run {recipe}-{fingerprint}: give it its own name back, or delete it")
    numbers = {name: _number(calibration, name, folder) for name in ("clip", "cv_raw", "cv_calibrated", "cv_clipped")}
    return FinishedRun(
        folder=folder.name,
        recipe=recipe,
        fingerprint=fingerprint,
        predictions=_table(folder, "test.csv", ("prob",)),
        oof=_table(folder, "oof.csv", ("label", "fold", "logit")),
        oof_sha256=file_sha256(folder / "oof.csv"),
        made_from=calibration.get("of"),
        **numbers,
    )


def _remedy(name: str) -> str:
    return f"run `make {'train' if name in ('run.json', 'oof.csv') else 'predict'}` with the same RECIPE and SET"


def _json(folder: Path, name: str) -> Mapping[str, Any]:
    path = folder / name
    if not path.exists():
        raise SubmissionError(f"the run {folder.name} has no {name}: {_remedy(name)} first")
    try:
        value = read_json(path)
    except ValueError as error:
        raise SubmissionError(f"{folder.name}/{name} is not JSON ({error}): delete it and {_remedy(name)}") from None
    if not isinstance(value, dict):
        raise SubmissionError(f"{folder.name}/{name} holds no object: delete it and {_remedy(name)}")
    return value


def _number(values: Mapping[str, Any], name: str, folder: Path) -> float:
    value = values.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not np.isfinite(value):
        raise SubmissionError(f"{folder.name}/calibration.json has no number {name}: {_remedy('calibration.json')} again")
    return float(value)


def _table(folder: Path, name: str, numeric: tuple[str, ...]) -> pd.DataFrame:
    """`id` as text and the `numeric` columns as float64, bit for bit; a cell that is not a number is NaN, for the checks to count."""
    path = folder / name
    if not path.exists():
        raise SubmissionError(f"the run {folder.name} has no {name}: {_remedy(name)} first")
    try:
        cells = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
        table = cells[["id", *numeric]].copy()
    except (ValueError, KeyError) as error:  # pandas' parser errors and broken encodings are ValueErrors
        cause = " ".join(str(error).split())
        raise SubmissionError(f"{folder.name}/{name} is not the table it should be ({cause}): {_remedy(name)} again") from None
    for column in numeric:
        table[column] = [_float(cell) for cell in table[column]]
    return table


def _float(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return float("nan")
