"""The photos of a benchmark, laid out as each contender expects them; test photos are held out.

    photos/train/cat.0.jpg  photos/test/1.jpg            as our stages want them
    classes/train/cat/cat.0.jpg  classes/test/dog/1.jpg  as torchvision, timm and fastai do
    photos.csv                                           split, id and label of all

All are links to JPEGs of data/ or of an archive that every contender can read.
"""

import shutil
from pathlib import Path

import pandas as pd

from comp.competition import COMPETITION
from comp.data.manifest import photo_path, read_manifest
from comp.data.stage import prepare
from comp.errors import DataError, UserError
from comp.progress import Reporter
from comp.recipe import Folds
from comp.rehearsal.scoring import read_solution
from comp.rehearsal.stage import name_of
from comp.store import Workspace, write_table
from comp.train.labels import select


def lay_out(
    home: Path, archive: Path | None, solution: Path | None, n_photos: int, reporter: Reporter
) -> Path:
    """The folder described above, made anew under `home`/.rehearsal.

    Of an archive at most `n_photos` training photos, and a quarter as many test photos that
    `solution` has labels of; of data/ as many training photos, of which fold 0 is held out.
    Near-duplicates stay together.
    """
    if (archive is None) != (solution is None):
        raise UserError(
            "a benchmark on photos of your own needs both ARCHIVE and SOLUTION, got one of them"
        )
    root = home / ".rehearsal" / (f"bench-{name_of(archive)}" if archive else "bench")
    source = Workspace(root / "source" if archive else home)
    if archive:
        prepare(source, COMPETITION, archive, False, None, reporter)
    train = read_manifest(source.manifest("train"))
    train = select(train, Folds(n_photos=max(n_photos, 10)))
    train = train[train["verdict"] == "ok"].assign(source="train")
    if solution:
        labels, test = read_solution(solution), read_manifest(source.manifest("test"))
        test = test[(test["verdict"] == "ok") & test["id"].isin(labels)][: n_photos // 4]
        test = test.assign(source="test", label=test["id"].map(labels))
    else:
        train, test = train[train["fold"] != 0], train[train["fold"] == 0]
    if test.empty:
        raise DataError(
            f"none of the test photos in {archive} has a label in {solution}: name the solution of"
            " this archive"
        )
    photos = pd.concat([train.assign(split="train"), test.assign(split="test")])
    photos = photos[["source", "split", "id", "label"]].astype({"label": int})
    for name in ("photos", "classes", "work"):
        shutil.rmtree(root / name, ignore_errors=True)
    for from_split, split, id, label in photos.itertuples(index=False):
        for folder in (("photos", split), ("classes", split, COMPETITION.classes[label])):
            path = root.joinpath(*folder, f"{id}.jpg")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(photo_path(source, from_split, id).resolve())
    write_table(root / "photos.csv", photos)
    return root


def read_photos(root: Path) -> pd.DataFrame:
    """split, id and label of all photos."""
    return pd.read_csv(root / "photos.csv", dtype={"id": str})
