"""The stage `blend`: runs weighed against each other out of fold, and what each is worth.

A blend is a weighted mean of logits. The weights lie on the simplex and have the least log loss, which is convex in them; its temperature
is then that of any run. Ranks are never averaged: they forget how sure a run is. Everything reported is cross-fitted: the logits of a
fold are mixed by weights from the other folds, and these are what oof.csv keeps.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize

from comp.competition import Competition
from comp.metric import Floats, Gain, gain, logit_log_loss, per_photo_logit_loss, sigmoid
from comp.predict.calibrate import distinct
from comp.predict.members import Members, Mixture, keep, read_members
from comp.progress import Reporter
from comp.store import Workspace

Weighing = Literal["simplex", "greedy", "equal"]
Weigh = Callable[[Floats, Floats], Floats]
N_PICKS = 30  # of a greedy selection: a weight is a multiple of 1/30 at the finest


def simplex(logits: Floats, labels: Floats) -> Floats:
    """Weights [m] >= 0 of sum 1 with the least log loss of sigmoid(logits @ weights). `logits [n, m]` out-of-fold, `labels [n]` 0 or 1."""

    def loss(weights: Floats) -> tuple[float, Floats]:
        mixed = logits @ weights
        return logit_log_loss(labels, mixed), logits.T @ (sigmoid(mixed) - labels) / labels.size

    m = logits.shape[1]
    sum_is_one = {
        "type": "eq",
        "fun": lambda weights: weights.sum() - 1,
        "jac": lambda weights: np.ones_like(weights),
    }
    options = {"ftol": 1e-14, "maxiter": 1000}
    found = minimize(
        loss,
        np.full(m, 1 / m),
        jac=True,
        method="SLSQP",
        bounds=[(0, 1)] * m,
        constraints=sum_is_one,
        options=options,
    )
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


def equal(logits: Floats, labels: Floats) -> Floats:  # noqa: ARG001  # it asks no label, and is called like those that do
    """The same weight for each run: nothing is fitted, so that a dozen errors cannot mislead it. For runs that are equally good."""
    return np.full(logits.shape[1], 1 / logits.shape[1])


WAYS: dict[Weighing, Weigh] = {"simplex": simplex, "greedy": greedy, "equal": equal}


def held_out(logits: Floats, labels: Floats, folds: ArrayLike, weigh: Weigh) -> Floats:
    """Mixed logits `[n]`, those of each fold by what `weigh` finds on the other folds."""
    fold = np.asarray(folds, np.float64)
    mixed = np.empty(labels.shape)
    for name in distinct(fold):
        held = fold == name
        mixed[held] = logits[held] @ weigh(logits[~held], labels[~held])
    return mixed


def worths(
    logits: Floats, labels: Floats, folds: ArrayLike, groups: ArrayLike, weigh: Weigh
) -> list[Gain]:
    """What the blend gains by each run: the log loss of the blend without it, less that with it, both cross-fitted."""
    whole = per_photo_logit_loss(labels, held_out(logits, labels, folds, weigh))
    without = [
        held_out(np.delete(logits, run, axis=1), labels, folds, weigh)
        for run in range(logits.shape[1])
    ]
    return [gain(per_photo_logit_loss(labels, mixed), whole, groups) for mixed in without]


def verdict(worth: Gain) -> str:
    return "adds nothing" if worth.low <= 0 <= worth.high else "helps" if worth.low > 0 else "harms"


def error_correlations(logits: Floats, labels: Floats) -> NDArray[np.float64]:
    """How alike the runs err: correlations [m, m] of label - probability."""
    return np.asarray(np.corrcoef(labels - sigmoid(logits.T)), np.float64)


def blend(
    workspace: Workspace,
    competition: Competition,
    names: Sequence[str],
    method: Weighing,
    settings: Sequence[str],
    reporter: Reporter,
) -> Path:
    """The folder of a run made of the runs called `names`, which forecast and submit take like any other.

    `settings` override how its logits become probabilities, such as prediction.clip=0.01.
    """
    members = read_members(workspace, names)
    weigh, labels = WAYS[method], members.labels
    prediction = members.prediction(settings)
    weights, mixed = (
        weigh(members.logits, labels),
        held_out(members.logits, labels, members.photos["fold"], weigh),
    )
    _show(members, weights, mixed, weigh, reporter)
    made = {"method": method, "members": dict(zip(members.names, weights.tolist(), strict=True))}
    mixture = Mixture(
        name="blend",
        made=made,
        prediction=prediction,
        logits=mixed,
        test_logits=members.test_logits(weights),
    )
    return keep(workspace, competition, members, mixture, reporter)


def _show(
    members: Members, weights: Floats, mixed: Floats, weigh: Weigh, reporter: Reporter
) -> None:
    names, labels, photos = members.names, members.labels, members.photos
    gains = worths(members.logits, labels, photos["fold"], photos["group"], weigh)
    lines = zip(names, members.losses(), weights.tolist(), gains, strict=True)
    rows = [
        (name, float(losses.mean()), f"{weight:.3f}", worth, verdict(worth))
        for name, losses, weight, worth in lines
    ]
    reporter.table(
        "blend", ("", "log loss alone", "weight", "the blend gains by it, 95 %", ""), rows
    )
    alike = [
        (name, *(f"{r:.2f}" for r in row))
        for name, row in zip(names, error_correlations(members.logits, labels), strict=True)
    ]
    reporter.table("correlation of errors", ("", *names), alike)
    reporter.say(f"the blend's log loss, cross-fitted, is {members.against_best(mixed)}")
