"""Finished runs that become one: read together, and what is made of them kept as a run like any other."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from comp.competition import Competition
from comp.data.manifest import read_manifest
from comp.errors import RecipeError
from comp.metric import Floats, bootstrap_ratio, gain, per_photo_logit_loss
from comp.options import override
from comp.predict.calibrate import settings_of
from comp.predict.finished import (
    FinishedRun,
    check_current,
    find_run,
    finish,
    groups_of,
    read_run,
    show,
    side_by_side,
)
from comp.progress import Reporter
from comp.recipe import Prediction, Recipe
from comp.store import Workspace, code_commit, file_sha256, fingerprint, write_json, write_table

KNOBS = ("prediction.calibration", "prediction.noise_rate", "prediction.clip")


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

    def test_logits(self, weights: Floats) -> "pd.Series[float]":
        """Logits of the test photos, mixed by `weights [runs]`, by id; NaN where a photo cannot be decoded."""
        tests = pd.concat([run.predictions.set_index("id")["logit"] for run in self.runs], axis=1)
        return pd.Series(tests.to_numpy(np.float64) @ weights, index=tests.index)

    def losses(self) -> list[Floats]:
        """The out-of-fold log loss of each photo, run by run."""
        return [per_photo_logit_loss(self.labels, column) for column in self.logits.T]

    def prediction(self, settings: Sequence[str]) -> Prediction:
        """How logits become probabilities: by the runs' own map where they agree on one, and as `settings` say."""
        unknown = [setting for setting in settings if setting.partition("=")[0] not in KNOBS]
        if unknown:
            raise RecipeError(
                f"{unknown[0]!r} is no knob of a blend, whose runs are made already: it has {', '.join(KNOBS)}"
            )
        methods = {run.settings.method for run in self.runs}
        kept = Prediction(calibration=methods.pop()) if len(methods) == 1 else Prediction()
        return override(Recipe(name="blend", prediction=kept), settings).prediction

    def against_best(self, logits: Floats) -> str:
        """What out-of-fold `logits [n]` that were made of the runs gain over the best of them, in words."""
        alone, losses, groups = (
            self.losses(),
            per_photo_logit_loss(self.labels, logits),
            self.photos["group"],
        )
        best = min(range(len(alone)), key=lambda run: float(alone[run].mean()))
        low, high = bootstrap_ratio(losses, alone[best], groups, seed=0)
        return (
            f"{losses.mean():.5f}, {losses.mean() / alone[best].mean():.2f} ({low:.2f} to {high:.2f}) of that of its best run, "
            f"{self.names[best]}: a gain of {gain(alone[best], losses, groups)}"
        )


def read_members(workspace: Workspace, names: Iterable[str]) -> Members:
    """The runs called `names`, each once. RecipeError if they are fewer than two, StaleError or DataError if they do not fit together."""
    runs = [read_run(folder) for folder in sorted({find_run(workspace, name) for name in names})]
    if len(runs) < 2:
        raise RecipeError(f'a blend needs 2 or more runs, got {len(runs)}: make blend RUNS="a b c"')
    for run in runs:
        check_current(workspace, run)
    photos, logits = side_by_side({run.folder: run.oof for run in runs})
    return Members(
        runs=runs, photos=photos.assign(group=groups_of(workspace, photos)), logits=logits
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """What was made of some runs."""

    name: str  # of the new run
    made: Mapping[str, Any]  # how, for its run.json
    prediction: Prediction
    logits: Floats  # [n], out-of-fold, in the order of the members' photos
    test_logits: "pd.Series[float]"  # by id


def keep(
    workspace: Workspace,
    competition: Competition,
    members: Members,
    mixture: Mixture,
    reporter: Reporter,
) -> Path:
    """The folder of the run that `mixture` becomes; the same mixture of the same runs is the same run."""
    settings = settings_of(mixture.prediction, competition)
    key = fingerprint(
        f"{mixture.name} 1",
        [(run.folder, run.oof_sha256) for run in members.runs],
        mixture.made["method"],
        settings,
    )
    folder = workspace.runs / f"{mixture.name}-{key}"
    origin = {
        "name": mixture.name,
        "fingerprint": key,
        **mixture.made,
        "prediction": mixture.prediction,
    }
    write_json(folder / "run.json", origin | {"commit": code_commit(Path(__file__).parents[1])})
    oof = (
        members.photos[["id", "label", "fold"]]
        .astype({"label": "int64", "fold": "int64"})
        .assign(logit=mixture.logits)
    )
    write_table(folder / "oof.csv", oof)
    made_from = {
        "test": file_sha256(workspace.manifest("test"))[:10],
        "oof": file_sha256(folder / "oof.csv")[:10],
    }
    ids = list(read_manifest(workspace.manifest("test"))["id"])
    finish(folder, oof, ids, mixture.test_logits, settings, made_from, reporter)
    show(folder, reporter)
    reporter.say(
        f"{folder.name} is a run like any other: make forecast RUN={folder.name}, make submit RUN={folder.name}"
    )
    return folder
