"""Finished runs: the files that `predict` and `blend` end with, and how later stages read them.

oof.csv           id, label, fold and logit of each out-of-fold photo
test.csv          id, logit and prob of each test photo
calibration.json  how logits become probabilities, what that gains, and what it was made from
run.json          name, fingerprint, and the recipe, or the members of a blend
"""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import ConfigDict

from comp.data.manifest import read_manifest
from comp.errors import StaleError, UserError
from comp.metric import per_photo_logit_loss, prior_logit, sigmoid
from comp.options import Options, flat, restored
from comp.predict.calibrate import Settings, cross_fitted, fit_curve, out_of_fold_losses
from comp.progress import Reporter, counted
from comp.recipe import Recipe
from comp.store import Workspace, file_sha256, read_json, write_json, write_table
from comp.train.files import again, check_name, is_intact, read_intact, read_table, record
from comp.train.run import Run


class Figures(Settings):
    """What is read of calibration.json: how logits became probabilities, and the losses."""

    model_config = ConfigDict(extra="ignore")

    cv_raw: float  # out-of-fold log loss of sigmoid(logit)
    cv_calibrated: float  # after calibration, cross-fitted
    cv_clipped: float  # and after noise rate and clip
    says: str
    of: dict[str, str] | None = None  # start of the SHA-256 of what was predicted from; or unknown


@dataclass(frozen=True, slots=True)
class FinishedRun:
    """A run whose test photos are predicted."""

    folder: str  # <recipe>-<fingerprint>
    recipe: str
    fingerprint: str
    figures: Figures
    predictions: pd.DataFrame  # id, logit (NaN: the photo cannot be decoded), prob
    oof: pd.DataFrame  # id, label, fold, logit
    oof_sha256: str  # of the file that `oof` is read from

    def out_of_fold_probs(self) -> pd.Series:
        """Probabilities to submit of the out-of-fold photos, by id, calibrated on other folds."""
        oof = self.oof
        probs = cross_fitted(oof["logit"], oof["label"], oof["fold"], self.figures)
        return pd.Series(probs, index=oof["id"])


def source_keys(workspace: Workspace, oof_sha256: str) -> dict[str, str]:
    """Start of the SHA-256 of the files that predictions made now depend on."""
    test_sha256 = file_sha256(workspace.manifest("test"))
    return {"test": test_sha256[:10], "oof": oof_sha256[:10]}


def is_predicted(workspace: Workspace, folder: Path, noise_rate: float) -> bool:
    """Whether the run in `folder` has predictions of today's photos, with this `noise_rate`."""
    names = ("run.json", "oof.csv", "test.csv", "calibration.json")
    if not all(is_intact(folder / name) for name in names):
        return False
    figures, now = _read_figures(folder), source_keys(workspace, file_sha256(folder / "oof.csv"))
    return (figures.of, figures.noise_rate) == (now, noise_rate)


def write_predictions(
    workspace: Workspace,
    folder: Path,
    oof: pd.DataFrame,
    logits: "pd.Series[float]",
    settings: Settings,
    reporter: Reporter,
) -> None:
    """Write test.csv and calibration.json. A test photo that `logits` lack gets the prior."""
    labels, ids = oof["label"].to_numpy(), list(read_manifest(workspace.manifest("test"))["id"])
    curve = fit_curve(settings.method, oof["logit"], labels)
    table = pd.DataFrame({"id": ids, "logit": logits.reindex(ids).to_numpy(np.float64)})
    unseen = table["logit"].isna().to_numpy()
    prior = sigmoid([prior_logit(labels)]).clip(settings.clip, 1 - settings.clip)
    probs = np.full(len(table), prior)
    probs[~unseen] = settings.finish(curve.probs(table["logit"][~unseen]))
    if unseen.any():
        reporter.warn(
            f"{counted(int(unseen.sum()), 'test photo')} cannot be decoded,"
            f" {table['id'][unseen].iloc[0]} first: each gets the prior"
        )
    write_table(folder / "test.csv", table.assign(prob=probs))
    figures = {
        **settings.model_dump(),
        **out_of_fold_losses(oof["logit"], labels, oof["fold"], settings),
        "curve": curve,
        "says": str(curve),
        "of": source_keys(workspace, file_sha256(folder / "oof.csv")),
        "n_without_photo": int(unseen.sum()),
    }
    write_json(folder / "calibration.json", figures)
    record(folder / "test.csv", folder / "calibration.json")


def print_losses(folder: Path, reporter: Reporter) -> None:
    """The out-of-fold log loss of the run in `folder`: raw, calibrated, and as submitted."""
    figures = _read_figures(folder)
    rows = [("raw", figures.cv_raw)]
    if figures.method != "none":
        rows.append((figures.says, figures.cv_calibrated))
    last = f"with noise rate {figures.noise_rate:g} and clip {figures.clip:g}"
    rows.append((last, figures.cv_clipped))
    reporter.table("out-of-fold log loss, calibration cross-fitted", ("", "log loss"), rows)


def recipe_of(folder: Path) -> Recipe | None:
    """The recipe of the run in `folder`; None for a blend, and for one that cannot be read."""
    try:
        values = run_origin(folder).recipe or {}
        return restored(Recipe, values) if "training" in values else None
    except UserError:
        return None


def fitted_run(workspace: Workspace, folder: Path) -> Run:
    """The run in `folder`, which is no blend, on whatever photos; StaleError unless it is trained.

    Its files are in `folder`, what it decodes and computes anew in `workspace`.
    """
    origin = run_origin(folder)
    run = Run(
        workspace=workspace, recipe=restored(Recipe, origin.recipe or {}), data_key=origin.data
    )
    check_name(folder)
    if not run.is_trained():
        raise StaleError(f"{run.name} has files missing or damaged: {again(folder, 'train')}")
    return run


def options_of(folder: Path) -> dict[str, str]:
    """Options by dotted name; of a blend its method and its runs; none if they cannot be read."""
    if recipe := recipe_of(folder):
        return flat(recipe)
    with suppress(UserError):
        origin = run_origin(folder)
        runs = origin.members
        if isinstance(runs, dict):
            return {"method": origin.method} | {name: f"{w:.3f}" for name, w in runs.items()}
        return {"method": origin.method} | dict.fromkeys(runs, "a member") if runs else {}
    return {}


def check_current(workspace: Workspace, run: FinishedRun) -> None:
    """StaleError unless `run` was predicted from the files that are there now."""
    if run.figures.of not in (None, source_keys(workspace, run.oof_sha256)):
        raise StaleError(
            f"the predictions of {run.folder} were made from other photos or other out-of-fold"
            f" logits than those there now: {again(workspace.runs / run.folder, 'predict')}"
        )


def read_run(folder: Path) -> FinishedRun:
    """The run in `folder`; StaleError if it is renamed, or a file is missing or damaged."""
    origin, figures = run_origin(folder), _read_figures(folder)
    check_name(folder)
    predictions = read_table(folder / "test.csv", ["prob"], "predict")
    oof, oof_sha256 = read_oof(folder), file_sha256(folder / "oof.csv")
    names = (folder.name, origin.name, origin.fingerprint)
    return FinishedRun(*names, figures, predictions, oof, oof_sha256)


def read_oof(folder: Path) -> pd.DataFrame:
    """oof.csv of the run in `folder`; with several views, also the logits of each."""
    return read_table(folder / "oof.csv", ["label", "fold", "logit"], "train")


def with_losses(oof: pd.DataFrame) -> pd.DataFrame:
    """`oof` with the log loss of each photo, raw, as `loss`."""
    return oof.assign(loss=per_photo_logit_loss(oof["label"], oof["logit"]))


class RunOrigin(Options):
    """What is read of run.json."""

    model_config = ConfigDict(extra="ignore")

    name: str
    fingerprint: str
    recipe: dict[str, Any] | None = None  # of a run that is no blend
    data: str = ""  # of such a run: Run.data_key
    method: str = ""  # of a blend
    members: dict[str, float] | tuple[str, ...] = ()  # of a blend: its runs, with any weights


def run_origin(folder: Path) -> RunOrigin:
    return read_intact(folder / "run.json", lambda at: restored(RunOrigin, read_json(at)), "train")


def _read_figures(folder: Path) -> Figures:
    path = folder / "calibration.json"
    return read_intact(path, lambda at: restored(Figures, read_json(at)), "predict")
