"""The stage `blend`: several finished runs become one, which later stages take like any other.

By weights: a blend is a weighted mean of logits. Weights are at least 0 and sum to 1. With the
least log loss, which is convex in them, its temperature is then that of any run. Ranks are never
averaged, because they forget how certain a run is. What is reported, and written to oof.csv, is
cross-fitted: the logits of a fold are mixed by weights from the other folds.

By features: one head on the features of all runs side by side (comp/predict/feature_blend.py).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from comp.competition import Competition
from comp.errors import RecipeError
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
    write_predictions,
)
from comp.progress import Reporter
from comp.recipe import Prediction, Recipe
from comp.store import Workspace, code_commit, file_sha256, fingerprint, write_json, write_table
from comp.train.files import record

BLEND_FORMAT = 2  # of fingerprints
OPTIONS = ("prediction.calibration", "prediction.noise_rate", "prediction.clip")
N_PICKS = 30  # of a greedy selection, so that weights are multiples of about 1/30
Weigh = Callable[[Floats, Floats], Floats]


@dataclass(frozen=True, slots=True, kw_only=True)
class Members:
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

    def losses(self) -> list[Floats]:
        """The out-of-fold log loss of each photo, by run."""
        return [per_photo_logit_loss(self.labels, column) for column in self.logits.T]

    def test_logits(self, weights: Floats) -> "pd.Series[float]":
        """Weighted means of the runs' test logits, by id; NaN for a photo that is not decoded."""
        tests = pd.concat([run.predictions.set_index("id")["logit"] for run in self.runs], axis=1)
        return pd.Series(tests.to_numpy(np.float64) @ weights, index=tests.index)

    def compare_with_best(self, logits: Floats) -> str:
        """The log loss of the blend's out-of-fold `logits [n]` and its gain over the best run."""
        alone, losses = self.losses(), per_photo_logit_loss(self.labels, logits)
        best = min(range(len(alone)), key=lambda run: float(alone[run].mean()))
        groups, ratio = self.photos["group"], losses.mean() / alone[best].mean()
        low, high = bootstrap_interval(losses, groups, alone[best])
        return (
            f"{losses.mean():.5f}, {ratio:.2f} ({low:.2f} to {high:.2f}) times that of its best"
            f" run, {self.names[best]}: a gain of {gain(alone[best], losses, groups)}"
        )


def read_members(workspace: Workspace, folders: Iterable[Path]) -> Members:
    """The runs in `folders`, each once.

    RecipeError for fewer than two, StaleError or DataError if they do not fit together.
    """
    runs = [read_run(folder) for folder in sorted(set(folders))]
    if len(runs) < 2:
        raise RecipeError(f'a blend needs 2 or more runs, got {len(runs)}: make blend RUNS="a b c"')
    for run in runs:
        check_current(workspace, run)
    photos, logits = side_by_side({run.folder: run.oof for run in runs})
    photos = photos.assign(group=groups_of(workspace, photos))
    return Members(runs=runs, photos=photos, logits=logits)


def simplex(logits: Floats, labels: Floats) -> Floats:
    """The weights [m] with the least log loss of sigmoid(logits @ weights).

    `logits [n, m]` are out-of-fold, `labels [n]` 0 or 1.
    """
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
    """Weights [m] by `N_PICKS` picks with replacement, each of the run that helps the mean most.

    The best of the means on the way is kept. Source: Caruana et al. 2004.
    """
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
    members = read_members(workspace, folders)
    prediction = _prediction(members, settings)
    parts: dict[str, float] | list[str] = members.names
    if method == "features":
        from comp.predict.feature_blend import fit_on_features  # torch takes seconds to load

        logits, test_logits = fit_on_features(workspace, members, device, reporter)
    else:
        weigh = WEIGHERS[method]
        weights = weigh(members.logits, members.labels)
        logits = mix(members.logits, members.labels, members.photos["fold"], weigh)
        test_logits = members.test_logits(weights)
        parts = dict(zip(members.names, weights.tolist(), strict=True))
        _print_weights(members, weights, weigh, reporter)
    reporter.say(f"log loss of the blend, cross-fitted: {members.compare_with_best(logits)}")
    calibration = settings_of(prediction, competition)
    folder = blend_folder(workspace, members.names, method, calibration)
    made = {"method": method, "members": parts, "prediction": prediction}
    _write_origin(folder, made)
    oof = members.photos[["id", "label", "fold"]].astype({"label": "int64", "fold": "int64"})
    oof = oof.assign(logit=logits)
    write_table(folder / "oof.csv", oof)
    record(folder / "run.json", folder / "oof.csv")
    write_predictions(workspace, folder, oof, test_logits, calibration, reporter)
    print_losses(folder, reporter)
    reporter.say(f"next: make forecast RUN={folder.name}, make submit RUN={folder.name}")
    return folder


def _write_origin(folder: Path, made: Mapping[str, object]) -> None:
    name, _, key = folder.name.partition("-")
    commit = code_commit(Path(__file__).parents[1])
    write_json(folder / "run.json", {"name": name, "fingerprint": key, "commit": commit, **made})


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
        raise RecipeError(
            f"{unknown[0]!r} is not an option of a blend, whose runs are finished: its options are"
            f" {', '.join(OPTIONS)}"
        )
    methods = {run.settings.method for run in members.runs}
    own = Prediction(calibration=methods.pop()) if len(methods) == 1 else Prediction()
    return override(Recipe(name="blend", prediction=own), settings).prediction


def _print_weights(members: Members, weights: Floats, weigh: Weigh, reporter: Reporter) -> None:
    names, photos = members.names, members.photos
    alone = [float(losses.mean()) for losses in members.losses()]
    gains = gains_by_run(members.logits, members.labels, photos["fold"], photos["group"], weigh)
    cells = (names, alone, [f"{weight:.3f}" for weight in weights], gains)
    columns = ("", "alone", "weight", "gain by including it, 95 %")
    reporter.table("blend", columns, list(zip(*cells, strict=True)))
    correlations = np.atleast_2d(np.corrcoef(members.labels - sigmoid(members.logits.T)))
    numbers = [str(n) for n in range(1, len(names) + 1)]
    rows = [
        (f"{number} {name}", *(f"{r:.2f}" for r in row))
        for number, name, row in zip(numbers, names, correlations, strict=True)
    ]
    reporter.table("correlation of errors", ("", *numbers), rows)
