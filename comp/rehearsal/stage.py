"""The four stages, for real, against a stand-in for Kaggle, in a workspace of their own."""

import hashlib
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pandas as pd

from comp.competition import Competition
from comp.data.origin import account_home, find_archive, mark_rehearsal
from comp.data.stage import prepare
from comp.errors import TrainingError, UserError
from comp.kaggle import Kaggle
from comp.metric import log_loss, prior_logit, sigmoid
from comp.network.preprocessing import geometry_of
from comp.predict.stage import predict_all
from comp.progress import Reporter
from comp.recipe import Recipe
from comp.rehearsal.drawing import write_edition
from comp.rehearsal.scoring import labels_of
from comp.rehearsal.server import RehearsalServer
from comp.report.stage import pages_kept_current
from comp.store import Workspace, read_json
from comp.submit.ledger import LedgerRow
from comp.submit.stage import submit
from comp.train.run import Run
from comp.train.stage import train

N_TRAIN, N_TEST, SEED = 800, 200, 0  # drawn photos, when there is no archive


def rehearse(
    root: Path,
    competition: Competition,
    recipes: Sequence[Recipe],
    device: str | None,
    archive: Path | None,
    solution: Path | None,
    reporter: Reporter,
) -> LedgerRow:
    """Runs data, train, predict and submit with `recipes` (several are blended); the ledger's row.

    The photos are those of `archive`, scored against `solution`, or drawn. All files go under
    `root`/.rehearsal; the real data, ledger and credentials are not touched.
    """
    if (archive is None) != (solution is None):
        raise UserError("your own photos need both ARCHIVE and SOLUTION; only one was given")
    if archive and solution:
        parts = find_archive(archive, competition)
        archive = parts[0] if len(parts) == 1 else archive
        labels_of(archive, solution, competition)  # before anything is written
    workspace = Workspace(root / ".rehearsal" / (name_of(archive) if archive else "drawn"))
    competition = mark_rehearsal(workspace, competition)
    if archive is None or solution is None:
        size = {"seed": SEED, "n_train": N_TRAIN, "n_test": N_TEST}
        edition = workspace.root / "edition"
        archive, solution = write_edition(edition, competition, reporter, **size)
    journal = workspace.root / "server" / "submissions.json"
    with RehearsalServer(archive, solution, competition, journal=journal) as server:
        kaggle = Kaggle(competition, reporter, env=server.environment(account_home(workspace)))
        download, geometry = partial(kaggle.download, workspace.raw), geometry_of(recipes[0])
        prepare(workspace, competition, download, kaggle.is_real, geometry, reporter)
        with pages_kept_current(workspace, competition, reporter):
            runs = [train(workspace, recipe, device, reporter) for recipe in recipes]
            folder = predict_all(workspace, competition, recipes, device, reporter)
            row = submit(workspace, competition, kaggle, folder, reporter)
    for run in runs:
        check_learning(run)
    names, place = ", ".join(recipe.name for recipe in recipes), os.path.relpath(workspace.root)
    reporter.say(f"rehearsal of {names} done; everything is under {place}")
    reporter.say(f"to continue there: make train predict forecast RECIPE=... WORKSPACE={place}")
    return row


def name_of(archive: Path) -> str:
    """A name for the workspace of `archive`, different for each path."""
    return f"{archive.stem}-{hashlib.sha256(str(archive.resolve()).encode()).hexdigest()[:6]}"


def check_learning(run: Run) -> None:
    """TrainingError unless the out-of-fold log loss is below that of the class frequencies."""
    oof = pd.read_csv(run.oof)
    prior = log_loss(oof["label"], sigmoid([prior_logit(oof["label"])] * len(oof)))
    cv = float(read_json(run.folder / "calibration.json")["cv_raw"])
    if cv >= prior:
        raise TrainingError(
            f"{run.name} has learned nothing: its out-of-fold log loss is {cv:.5f}, "
            f"that of the class frequencies {prior:.5f}"
        )
