"""The data stage: from Kaggle's archive to photos, manifests, folds and pixels.

1. If everything is there and comes from this archive, nothing is done.
2. The archive is checked and unpacked; a split that is there already is kept.
3. Every photo is decoded once. A killed run repeats this step, except for canvases it has stored.
4. Near-duplicates are grouped over both splits; usable training photos are assigned to folds.
5. The sample submission, both manifests and, last of all, their origin are written.

Nothing here loads torch or scipy before there is work to do.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from comp.competition import Competition
from comp.data.archive import checked_archive, is_unpacked, unpack
from comp.data.canvas import Geometry
from comp.data.duplicates import MAX_DISTANCE, MIN_CORRELATION
from comp.data.folds import N_FOLDS, SEED
from comp.data.manifest import SPLITS, read_manifest, write_manifest
from comp.data.pixels import DECODER, open_pixels
from comp.data.sample import write_sample
from comp.data.summary import print_summary
from comp.errors import ArchiveError
from comp.progress import Reporter
from comp.store import Workspace, file_sha256, locked, read_json, write_json, write_text

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
) -> None:
    """Make `data/photos`, both manifests, the sample submission and the pixels of `geometry`.

    `archive` is the archive's path or fetches it; it is called only if there is work to do.
    `is_real` demands the number of photos of the full edition. Without a `geometry` no pixels are
    made.
    """
    with locked(workspace.data / ".lock", reporter):
        if _is_done(workspace, competition, archive, is_real):
            reporter.say(f"{workspace.data} is complete: nothing to do")
            for path in _edited_manifests(workspace):
                read_manifest(path)
                reporter.warn(
                    f"{path} was edited since `make data` wrote it, and is used as it is:"
                    " delete it to have it made again"
                )
        else:
            path = archive() if callable(archive) else archive
            _prepare(workspace, competition, path, is_real, geometry, reporter)
    if geometry:
        manifests = [read_manifest(workspace.manifest(split)) for split in SPLITS]
        open_pixels(workspace, manifests, geometry, reporter)


def _prepare(
    workspace: Workspace,
    competition: Competition,
    path: Path,
    is_real: bool,
    geometry: Geometry | None,
    reporter: Reporter,
) -> None:
    from comp.data.scan import manifests_of, scan  # these load torch

    started = time.monotonic()
    if not path.is_file():
        raise ArchiveError(f"{path} does not exist: download the archive first")
    sha256 = file_sha256(path)
    workspace.photos.mkdir(parents=True, exist_ok=True)
    with checked_archive(path, competition, is_real, workspace.photos, reporter) as checked:
        splits, sample = checked
        # From here on nothing made before may be taken for this archive's.
        _set_edits_aside(workspace, reporter)
        for old in (_origin_path(workspace), *map(workspace.manifest, SPLITS)):
            old.unlink(missing_ok=True)
        unpack(splits, sha256, workspace.photos, reporter)
        photos = [
            (split.split, photo.id, photo.label) for split in splits for photo in split.photos
        ]
    unpacked = time.monotonic()
    table, thumbnails = scan(workspace, photos, geometry, reporter)
    scanned = time.monotonic()
    manifests = manifests_of(table, thumbnails, competition)
    write_text(workspace.data / competition.sample, write_sample(sample, competition))
    for split in SPLITS:
        write_manifest(workspace.manifest(split), manifests[split])
    origin = {
        "archive": {"name": path.name, "sha256": sha256, **_stamp(path)},
        "slug": competition.slug,
        "rules": RULES,
        "is_real": is_real,
        "manifests": {split: file_sha256(workspace.manifest(split)) for split in SPLITS},
    }
    write_json(_origin_path(workspace), origin)
    print_summary(manifests["train"], manifests["test"], competition, reporter)
    done = time.monotonic()
    reporter.say(
        f"{len(photos):,} photos are ready: checked and unpacked in {unpacked - started:.1f} s,"
        f" decoded in {scanned - unpacked:.1f} s, grouped and written in {done - scanned:.1f} s"
    )


def _origin_path(workspace: Workspace) -> Path:
    return workspace.data / "origin.json"


def _edited_manifests(workspace: Workspace) -> list[Path]:
    """Manifests that are not as this stage wrote them."""
    if not _origin_path(workspace).exists():
        return []
    written = read_json(_origin_path(workspace))["manifests"]
    paths = {split: workspace.manifest(split) for split in SPLITS}
    return [
        path
        for split, path in paths.items()
        if path.exists() and file_sha256(path) != written[split]
    ]


def _set_edits_aside(workspace: Workspace, reporter: Reporter) -> None:
    """Rename edited manifests, whose edits may have taken somebody hours, to train.csv.edited-1."""
    for path in _edited_manifests(workspace):
        n_kept = len(list(path.parent.glob(f"{path.name}.edited-*")))
        kept = path.with_name(f"{path.name}.edited-{n_kept + 1}")
        path.rename(kept)
        reporter.warn(
            f"{path} was edited and belongs to another archive or older rules: it is kept as"
            f" {kept.name} and made again; copy what still applies"
        )


def _stamp(path: Path) -> dict[str, int]:
    """Changes when a file is replaced; cheaper than to read a gigabyte each time."""
    status = path.stat()
    return {"n_bytes": status.st_size, "mtime_ns": status.st_mtime_ns}


def _is_done(
    workspace: Workspace,
    competition: Competition,
    archive: Callable[[], Path] | Path,
    is_real: bool,
) -> bool:
    made = (
        _origin_path(workspace),
        workspace.data / competition.sample,
        *map(workspace.manifest, SPLITS),
    )
    if not all(path.exists() for path in made):
        return False
    origin: dict[str, Any] = read_json(_origin_path(workspace))
    packed = origin["archive"]
    fits = origin["slug"] == competition.slug and origin["rules"] == RULES
    if not fits or origin["is_real"] < is_real:
        return False
    if not all(is_unpacked(workspace.photos / split, packed["sha256"]) for split in SPLITS):
        return False
    path = workspace.raw / packed["name"] if callable(archive) else archive
    if not path.exists():
        return callable(archive)  # deleted after unpacking to save space, which is fine
    if _stamp(path).items() <= packed.items():
        return True
    if file_sha256(path) != packed["sha256"]:
        return False
    # The same bytes, copied or touched: not to be read again next time.
    write_json(_origin_path(workspace), {**origin, "archive": {**packed, **_stamp(path)}})
    return True
