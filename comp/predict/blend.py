"""The stage `blend`: runs weighed against each other out of fold, and what each is worth.

A blend is a weighted mean of logits. The weights lie on the simplex and have the least log loss, which is convex in them; its temperature
is then that of any run. Ranks are never averaged: they forget how sure a run is. Everything reported is cross-fitted: the logits of a
fold are mixed by weights from the other folds, and these are what oof.csv keeps.
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
from comp.errors import RecipeError
from comp.metric import Floats, Gain, gain, logit_log_loss, per_photo_logit_loss, sigmoid
from comp.predict.calibrate import distinct, settings_of
from comp.predict.finished import FinishedRun, check_current, find_run, finish, groups_of, read_run, show, side_by_side
from comp.progress import Reporter
from comp.recipe import Prediction
from comp.store import Workspace, code_commit, file_sha256, fingerprint, write_json, write_table

Weighing = Literal["simplex", "greedy"]
Weigh = Callable[[Floats, Floats], Floats]
N_PICKS = 30  # of a greedy selection: a weight is a multiple of 1/30 at the finest


def simplex(logits: Floats, labels: Floats) -> Floats:
    """Weights [m] >= 0 of sum 1 with the least log loss of sigmoid(logits @ weights). `logits [n, m]` out-of-fold, `labels [n]` 0 or 1."""

    def loss(weights: Floats) -> tuple[float, Floats]:
        mixed = logits @ weights
        return logit_log_loss(labels, mixed), logits.T @ (sigmoid(mixed) - labels) / labels.size

    m = logits.shape[1]
    sum_is_one = {"type": "eq", "fun": lambda weights: weights.sum() - 1, "jac": lambda weights: np.ones_like(weights)}
    options = {"ftol": 1e-14, "maxiter": 1000}
    found = minimize(loss, np.full(m, 1 / m), jac=True, method="SLSQP", bounds=[(0, 1)] * m, constraints=sum_is_one, options=options)
    weights = np.clip(found.x, 0, 1)
    return np.asarray(weights / weights.sum(), np.float64)


def greedy(logits: Floats, labels: Floats) -> Floats:
    """Like `simplex`, by `N_PICKS` picks with replacement, each the run that brings the mean so far the least log loss.

    The best of the means on the way is kept. Source: Caruana et al. 2004.
    """
    total, counts = np.zeros((labels.size, 1)), np.zeros(logits.shape[1])
    stages: list[tuple[float, Floats]] = []
    for n_picked in range(1, N_PICKS + 1):
        losses = per_photo_logit_loss(labels[:, None], (total + logits) / n_picked).mean(0)
        pick = int(losses.argmin())
        total, counts[pick] = total + logits[:, [pick]], counts[pick] + 1
        stages.append((float(losses[pick]), counts / n_picked))
    return min(stages, key=lambda stage: stage[0])[1]


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
    """How alike the runs err: correlations [m, m] of label - probability."""
    return np.asarray(np.corrcoef(labels - sigmoid(logits.T)), np.float64)


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
    labels = photos["label"].to_numpy()
    weights, mixed = weigh(logits, labels), held_out(logits, labels, photos["fold"], weigh)
    _show(runs, photos, logits, weights, mixed, weigh, reporter)
    key = fingerprint("blend 1", [(run.folder, run.oof_sha256) for run in runs], method, settings_of(prediction, competition))
    folder = workspace.runs / f"blend-{key}"
    members = dict(zip((run.folder for run in runs), weights.tolist(), strict=True))
    origin = {"name": "blend", "fingerprint": key, "method": method, "members": members, "prediction": prediction}
    write_json(folder / "run.json", origin | {"commit": code_commit(Path(__file__).parents[1])})
    oof = photos[["id", "label", "fold"]].astype({"label": "int64", "fold": "int64"}).assign(logit=mixed)
    write_table(folder / "oof.csv", oof)
    tests = pd.concat([run.predictions.set_index("id")["logit"] for run in runs], axis=1)
    made_from = {"test": file_sha256(workspace.manifest("test"))[:10], "oof": file_sha256(folder / "oof.csv")[:10]}
    ids, settings = list(read_manifest(workspace.manifest("test"))["id"]), settings_of(prediction, competition)
    finish(folder, oof, ids, pd.Series(tests.to_numpy(np.float64) @ weights, index=tests.index), settings, made_from, reporter)
    show(folder, reporter)
    reporter.say(f"{folder.name} is a run like any other: make forecast RUN={folder.name}, make submit RUN={folder.name}")
    return folder


def _show(
    runs: Sequence[FinishedRun], photos: pd.DataFrame, logits: Floats, weights: Floats, mixed: Floats, weigh: Weigh, reporter: Reporter
) -> None:
    names, groups = [run.folder for run in runs], photos["group"].to_numpy()
    labels, folds = photos["label"].to_numpy(), photos["fold"].to_numpy()
    alone = [per_photo_logit_loss(labels, column) for column in logits.T]
    gains = worths(logits, labels, folds, groups, weigh)
    lines = zip(names, alone, weights.tolist(), gains, strict=True)
    rows = [(name, float(losses.mean()), f"{weight:.3f}", worth, verdict(worth)) for name, losses, weight, worth in lines]
    reporter.table("blend", ("", "log loss alone", "weight", "the blend gains by it, 95 %", ""), rows)
    alike = [(name, *(f"{r:.2f}" for r in row)) for name, row in zip(names, error_correlations(logits, labels), strict=True)]
    reporter.table("correlation of errors", ("", *names), alike)
    losses = per_photo_logit_loss(labels, mixed)
    best = min(range(len(runs)), key=lambda run: float(alone[run].mean()))
    reporter.say(
        f"the blend's log loss, cross-fitted, is {losses.mean():.5f}, {losses.mean() / alone[best].mean():.2f} of that of its best run, "
        f"{names[best]}: a gain of {gain(alone[best], losses, groups)}"
    )
