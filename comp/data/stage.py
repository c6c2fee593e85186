"""The data stage: from Kaggle's archive to photos, manifests, folds and pixels.

1. If everything is there and comes from this archive, nothing is done.
2. The archive is checked and unpacked; a split that is there already is kept.
3. Every photo is decoded once. A killed run repeats this step, except for canvases it has stored.
4. Near-duplicates are grouped over both splits; usable training photos are assigned to folds.
5. The sample submission, both manifests and, last of all, their origin are written.

What loads pandas, torch or scipy is imported where it is used: a stage that is done is done in a
moment.
"""

import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

from comp.competition import Competition
from comp.data.canvas import Geometry
from comp.data.origin import (
    edited_manifests,
    has_pixels,
    is_done,
    note_pixels,
    origin_path,
    write_origin,
)
from comp.errors import ArchiveError
from comp.progress import Reporter
from comp.store import Workspace, file_sha256, locked, write_text


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
        if is_done(workspace, competition, archive, is_real):
            reporter.say(f"{workspace.data} is complete: nothing to do")
            _mention_edits(workspace, reporter)
        else:
            path = archive() if callable(archive) else archive
            _prepare(workspace, competition, path, is_real, geometry, reporter)
        if geometry and not has_pixels(workspace, geometry):
            from comp.data.manifest import SPLITS, read_manifest
            from comp.data.pixels import open_pixels

            manifests = [read_manifest(workspace.manifest(split)) for split in SPLITS]
            open_pixels(workspace, manifests, geometry, reporter)
            note_pixels(workspace, geometry)


def _prepare(
    workspace: Workspace,
    competition: Competition,
    path: Path,
    is_real: bool,
    geometry: Geometry | None,
    reporter: Reporter,
) -> None:
    from comp.data.archive import checked_archive, unpack
    from comp.data.manifest import SPLITS, write_manifest
    from comp.data.sample import write_sample
    from comp.data.scan import manifests_of, scan
    from comp.data.summary import print_summary

    started = time.monotonic()
    if not path.is_file():
        raise ArchiveError(f"{path} does not exist: download the archive first")
    sha256 = file_sha256(path)
    workspace.photos.mkdir(parents=True, exist_ok=True)
    with checked_archive(path, competition, is_real, workspace.photos, reporter) as checked:
        splits, sample = checked
        # From here on nothing made before may be taken for this archive's.
        _set_edits_aside(workspace, reporter)
        for old in (origin_path(workspace), *map(workspace.manifest, SPLITS)):
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
    write_origin(workspace, competition, path, sha256, is_real)
    print_summary(manifests["train"], manifests["test"], competition, reporter)
    done = time.monotonic()
    reporter.say(
        f"{len(photos):,} photos are ready: checked and unpacked in {unpacked - started:.1f} s,"
        f" decoded in {scanned - unpacked:.1f} s, grouped and written in {done - scanned:.1f} s"
    )


def _mention_edits(workspace: Workspace, reporter: Reporter) -> None:
    for path in edited_manifests(workspace):
        from comp.data.manifest import read_manifest

        read_manifest(path)
        reporter.warn(
            f"{path} was edited since `make data` wrote it, and is used as it is:"
            " delete it to have it made again"
        )


def _set_edits_aside(workspace: Workspace, reporter: Reporter) -> None:
    """Rename edited manifests to train.csv.edited-1 and so on: edits may have taken hours."""
    for path in edited_manifests(workspace):
        names = (path.with_name(f"{path.name}.edited-{number}") for number in count(1))
        kept = next(name for name in names if not name.exists())
        path.rename(kept)
        reporter.warn(
            f"{path} was edited and has to be made again: your version is kept as {kept.name}"
        )
