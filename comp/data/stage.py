"""The data stage: from Kaggle's archive to photos, manifests, folds and pixels.

1. If everything is there and comes from this archive, nothing is done.
2. The archive is checked and unpacked.
3. Every photo is decoded once. A killed run repeats this step, except for canvases it has stored.
4. Near-duplicates are grouped over both splits; usable training photos are assigned to folds.
5. The sample submission, both manifests and, last of all, their origin are written.

If the manifests fit the archive, steps 3 and 4 are left out. What loads pandas, torch or scipy is
imported where it is used: a stage that is done is done in a moment.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import count
from pathlib import Path

from comp.competition import Competition
from comp.data.canvas import Geometry
from comp.data.origin import (
    RULES,
    Origin,
    archive_stamp,
    edited_manifests,
    find_archive,
    has_manifests,
    has_pixels,
    is_done,
    note_pixels,
    origin_path,
    read_origin,
)
from comp.errors import ArchiveError, KaggleError
from comp.progress import Reporter
from comp.store import Workspace, file_sha256, locked, write_json, write_text

LOOK_EVERY_S = 86_400.0  # for a newer version of the archive


def prepare(
    workspace: Workspace,
    competition: Competition,
    archive: Callable[[], Path] | Path,
    is_real: bool,
    geometry: Geometry | None,
    reporter: Reporter,
) -> bool:
    """Make `data/photos`, both manifests, the sample submission and the pixels of `geometry`.

    `archive` is where the archive is; or it downloads it, which happens only if there is work to
    do and no good archive here. `is_real`: Kaggle itself is asked, not a stand-in. False if there
    was nothing to do, for which `data` need not be writable.
    """
    locate = archive if callable(archive) else archive.resolve
    place = None if callable(archive) else locate()
    if is_done(workspace, competition, place) and (not geometry or has_pixels(workspace, geometry)):
        reporter.say(f"{workspace.data} is complete: nothing to do")
        _mention_edits(workspace, reporter)
        return False
    with locked(workspace.data / ".lock", reporter):
        if not is_done(workspace, competition, place):
            make = partial(_make, workspace, competition, is_real, geometry, reporter)
            here = None if place else _archive_here(workspace, competition)
            try:
                make(here or locate())
            except ArchiveError as error:
                if not here:
                    raise
                reporter.warn(str(error))
                make(locate())
        _mention_edits(workspace, reporter)
        if geometry and not has_pixels(workspace, geometry):
            from comp.data.manifest import SPLITS, read_manifest
            from comp.data.pixels import open_pixels

            manifests = [read_manifest(workspace.manifest(split)) for split in SPLITS]
            open_pixels(workspace, manifests, geometry, reporter)
            note_pixels(workspace, geometry)
    return True


def _archive_here(workspace: Workspace, competition: Competition) -> Path | None:
    """Where the archive is that was used last, else one in `data/raw`."""
    origin = read_origin(workspace)
    last = workspace.root / origin.archive.path if origin else workspace.raw
    return next((here for here in (last, workspace.raw) if find_archive(here, competition)), None)


def _make(
    workspace: Workspace,
    competition: Competition,
    is_real: bool,
    geometry: Geometry | None,
    reporter: Reporter,
    place: Path,
) -> None:
    """Photos and sample submission from the archive at `place`; manifests, unless they fit it."""
    from comp.data.archive import checked_archive, is_full, unpack, write_sample

    workspace.photos.mkdir(parents=True, exist_ok=True)
    sample, edited = workspace.data / competition.sample, {}
    try:
        with checked_archive(place, competition, workspace.photos, reporter) as (splits, ids):
            stamp = archive_stamp(workspace, place, competition)
            origin = read_origin(workspace)
            if not has_manifests(workspace, competition, origin, stamp.sha256):
                origin, edited = None, _set_aside(workspace)
            unpack(splits, workspace.photos, reporter)
    except OSError as error:
        error.filename = error.filename or str(workspace.photos)  # a full disk does not say where
        raise
    write_text(sample, write_sample(ids, competition))
    photos = [(split.split, id, label) for split in splits for id, label, _ in split.photos]
    if not origin:
        is_real = is_real and is_full(splits, competition, reporter)
        made = _write_manifests(workspace, competition, photos, geometry, edited, reporter)
        of = {"archive": stamp, "sample": "", "slug": competition.slug, "rules": RULES}
        origin = Origin(**of, is_real=is_real, manifests=made, pixels={})
    write_json(origin_path(workspace), origin.replace(archive=stamp, sample=file_sha256(sample)))
    reporter.say(f"{len(photos):,} photos are ready")


def _write_manifests(
    workspace: Workspace,
    competition: Competition,
    photos: Sequence[tuple[str, str, int | None]],
    geometry: Geometry | None,
    edited: Mapping[Path, Path],
    reporter: Reporter,
) -> dict[str, str]:
    """The sha256 of each manifest. Those that were `edited` are kept if they are not the same."""
    from comp.data.manifest import write_manifest
    from comp.data.scan import manifests_of, print_summary, scan

    table, thumbnails = scan(workspace, photos, geometry, reporter)
    manifests = manifests_of(table, thumbnails, competition, reporter)
    for split, manifest in manifests.items():
        write_manifest(workspace.manifest(split), manifest)
    print_summary(manifests["train"], manifests["test"], competition, reporter)
    for path, kept in edited.items():
        if kept.read_bytes() == path.read_bytes():
            kept.unlink()
        else:
            again = f"{path} was edited and has to be made again"
            reporter.warn(f"{again}: your version is kept as {kept.name}")
    return {split: file_sha256(workspace.manifest(split)) for split in manifests}


def _mention_edits(workspace: Workspace, reporter: Reporter) -> None:
    for path in edited_manifests(workspace):
        from comp.data.manifest import read_manifest

        read_manifest(path)
        reporter.warn(
            f"{path} was edited since `make data` wrote it, and is used as it is:"
            " delete it to have it made again"
        )


def _set_aside(workspace: Workspace) -> dict[Path, Path]:
    """Rename edited manifests to train.csv.edited-1 and so on: edits may have taken hours.

    The others go, with their origin: nothing made before may be taken for this archive's.
    """
    kept = {}
    for path in edited_manifests(workspace):
        names = (path.with_name(f"{path.name}.edited-{number}") for number in count(1))
        kept[path] = path.rename(next(name for name in names if not name.exists()))
    for old in (origin_path(workspace), *map(workspace.manifest, ("train", "test"))):
        old.unlink(missing_ok=True)
    return kept


def mention_newer_version(
    workspace: Workspace, competition: Competition, reporter: Reporter
) -> None:
    """Say so if Kaggle has another version of the archive than was downloaded.

    Kaggle is asked at most once a day, briefly; no answer is no news.
    """
    origin, looked = read_origin(workspace), workspace.raw / ".looked"
    place = workspace.root / origin.archive.path if origin else workspace.root
    if not origin or workspace.raw not in (place, place.parent):
        return
    if looked.exists() and 0 <= time.time() - looked.stat().st_mtime < LOOK_EVERY_S:
        return
    from comp.kaggle import Kaggle, Patience

    patience = Patience(connect_s=2.0, read_s=3.0, answer_s=5.0, n_tries=1)
    kaggle = Kaggle(competition, reporter, patience=patience)
    with suppress(KaggleError, OSError):  # no account, no network, a read-only disk
        looked.touch()
        if kaggle.is_real == origin.is_real and kaggle.has_newer_archive(workspace.raw):
            reporter.warn(
                "Kaggle has another version of the archive than the one used here; to take it:"
                f" delete {workspace.raw} and {workspace.photos} and run `make data` again"
            )
