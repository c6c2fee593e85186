"""The audit of labels: what finished runs, near-duplicates and published lists say against them.

1. Votes. A recipe doubts a label if the out-of-fold probability of the other class is as high as
   it is on average for photos of that class: confident learning, Northcutt et al. 2021,
   "Confident learning: estimating uncertainty in dataset labels", section 3.1. Runs of one recipe
   make the same mistakes, so they share a vote; a blend repeats its members and has none.
2. Near-duplicates with different labels, of which one must be wrong, and pairs of a training photo
   and a test photo that are near-duplicates.
3. comp/suspects.csv: on how many of five lists of odd or mislabelled photos, which competitors
   published, each of 138 training photos is. Models seem to have made two of the lists.

It changes no label. runs/audit.csv has a row for each photo with evidence against it. A person who
has looked at them writes data/verdicts.csv (comp/train/labels.py).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from comp.competition import Competition
from comp.data.manifest import SPLITS, read_manifest
from comp.errors import DataError, StaleError
from comp.metric import sigmoid
from comp.predict.compare import side_by_side
from comp.predict.runs import read_oof
from comp.progress import Reporter, counted
from comp.store import Workspace, write_table
from comp.train.files import is_blend
from comp.train.labels import read_label_fixes
from comp.train.run import run_folders

MIN_OF_CLASS = 10  # photos; the average of fewer means nothing
N_PRINTED = 20  # doubted labels


def read_suspects(competition: Competition) -> dict[str, int]:
    """How many published lists name each suspect training photo."""
    if competition.suspects is None:
        return {}
    table = pd.read_csv(Path(__file__).parents[1] / competition.suspects)
    return dict(zip(table["id"], table["n_lists"], strict=True))


def audit_labels(
    workspace: Workspace, competition: Competition, folders: Sequence[Path], reporter: Reporter
) -> pd.DataFrame:
    """The rows of runs/audit.csv, most doubted first, by the runs in `folders`, or by all."""
    folders = sorted(set(folders)) or run_folders(workspace, "oof.csv")
    if not folders:
        raise StaleError(f"no run is in {workspace.runs}: run `make train` first")
    photos, test = (read_manifest(workspace.manifest(split)) for split in SPLITS)
    recipes = by_recipe(folders)
    votes, n_lists = _count_votes(recipes, photos), read_suspects(competition)
    table = evidence(votes, photos, read_label_fixes(workspace.verdicts), n_lists)
    path = workspace.runs / "audit.csv"
    write_table(path, table)
    if len(recipes) < len(folders):
        reporter.say(
            f"{counted(len(folders), 'run')}, {counted(len(recipes), 'vote')}: runs of one recipe"
            " share a vote, a blend has none"
        )
    _print_doubts(table, len(votes), len(recipes), reporter)
    n_conflicts, n_pairs = (table["conflict"] != "").sum(), len(pairs_across(photos, test))
    has = counted(n_conflicts, "photo has", "photos have")
    reporter.say(f"{has} a near-duplicate with another label")
    reporter.say(f"{counted(n_pairs, 'pair')} of near-duplicates across training and test photos")
    n_listed = counted(len(table), "photo")
    reporter.say(f"{n_listed} in {path}; label fixes go into {workspace.verdicts}")
    return table


def by_recipe(folders: Sequence[Path]) -> dict[str, list[Path]]:
    """Runs by the name of their recipe. Blends are left out if there are any other runs."""
    single = [folder for folder in folders if not is_blend(folder)]
    found: dict[str, list[Path]] = {}
    for folder in single or folders:
        found.setdefault(folder.name.rpartition("-")[0], []).append(folder)
    return found


def _count_votes(recipes: Mapping[str, Sequence[Path]], manifest: pd.DataFrame) -> pd.DataFrame:
    """id, label, number of recipes that doubt it, and the mean of the recipes' mean logits."""
    folders = [folder for runs in recipes.values() for folder in runs]
    photos, by_run = side_by_side({folder.name: read_oof(folder) for folder in folders})
    now = manifest.set_index("id")["label"].reindex(photos["id"]).fillna(-1)
    n_off = int((now.to_numpy() != photos["label"].to_numpy()).sum())
    if n_off:
        raise StaleError(
            f"{folders[0].name} has {counted(n_off, 'photo')} that data/train.csv lacks or labels"
            " otherwise: train it again"
        )
    ends = np.cumsum([len(runs) for runs in recipes.values()])
    logits = [part.mean(1) for part in np.split(by_run, ends[:-1], axis=1)]
    votes = np.sum([doubted(photos["label"], each) for each in logits], axis=0)
    mean = np.mean(logits, axis=0)
    return photos[["id", "label"]].astype({"label": int}).assign(votes=votes, logit=mean)


def doubted(labels: ArrayLike, logits: ArrayLike) -> NDArray[np.bool_]:
    """Which `labels [n]`, 0 or 1, confident learning doubts, by out-of-fold `logits [n]`.

    The threshold of a class is its mean probability over photos with its label. A photo belongs to
    the other class if its probability of that reaches the threshold, unless its own class reaches
    its own threshold too and is more probable.
    """
    label, p = np.asarray(labels, np.int64), sigmoid(logits)
    n_smaller = int(np.bincount(label, minlength=2).min())
    if n_smaller < MIN_OF_CLASS:
        raise DataError(
            f"{n_smaller} out-of-fold photos of one class are too few for an audit: train on"
            f" {MIN_OF_CLASS} or more of each"
        )
    own = np.where(label == 1, p, 1 - p)
    thresholds = np.array([own[label == kind].mean() for kind in (0, 1)])
    return ((1 - own) >= thresholds[1 - label]) & ((own < thresholds[label]) | (own < 0.5))


def evidence(
    votes: pd.DataFrame,
    manifest: pd.DataFrame,
    label_fixes: Mapping[str, str],
    n_lists: Mapping[str, int],
) -> pd.DataFrame:
    """The photos of `votes` (id, label, votes, logit) with evidence against them.

    `p_other`: probability of the other class; `conflict`: near-duplicates that have its label.
    """
    p, clashes = sigmoid(votes["logit"]), conflicts(manifest)
    table = votes[["id", "label", "votes"]].assign(
        p_other=np.where(votes["label"] == 1, 1 - p, p),
        conflict=[clashes.get(id, "") for id in votes["id"]],
        n_lists=[n_lists.get(id, 0) for id in votes["id"]],
        verdict=[label_fixes.get(id, "") for id in votes["id"]],
    )
    is_empty = table[["votes", "conflict", "n_lists", "verdict"]].isin([0, ""]).all(axis=1)
    table = table[~is_empty]
    order = ["votes", "p_other"]
    return table.sort_values(order, ascending=False, kind="stable").reset_index(drop=True)


def conflicts(manifest: pd.DataFrame) -> dict[str, str]:
    """By photo, its near-duplicates with the other label, separated by spaces, if it has any."""
    photos = manifest[["id", "label", "group"]]
    pairs = photos.merge(photos, on="group", suffixes=("", "_other"))
    clashes = pairs[pairs["label"] != pairs["label_other"]].groupby("id")["id_other"]
    return {str(id): " ".join(others) for id, others in clashes}


def pairs_across(photos: pd.DataFrame, test: pd.DataFrame) -> pd.DataFrame:
    """id and test_id of each training photo and test photo that are near-duplicates."""
    others = test[["id", "group"]].rename(columns={"id": "test_id"})
    return photos[["id", "group"]].merge(others, on="group")[["id", "test_id"]]


def _print_doubts(table: pd.DataFrame, n_photos: int, n_recipes: int, reporter: Reporter) -> None:
    doubts = table[table["votes"] > 0]
    cells = doubts[["id", "votes", "p_other", "n_lists", "conflict", "verdict"]].head(N_PRINTED)
    by = ("by " if n_recipes == 1 else "by one or more of ") + counted(n_recipes, "recipe")
    title = f"of {counted(n_photos, 'label')}, {len(doubts):,} doubted {by}"
    columns = ("photo", "votes", "P(other)", "lists", "near-duplicate, other label", "label fix")
    reporter.table(title, columns, list(cells.itertuples(index=False)))
