"""The stage `blend`: several finished runs become one, which later stages take like any other.

By weights: a blend is a weighted mean of logits. Weights are at least 0 and sum to 1. With the
least log loss, which is convex in them, its temperature is then that of any run. Ranks are never
averaged, because they forget how certain a run is. What is reported, and written to oof.csv, is
cross-fitted: the logits of a fold are mixed by weights from the other folds.

By features: one head on the features of all runs side by side, as ypwhs did with three backbones
for .04141 on this leaderboard. Features are kept, so it costs one head per fold. Each feature is
standardised: a backbone with more features counts for more.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from comp.competition import Competition
from comp.errors import DataError, RecipeError
from comp.metric import (
    Floats,
    Gain,
    bootstrap_interval,
    gain,
    logit_log_loss,
    per_photo_logit_loss,
    sigmoid,
)
from comp.options import override
from comp.predict.calibrate import Settings, over_folds, settings_of
from comp.predict.compare import groups_of, side_by_side
from comp.predict.runs import (
    FinishedRun,
    check_current,
    print_losses,
    read_run,
    recipe_of,
    write_predictions,
)
from comp.progress import Reporter, counted
from comp.recipe import Head, Prediction, Recipe
from comp.store import Workspace, code_commit, file_sha256, fingerprint, write_json, write_table
from comp.train.files import record
from comp.train.run import open_run

BLEND_FORMAT = 2  # of fingerprints
OPTIONS = ("prediction.calibration", "prediction.noise_rate", "prediction.clip")
N_PICKS = 30  # of a greedy selection, so that weights are multiples of about 1/30
Weigh = Callable[[Floats, Floats], Floats]


class Members(NamedTuple):
    """Finished runs of the same photos and folds."""

    runs: list[FinishedRun]  # in the order of their folders
    photos: pd.DataFrame  # id, label, fold and near-duplicate group of the out-of-fold photos
    logits: Floats  # [photos, runs], out-of-fold

    @property
    def names(self) -> list[str]:
        return [run.folder for run in self.runs]

    @property
    def labels(self) -> Floats:
        return self.photos["label"].to_numpy(np.float64)

    def compare_with_best(self, logits: Floats) -> str:
        """The log loss of the blend's out-of-fold `logits [n]` and its gain over the best run."""
        alone = per_photo_logit_loss(self.labels[:, None], self.logits)
        losses = per_photo_logit_loss(self.labels, logits)
        best = int(alone.mean(0).argmin())
        groups, ratio = self.photos["group"], losses.mean() / alone[:, best].mean()
        low, high = bootstrap_interval(losses, groups, alone[:, best])
        return (
            f"{losses.mean():.5f}, {ratio:.2f} ({low:.2f} to {high:.2f}) times that of its best"
            f" run, {self.names[best]}: a gain of {gain(alone[:, best], losses, groups)}"
        )


def read_members(workspace: Workspace, folders: Iterable[Path], method: str) -> Members:
    """The runs in `folders`, each once. RecipeError for fewer than 2, DataError for unlike ones.

    For equal weights their folds may differ: those of the first folder count.
    """
    folders = list(folders)
    runs = [read_run(folder) for folder in sorted(set(folders))]
    if len(runs) < 2:
        raise RecipeError(f'a blend needs 2 or more runs, got {len(runs)}: make blend RUNS="a b c"')
    for run in runs:
        check_current(workspace, run)
    photos, logits = side_by_side({run.folder: run.oof for run in runs})
    folds = [run.oof.set_index("id")["fold"].loc[photos["id"]].to_numpy() for run in runs]
    n_moved = int((np.array(folds) != folds[0]).any(0).sum())
    if n_moved and method != "equal":
        moved = f"{counted(n_moved, 'photo is', 'photos are')} in another fold of another run"
        raise DataError(f"{moved}: take METHOD=equal, or the same folds.* options")
    photos = photos.assign(fold=folds[[run.folder for run in runs].index(folders[0].name)])
    return Members(runs, photos.assign(group=groups_of(workspace, photos)), logits)


def simplex(logits: Floats, labels: Floats) -> Floats:
    """The weights [m] with the least log loss of sigmoid(logits [n, m] @ weights)."""
    from scipy.optimize import minimize  # slow to load, and a blend that is done needs none

    def loss(weights: Floats) -> tuple[float, Floats]:
        mixed = logits @ weights
        return logit_log_loss(labels, mixed), logits.T @ (sigmoid(mixed) - labels) / labels.size

    m = logits.shape[1]
    found = minimize(
        loss,
        np.full(m, 1 / m),
        jac=True,
        method="SLSQP",
        bounds=[(0, 1)] * m,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": np.ones_like},
        options={"ftol": 1e-14, "maxiter": 1000},
    )
    weights = np.clip(found.x, 0, 1)
    return np.asarray(weights / weights.sum(), np.float64)


def greedy(logits: Floats, labels: Floats) -> Floats:
    """Weights [m] by `N_PICKS` picks, each of the run that helps most. Caruana et al. 2004."""
    total, counts = np.zeros((labels.size, 1)), np.zeros(logits.shape[1])
    steps: list[tuple[float, Floats]] = []
    for n_picked in range(1, N_PICKS + 1):
        losses = per_photo_logit_loss(labels[:, None], (total + logits) / n_picked).mean(0)
        pick = int(losses.argmin())
        total, counts[pick] = total + logits[:, [pick]], counts[pick] + 1
        steps.append((float(losses[pick]), counts / n_picked))
    return min(steps, key=lambda step: step[0])[1]


def equal(logits: Floats, labels: Floats) -> Floats:  # noqa: ARG001  # called like the others
    """The same weight for each run, for runs that are equally good: a few errors decide nothing."""
    return np.full(logits.shape[1], 1 / logits.shape[1])


WEIGHERS: dict[str, Weigh] = {"simplex": simplex, "greedy": greedy, "equal": equal}


def mix(logits: Floats, labels: Floats, folds: ArrayLike, weigh: Weigh) -> Floats:
    """Mixed logits [n]; those of each fold by weights that are fitted on the other folds."""

    def mixed(held_out: NDArray[np.bool_]) -> Floats:
        return logits[held_out] @ weigh(logits[~held_out], labels[~held_out])

    return over_folds(folds, mixed)


def gains_by_run(
    logits: Floats, labels: Floats, folds: ArrayLike, groups: ArrayLike, weigh: Weigh
) -> list[Gain]:
    """What the blend gains by each run, over the blend of all others, both cross-fitted."""
    losses = per_photo_logit_loss(labels, mix(logits, labels, folds, weigh))
    others = [
        mix(np.delete(logits, run, axis=1), labels, folds, weigh) for run in range(logits.shape[1])
    ]
    return [gain(per_photo_logit_loss(labels, mixed), losses, groups) for mixed in others]


def blend_runs(
    workspace: Workspace,
    competition: Competition,
    folders: Iterable[Path],
    method: str,
    settings: Sequence[str],
    device: str | None,
    reporter: Reporter,
) -> Path:
    """The folder of the run made of the runs in `folders`.

    `method`: one of WEIGHERS, or "features". `settings` override how logits become probabilities,
    such as prediction.clip=0.01. The same blend of the same runs is the same run.
    """
    members = read_members(workspace, folders, method)
    prediction = _prediction(members, settings)
    parts: dict[str, float] | list[str] = members.names
    if method == "features":
        logits, test_logits = fit_on_features(workspace, members, device, reporter)
    else:
        weigh = WEIGHERS[method]
        weights = weigh(members.logits, members.labels)
        logits = mix(members.logits, members.labels, members.photos["fold"], weigh)
        tests = pd.concat([x.predictions.set_index("id")["logit"] for x in members.runs], axis=1)
        test_logits = pd.Series(tests.to_numpy(np.float64) @ weights, tests.index)
        parts = dict(zip(members.names, weights.tolist(), strict=True))
        _print_weights(members, weights, weigh, reporter)
    reporter.say(f"log loss of the blend, cross-fitted: {members.compare_with_best(logits)}")
    calibration = settings_of(prediction, competition)
    folder = blend_folder(workspace, members.names, method, calibration)
    name, _, key = folder.name.partition("-")
    made = {"method": method, "members": parts, "prediction": prediction}
    made |= {"name": name, "fingerprint": key, "commit": code_commit(Path(__file__).parents[1])}
    write_json(folder / "run.json", made)
    oof = members.photos.drop(columns="group").astype({"label": "int64", "fold": "int64"})
    oof = oof.assign(logit=logits)
    write_table(folder / "oof.csv", oof)
    record(folder / "run.json", folder / "oof.csv")
    write_predictions(workspace, folder, oof, test_logits, calibration, reporter)
    print_losses(folder, reporter)
    reporter.say(f"next: make forecast RUN={folder.name}, make submit RUN={folder.name}")
    return folder


def blend_folder(
    workspace: Workspace, names: Iterable[str], method: str, settings: Settings
) -> Path:
    """Where the blend by `method` of the finished runs in the folders `names` is, or would be."""
    files = [
        (name, *(file_sha256(workspace.runs / name / file) for file in ("oof.csv", "test.csv")))
        for name in sorted(names)
    ]
    kind = "concat" if method == "features" else "blend"
    return workspace.runs / f"{kind}-{fingerprint(BLEND_FORMAT, files, method, settings)}"


def _prediction(members: Members, settings: Sequence[str]) -> Prediction:
    """The runs' own calibration, if they have the same, and what `settings` override."""
    unknown = [setting for setting in settings if setting.partition("=")[0] not in OPTIONS]
    if unknown:
        what = f"{unknown[0]!r} is not an option of a blend, whose runs are finished"
        raise RecipeError(f"{what}: its options are {', '.join(OPTIONS)}")
    methods = {run.figures.method for run in members.runs}
    own = Prediction(calibration=methods.pop()) if len(methods) == 1 else Prediction()
    return override(Recipe(name="blend", prediction=own), settings).prediction


def _print_weights(members: Members, weights: Floats, weigh: Weigh, reporter: Reporter) -> None:
    names, photos, labels = members.names, members.photos, members.labels
    alone = per_photo_logit_loss(labels[:, None], members.logits).mean(0).tolist()
    gains = gains_by_run(members.logits, labels, photos["fold"], photos["group"], weigh)
    cells = (names, alone, [f"{weight:.3f}" for weight in weights], gains)
    columns = ("", "alone", "weight", "gain by including it, 95 %")
    reporter.table("blend", columns, list(zip(*cells, strict=True)))
    numbers = [str(n) for n in range(1, len(names) + 1)]
    errors = pd.DataFrame(labels[:, None] - sigmoid(members.logits), columns=numbers)
    table = errors.corr().map("{:.2f}".format)
    rows = [(f"{n} {name}", *table[n]) for n, name in zip(numbers, names, strict=True)]
    reporter.table("correlation of errors", ("", *numbers), rows)
    mean, spread = np.mean(alone), np.std(alone, ddof=1)
    reporter.say(f"log loss alone: mean {mean:.5f}, standard deviation {spread:.5f}")


def fit_on_features(
    workspace: Workspace, members: Members, device: str | None, reporter: Reporter
) -> tuple[Floats, "pd.Series[float]"]:
    """Out-of-fold logits [n] of the members' photos, and the mean over folds of test logits by id.

    RecipeError for a member that solves no heads, DataError if they learn from different labels.
    """
    from comp.train.fits import HeadFit, open_fit  # torch takes seconds to load
    from comp.train.solver import solve_fold

    recipes = [_head_recipe(workspace.runs / name) for name in members.names]
    fits: list[HeadFit] = []
    for recipe, _ in recipes:
        fit = open_fit(open_run(workspace, recipe), device, reporter)
        assert isinstance(fit, HeadFit)
        fits.append(fit)
        run, inputs = fit.inputs.run, fits[0].inputs
        if run.folds != inputs.run.folds or not fit.inputs.photos.equals(inputs.photos):
            names = f"{recipes[0][0].name} and {recipe.name}"
            remedy = "train both with the same folds.* options"
            raise DataError(f"{names} learn from other labels or in other folds: {remedy}")
    heads = [head for _, head in recipes]
    pairs = zip(fits, heads, strict=True)
    learnt = np.hstack([fit.mean_features(inputs.ids, head.views) for fit, head in pairs])
    scored, test = (
        np.hstack([fit.mean_features(ids) for fit in fits]) for ids in (inputs.ids, inputs.test_ids)
    )
    logits, test_logits = np.full(len(scored), np.nan), np.zeros(len(test))
    training, seed, folds = shared_head(heads), inputs.run.recipe.seed, inputs.run.folds
    with reporter.track(f"heads on {learnt.shape[1]:,} features", len(folds), "folds") as advance:
        for fold in folds:
            held_out = (inputs.photos["fold"] == fold).to_numpy()
            head = solve_fold(learnt, inputs.photos, fold, training, seed)
            logits[held_out] = head.logits(scored[held_out])
            test_logits += head.logits(test)
            advance()
    out_of_fold = pd.Series(logits, index=inputs.ids).loc[members.photos["id"]]
    return out_of_fold.to_numpy(np.float64), pd.Series(test_logits / len(folds), inputs.test_ids)


def shared_head(heads: Sequence[Head]) -> Head:
    """A head in the place of `heads`, with all their penalties and the most inner folds."""
    penalties = sorted({penalty for head in heads for penalty in head.penalties})
    return Head(penalties=tuple(penalties), n_inner=max(head.n_inner for head in heads))


def _head_recipe(folder: Path) -> tuple[Recipe, Head]:
    recipe = recipe_of(folder)
    if recipe is None or not isinstance(recipe.training, Head):
        what = f"{folder.name} has no solved head on features of its own"
        raise RecipeError(f"{what}: METHOD=features takes runs of head recipes")
    return recipe, recipe.training
