"""The files that end a run, oof.csv, test.csv and calibration.json: written by `predict` and `blend`, read by what comes after them."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from comp.data.manifest import read_manifest
from comp.errors import DataError, RecipeError, StaleError, SubmissionError
from comp.metric import Floats, prior_logit, sigmoid
from comp.options import restored
from comp.predict.calibrate import (
    Calibration,
    Settings,
    calibrate,
    cross_fitted,
    out_of_fold_losses,
)
from comp.progress import Reporter
from comp.recipe import Recipe
from comp.recipes import RECIPES
from comp.store import Workspace, file_sha256, read_json, write_json, write_table

LEAST_PHOTOS = 20  # fewer say nothing about an interval


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedRun:
    """A run whose test photos are predicted."""

    folder: str  # <recipe>-<fingerprint>
    recipe: str
    fingerprint: str
    settings: Settings  # of the calibration behind its probabilities
    cv_raw: float  # out-of-fold log loss of sigmoid(logit)
    cv_calibrated: float  # with the cross-fitted map
    cv_clipped: float  # and noise rate and clip
    predictions: pd.DataFrame  # id, logit (NaN: the photo cannot be decoded), prob
    oof: pd.DataFrame  # id, label, fold, logit
    oof_sha256: str  # of the file that `oof` is read from
    made_from: (
        Mapping[str, str] | None
    )  # first digits of the hashes of the files behind `predictions`; None: the run does not say

    def out_of_fold_probs(self) -> pd.Series:
        """What would be submitted of each out-of-fold photo, by id, calibrated on the other folds."""
        return pd.Series(
            cross_fitted(self.oof["logit"], self.oof["label"], self.oof["fold"], self.settings),
            index=self.oof["id"],
        )


def finish(
    folder: Path,
    oof: pd.DataFrame,
    ids: list[str],
    logits: pd.Series,
    settings: Settings,
    made_from: dict[str, str],
    reporter: Reporter,
) -> None:
    """Write test.csv and calibration.json of the run in `folder`, calibrated on `oof`, for the test photos `ids` with `logits` by id."""
    labels = oof["label"].to_numpy()
    calibration = calibrate(oof["logit"], labels, settings)
    losses = out_of_fold_losses(oof["logit"], labels, oof["fold"], settings)
    table = probabilities(ids, logits, calibration, prior_logit(labels))
    blind = table["id"][table["logit"].isna()]
    if len(blind):
        reporter.warn(
            f"{len(blind):,} test photos cannot be decoded, {blind.iloc[0]} first: each gets the prior"
        )
    write_table(folder / "test.csv", table)
    fitted = {"curve": calibration.curve, "says": str(calibration.curve)}
    figures = {f"cv_{name}": value for name, value in asdict(losses).items()}
    write_json(
        folder / "calibration.json",
        asdict(settings) | fitted | figures | {"of": made_from, "n_without_photo": len(blind)},
    )


def probabilities(
    ids: list[str], logits: pd.Series, calibration: Calibration, prior: float
) -> pd.DataFrame:
    """id, logit, prob for all `ids`, joined by id. An id without a logit gets the prior's probability, clipped but not calibrated."""
    table = pd.DataFrame({"id": ids, "logit": logits.reindex(ids).to_numpy(np.float64)})
    blind = table["logit"].isna().to_numpy()
    probs = np.empty(len(table))
    probs[~blind] = calibration.apply(table["logit"][~blind])
    probs[blind] = Settings(noise_rate=0.0, clip=calibration.settings.clip).finish(
        sigmoid([prior])
    )[0]
    return table.assign(prob=probs)


def show(folder: Path, reporter: Reporter) -> None:
    """The table of what calibration and clip do out of fold."""
    figures = read_json(folder / "calibration.json")
    ends = f"noise rate {figures['noise_rate']:g} and clip {figures['clip']:g}"
    names = {"raw": "raw", "calibrated": figures["says"], "clipped": f"with {ends}"}
    if figures["method"] == "none":
        del names["calibrated"]
    rows = [(text, figures[f"cv_{name}"]) for name, text in names.items()]
    reporter.table(
        "out-of-fold log loss, cross-fitted where it is calibrated", ("", "log loss"), rows
    )


def find_run(workspace: Workspace, name: str) -> Path:
    """The folder of the run called `name`: as <recipe>-<fingerprint>, or as <recipe> where that has one run here, or one without SET."""
    known = sorted(path.parent for path in workspace.runs.glob("*/oof.csv"))
    found = [path for path in known if path.name == name] or [
        path for path in known if path.name.rpartition("-")[0] == name
    ]
    if len(found) > 1:
        found = [
            path for path in found if name in RECIPES and recipe_of(path) == RECIPES[name]()
        ] or found
    if len(found) == 1:
        return found[0]
    names = ", ".join(path.name for path in found or known)
    if found:
        raise RecipeError(f"{name} has {len(found)} runs, say which one: {names}")
    raise RecipeError(
        f"no run {name!r} is here; there {'is ' + names if known else 'are none'}: run `make train predict RECIPE=...` first"
    )


def recipe_of(folder: Path) -> Recipe | None:
    """The recipe of the run in `folder`; None where it has none, as a blend, or one whose knobs are no more."""
    described = read_json(folder / "run.json").get("recipe", {})
    try:
        return restored(Recipe, described) if "training" in described else None
    except RecipeError:
        return None


def check_current(workspace: Workspace, finished: FinishedRun) -> None:
    """StaleError unless `finished` is of the test photos and the out-of-fold logits that are here now."""
    here = {"test": file_sha256(workspace.manifest("test"))[:10], "oof": finished.oof_sha256[:10]}
    if finished.made_from not in (None, here):
        raise StaleError(
            f"the predictions of {finished.folder} are not of the photos and folds that are here now: run `make predict` again"
        )


def groups_of(workspace: Workspace, oof: pd.DataFrame) -> NDArray[np.int64]:
    """The near-duplicate group of each photo of `oof`. DataError if they are too few for an interval, StaleError if some are not here."""
    if len(oof) < LEAST_PHOTOS:
        raise DataError(
            f"{len(oof)} out-of-fold photos are too few for an interval, which needs {LEAST_PHOTOS}: train on more photos"
        )
    groups = read_manifest(workspace.manifest("train")).set_index("id")["group"].reindex(oof["id"])
    if groups.isna().any():
        raise StaleError(
            f"{int(groups.isna().sum()):,} of {len(oof):,} out-of-fold photos are not in data/train.csv now: train again"
        )
    return groups.to_numpy(np.int64)


def side_by_side(oofs: Mapping[str, pd.DataFrame]) -> tuple[pd.DataFrame, Floats]:
    """id, label and fold of the photos that all of `oofs` (by run) hold, and the logits [n, runs]. DataError where runs differ in them."""
    tables = {name: oof.set_index("id") for name, oof in oofs.items()}
    first, *others = tables
    photos = tables[first]
    for name in others:
        n_apart = len(photos.index.symmetric_difference(tables[name].index))
        if n_apart:
            raise DataError(
                f"{first} and {name} differ: {n_apart:,} photos are in one of them only; train both on the same photos"
            )
        tables[name] = tables[name].loc[photos.index]
        for what in ("label", "fold"):
            n_apart = int((tables[name][what] != photos[what]).sum())
            if n_apart:
                remedy = (
                    "train both again, on the same data/train.csv and with the same folds.* knobs"
                )
                raise DataError(
                    f"{first} and {name} differ in the {what} of {n_apart:,} photos: {remedy}"
                )
    return photos.reset_index()[["id", "label", "fold"]], np.column_stack(
        [table["logit"] for table in tables.values()]
    )


def read_run(folder: Path) -> FinishedRun:
    """The run in `folder`; SubmissionError where a file is missing or cannot be made sense of, StaleError where the name is another's."""
    if not folder.is_dir():
        raise SubmissionError(
            f"there is no run {folder.name} in {folder.parent.name}/: run `make train predict` first"
        )
    origin, calibration = _json(folder, "run.json"), _json(folder, "calibration.json")
    recipe, fingerprint = str(origin.get("name")), str(origin.get("fingerprint"))
    if folder.name != f"{recipe}-{fingerprint}":
        raise StaleError(
            f"the folder {folder.name} holds the run {recipe}-{fingerprint}: give it its own name back, or delete it"
        )
    noise_rate, clip = (_number(calibration, name, folder) for name in ("noise_rate", "clip"))
    numbers = {
        name: _number(calibration, name, folder)
        for name in ("cv_raw", "cv_calibrated", "cv_clipped")
    }
    return FinishedRun(
        folder=folder.name,
        recipe=recipe,
        fingerprint=fingerprint,
        settings=Settings(
            method=calibration.get("method", "temperature"), noise_rate=noise_rate, clip=clip
        ),
        predictions=_table(folder, "test.csv", ("logit", "prob")),
        oof=read_oof(folder),
        oof_sha256=file_sha256(folder / "oof.csv"),
        made_from=calibration.get("of"),
        **numbers,
    )


def read_oof(folder: Path) -> pd.DataFrame:
    """id, label, fold, logit of the run in `folder`, and the logits of its single views where there are several."""
    return _table(folder, "oof.csv", ("label", "fold", "logit"))


def _remedy(name: str) -> str:
    return f"run `make {'train' if name in ('run.json', 'oof.csv') else 'predict'}` with the same RECIPE and SET"


def _json(folder: Path, name: str) -> Mapping[str, Any]:
    path = folder / name
    if not path.exists():
        raise SubmissionError(f"the run {folder.name} has no {name}: {_remedy(name)} first")
    try:
        value = read_json(path)
    except ValueError as error:
        raise SubmissionError(
            f"{folder.name}/{name} is not JSON ({error}): delete it and {_remedy(name)}"
        ) from None
    if not isinstance(value, dict):
        raise SubmissionError(
            f"{folder.name}/{name} holds no object: delete it and {_remedy(name)}"
        )
    return value


def _number(values: Mapping[str, Any], name: str, folder: Path) -> float:
    value = values.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not np.isfinite(value):
        raise SubmissionError(
            f"{folder.name}/calibration.json has no number {name}: {_remedy('calibration.json')} again"
        )
    return float(value)


def _table(folder: Path, name: str, needed: tuple[str, ...]) -> pd.DataFrame:
    """`id` as text and all other columns as float64, bit for bit; a cell that is not a number is NaN, for the checks to count."""
    path = folder / name
    if not path.exists():
        raise SubmissionError(f"the run {folder.name} has no {name}: {_remedy(name)} first")
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
        table[["id", *needed]]  # a KeyError names what is missing
    except (
        ValueError,
        KeyError,
    ) as error:  # pandas' parser errors and broken encodings are ValueErrors
        cause = " ".join(str(error).split())
        raise SubmissionError(
            f"{folder.name}/{name} is not the table it should be ({cause}): {_remedy(name)} again"
        ) from None
    for column in table.columns.drop("id"):
        table[column] = [_float(cell) for cell in table[column]]
    return table


def _float(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return float("nan")
