"""The stage `calibrate`: ways to turn the logits of views into probabilities, compared.

A candidate says which views are averaged and how, and the settings of the calibration. Each is
cross-fitted. The last row of the table is what choosing among the candidates is worth: the choice
is made for each fold anew, by cross-fitting on the other folds.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from comp.competition import Competition
from comp.metric import Floats, Gain, gains, per_photo_loss, sigmoid
from comp.predict.calibrate import (
    Settings,
    board_losses,
    cross_fitted,
    fit_curve,
    over_folds,
    settings_of,
)
from comp.predict.compare import groups_of
from comp.predict.runs import read_oof, read_run, recipe_of
from comp.progress import Reporter, counted
from comp.recipe import Method, ViewsName
from comp.store import Workspace

METHODS: tuple[Method, ...] = get_args(Method)
NOISE_RATES = (0.0, 0.002, 0.004, 0.008)
CLIPS = (0.0005, 0.002, 0.005, 0.01, 0.03)
OWN = "recipe's choice"

Candidate = tuple[Floats, Settings]  # out-of-fold logits [n], and how they become probabilities


class CandidateScore(NamedTuple):
    """Log loss of a candidate, and its gain over the first on the leaderboard."""

    clean: float
    board: float  # expected, with a share of the labels flipped
    gain: Gain


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
        found[f"but {name}"] = mean, settings
    for name, change in changes.items():
        if settings.replace(**change) != settings:
            found[f"but {name}"] = logits, settings.replace(**change)
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
            of, p = f"{name}, " if n < columns.shape[1] else "", sigmoid(part)
            means[f"{of}mean probability"] = np.log(p.mean(1)) - np.log((1 - p).mean(1))
    return means


def score_candidates(
    candidates: Mapping[str, Candidate],
    labels: NDArray[np.int64],
    folds: ArrayLike,
    groups: ArrayLike,
    noise_rate: float,
) -> dict[str, CandidateScore]:
    """The scores of `candidates` and, with three folds or more, of the choice among them.

    `noise_rate` is the leaderboard's.
    """
    probs = {
        name: cross_fitted(logits, labels, folds, settings)
        for name, (logits, settings) in candidates.items()
    }
    if np.unique(folds).size > 2:
        choice = list(candidates.values()), labels, np.asarray(folds), noise_rate
        probs["best, chosen by inner folds"] = nested_choice(*choice)
    board = np.column_stack([board_losses(labels, p, noise_rate) for p in probs.values()])
    clean = [float(per_photo_loss(labels, p).mean()) for p in probs.values()]
    found = zip(clean, board.mean(0).tolist(), gains(board[:, 0], board, groups), strict=True)
    return {name: CandidateScore(*each) for name, each in zip(probs, found, strict=True)}


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


def compare_calibrations(
    workspace: Workspace, competition: Competition, folder: Path, reporter: Reporter
) -> dict[str, CandidateScore]:
    """Print the scores for the run in `folder`; its own choice is what `predict` applies."""
    oof, recipe = read_oof(folder), recipe_of(folder)
    if recipe:
        views, settings = recipe.prediction.views, settings_of(recipe.prediction, competition)
    else:  # a blend has no views of its own
        views, settings = "none", read_run(folder).settings
    groups, candidates = groups_of(workspace, oof), candidates_of(oof, views, settings)
    labels, folds, noise_rate = oof["label"].to_numpy(), oof["fold"], competition.noise_rate
    scores = score_candidates(candidates, labels, folds, groups, noise_rate)
    title = f"{folder.name}: log loss of {counted(len(oof), 'photo')}, cross-fitted"
    columns = ("", "clean", "board", "gain on board, 95 %")
    reporter.table(title, columns, [(name, *score) for name, score in scores.items()])
    chosen = f"{settings.method}, noise rate {settings.noise_rate:g}, clip {settings.clip:g}"
    reporter.say(
        f"the recipe's choice ({chosen}) gains {scores[OWN].gain} over the plain mean on a"
        f" leaderboard with {100 * noise_rate:.2f} % label noise"
    )
    return scores
