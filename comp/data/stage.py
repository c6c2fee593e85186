"""The stage: Kaggle's archive in, photos, a manifest, folds and pixels out.

1. If all is there and from this archive, nothing is done.
2. The archive is checked and unpacked; a split that is there already is kept.
3. Every photo is decoded once (comp/data/scan.py). A killed run starts this step over, but for the pixels that it has stored.
4. Near-duplicates are grouped over both splits; usable training photos are dealt to folds.
5. The sample submission, both manifests and, last of all, their origin are written.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from comp.competition import Competition
from comp.data.archive import checked, is_unpacked, unpack
from comp.data.duplicates import (
    MAX_DISTANCE,
    MIN_CORRELATION,
    Thumbnails,
    group_photos,
    near_pairs,
    perceptual_hashes,
)
from comp.data.folds import N_FOLDS, SEED, assign_folds
from comp.data.geometry import Geometry
from comp.data.lock import locked
from comp.data.manifest import SPLITS, read_manifest, write_manifest
from comp.data.photos import DECODER
from comp.data.pixels import open_pixels
from comp.data.sample import write_sample
from comp.data.scan import scan
from comp.data.stores import MAX_BYTES
from comp.data.summary import report
from comp.data.verdict import USABLE
from comp.errors import ArchiveError, DataError
from comp.progress import Reporter
from comp.store import Workspace, file_sha256, read_json, write_json, write_text

RULES = {
    "decoder": DECODER,
    "max_distance": MAX_DISTANCE,
    "min_correlation": MIN_CORRELATION,
    "n_folds": N_FOLDS,
    "seed": SEED,
}


def prepare(
    workspace: Workspace,
    competition: Competition,
    archive: Callable[[], Path] | Path,
    is_real: bool,
    geometry: Geometry | None,
    reporter: Reporter,
    max_bytes: int = MAX_BYTES,
) -> None:
    """Leaves `data/photos`, `data/train.csv`, `data/test.csv`, the sample submission and, where a `geometry` is given, its pixels.

    `archive` is the archive, or fetches it, and is called only if there is something to do. `is_real` asks for the full edition's numbers.
    `max_bytes` bounds the pixels.
    """
    with locked(workspace.data / ".lock", reporter):
        if _is_done(workspace, competition, archive, is_real):
            reporter.say(f"{workspace.data} is complete: nothing to do")
            _mention_edits(workspace, reporter)
        else:
            _prepare(
                workspace,
                competition,
                archive() if callable(archive) else archive,
                is_real,
                geometry,
                reporter,
                max_bytes,
            )
    if geometry:
        open_pixels(
            workspace,
            [read_manifest(workspace.manifest(split)) for split in SPLITS],
            geometry,
            reporter,
            max_bytes,
        )


def _prepare(
    workspace: Workspace,
    competition: Competition,
    path: Path,
    is_real: bool,
    geometry: Geometry | None,
    reporter: Reporter,
    max_bytes: int,
) -> None:
    started = time.monotonic()
    if not path.is_file():
        raise ArchiveError(f"{path} is not there: download the archive first")
    sha256 = file_sha256(path)
    workspace.photos.mkdir(parents=True, exist_ok=True)
    with checked(path, competition, is_real, workspace.photos, reporter) as (parts, sample):
        for file in (_origin_path(workspace), *map(workspace.manifest, SPLITS)):
            file.unlink(
                missing_ok=True
            )  # what was made before must not be taken for this archive's
        unpack(parts, sha256, workspace.photos, reporter)
        photos = [(part.split, id) for part in parts for id in part.photos]
    unpacked = time.monotonic()
    table, thumbnails = scan(workspace, photos, geometry, reporter, max_bytes)
    scanned = time.monotonic()
    manifests = manifests_of(table, thumbnails, competition)
    write_text(workspace.data / competition.sample, write_sample(sample, competition))
    for split in SPLITS:
        write_manifest(workspace.manifest(split), manifests[split])
    _write_origin(workspace, competition, path, sha256, is_real)
    report(manifests["train"], manifests["test"], competition, reporter)
    done = time.monotonic()
    took = f"checked and unpacked {unpacked - started:.1f} s, decoded {scanned - unpacked:.1f} s, grouped and wrote {done - scanned:.1f} s"
    reporter.say(f"{len(photos):,} photos are ready: {took}")


def manifests_of(
    table: pd.DataFrame, thumbnails: Thumbnails, competition: Competition
) -> dict[str, pd.DataFrame]:
    """The two manifests by split, from what was seen of each photo (`comp.data.scan.scan`)."""
    usable = np.flatnonzero(table["verdict"].isin(USABLE))
    pairs = ((int(usable[one]), int(usable[other])) for one, other in near_pairs(thumbnails))
    phashes = np.full(len(table), "", dtype=object)
    phashes[usable] = [f"{phash:016x}" for phash in perceptual_hashes(thumbnails).tolist()]
    is_train = table["split"] == "train"
    labels = [competition.classes.index(id.rpartition(".")[0]) for id in table["id"][is_train]]
    table = table.assign(
        phash=phashes,
        label=None,
        fold=None,
        group=group_photos(list(table["id"]), list(table["sha256"]), pairs),
    )
    table = table.astype({"label": "Int8", "fold": "Int8"})
    table.loc[is_train, "label"] = labels
    dealt = table[is_train & table["verdict"].isin(USABLE)]
    for label, name in enumerate(competition.classes):
        if not (dealt["label"] == label).any():
            n_photos = int((table["label"] == label).sum())
            raise DataError(
                f"none of the {n_photos:,} photos of a {name} can be decoded: get the archive from Kaggle again"
            )
    folds = assign_folds(
        list(dealt["id"]), list(dealt["label"]), list(dealt["group"]), n_folds=N_FOLDS, seed=SEED
    )
    table.loc[dealt.index, "fold"] = folds
    return {split: table[table["split"] == split] for split in SPLITS}


def _origin_path(workspace: Workspace) -> Path:
    return workspace.data / "origin.json"


def _write_origin(
    workspace: Workspace, competition: Competition, archive: Path, sha256: str, is_real: bool
) -> None:
    manifests = {split: file_sha256(workspace.manifest(split)) for split in SPLITS}
    origin = {
        "archive": {"name": archive.name, "sha256": sha256, **_stamp(archive)},
        "slug": competition.slug,
        "rules": RULES,
    }
    write_json(_origin_path(workspace), {**origin, "is_real": is_real, "manifests": manifests})


def _stamp(path: Path) -> dict[str, int]:
    """What changes when somebody replaces a file: enough not to read a gigabyte each time."""
    status = path.stat()
    return {"n_bytes": status.st_size, "mtime_ns": status.st_mtime_ns}


def _is_done(
    workspace: Workspace,
    competition: Competition,
    archive: Callable[[], Path] | Path,
    is_real: bool,
) -> bool:
    needed = [
        _origin_path(workspace),
        workspace.data / competition.sample,
        *map(workspace.manifest, SPLITS),
    ]
    if not all(path.exists() for path in needed):
        return False
    origin: dict[str, Any] = read_json(_origin_path(workspace))
    sha256 = origin["archive"]["sha256"]
    is_ours = (
        origin["slug"] == competition.slug
        and origin["rules"] == RULES
        and origin["is_real"] >= is_real
    )
    if not is_ours or not all(is_unpacked(workspace.photos / split, sha256) for split in SPLITS):
        return False
    path = workspace.raw / origin["archive"]["name"] if callable(archive) else archive
    if callable(archive) and not path.exists():
        return True  # thrown away to save space; nothing needs it any more
    if not path.exists() or _stamp(path).items() <= origin["archive"].items():
        return path.exists()
    if file_sha256(path) != sha256:
        return False
    write_json(
        _origin_path(workspace), {**origin, "archive": {**origin["archive"], **_stamp(path)}}
    )  # the same bytes, copied or touched
    return True


def _mention_edits(workspace: Workspace, reporter: Reporter) -> None:
    written = read_json(_origin_path(workspace))["manifests"]
    for split in SPLITS:
        path = workspace.manifest(split)
        if file_sha256(path) != written[split]:
            read_manifest(path)
            reporter.warn(
                f"{path} was edited since `make data` wrote it, and is used as it is: delete it to have it made again"
            )
