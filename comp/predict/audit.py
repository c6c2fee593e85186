"""The audit of labels: what finished runs, near-duplicates and published lists say against them. It judges and changes nothing.

1. Votes. In each run, a photo is doubted if the probability of the other class, out of fold, reaches what photos of that class get on
   average: confident learning, Northcutt et al. 2021, "Confident learning: estimating uncertainty in dataset labels", section 3.1.
2. Near-duplicates with different labels, of which one must be wrong; and training photos that have one among the test photos.
3. The leak: how much better the log loss looks with folds that split near-duplicates (comp/predict/leak.py).
4. comp/suspects.csv: 138 training photos named by five lists of odd or mislabelled photos that competitors published, and by how many of
   them. Two of the lists look model-made: one vote is no reason to drop a photo.

runs/audit.csv has a row for each photo that something speaks against, runs/audit.html shows the photos. A person who looked at them writes
data/verdicts.csv (comp/train/verdicts.py).
"""

from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from comp.competition import COMPETITION
from comp.data.manifest import SPLITS, read_manifest
from comp.errors import DataError, StaleError
from comp.metric import Gain, sigmoid
from comp.options import override
from comp.predict.ablate import ablate
from comp.predict.finished import find_run, read_oof, recipe_of, side_by_side
from comp.predict.gallery import Section, write_gallery
from comp.predict.leak import measure_leak
from comp.predict.stage import predict
from comp.progress import Reporter
from comp.recipe import Head, Recipe
from comp.store import Workspace, write_table
from comp.train.device import Device
from comp.train.stage import train
from comp.train.verdicts import read_verdicts

SUSPECTS = Path(__file__).parents[1] / "suspects.csv"
LEAST = 10  # photos of a class, of which an average means something
N_SHOWN = 20  # rows of the table on the terminal


def audit(
    workspace: Workspace, names: Sequence[str], device: Device, reporter: Reporter
) -> pd.DataFrame:
    """Audit the labels by the runs called `names`, or by all that are here; the rows of runs/audit.csv, most doubted first."""
    folders = [find_run(workspace, name) for name in names] or sorted(
        path.parent for path in workspace.runs.glob("*/oof.csv")
    )
    if not folders:
        raise StaleError(f"no run is in {workspace.runs}: run `make train` first")
    photos, test = (read_manifest(workspace.manifest(split)) for split in SPLITS)
    votes = _votes(folders, photos)
    suspects = pd.read_csv(SUSPECTS)
    n_lists = dict(zip(suspects["id"], suspects["n_lists"], strict=True))
    table = evidence(votes, photos, read_verdicts(workspace.verdicts), n_lists)
    write_table(workspace.runs / "audit.csv", table)
    twins = twins_across(photos, test)
    _show(table, votes, n_lists, len(folders), reporter)
    reporter.say(f"{len(twins):,} pairs of a training and a test photo are near-duplicates")
    recipe = next((recipe for recipe in map(_head_recipe, folders) if recipe), None)
    if recipe:
        measure_leak(workspace, recipe, device, reporter)
    else:
        reporter.say(
            "leak: not measured, because it takes new heads: name a run of a head recipe in RUNS"
        )
    path = workspace.runs / "audit.html"
    n_shown = write_gallery(
        path, "Audit of labels", _sections(table, twins, len(folders)), workspace
    )
    reporter.say(
        f"{len(table):,} photos in {workspace.runs / 'audit.csv'}, {n_shown:,} pictures in {path}; verdicts go into {workspace.verdicts}"
    )
    return table


def judge(
    workspace: Workspace, recipe: Recipe, wanted: str, device: Device, reporter: Reporter
) -> Gain:
    """What `recipe` gains by the verdicts that `wanted` names, all, a kind or a photo; both runs are made where they are not here yet."""
    names = []
    for each in (override(recipe, [f"folds.label_fixes={wanted}"]), recipe):
        names.append(train(workspace, each, device, reporter).name)
        predict(workspace, COMPETITION, each, device, reporter)
    return ablate(workspace, COMPETITION, names[0], names[1], reporter)


def _votes(folders: Sequence[Path], manifest: pd.DataFrame) -> pd.DataFrame:
    """id, label, votes against it and the mean logit, over runs that must be of the same photos and folds."""
    photos, logits = side_by_side({folder.name: read_oof(folder) for folder in folders})
    now = manifest.set_index("id")["label"].reindex(photos["id"])
    n_apart = int((now.fillna(-1).to_numpy() != photos["label"].to_numpy()).sum())
    if n_apart:
        raise StaleError(
            f"{n_apart:,} photos of {folders[0].name} are not in data/train.csv with the same label: train it again"
        )
    votes = np.sum([doubted(photos["label"], column) for column in logits.T], axis=0)
    return photos[["id", "label"]].astype({"label": int}).assign(votes=votes, logit=logits.mean(1))


def doubted(labels: ArrayLike, logits: ArrayLike) -> NDArray[np.bool_]:
    """Which labels [n] in {0, 1} confident learning doubts, by out-of-fold `logits [n]`.

    A class's threshold is the mean probability of it over photos that carry its label. A photo whose probability of the other class
    reaches that class's threshold belongs there, unless its own class does so too and is the more probable one.
    """
    label, p = np.asarray(labels, np.int64), sigmoid(logits)
    n_least = int(np.bincount(label, minlength=2).min())
    if n_least < LEAST:
        raise DataError(
            f"{n_least} out-of-fold photos of one class are too few for an audit: train on {LEAST} or more of each"
        )
    own = np.where(label == 1, p, 1 - p)
    thresholds = np.array([own[label == kind].mean() for kind in (0, 1)])
    return ((1 - own) >= thresholds[1 - label]) & ((own < thresholds[label]) | (own < 0.5))


def evidence(
    votes: pd.DataFrame, manifest: pd.DataFrame, verdicts: dict[str, str], n_lists: dict[str, int]
) -> pd.DataFrame:
    """Those of `votes` (id, label, votes, logit) that something speaks against, most doubted first, with

    p_other   the probability of the other class, from the mean logit
    conflict  the near-duplicates that carry another label, separated by spaces
    n_lists   how many published lists name the photo
    verdict   what data/verdicts.csv says of it
    """
    p, clashes = sigmoid(votes["logit"]), conflicts(manifest)
    table = votes[["id", "label", "votes"]].assign(
        p_other=np.where(votes["label"] == 1, 1 - p, p),
        conflict=[clashes.get(id, "") for id in votes["id"]],
        n_lists=[n_lists.get(id, 0) for id in votes["id"]],
        verdict=[verdicts.get(id, "") for id in votes["id"]],
    )
    against = (
        (table["votes"] > 0)
        | (table["conflict"] != "")
        | (table["n_lists"] > 0)
        | (table["verdict"] != "")
    )
    return (
        table[against]
        .sort_values(["votes", "p_other"], ascending=False, kind="stable")
        .reset_index(drop=True)
    )


def conflicts(manifest: pd.DataFrame) -> dict[str, str]:
    """The near-duplicates of each photo that carry another label, separated by spaces; only of photos that have some."""
    found = {}
    for _, group in manifest[manifest["group"].duplicated(keep=False)].groupby("group"):
        for row in group.itertuples():
            others = group["id"][group["label"] != row.label]
            if len(others):
                found[str(row.id)] = " ".join(others)
    return found


def twins_across(photos: pd.DataFrame, test: pd.DataFrame) -> pd.DataFrame:
    """id and test_id of each training photo and test photo that are near-duplicates."""
    return photos[["id", "group"]].merge(
        test[["id", "group"]].rename(columns={"id": "test_id"}), on="group"
    )[["id", "test_id"]]


def _head_recipe(folder: Path) -> Recipe | None:
    """The recipe of the run in `folder` if it solves heads."""
    recipe = recipe_of(folder)
    return recipe if recipe is not None and isinstance(recipe.training, Head) else None


def _show(
    table: pd.DataFrame,
    votes: pd.DataFrame,
    n_lists: dict[str, int],
    n_runs: int,
    reporter: Reporter,
) -> None:
    doubts = table[table["votes"] > 0]
    rows = [
        (
            row["id"],
            row["votes"],
            f"{row['p_other']:.4f}",
            row["n_lists"] or "",
            row["conflict"],
            row["verdict"],
        )
        for row in doubts.head(N_SHOWN).to_dict("records")
    ]
    columns = ("photo", "votes", "P(other)", "lists", "alike, other label", "verdict")
    reporter.table(
        f"{len(doubts):,} of {len(votes):,} labels are doubted by one or more of {n_runs} runs",
        columns,
        rows,
    )
    named = np.array([n_lists.get(id, 0) for id in votes["id"]])
    counts = []
    for n in range(max(n_lists.values()), -1, -1):
        here = votes["votes"][named == n]
        counts.append(
            (n or "none", f"{len(here):,}", int((here > 0).sum()), int((here == n_runs).sum()))
        )
    reporter.table(
        "against the published lists", ("on lists", "photos", "doubted by a run", "by all"), counts
    )
    reporter.say(
        f"{int((table['conflict'] != '').sum()):,} photos have a near-duplicate with another label"
    )


def _sections(table: pd.DataFrame, twins: pd.DataFrame, n_runs: int) -> list[Section]:
    def photos(rows: pd.DataFrame) -> list[tuple[str, str, str]]:
        return [("train", row["id"], _caption(row, n_runs)) for row in rows.to_dict("records")]

    pairs = []
    for row in twins.to_dict("records"):
        pairs += [
            ("train", row["id"], row["id"]),
            ("test", row["test_id"], f"test {row['test_id']}, like {row['id']}"),
        ]
    return [
        Section(title="Labels that runs doubt", photos=photos(table[table["votes"] > 0])),
        Section(
            title="Near-duplicates with different labels",
            photos=photos(table[table["conflict"] != ""]),
        ),
        Section(
            title="Training photos beside their near-duplicates among the test photos", photos=pairs
        ),
        Section(
            title="On a published list, and no run doubts them",
            photos=photos(table[(table["votes"] == 0) & (table["n_lists"] > 0)]),
        ),
    ]


def _caption(row: dict[Hashable, Any], n_runs: int) -> str:
    parts = [
        row["id"],
        f"{row['votes']} of {n_runs} votes",
        f"P({COMPETITION.classes[1 - row['label']]}) {row['p_other']:.4f}",
    ]
    parts += [f"on {row['n_lists']} lists"] * (row["n_lists"] > 0) + [f"like {row['conflict']}"] * (
        row["conflict"] != ""
    )
    return ", ".join(parts + [f"verdict {row['verdict']}"] * (row["verdict"] != ""))
