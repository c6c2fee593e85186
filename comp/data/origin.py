"""`data/origin.json`: what the data was made from, by which rules, and whether it is complete.

Loads neither pandas nor torch: `make data` has half a second to see that there is nothing to do.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from comp.competition import Competition
from comp.data.canvas import DECODER, PIXELS_FILE, Geometry, store_folder
from comp.store import Workspace, file_sha256, read_json, write_json

# If one of these rules changes, the next `make data` makes the manifests again.
MAX_DISTANCE = 12  # bits between the perceptual hashes of near-duplicates; see duplicates.py
MIN_CORRELATION = 0.9  # of their thumbnails
N_FOLDS = 5
SEED = 20160902  # of the folds: the day the competition began
RULES = {
    "decoder": DECODER,
    "max_distance": MAX_DISTANCE,
    "min_correlation": MIN_CORRELATION,
    "n_folds": N_FOLDS,
    "seed": SEED,
}
RECEIPT = ".origin.json"  # in a folder of photos: which archive they are from


def origin_path(workspace: Workspace) -> Path:
    return workspace.data / "origin.json"


def write_origin(
    workspace: Workspace, competition: Competition, archive: Path, sha256: str, is_real: bool
) -> None:
    manifests = {split: workspace.manifest(split) for split in ("train", "test")}
    origin = {
        "archive": {"name": archive.name, "sha256": sha256, **_stamp(archive)},
        "slug": competition.slug,
        "rules": RULES,
        "is_real": is_real,
        "manifests": {split: file_sha256(path) for split, path in manifests.items()},
        "pixels": {},  # bytes of each store that has all photos of these manifests, by its name
    }
    write_json(origin_path(workspace), origin)


def _stamp(path: Path) -> dict[str, int]:
    """Changes when a file is replaced, and costs less than reading a gigabyte each time."""
    status = path.stat()
    return {"n_bytes": status.st_size, "mtime_ns": status.st_mtime_ns}


def is_unpacked(folder: Path, archive_sha256: str) -> bool:
    """Whether `folder` has all its photos, from this archive."""
    receipt = folder / RECEIPT
    return receipt.exists() and bool(read_json(receipt)["archive"] == archive_sha256)


def is_done(
    workspace: Workspace,
    competition: Competition,
    archive: Callable[[], Path] | Path,
    is_real: bool,
) -> bool:
    """Whether photos, manifests and sample submission are complete and from this archive."""
    if not origin_path(workspace).exists() or not (workspace.data / competition.sample).exists():
        return False
    origin: dict[str, Any] = read_json(origin_path(workspace))
    packed, splits = origin["archive"], list(origin["manifests"])
    if (origin["slug"], origin["rules"]) != (competition.slug, RULES) or origin[
        "is_real"
    ] < is_real:
        return False
    if not all(
        workspace.manifest(split).exists()
        and is_unpacked(workspace.photos / split, packed["sha256"])
        for split in splits
    ):
        return False
    path = workspace.raw / packed["name"] if callable(archive) else archive
    if not path.exists():
        return callable(archive)  # deleted after unpacking to save space, which is fine
    if _stamp(path).items() <= packed.items():
        return True
    if file_sha256(path) != packed["sha256"]:
        return False
    # The same bytes, copied or touched: not to be read again next time.
    write_json(origin_path(workspace), {**origin, "archive": {**packed, **_stamp(path)}})
    return True


def edited_manifests(workspace: Workspace) -> list[Path]:
    """Manifests that are not as `make data` wrote them."""
    if not origin_path(workspace).exists():
        return []
    written = read_json(origin_path(workspace))["manifests"]
    return [
        path
        for split, sha256 in written.items()
        if (path := workspace.manifest(split)).exists() and file_sha256(path) != sha256
    ]


def has_pixels(workspace: Workspace, geometry: Geometry) -> bool:
    """Whether the store of `geometry` is known to have all photos of the manifests."""
    path = store_folder(workspace, geometry) / PIXELS_FILE
    n_bytes = read_json(origin_path(workspace)).get("pixels", {}).get(path.parent.name)
    is_there = n_bytes is not None and path.exists() and path.stat().st_size >= n_bytes
    return is_there and not edited_manifests(workspace)


def note_pixels(workspace: Workspace, geometry: Geometry) -> None:
    """Remember that the store of `geometry` has all photos of unedited manifests."""
    if edited_manifests(workspace):
        return
    folder, origin = store_folder(workspace, geometry), read_json(origin_path(workspace))
    stores = {**origin.get("pixels", {}), folder.name: (folder / PIXELS_FILE).stat().st_size}
    write_json(origin_path(workspace), {**origin, "pixels": stores})
