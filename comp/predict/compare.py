"""Finished runs, compared photo by photo."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from comp.competition import Competition
from comp.data.manifest import read_manifest
from comp.errors import DataError, RecipeError, StaleError
from comp.metric import Floats, Gain, gain, per_photo_logit_loss, per_photo_loss
from comp.options import differing
from comp.predict.calibrate import board_losses
from comp.predict.runs import FinishedRun, options_of, read_run
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
    workspace: Workspace, competition: Competition, a: Path, b: Path, reporter: Reporter
) -> Gain:
    """What the run in folder `a` gains over that in `b`, on the expected leaderboard.

    Prints what differs in their options and photos, and on the photos of both the loss: raw, as
    submitted, on that leaderboard, and there fold by fold.
    """
    if a == b:
        raise RecipeError(f"both names mean the same run, {a.name}: name another one")
    runs = [read_run(folder) for folder in (a, b)]
    rows = differing({"A": options_of(a), "B": options_of(b)})
    for line in [f"{name}: A {one}, B {other}" for name, one, other in rows] or ["same options"]:
        reporter.say(line)
    photos = _shared_photos(runs, reporter)
    labels, groups = photos["label"].to_numpy(np.float64), groups_of(workspace, photos)
    oofs = [run.oof.set_index("id").loc[photos["id"]] for run in runs]
    probs = [run.out_of_fold_probs().loc[photos["id"]].to_numpy(np.float64) for run in runs]
    raw = [per_photo_logit_loss(labels, oof["logit"]) for oof in oofs]
    submitted = [per_photo_loss(labels, p) for p in probs]
    board = [board_losses(labels, p, competition.noise_rate) for p in probs]
    everywhere, fold = np.ones(labels.size, bool), photos["fold"].to_numpy()
    parts = [("raw", raw, everywhere), ("as submitted", submitted, everywhere)]
    parts += [("expected leaderboard", board, everywhere)]
    if (oofs[0]["fold"] == oofs[1]["fold"]).all():
        parts += [(f"- fold {k:.0f}", board, fold == k) for k in np.unique(fold)]
    cells = []
    for title, (ours, theirs), part in parts:
        saved = gain(theirs[part], ours[part], groups[part])
        means = float(ours[part].mean()), float(theirs[part].mean())
        cells.append((title, f"{part.sum():,}", *means, saved))
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
