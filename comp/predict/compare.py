"""What is compared: finished runs, photo by photo, and ways from logits to probabilities.

The stage `calibrate` compares candidates: which views are averaged and how, and the settings of the
calibration. Each is cross-fitted. The last row of its table is what choosing among the candidates
is worth: the choice is made for each fold anew, by cross-fitting on the other folds.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from comp.competition import Competition
from comp.data.manifest import read_manifest
from comp.errors import DataError, RecipeError, StaleError
from comp.metric import Floats, Gain, gain, gains, per_photo_logit_loss, per_photo_loss, sigmoid
from comp.options import differing
from comp.predict.calibrate import (
    Settings,
    board_losses,
    cross_fitted,
    fit_curve,
    over_folds,
    settings_of,
)
from comp.predict.runs import FinishedRun, options_of, read_oof, read_run, recipe_of
from comp.progress import Reporter, counted
from comp.recipe import Method, ViewsName
from comp.store import Workspace

METHODS: tuple[Method, ...] = get_args(Method)
NOISE_RATES = (0.0, 0.002, 0.004, 0.008)
CLIPS = (0.0005, 0.002, 0.005, 0.01, 0.03)
OWN = "recipe's choice"
MIN_PHOTOS = 20  # out of fold; with fewer, an interval means nothing


def side_by_side(oofs: Mapping[str, pd.DataFrame]) -> tuple[pd.DataFrame, Floats]:
    """id, label and the first's fold of the photos of `oofs`, and logits [n, runs].

    DataError if they are other photos, or have other labels.
    """
    tables = {name: oof.set_index("id") for name, oof in oofs.items()}
    first, *others = tables
    photos = tables[first]
    for name in others:
        n_off = len(photos.index.symmetric_difference(tables[name].index))
        if n_off:
            raise DataError(
                f"{first} and {name} differ: {counted(n_off, 'photo is', 'photos are')} in only"
                " one of them; name other runs, or train both on the same photos"
            )
        tables[name] = tables[name].loc[photos.index]
        if n_off := int((tables[name]["label"] != photos["label"]).sum()):
            raise DataError(
                f"{first} and {name} differ in the label of {counted(n_off, 'photo')}: train both"
                " again, on the same data/train.csv"
            )
    logits = np.column_stack([table["logit"] for table in tables.values()])
    return photos.reset_index()[["id", "label", "fold"]], logits


def groups_of(workspace: Workspace, oof: pd.DataFrame) -> NDArray[np.int64]:
    """The near-duplicate group of each photo; an error for too few photos, or unknown ones."""
    if len(oof) < MIN_PHOTOS:
        raise DataError(
            f"{counted(len(oof), 'out-of-fold photo is', 'out-of-fold photos are')} too few for an"
            f" interval, which needs {MIN_PHOTOS}: train on more photos"
        )
    groups = read_manifest(workspace.manifest("train")).set_index("id")["group"].reindex(oof["id"])
    if groups.isna().any():
        raise StaleError(
            f"data/train.csv lacks {int(groups.isna().sum()):,} of"
            f" {counted(len(oof), 'out-of-fold photo')}: train again"
        )
    return groups.to_numpy(np.int64)


def compare_runs(
    workspace: Workspace, competition: Competition, a: Path, b: Path, reporter: Reporter
) -> Gain:
    """Print how two runs differ, and what that in `a` gains on the expected leaderboard."""
    if a == b:
        raise RecipeError(f"both names mean the same run, {a.name}: name another one")
    runs = [read_run(folder) for folder in (a, b)]
    rows = differing({"A": options_of(a), "B": options_of(b)})
    for line in [f"{name}: A {one}, B {other}" for name, one, other in rows] or ["same options"]:
        reporter.say(line)
    photos = _shared_photos(runs, reporter)
    labels, groups = photos["label"].to_numpy(np.float64), groups_of(workspace, photos)
    oofs = [run.oof.set_index("id").loc[photos["id"]] for run in runs]
    probs = [run.out_of_fold_probs().loc[photos["id"]] for run in runs]
    board = [board_losses(labels, p, competition.noise_rate) for p in probs]
    everywhere, fold = np.ones(labels.size, bool), photos["fold"].to_numpy()
    parts = [
        ("raw", [per_photo_logit_loss(labels, oof["logit"]) for oof in oofs], everywhere),
        ("as submitted", [per_photo_loss(labels, p) for p in probs], everywhere),
        ("expected leaderboard", board, everywhere),
    ]
    if (oofs[0]["fold"] == oofs[1]["fold"]).all():
        parts += [(f"- fold {k:.0f}", board, fold == k) for k in np.unique(fold)]
    cells = []
    for title, (ours, theirs), part in parts:
        saved = gain(theirs[part], ours[part], groups[part])
        cells.append((title, f"{part.sum():,}", ours[part].mean(), theirs[part].mean(), saved))
    columns = ("log loss", "photos", "A", "B", "gain of A over B, 95 %")
    reporter.table(f"A {a.name}, B {b.name}", columns, cells)
    found = gain(board[1], board[0], groups)
    noise = f"on a leaderboard with {100 * competition.noise_rate:.2f} % label noise"
    reporter.say(f"{conclusion(a.name, b.name, found)}: {found} {noise}")
    return found


def _shared_photos(runs: Sequence[FinishedRun], reporter: Reporter) -> pd.DataFrame:
    """id, label and fold in the first of two runs, of the photos of both with the same label."""
    one, other = (run.oof for run in runs)
    both = one.merge(other[["id", "label", "fold"]], on="id", suffixes=("", "_other"))
    is_same = both["label"] == both["label_other"]
    shared = both[is_same]
    n_left_out = {
        "only in A": len(one) - len(both),
        "only in B": len(other) - len(both),
        "labelled otherwise": int((~is_same).sum()),
    }
    told = [f"{n:,} {what}" for what, n in n_left_out.items() if n]
    n_moved = int((shared["fold"] != shared["fold_other"]).sum())
    moved = f"; {n_moved:,} of them in other folds" if n_moved else ""
    left_out = f"; left out: {', '.join(told)}" if told else ""
    reporter.say(f"compared on {counted(len(shared), 'photo')} of both{moved}{left_out}")
    return shared[["id", "label", "fold"]]


def conclusion(ours: str, theirs: str, found: Gain) -> str:
    if found.low <= 0 <= found.high:
        return f"no significant difference between {ours} and {theirs} (95 % interval includes 0)"
    return f"{ours} is {'better' if found.low > 0 else 'worse'} than {theirs}"


Candidate = tuple[Floats, Settings]  # out-of-fold logits [n], and how they become probabilities


class CandidateScore(NamedTuple):
    """Log loss of a candidate, and its gain over the first on the leaderboard."""

    clean: float
    board: float  # expected, with a share of the labels flipped
    gain: Gain


def candidates_of(oof: pd.DataFrame, views: ViewsName, settings: Settings) -> dict[str, Candidate]:
    """The plain mean of the views, the recipe's `settings`, and those with one thing changed."""
    logits, plain = oof["logit"].to_numpy(np.float64), Settings(method="none", noise_rate=0, clip=0)
    changes: dict[str, dict[str, Any]] = {method: {"method": method} for method in METHODS}
    changes |= {f"noise rate {rate:g}": {"noise_rate": rate} for rate in NOISE_RATES}
    changes |= {f"clip {clip:g}": {"clip": clip} for clip in CLIPS}
    changed = {name: settings.replace(**change) for name, change in changes.items()}
    found = {"plain mean of logits": (logits, plain), OWN: (logits, settings)}
    found |= {f"{method} alone": (logits, plain.replace(method=method)) for method in METHODS[1:]}
    ways = {name: (mean, settings) for name, mean in view_means(oof, views).items()}
    ways |= {name: (logits, other) for name, other in changed.items() if other != settings}
    return found | {f"but {name}": way for name, way in ways.items()}


def view_means(oof: pd.DataFrame, views: ViewsName) -> dict[str, Floats]:
    """Logits averaged in other ways than over all `views`: the centre is first, then its mirror."""
    columns = oof.drop(columns=["id", "label", "fold", "logit"]).to_numpy(np.float64)
    means = {}
    for name, n in {"none": 1, "flip": 2, views: columns.shape[1]}.items():
        if n < columns.shape[1]:
            means[f"views {name}"] = columns[:, :n].mean(1)
        if 1 < n <= columns.shape[1]:
            of, p = f"{name}, " if n < columns.shape[1] else "", sigmoid(columns[:, :n])
            means[f"{of}mean probability"] = np.log(p.mean(1)) - np.log((1 - p).mean(1))
    return means


def score_candidates(
    candidates: Mapping[str, Candidate],
    labels: NDArray[np.int64],
    folds: ArrayLike,
    groups: ArrayLike,
    noise_rate: float,
) -> dict[str, CandidateScore]:
    """The scores of `candidates` and, with three folds or more, of the choice among them."""
    probs = {
        name: cross_fitted(logits, labels, folds, settings)
        for name, (logits, settings) in candidates.items()
    }
    if np.unique(folds).size > 2:
        choice = list(candidates.values()), labels, np.asarray(folds), noise_rate
        probs["best, chosen by inner folds"] = nested_choice(*choice)
    columns = np.column_stack([*probs.values()])
    clean = per_photo_loss(labels[:, None], columns).mean(0).tolist()
    board = board_losses(labels[:, None], columns, noise_rate)
    found = zip(clean, board.mean(0).tolist(), gains(board[:, 0], board, groups), strict=True)
    return {name: CandidateScore(*each) for name, each in zip(probs, found, strict=True)}


def nested_choice(
    candidates: Sequence[Candidate],
    labels: NDArray[np.int64],
    folds: NDArray[np.float64],
    noise_rate: float,
) -> Floats:
    """Probabilities [n]: each fold's by the candidate with the least board loss on the others."""

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
        views, settings = "none", read_run(folder).figures
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
