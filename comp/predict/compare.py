"""Finished runs, compared photo by photo."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from comp.competition import Competition
from comp.data.manifest import read_manifest
from comp.errors import DataError, RecipeError, StaleError
from comp.metric import Floats, Gain, gain, per_photo_logit_loss, per_photo_loss
from comp.predict.calibrate import board_losses
from comp.predict.runs import find_run, read_run
from comp.progress import Reporter, counted
from comp.store import Workspace

MIN_PHOTOS = 20  # out of fold; with fewer, an interval means nothing


def side_by_side(oofs: Mapping[str, pd.DataFrame]) -> tuple[pd.DataFrame, Floats]:
    """id, label and fold of the photos of `oofs`, by run, and their logits [n, runs].

    DataError if the runs have other photos, labels or folds.
    """
    tables = {name: oof.set_index("id") for name, oof in oofs.items()}
    first, *others = tables
    photos = tables[first]
    for name in others:
        n_off = len(photos.index.symmetric_difference(tables[name].index))
        if n_off:
            raise DataError(
                f"{first} and {name} differ: {counted(n_off, 'photo is', 'photos are')} in only"
                " one of them;"
                " train both on the same photos"
            )
        tables[name] = tables[name].loc[photos.index]
        for column in ("label", "fold"):
            n_off = int((tables[name][column] != photos[column]).sum())
            if n_off:
                raise DataError(
                    f"{first} and {name} differ in the {column} of {counted(n_off, 'photo')}: train"
                    " both again, on the same data/train.csv and with the same folds.* options"
                )
    logits = np.column_stack([table["logit"] for table in tables.values()])
    return photos.reset_index()[["id", "label", "fold"]], logits


def groups_of(workspace: Workspace, oof: pd.DataFrame) -> NDArray[np.int64]:
    """The near-duplicate group of each photo of `oof`, for the intervals of `gain`.

    DataError if they are too few for an interval, StaleError if some are not in data/train.csv.
    """
    if len(oof) < MIN_PHOTOS:
        raise DataError(
            f"{counted(len(oof), 'out-of-fold photo is', 'out-of-fold photos are')} too few for an"
            f" interval, which needs {MIN_PHOTOS}: train on more photos"
        )
    groups = read_manifest(workspace.manifest("train")).set_index("id")["group"].reindex(oof["id"])
    if groups.isna().any():
        raise StaleError(
            f"{int(groups.isna().sum()):,} of {len(oof):,} out-of-fold photos are not in"
            " data/train.csv: train again"
        )
    return groups.to_numpy(np.int64)


def compare_runs(
    workspace: Workspace, competition: Competition, name: str, against: str, reporter: Reporter
) -> Gain:
    """What the run called `name` gains over the run `against` on the expected leaderboard.

    Prints the loss of both, raw, as submitted, on that leaderboard, and there fold by fold.
    """
    runs = [read_run(find_run(workspace, each)) for each in (name, against)]
    ours, theirs = (run.folder for run in runs)
    if ours == theirs:
        raise RecipeError(f"{name} and {against} are the same run: name another RECIPE or AGAINST")
    photos, logits = side_by_side({run.folder: run.oof for run in runs})
    labels, groups = photos["label"].to_numpy(np.float64), groups_of(workspace, photos)
    probs = [run.out_of_fold_probs().loc[photos["id"]].to_numpy(np.float64) for run in runs]
    raw = [per_photo_logit_loss(labels, column) for column in logits.T]
    submitted = [per_photo_loss(labels, p) for p in probs]
    board = [board_losses(labels, p, competition.noise_rate) for p in probs]
    all_photos, fold = np.ones(labels.size, bool), photos["fold"].to_numpy()
    parts = [
        ("raw", raw, all_photos),
        ("as submitted", submitted, all_photos),
        (
            f"on a leaderboard with {100 * competition.noise_rate:.2f} % label noise",
            board,
            all_photos,
        ),
        *((f"- fold {number:.0f}", board, fold == number) for number in np.unique(fold)),
    ]
    rows = []
    for title, (own, other), part in parts:
        saved = gain(other[part], own[part], groups[part])
        losses = float(own[part].mean()), float(other[part].mean())
        rows.append((title, f"{part.sum():,}", *losses, saved))
    columns = ("", "photos", "ours", "theirs", "gain, 95 %")
    reporter.table(f"{ours} against {theirs}", columns, rows)
    found = gain(board[1], board[0], groups)
    reporter.say(f"{_conclusion(ours, theirs, found)}: {found} on the leaderboard")
    return found


def _conclusion(ours: str, theirs: str, found: Gain) -> str:
    if found.low <= 0 <= found.high:
        return f"no significant difference between {ours} and {theirs} (95 % interval includes 0)"
    return f"{ours} is {'better' if found.low > 0 else 'worse'} than {theirs}"
