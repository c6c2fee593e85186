"""The audit of labels: what finished runs, near-duplicates and published lists say against them.

1. Votes. A run doubts a label if the out-of-fold probability of the other class is as high as it is
   on average for photos of that class: confident learning, Northcutt et al. 2021, "Confident
   learning: estimating uncertainty in dataset labels", section 3.1.
2. Near-duplicates with different labels, of which one must be wrong, and pairs of a training photo
   and a test photo that are near-duplicates.
3. The leak: how much better the log loss looks if folds split near-duplicates.
4. comp/suspects.csv: 138 training photos on five lists of odd or mislabelled photos that
   competitors published, and on how many. Two of the lists seem to be made by models: one list is
   no reason to drop a photo.

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
from comp.errors import DataError, RecipeError, StaleError
from comp.metric import Gain, gain, per_photo_logit_loss, sigmoid
from comp.network.device import find_device
from comp.predict.compare import side_by_side
from comp.predict.runs import find_run, read_oof, recipe_of
from comp.progress import Reporter
from comp.recipe import Head, Recipe
from comp.store import Workspace, write_table
from comp.train.fits import HeadFit, open_fit
from comp.train.labels import read_label_fixes
from comp.train.run import open_run
from comp.train.solver import out_of_fold, solve_fold

MIN_OF_CLASS = 10  # photos; the average of fewer means nothing
N_PRINTED = 20  # doubted labels


def read_suspects(competition: Competition) -> dict[str, int]:
    """How many published lists name each suspect training photo."""
    if competition.suspects is None:
        return {}
    table = pd.read_csv(Path(__file__).parents[1] / competition.suspects)
    return dict(zip(table["id"], table["n_lists"], strict=True))


def audit_labels(
    workspace: Workspace,
    competition: Competition,
    names: Sequence[str],
    device: str | None,
    reporter: Reporter,
) -> pd.DataFrame:
    """The rows of runs/audit.csv, most doubted first, by the runs called `names`, or by all."""
    folders = [find_run(workspace, name) for name in names]
    folders = folders or sorted(path.parent for path in workspace.runs.glob("*/oof.csv"))
    if not folders:
        raise StaleError(f"no run is in {workspace.runs}: run `make train` first")
    photos, test = (read_manifest(workspace.manifest(split)) for split in SPLITS)
    votes = _count_votes(folders, photos)
    n_lists = read_suspects(competition)
    table = evidence(votes, photos, read_label_fixes(workspace.verdicts), n_lists)
    write_table(workspace.runs / "audit.csv", table)
    _print_doubts(table, len(votes), len(folders), reporter)
    _print_lists(votes, n_lists, len(folders), reporter)
    pairs = pairs_across(photos, test)
    n_conflicts = int((table["conflict"] != "").sum())
    reporter.say(f"{n_conflicts:,} photos have a near-duplicate with another label")
    reporter.say(f"{len(pairs):,} pairs of a training and a test photo are near-duplicates")
    recipes = [recipe_of(folder) for folder in folders]
    of_heads = [each for each in recipes if each and isinstance(each.training, Head)]
    if of_heads:
        measure_leak(workspace, of_heads[0], device, reporter)
    else:
        reporter.say("leak: not measured, it takes new heads: name a run of a head recipe in RUNS")
    reporter.say(
        f"{len(table):,} photos in {workspace.runs / 'audit.csv'}; label fixes go into"
        f" {workspace.verdicts}"
    )
    return table


def _count_votes(folders: Sequence[Path], manifest: pd.DataFrame) -> pd.DataFrame:
    """id, label, number of runs that doubt it, mean logit. All runs need the same photos."""
    photos, logits = side_by_side({folder.name: read_oof(folder) for folder in folders})
    now = manifest.set_index("id")["label"].reindex(photos["id"]).fillna(-1)
    n_off = int((now.to_numpy() != photos["label"].to_numpy()).sum())
    if n_off:
        raise StaleError(
            f"{n_off:,} photos of {folders[0].name} are not in data/train.csv with the same label:"
            " train it again"
        )
    votes = np.sum([doubted(photos["label"], column) for column in logits.T], axis=0)
    return photos[["id", "label"]].astype({"label": int}).assign(votes=votes, logit=logits.mean(1))


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
    """The photos of `votes` (id, label, votes, logit) with evidence against them, and

    p_other   the probability of the other class, by the mean logit
    conflict  their near-duplicates with the other label, separated by spaces
    n_lists   how many published lists name them
    verdict   their label fix in data/verdicts.csv
    """
    p, clashes = sigmoid(votes["logit"]), conflicts(manifest)
    table = votes[["id", "label", "votes"]].assign(
        p_other=np.where(votes["label"] == 1, 1 - p, p),
        conflict=[clashes.get(id, "") for id in votes["id"]],
        n_lists=[n_lists.get(id, 0) for id in votes["id"]],
        verdict=[label_fixes.get(id, "") for id in votes["id"]],
    )
    is_listed = (table["votes"] > 0) | (table["n_lists"] > 0)
    table = table[is_listed | (table["conflict"] != "") | (table["verdict"] != "")]
    order = ["votes", "p_other"]
    return table.sort_values(order, ascending=False, kind="stable").reset_index(drop=True)


def conflicts(manifest: pd.DataFrame) -> dict[str, str]:
    """By photo, its near-duplicates with the other label, separated by spaces, if it has any."""
    found = {}
    for _, group in manifest[manifest["group"].duplicated(keep=False)].groupby("group"):
        for id, label in zip(group["id"], group["label"], strict=True):
            if (group["label"] != label).any():
                found[str(id)] = " ".join(group["id"][group["label"] != label])
    return found


def pairs_across(photos: pd.DataFrame, test: pd.DataFrame) -> pd.DataFrame:
    """id and test_id of each training photo and test photo that are near-duplicates."""
    others = test[["id", "group"]].rename(columns={"id": "test_id"})
    return photos[["id", "group"]].merge(others, on="group")[["id", "test_id"]]


def _print_doubts(table: pd.DataFrame, n_photos: int, n_runs: int, reporter: Reporter) -> None:
    doubts = table[table["votes"] > 0]
    cells = doubts[["id", "votes", "p_other", "n_lists", "conflict", "verdict"]].head(N_PRINTED)
    title = f"{len(doubts):,} of {n_photos:,} labels are doubted by one or more of {n_runs} runs"
    columns = ("photo", "votes", "P(other)", "lists", "near-duplicate, other label", "label fix")
    reporter.table(title, columns, list(cells.itertuples(index=False)))


def _print_lists(
    votes: pd.DataFrame, n_lists: Mapping[str, int], n_runs: int, reporter: Reporter
) -> None:
    by_lists = votes["votes"].groupby(votes["id"].map(n_lists).fillna(0).astype(int))
    rows = [
        (n or "none", f"{len(here):,}", (here > 0).sum(), (here == n_runs).sum())
        for n, here in sorted(by_lists, reverse=True)
    ]
    columns = ("on lists", "photos", "doubted by a run", "by all")
    reporter.table("doubts by the number of published lists", columns, rows)


def measure_leak(
    workspace: Workspace, recipe: Recipe, device: str | None, reporter: Reporter
) -> Gain:
    """What splitting near-duplicates over folds seems to gain, by new heads on cached features.

    RecipeError if `recipe` solves no heads.
    """
    training = recipe.training
    if not isinstance(training, Head):
        raise RecipeError(f"{recipe.name} solves no head: measure the leak by a head recipe")
    recipe = recipe.replace(folds=recipe.folds.replace(split=None))
    fit = open_fit(open_run(workspace, recipe), find_device(device), reporter, with_test=False)
    assert isinstance(fit, HeadFit)
    photos = fit.inputs.photos
    alike = photos["group"].duplicated(keep=False).to_numpy()
    if not alike.any():
        reporter.say(f"leak: none, {len(photos):,} training photos have no near-duplicates")
        return Gain(mean=0.0, low=0.0, high=0.0)
    features = fit.mean_features(fit.inputs.ids, training.views)
    # One penalty for both: a new choice varies with the inner folds by more than the leak.
    penalty = solve_fold(features, photos.assign(fold=0), 1, training, recipe.seed).penalty
    once = training.replace(penalties=(penalty,))
    together, split = (
        per_photo_logit_loss(
            dealt["label"], out_of_fold(features, dealt, once, recipe.seed, reporter)
        )
        for dealt in (photos, ungrouped(photos))
    )
    found = gain(together, split, photos["group"])
    reporter.say(
        f"leak of {recipe.name}: log loss {together.mean():.5f} with near-duplicates kept together,"
        f" {split.mean():.5f} with them split over folds, an apparent gain of {found}; on the"
        f" {int(alike.sum()):,} photos that have one, {together[alike].mean():.5f} and"
        f" {split[alike].mean():.5f}"
    )
    return found


def ungrouped(photos: pd.DataFrame) -> pd.DataFrame:
    """`photos` (fold, group) with each in a group of its own.

    The photos of a group are dealt over the folds in turn. All others keep their fold, so that the
    groups make the only difference.
    """
    turn, n_folds = photos.groupby("group").cumcount(), photos["fold"].max() + 1
    return photos.assign(fold=(photos["fold"] + turn) % n_folds, group=np.arange(len(photos)))
