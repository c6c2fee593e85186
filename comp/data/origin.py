"""Where the data come from: the archive, the rules and the competition, real or rehearsed.

`data/origin.json` says what they were made from and whether they are complete. A rehearsal writes
`rehearsal.json` before anything else: what it makes is never submitted to Kaggle, and what comes
from Kaggle never to a stand-in. Loads neither pandas nor torch, so that `make data` is quick to see
that there is nothing to do.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from comp.competition import Competition
from comp.data.canvas import DECODER, PIXELS_FILE, Geometry, store_folder
from comp.errors import DataError, RecipeError
from comp.options import Options, restored
from comp.store import Workspace, file_sha256, read_object, write_json

if TYPE_CHECKING:
    from comp.kaggle import Kaggle

# If one of these rules changes, the next `make data` makes the manifests again.
MAX_DISTANCE = 12  # bits between the perceptual hashes of near-duplicates (folds.py)
MIN_CORRELATION = 0.9  # of their thumbnails
N_FOLDS = 5
SEED = 20160902  # of the folds: the day the competition began
RULES: dict[str, int | float] = {
    "decoder": DECODER,
    "max_distance": MAX_DISTANCE,
    "min_correlation": MIN_CORRELATION,
    "n_folds": N_FOLDS,
    "seed": SEED,
}

REHEARSAL = "rehearsal.json"  # where it lies at the root, the workspace is a rehearsal's
CLEAR = "take another WORKSPACE, or delete its data/, runs/ and submissions/"


class ArchiveStamp(Options):
    """An archive that was used, and what changes when it is replaced."""

    path: str  # a zip or a folder; relative to the workspace, if it is inside
    sha256: str  # of the names and sha256s of its files
    n_bytes: int
    mtime_ns: int  # summed over its parts, like n_bytes


class Origin(Options):
    """What `data/origin.json` says."""

    archive: ArchiveStamp
    slug: str
    rules: dict[str, int | float]
    is_real: bool  # all photos of Kaggle's edition, not a rehearsal's
    sample: str  # sha256 of the sample submission
    manifests: dict[str, str]  # sha256 of each, by its split
    pixels: dict[str, int]  # bytes of each store that has all photos of these manifests


def origin_path(workspace: Workspace) -> Path:
    return workspace.data / "origin.json"


def read_origin(workspace: Workspace) -> Origin | None:
    """None if there is none, or if it is damaged: `make data` makes it again."""
    try:
        return restored(Origin, read_object(origin_path(workspace)))
    except RecipeError:
        return None


def find_archive(place: Path, competition: Competition) -> list[Path]:
    """Kaggle's archive at `place`: one zip, or its three parts, packed or unpacked; or nothing."""
    packed = place / f"{competition.slug}.zip" if place.is_dir() else place
    if packed.is_file():
        return [packed]
    parts = []
    for name in (*competition.archives, competition.sample):
        choices = (place / name, place / name.removesuffix(".zip"))
        parts += [path for path in choices if path.exists()][:1]
    return parts if len(parts) == len(competition.archives) + 1 else []


def archive_stamp(workspace: Workspace, place: Path, competition: Competition) -> ArchiveStamp:
    """Of the archive at `place`, all of which is read."""
    parts, is_inside = find_archive(place, competition), place.is_relative_to(workspace.root)
    path = str(place.relative_to(workspace.root) if is_inside else place)
    files = [(file, file.relative_to(part)) for part in parts for file in files_in(part)]
    lines = [f"{file_sha256(file)} {name}\n" for file, name in files]
    sha256 = hashlib.sha256(os.fsencode("".join(lines))).hexdigest()
    return ArchiveStamp(path=path, sha256=sha256, **_status(parts))


def files_in(path: Path) -> list[Path]:
    """The file `path`, or all files in the folder `path`."""
    return [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.is_file())


def _status(parts: Sequence[Path]) -> dict[str, int]:
    """Changes when a part is replaced, and costs less than reading a gigabyte each time."""
    found = [part.stat() for part in parts]
    mtime_ns = sum(status.st_mtime_ns for status in found)
    return {"n_bytes": sum(status.st_size for status in found), "mtime_ns": mtime_ns}


def has_manifests(
    workspace: Workspace, competition: Competition, origin: Origin | None, archive_sha256: str
) -> bool:
    """Whether both manifests are there, edited or not, made from this archive by today's rules."""
    return (
        origin is not None
        and (origin.archive.sha256, origin.slug) == (archive_sha256, competition.slug)
        and origin.rules == RULES
        and all(workspace.manifest(split).exists() for split in origin.manifests)
    )


def is_done(workspace: Workspace, competition: Competition, place: Path | None) -> bool:
    """Whether photos, manifests and sample are complete, and from the archive at `place`.

    Without a place: from the last one, which may have been deleted to save space.
    """
    origin, sample = read_origin(workspace), workspace.data / competition.sample
    if (
        not origin
        or not has_manifests(workspace, competition, origin, origin.archive.sha256)
        or not (sample.exists() and file_sha256(sample) == origin.sample)
        or not all(_has_photos(workspace, split) for split in origin.manifests)
    ):
        return False
    parts = find_archive(place or workspace.root / origin.archive.path, competition)
    if not parts:
        return place is None
    return _status(parts).items() <= dict(origin.archive).items()


def _has_photos(workspace: Workspace, split: str) -> bool:
    """Whether there is a file for each id in the manifest."""
    folder = workspace.photos / split
    lines = workspace.manifest(split).read_text("utf-8", errors="replace").splitlines()
    names = {f"{line.partition(',')[0]}.jpg" for line in lines[1:]}
    return folder.is_dir() and names <= set(os.listdir(folder))


def edited_manifests(workspace: Workspace) -> list[Path]:
    """Manifests that are not known to be as `make data` wrote them."""
    origin = read_origin(workspace)
    known = origin.manifests if origin else {"train": None, "test": None}
    return [
        path
        for split, sha256 in known.items()
        if (path := workspace.manifest(split)).exists() and file_sha256(path) != sha256
    ]


def has_pixels(workspace: Workspace, geometry: Geometry) -> bool:
    """Whether the store of `geometry` is known to have all photos of the manifests."""
    path, origin = store_folder(workspace, geometry) / PIXELS_FILE, read_origin(workspace)
    if not origin or not path.exists() or edited_manifests(workspace):
        return False
    return 0 < origin.pixels.get(path.parent.name, 0) <= path.stat().st_size


def note_pixels(workspace: Workspace, geometry: Geometry) -> None:
    """Remember that the store of `geometry` has all photos of unedited manifests."""
    folder, origin = store_folder(workspace, geometry), read_origin(workspace)
    if origin and not edited_manifests(workspace):
        stores = origin.pixels | {folder.name: (folder / PIXELS_FILE).stat().st_size}
        write_json(origin_path(workspace), origin.replace(pixels=stores))


def mark_rehearsal(workspace: Workspace, competition: Competition) -> Competition:
    """`workspace` is a rehearsal's from now on; `competition` as it is rehearsed."""
    write_json(workspace.root / REHEARSAL, {"noise_rate": 0.0})
    return competition_of(workspace, competition)


def account_home(workspace: Workspace) -> Path:
    """The home of a rehearsal's account, by which its own stand-in is known."""
    return workspace.root / "home"


def competition_of(workspace: Workspace, competition: Competition) -> Competition:
    """`competition`; in a rehearsal no label is flipped. DataError if the data are another's."""
    slug = read_object(origin_path(workspace)).get("slug", competition.slug)
    if slug != competition.slug:
        raise DataError(
            f"{workspace.data} has the data of {slug}, not of {competition.slug}: {CLEAR}"
        )
    if (workspace.root / REHEARSAL).exists():
        return replace(competition, noise_rate=0.0, noise_spread=0.0)
    return competition


def check_server(workspace: Workspace, kaggle: "Kaggle") -> None:
    """DataError unless `kaggle` is where the data of `workspace` come from."""
    root, is_real = workspace.root, read_object(origin_path(workspace)).get("is_real")
    if (root / REHEARSAL).exists():
        home = Path(kaggle.env.get("HOME", "")).resolve()
        if kaggle.is_real or home != account_home(workspace).resolve():
            raise DataError(
                f"{root} is the workspace of a rehearsal: its runs are submitted by `make"
                " rehearsal`, never to Kaggle; without WORKSPACE you are in the real one"
            )
    elif is_real and not kaggle.is_real:
        raise DataError(
            f"{root} has Kaggle's data, but KAGGLE_API_ENVIRONMENT=LOCALHOST names a stand-in for"
            " Kaggle: unset it"
        )
    elif is_real is False and kaggle.is_real:
        raise DataError(f"the data in {root} are not those of Kaggle's competition: {CLEAR}")
