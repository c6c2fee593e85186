"""The photos of a bench, laid out as each contender wants to find them: some to learn from, some held out to score.

    photos/train/cat.0.jpg  photos/test/1.jpg          as our stages want them
    classes/train/cat/cat.0.jpg  classes/held/dog/1.jpg  as torchvision, timm and fastai do
    held.csv                                           id and label of the held-out ones

All are links to plain JPEGs of data/ or of an archive, which every contender can read, so that all of them see the same.
"""

import shutil
from pathlib import Path

import pandas as pd

from comp.competition import Competition
from comp.data.manifest import photo_path, read_manifest
from comp.data.stage import prepare
from comp.errors import DataError, UserError
from comp.progress import Reporter
from comp.recipe import Folds
from comp.rehearsal.scoring import read_solution
from comp.rehearsal.stage import name_of
from comp.store import Workspace, write_table
from comp.train.selection import select

Photo = tuple[str, int, Path]  # id, label, file


def lay_out(
    home: Path,
    competition: Competition,
    archive: Path | None,
    solution: Path | None,
    n_photos: int,
    reporter: Reporter,
) -> tuple[Path, dict[str, int]]:
    """The folder described above, made anew under `home`/.rehearsal, and how many photos are to learn from and held out.

    Of an archive at most `n_photos` training photos, and a quarter as many that `solution` has labels of; of data/ as many training photos,
    of which fold 0 is held out. Near-duplicates stay together.
    """
    if (archive is None) != (solution is None):
        raise UserError(
            "a bench on photos of your own needs both ARCHIVE and SOLUTION, got one of them"
        )
    root = home / ".rehearsal" / (f"bench-{name_of(archive)}" if archive else "bench")
    if archive and solution:
        source = Workspace(root / "source")
        prepare(source, competition, archive, False, None, reporter)
        learnt = _labelled(
            source,
            select(
                read_manifest(source.manifest("train")), Folds(n_photos=max(n_photos, 10)), seed=0
            ),
        )
        labels = read_solution(solution)
        test = _plain(read_manifest(source.manifest("test")))
        ids = [id for id in test["id"] if id in labels][: n_photos // 4]
        held = [(id, labels[id], photo_path(source, "test", id)) for id in ids]
    else:
        source = Workspace(home)
        photos = select(
            read_manifest(source.manifest("train")), Folds(n_photos=max(n_photos, 10)), seed=0
        )
        learnt = _labelled(source, photos[photos["fold"] != 0])
        held = [
            (str(number), label, path)
            for number, (_, label, path) in enumerate(
                _labelled(source, photos[photos["fold"] == 0]), 1
            )
        ]
    if not held:
        raise DataError(
            f"none of the test photos in {archive} has a label in {solution}: name the solution of this archive"
        )
    _link(root, learnt, held, competition)
    return root, {"learnt": len(learnt), "held out": len(held)}


def held_labels(root: Path) -> "pd.Series[int]":
    """Labels of the held-out photos, by id."""
    return pd.read_csv(root / "held.csv", dtype={"id": str}).set_index("id")["label"]


def files(root: Path) -> list[tuple[str, str]]:
    """(split, id) of all photos, those to learn from first."""
    return [
        (split, path.stem)
        for split in ("train", "test")
        for path in sorted((root / "photos" / split).iterdir())
    ]


def _labelled(source: Workspace, photos: pd.DataFrame) -> list[Photo]:
    photos = _plain(photos)
    return [
        (id, int(label), photo_path(source, "train", id))
        for id, label in zip(photos["id"], photos["label"], strict=True)
    ]


def _plain(photos: pd.DataFrame) -> pd.DataFrame:
    return photos[photos["verdict"] == "ok"]


def _link(root: Path, learnt: list[Photo], held: list[Photo], competition: Competition) -> None:
    for name in ("photos", "classes", "work"):
        shutil.rmtree(root / name, ignore_errors=True)
    for ours, theirs, photos in (("train", "train", learnt), ("test", "held", held)):
        for id, label, path in photos:
            for folder in (
                root / "photos" / ours,
                root / "classes" / theirs / competition.classes[label],
            ):
                folder.mkdir(parents=True, exist_ok=True)
                (folder / f"{id}.jpg").symlink_to(path.resolve())
    write_table(
        root / "held.csv",
        pd.DataFrame({"id": [id for id, *_ in held], "label": [label for _, label, _ in held]}),
    )
