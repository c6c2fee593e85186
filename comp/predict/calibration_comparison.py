"""The stage `calibrate`: ways to turn the logits of views into probabilities, compared.

A candidate says which views are averaged and how, and the settings of the calibration. Each is
cross-fitted. The last row of the table is what choosing among the candidates is worth: the choice
is made for each fold anew, by cross-fitting on the other folds.

A test photo gets the mean over the heads of all folds, an out-of-fold photo only one logit. To
compare means over folds too, heads are solved without two folds and predict both, so that a photo
has a logit from each head that saw neither it nor its fold. These heads have less to learn from, so
they are compared and not chosen from.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple, get_args

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from comp.competition import Competition
from comp.metric import Floats, Gain, gain, per_photo_loss, sigmoid
from comp.network.heads import LinearHead
from comp.predict.calibrate import (
    Settings,
    board_losses,
    cross_fitted,
    fit_curve,
    over_folds,
    settings_of,
)
from comp.predict.compare import groups_of
from comp.predict.runs import read_oof
from comp.progress import Reporter
from comp.recipe import Head, Method, Recipe, ViewsName
from comp.store import Workspace
from comp.train.fits import HeadFit, open_fit
from comp.train.run import open_run, trained_run
from comp.train.solver import solve_fold

METHODS: tuple[Method, ...] = get_args(Method)
NOISE_RATES = (0.0, 0.002, 0.004, 0.008)
CLIPS = (0.0005, 0.002, 0.005, 0.01, 0.03)
OWN = "recipe's choice"

Candidate = tuple[Floats, Settings]  # out-of-fold logits [n], and how they become probabilities


class CandidateScore(NamedTuple):
    """Log loss of a candidate and its gain over the first, on clean labels and the leaderboard."""

    clean: float
    clean_gain: Gain
    board: float  # expected, with a share of the labels flipped
    board_gain: Gain


def candidates_of(oof: pd.DataFrame, views: ViewsName, settings: Settings) -> dict[str, Candidate]:
    """The plain mean of the views, the recipe's `settings`, and those with one thing changed."""
    logits = oof["logit"].to_numpy(np.float64)
    plain = Settings(method="none", noise_rate=0.0, clip=0.0)
    changes: dict[str, dict[str, Any]] = {method: {"method": method} for method in METHODS}
    changes |= {f"noise rate {rate:g}": {"noise_rate": rate} for rate in NOISE_RATES}
    changes |= {f"clip {clip:g}": {"clip": clip} for clip in CLIPS}
    found = {"plain mean of logits": (logits, plain), OWN: (logits, settings)}
    for method in METHODS[1:]:
        found[f"{method} alone"] = logits, plain.replace(method=method)
    for name, mean in view_means(oof, views).items():
        found[f"recipe's, but {name}"] = mean, settings
    for name, change in changes.items():
        if settings.replace(**change) != settings:
            found[f"recipe's, but {name}"] = logits, settings.replace(**change)
    return found


def view_means(oof: pd.DataFrame, views: ViewsName) -> dict[str, Floats]:
    """Logits of other means than that of the logits of all `views`.

    The first view is the centre, the second its mirror image.
    """
    columns = oof.drop(columns=["id", "label", "fold", "logit"]).to_numpy(np.float64)
    means = {}
    for name, n in {"none": 1, "flip": 2, views: columns.shape[1]}.items():
        part = columns[:, :n]
        if n < columns.shape[1]:
            means[f"views {name}"] = part.mean(1)
        if 1 < n <= columns.shape[1]:
            means[f"views {name}, mean of probabilities"] = mean_of_probs(part)
    return means


def mean_of_probs(logits: Floats) -> Floats:
    """The logit of the mean probability of each row of `logits [n, m]`."""
    p = sigmoid(logits)
    return np.asarray(np.log(p.mean(1)) - np.log((1 - p).mean(1)), np.float64)


def fold_means(logits: Floats, settings: Settings) -> dict[str, Candidate]:
    """The two means over `logits [n, folds - 1]` of `leave_two_out_logits`."""
    name = f"mean of {logits.shape[1]} folds' "
    return {
        name + "logits": (logits.mean(1), settings),
        name + "probabilities": (mean_of_probs(logits), settings),
    }


def score_candidates(
    candidates: Mapping[str, Candidate],
    labels: NDArray[np.int64],
    folds: ArrayLike,
    groups: ArrayLike,
    noise_rate: float,
    others: Mapping[str, Candidate] | None = None,
) -> dict[str, CandidateScore]:
    """The scores of `candidates`, of `others` and, with three folds or more, of the choice.

    Only `candidates` can be chosen. `noise_rate` is the leaderboard's.
    """
    probs = {
        name: cross_fitted(logits, labels, folds, settings)
        for name, (logits, settings) in {**candidates, **(others or {})}.items()
    }
    if np.unique(folds).size > 2:
        choice = list(candidates.values()), labels, np.asarray(folds), noise_rate
        probs["best of these, chosen by inner folds"] = nested_choice(*choice)
    clean = {name: per_photo_loss(labels, p) for name, p in probs.items()}
    board = {name: board_losses(labels, p, noise_rate) for name, p in probs.items()}
    first, scores = next(iter(candidates)), {}
    for name in probs:
        of_clean = float(clean[name].mean()), gain(clean[first], clean[name], groups)
        of_board = float(board[name].mean()), gain(board[first], board[name], groups)
        scores[name] = CandidateScore(*of_clean, *of_board)
    return scores


def nested_choice(
    candidates: Sequence[Candidate],
    labels: NDArray[np.int64],
    folds: NDArray[np.float64],
    noise_rate: float,
) -> Floats:
    """Probabilities [n]: each fold's by the candidate that is best among the other folds.

    Best is the least expected loss on the leaderboard when cross-fitted there.
    """

    def choose(held_out: NDArray[np.bool_]) -> Floats:
        rest = ~held_out

        def cost(candidate: Candidate) -> float:
            logits, settings = candidate
            inner = cross_fitted(logits[rest], labels[rest], folds[rest], settings)
            return float(board_losses(labels[rest], inner, noise_rate).mean())

        logits, settings = min(candidates, key=cost)
        curve = fit_curve(settings.method, logits[rest], labels[rest])
        return settings.finish(curve.probs(logits[held_out]))

    return over_folds(folds, choose)


def leave_two_out_logits(
    workspace: Workspace, recipe: Recipe, device: str | None, reporter: Reporter
) -> Floats | None:
    """Logits [n, folds - 1] of the photos of oof.csv, by heads that saw nothing of their fold.

    Their penalty is the median of those that the run chose. None if the recipe solves no heads,
    or has too few folds to leave out two.
    """
    training, folds = recipe.training, recipe.folds
    all_folds = folds.split is None and folds.fit is None and folds.n > 2
    if not isinstance(training, Head) or not all_folds:
        return None
    run = open_run(workspace, recipe)
    fit = open_fit(run, device, reporter, with_test=False)
    assert isinstance(fit, HeadFit)
    heads = [fit.head(fold) for fold in run.folds]
    penalty = float(np.median([head.penalty for head in heads if isinstance(head, LinearHead)]))
    once, photos = training.replace(penalties=(penalty,)), fit.inputs.photos
    learnt = fit.mean_features(fit.inputs.ids, training.views)
    scored = fit.mean_features(fit.inputs.ids)
    logits: list[list[float]] = [[] for _ in fit.inputs.ids]
    pairs = list(combinations(run.folds, 2))
    with reporter.track("heads without two folds", len(pairs), "heads") as advance:
        for pair in pairs:
            held_out = photos["fold"].isin(pair).to_numpy()
            two_parts = photos.assign(fold=held_out.astype(int))
            head = solve_fold(learnt, two_parts, 1, once, recipe.seed)
            found = head.logits(scored[held_out]).tolist()
            for row, logit in zip(np.flatnonzero(held_out), found, strict=True):
                logits[row].append(logit)
            advance()
    return np.array(logits)


def compare_calibrations(
    workspace: Workspace,
    competition: Competition,
    recipe: Recipe,
    device: str | None,
    reporter: Reporter,
) -> dict[str, CandidateScore]:
    """Print the scores for the fitted run of `recipe`; its own choice is what `predict` applies."""
    run = trained_run(workspace, recipe)
    oof, settings = read_oof(run.folder), settings_of(recipe.prediction, competition)
    groups = groups_of(workspace, oof)
    candidates = candidates_of(oof, recipe.prediction.views, settings)
    logits = leave_two_out_logits(workspace, recipe, device, reporter)
    others = None if logits is None else fold_means(logits, settings)
    labels, folds, noise_rate = oof["label"].to_numpy(), oof["fold"], competition.noise_rate
    scores = score_candidates(candidates, labels, folds, groups, noise_rate, others)
    title = f"{run.name}: {len(oof):,} photos, cross-fitted"
    board = f"leaderboard, {noise_rate:.2%} flipped"
    columns = ("", "log loss", "gain, 95 %", board, "gain, 95 %")
    reporter.table(title, columns, [(name, *score) for name, score in scores.items()])
    chosen = f"{settings.method}, noise rate {settings.noise_rate:g}, clip {settings.clip:g}"
    reporter.say(
        f"the recipe's choice ({chosen}) gains {scores[OWN].board_gain} over the plain mean on the"
        " leaderboard"
    )
    return scores
