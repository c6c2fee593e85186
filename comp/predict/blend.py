"""The stage `blend`: runs weighed against each other out of fold, and what each is worth.

The weights make a weighted mean of logits, that is, they lie on the simplex, and are fitted together with the temperature of that mean:
v = weights / T >= 0 with the least log loss, which is convex in v. Ranks are never averaged: they forget how sure a run is. Everything
reported is cross-fitted: the logits of a fold are mixed by weights and a temperature from the other folds, and are what oof.csv keeps.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize

from comp.competition import Competition
from comp.data.manifest import read_manifest
from comp.errors import RecipeError, TrainingError
from comp.metric import Floats, Gain, gain, per_photo_logit_loss, sigmoid
from comp.predict.calibrate import distinct, settings_of
from comp.predict.finished import FinishedRun, check_current, find_run, finish, groups_of, read_run, show, side_by_side
from comp.predict.maps import MIN_TEMPERATURE, fit_temperature
from comp.progress import Reporter
from comp.recipe import Prediction
from comp.store import Workspace, code_commit, file_sha256, fingerprint, write_json, write_table

Weighing = Literal["simplex", "greedy"]
Weigh = Callable[[Floats, Floats], Floats]
N_PICKS = 30  # of a greedy selection, so that a weight is a multiple of 1/30 at the finest
PREDICTION = Prediction(calibration="none")  # of a blend unless told otherwise: its weights hold a temperature already


def simplex(logits: Floats, labels: Floats) -> Floats:
    """v [m] >= 0 with the least log loss of sigmoid(logits @ v). `logits [n, m]` out-of-fold and raw, `labels [n]` 0 or 1."""

    def loss(v: Floats) -> tuple[float, Floats]:
        mixed = logits @ v
        return float(per_photo_logit_loss(labels, mixed).mean()), logits.T @ (sigmoid(mixed) - labels) / labels.size

    m = logits.shape[1]
    bounds = [(0.0, 1 / MIN_TEMPERATURE)] * m
    found = minimize(loss, np.full(m, 1 / m), jac=True, method="L-BFGS-B", bounds=bounds, options={"ftol": 0.0, "gtol": 1e-9})
    if not found.x.sum() > 0:
        raise TrainingError(f"none of the {m} runs has learnt anything: every mean of them is worse than a constant")
    return np.asarray(found.x, np.float64)


def greedy(logits: Floats, labels: Floats) -> Floats:
    """Like `simplex`, by `N_PICKS` picks with replacement, each the run that brings the mean so far the least log loss.

    Source: Caruana et al. 2004. The best of its stages is kept. Runs are compared at the temperature of the mean before the pick.
    """
    scale = np.array([1 / fit_temperature(column, labels) for column in logits.T])
    total, counts, best = np.zeros(labels.size), np.zeros(logits.shape[1]), (np.inf, np.zeros(logits.shape[1]))
    for n_picked in range(1, N_PICKS + 1):
        losses = per_photo_logit_loss(labels[:, None], (total[:, None] + logits) / n_picked * scale).mean(0)
        pick = int(losses.argmin())
        total, counts[pick] = total + logits[:, pick], counts[pick] + 1
        v = counts / n_picked / fit_temperature(total / n_picked, labels)
        scale = np.full(logits.shape[1], v.sum())
        best = min(best, (float(per_photo_logit_loss(labels, logits @ v).mean()), v), key=lambda stage: stage[0])
    return best[1]


WAYS: dict[Weighing, Weigh] = {"simplex": simplex, "greedy": greedy}


def held_out(logits: Floats, labels: Floats, folds: ArrayLike, weigh: Weigh) -> Floats:
    """Mixed logits `[n]`, those of each fold by what `weigh` finds on the other folds."""
    fold = np.asarray(folds, np.float64)
    mixed = np.empty(labels.shape)
    for name in distinct(fold):
        held = fold == name
        mixed[held] = logits[held] @ weigh(logits[~held], labels[~held])
    return mixed


def worths(logits: Floats, labels: Floats, folds: ArrayLike, groups: ArrayLike, weigh: Weigh) -> list[Gain]:
    """What the blend gains by each run: the log loss of the blend without it, less that with it, both cross-fitted."""
    whole = per_photo_logit_loss(labels, held_out(logits, labels, folds, weigh))
    without = [held_out(np.delete(logits, run, axis=1), labels, folds, weigh) for run in range(logits.shape[1])]
    return [gain(per_photo_logit_loss(labels, mixed), whole, groups) for mixed in without]


def verdict(worth: Gain) -> str:
    return "adds nothing" if worth.low <= 0 <= worth.high else "helps" if worth.low > 0 else "harms"


def error_correlations(logits: Floats, labels: Floats) -> NDArray[np.float64]:
    """How alike the runs err: correlations [m, m] of label - probability, each run at its own temperature."""
    probs = [sigmoid(column / fit_temperature(column, labels)) for column in logits.T]
    return np.corrcoef([labels - p for p in probs])


def blend(
    workspace: Workspace, competition: Competition, names: Sequence[str], method: Weighing, prediction: Prediction, reporter: Reporter
) -> Path:
    """The folder of a run made of the runs called `names`, which forecast and submit take like any other."""
    runs = [read_run(folder) for folder in sorted({find_run(workspace, name) for name in names})]
    if len(runs) < 2:
        raise RecipeError(f'a blend needs 2 or more runs, got {len(runs)}: make blend RUNS="a b c"')
    for run in runs:
        check_current(workspace, run)
    photos, logits = side_by_side({run.folder: run.oof for run in runs})
    photos = photos.assign(group=groups_of(workspace, photos))
    weigh = WAYS[method]
    v = weigh(logits, photos["label"].to_numpy())
    mixed = held_out(logits, photos["label"].to_numpy(), photos["fold"], weigh)
    _show(runs, photos, logits, v, mixed, weigh, reporter)
    key = fingerprint("blend 1", [(run.folder, run.oof_sha256) for run in runs], method, settings_of(prediction, competition))
    folder = workspace.runs / f"blend-{key}"
    members = dict(zip((run.folder for run in runs), (v / v.sum()).round(6).tolist(), strict=True))
    origin = {"name": "blend", "fingerprint": key, "method": method, "members": members, "temperature": 1 / float(v.sum())}
    write_json(folder / "run.json", origin | {"prediction": prediction, "commit": code_commit(Path(__file__).parents[1])})
    oof = photos[["id", "label", "fold"]].astype({"label": "int64", "fold": "int64"}).assign(logit=mixed)
    write_table(folder / "oof.csv", oof)
    tests = pd.concat([run.predictions.set_index("id")["logit"] for run in runs], axis=1)
    made_from = {"test": file_sha256(workspace.manifest("test"))[:10], "oof": file_sha256(folder / "oof.csv")[:10]}
    ids, settings = list(read_manifest(workspace.manifest("test"))["id"]), settings_of(prediction, competition)
    finish(folder, oof, ids, pd.Series(tests.to_numpy(np.float64) @ v, index=tests.index), settings, made_from, reporter)
    show(folder, reporter)
    reporter.say(f"{folder.name} is a run like any other: make forecast RUN={folder.name}, make submit RUN={folder.name}")
    return folder


def _show(
    runs: Sequence[FinishedRun], photos: pd.DataFrame, logits: Floats, v: Floats, mixed: Floats, weigh: Weigh, reporter: Reporter
) -> None:
    names, groups = [run.folder for run in runs], photos["group"].to_numpy()
    labels, folds = photos["label"].to_numpy(), photos["fold"].to_numpy()
    alone = [per_photo_logit_loss(labels, held_out(column[:, None], labels, folds, simplex)) for column in logits.T]
    gains = worths(logits, labels, folds, groups, weigh)
    lines = zip(names, alone, (v / v.sum()).tolist(), gains, strict=True)
    rows = [(name, float(losses.mean()), f"{weight:.3f}", worth, verdict(worth)) for name, losses, weight, worth in lines]
    reporter.table("cross-fitted over the folds", ("", "log loss alone", "weight", "the blend gains by it, 95 %", ""), rows)
    alike = [(name, *(f"{r:.2f}" for r in row)) for name, row in zip(names, error_correlations(logits, labels), strict=True)]
    reporter.table("correlation of errors", ("", *names), alike)
    losses = per_photo_logit_loss(labels, mixed)
    best = min(range(len(runs)), key=lambda run: float(alone[run].mean()))
    reporter.say(
        f"the blend's log loss is {losses.mean():.5f}, {losses.mean() / alone[best].mean():.2f} of that of its best run, {names[best]}: "
        f"a gain of {gain(alone[best], losses, groups)}"
    )
