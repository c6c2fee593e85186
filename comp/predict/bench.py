"""The stage `calibrate`: every way from logits to probabilities, compared on photos that had no say in it.

A way is which views are averaged and how, which map, which noise rate and which clip. Each is cross-fitted; the last line of the table
is what choosing among all of them is worth, the choice made anew for each fold by cross-fitting among the others. Means over folds, of
logits or of probabilities, are compared on heads of their own (comp/predict/fold_means.py), and not chosen from.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from comp.competition import Competition
from comp.metric import Floats, Gain, gain, per_photo_loss, sigmoid
from comp.predict.calibrate import (
    Settings,
    board_losses,
    calibrate,
    cross_fitted,
    distinct,
    settings_of,
)
from comp.predict.finished import groups_of, read_oof
from comp.predict.fold_means import fold_logits
from comp.progress import Reporter
from comp.recipe import Method, Recipe, ViewsName
from comp.store import Workspace
from comp.train.device import Device
from comp.train.run import trained_run

RATES = (0.0, 0.002, 0.004, 0.008)
CLIPS = (0.0005, 0.002, 0.005, 0.01, 0.03)


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way from the logits of views to probabilities."""

    name: str
    logits: Floats  # [n], out-of-fold
    settings: Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """What a way costs on clean labels and on the board, and what it gains there over the first way."""

    name: str
    clean: float
    clean_gain: Gain
    board: float  # expected log loss where a share of the labels is flipped
    board_gain: Gain


def ways_of(oof: pd.DataFrame, views: ViewsName, settings: Settings) -> list[Way]:
    """The plain mean of the views first, the recipe's own choice `settings` second, then what differs from it in one thing."""
    logits = oof["logit"].to_numpy(np.float64)
    plain = Settings(method="none", noise_rate=0.0, clip=0.0)
    ways = [
        Way(name="plain mean of logits", logits=logits, settings=plain),
        Way(name="recipe's choice", logits=logits, settings=settings),
    ]
    methods: tuple[Method, ...] = get_args(Method)
    ways += [
        Way(name=f"{method} alone", logits=logits, settings=replace(plain, method=method))
        for method in methods[1:]
    ]
    for name, averaged in averages(oof, views).items():
        ways.append(Way(name=f"recipe's, but {name}", logits=averaged, settings=settings))
    others = [replace(settings, method=method) for method in methods]
    others += [replace(settings, noise_rate=rate) for rate in RATES] + [
        replace(settings, clip=clip) for clip in CLIPS
    ]
    return ways + [
        Way(name=_difference(other, settings), logits=logits, settings=other)
        for other in others
        if other != settings
    ]


def _difference(other: Settings, settings: Settings) -> str:
    if other.method != settings.method:
        return f"recipe's, but {other.method}"
    return (
        f"recipe's, but noise rate {other.noise_rate:g}"
        if other.clip == settings.clip
        else f"recipe's, but clip {other.clip:g}"
    )


def averages(oof: pd.DataFrame, views: ViewsName) -> dict[str, Floats]:
    """Logits of other means than that of the logits of all `views`. The first view is the centre, the second its mirror image."""
    columns = oof.drop(columns=["id", "label", "fold", "logit"]).to_numpy(np.float64)
    means = {}
    for kind, n in {"none": 1, "flip": 2, views: columns.shape[1]}.items():
        part = columns[:, :n]
        if n < columns.shape[1]:
            means[f"views {kind}"] = part.mean(1)
        if 1 < n <= columns.shape[1]:
            p = sigmoid(part)
            means[f"views {kind}, mean of probabilities"] = np.log(p.mean(1)) - np.log(
                (1 - p).mean(1)
            )
    return means


def means_over_folds(logits: Floats, settings: Settings) -> list[Way]:
    """The two means of `logits [n, folds]` of heads that have less to learn from, under the recipe's `settings`."""
    p, n = sigmoid(logits), logits.shape[1]
    means = {"logits": logits.mean(1), "probabilities": np.log(p.mean(1)) - np.log((1 - p).mean(1))}
    return [
        Way(name=f"mean of {n} folds, of {what}", logits=mean, settings=settings)
        for what, mean in means.items()
    ]


def compare(
    ways: Sequence[Way],
    labels: NDArray[np.int64],
    folds: ArrayLike,
    groups: ArrayLike,
    noise_rate: float,
    others: Sequence[Way] = (),
) -> list[Line]:
    """A line for each of `ways` and `others` and, where there are three folds or more, one for the choice among `ways`.

    `noise_rate` is the board's.
    """
    probs = {
        way.name: cross_fitted(way.logits, labels, folds, way.settings) for way in (*ways, *others)
    }
    if distinct(folds).size > 2:
        probs["the best of these, chosen by inner folds"] = chosen(
            ways, labels, np.asarray(folds), noise_rate
        )
    clean = {name: per_photo_loss(labels, p) for name, p in probs.items()}
    board = {name: board_losses(labels, p, noise_rate) for name, p in probs.items()}
    first = ways[0].name
    return [
        Line(
            name=name,
            clean=float(clean[name].mean()),
            clean_gain=gain(clean[first], clean[name], groups),
            board=float(board[name].mean()),
            board_gain=gain(board[first], board[name], groups),
        )
        for name in probs
    ]


def chosen(
    ways: Sequence[Way], labels: NDArray[np.int64], folds: NDArray[np.float64], noise_rate: float
) -> Floats:
    """Probabilities `[n]`, each fold's by the way that has the least expected board loss when cross-fitted among the other folds."""
    probs = np.empty(labels.shape)
    for fold in distinct(folds):
        held, rest = folds == fold, folds != fold

        def cost(way: Way, rest: NDArray[np.bool_] = rest) -> float:
            inner = cross_fitted(way.logits[rest], labels[rest], folds[rest], way.settings)
            return float(board_losses(labels[rest], inner, noise_rate).mean())

        best = min(ways, key=cost)
        probs[held] = calibrate(best.logits[rest], labels[rest], best.settings).apply(
            best.logits[held]
        )
    return probs


def show_bench(
    workspace: Workspace,
    competition: Competition,
    recipe: Recipe,
    device: Device,
    reporter: Reporter,
) -> list[Line]:
    """The table for the fitted run of `recipe`, whose choice is what `predict` applies."""
    run = trained_run(workspace, recipe)
    oof, settings = read_oof(run.folder), settings_of(recipe.prediction, competition)
    groups = groups_of(workspace, oof)
    ways, logits = (
        ways_of(oof, recipe.prediction.views, settings),
        fold_logits(workspace, recipe, device, reporter),
    )
    others = means_over_folds(logits, settings) if logits is not None else []
    lines = compare(
        ways,
        oof["label"].to_numpy(),
        oof["fold"].to_numpy(),
        groups,
        competition.noise_rate,
        others,
    )
    rows = [(line.name, line.clean, line.clean_gain, line.board, line.board_gain) for line in lines]
    board = f"board, {competition.noise_rate:.2%} flipped"
    reporter.table(
        f"{run.name}: {len(oof):,} photos, cross-fitted",
        ("", "log loss", "gain, 95 %", board, "gain, 95 %"),
        rows,
    )
    ours = f"{settings.method}, noise rate {settings.noise_rate:g}, clip {settings.clip:g}"
    reporter.say(
        f"the recipe's choice ({ours}) gains {lines[1].board_gain} over the plain mean on the board"
    )
    return lines
