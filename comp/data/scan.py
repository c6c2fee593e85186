"""From photos on disk to their manifests: each photo is read and decoded once, for its row, its
thumbnail and its canvas."""

import hashlib
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import pandas as pd

from comp.competition import Competition
from comp.data.canvas import Geometry
from comp.data.duplicates import SIDE, Thumbnails, group_photos, near_pairs, perceptual_hashes
from comp.data.folds import assign_folds
from comp.data.manifest import SPLITS, USABLE, photo_path, usable
from comp.data.origin import N_FOLDS, SEED
from comp.data.photos import decode, in_order, read_header, thumbnail, to_canvas
from comp.data.pixels import Canvas, PixelWriter, open_writer
from comp.errors import DataError
from comp.progress import Reporter
from comp.store import Workspace, require_room

N_SAMPLED = 256  # photos that are looked at to estimate what the canvases will take on disk
UnpackedPhoto = tuple[str, str, int | None]  # split, id, label


def scan(
    workspace: Workspace,
    photos: Sequence[UnpackedPhoto],
    geometry: Geometry | None,
    reporter: Reporter,
    *,
    with_thumbnails: bool = True,
) -> tuple[pd.DataFrame, Thumbnails]:
    """The manifest columns split, id, label, width, height, sha256 and verdict of `photos`; and the
    thumbnails of the usable ones, in this order.

    With a `geometry`, the canvases of the usable photos are in its store afterwards.
    """
    rows: list[tuple[Any, ...]] = []
    # One block of memory: as separate arrays, each would pin a piece of the heap.
    thumbnails, n_usable = np.empty((len(photos) * with_thumbnails, SIDE, SIDE), np.uint8), 0
    with ExitStack() as stack:
        writer = None
        if geometry:
            writer = stack.enter_context(open_writer(workspace, geometry, reporter))
            _announce(workspace, photos, geometry, writer, reporter)

        def look(photo: UnpackedPhoto) -> tuple[tuple[Any, ...], Canvas | None, Canvas | None]:
            data = _read(workspace, photo)
            sha256, found = hashlib.sha256(data).hexdigest(), decode(data)
            small, canvas = None, None
            if found.pixels is not None:
                if with_thumbnails:
                    small = thumbnail(found.pixels, SIDE)
                if geometry and writer and sha256 not in writer:
                    canvas = to_canvas(found.pixels, geometry)
            return (found.width, found.height, sha256, found.decode_status), small, canvas

        advance = stack.enter_context(reporter.track("decoding", len(photos), "photos"))
        for photo, (row, small, canvas) in zip(photos, in_order(look, photos), strict=True):
            rows.append((*photo, *row))
            if small is not None:
                thumbnails[n_usable] = small
                n_usable += 1
            if writer and canvas is not None:
                writer.add(row[2], photo[1], canvas)
            advance()
    columns = ["split", "id", "label", "width", "height", "sha256", "verdict"]
    table = pd.DataFrame(rows, columns=columns).astype({"label": "Int8"})
    return table, thumbnails[:n_usable]


def _announce(
    workspace: Workspace,
    photos: Sequence[UnpackedPhoto],
    geometry: Geometry,
    writer: PixelWriter,
    reporter: Reporter,
) -> None:
    """Say what new canvases will take on disk, by a sample of the photos; DataError if too much."""
    sample, sizes = photos[:: -(-len(photos) // N_SAMPLED)], []
    for photo in sample:
        data = _read(workspace, photo)
        header = read_header(data)
        if header.decode_status in USABLE and hashlib.sha256(data).hexdigest() not in writer:
            sizes.append((header.width, header.height))
    n_bytes = geometry.n_bytes(sizes) * len(photos) // len(sample)
    what = f"pixels {geometry.name} of {len(photos):,} photos"
    remedy = "make room, or choose fewer pixels by pixels.size_px or pixels.canvas"
    reporter.say(require_room(workspace.pixels, n_bytes, what, remedy))


def _read(workspace: Workspace, photo: UnpackedPhoto) -> bytes:
    path = photo_path(workspace, photo[0], photo[1])
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(
            f"{path} is missing: delete the folder {path.parent} and run `make data`"
        ) from error


def manifests_of(
    table: pd.DataFrame, thumbnails: Thumbnails, competition: Competition
) -> dict[str, pd.DataFrame]:
    """Both manifests by split, from what `scan` returns."""
    usable_rows = np.flatnonzero(table["verdict"].isin(USABLE))
    phashes = np.full(len(table), "", dtype=object)
    phashes[usable_rows] = [f"{phash:016x}" for phash in perceptual_hashes(thumbnails).tolist()]
    pairs = usable_rows[near_pairs(thumbnails)]
    groups = group_photos(list(table["id"]), list(table["sha256"]), pairs)
    folds = pd.array([pd.NA] * len(table), "Int8")
    table = table.assign(phash=phashes, group=groups, fold=folds)
    train = usable(table[table["split"] == "train"])
    for label, name in enumerate(competition.classes):
        if not (train["label"] == label).any():
            n_photos = int((table["label"] == label).sum())
            raise DataError(
                f"none of the {n_photos:,} photos of class {name} can be decoded:"
                " get the archive from Kaggle again"
            )
    keys = list(train["id"]), list(train["label"]), list(train["group"])
    table.loc[train.index, "fold"] = assign_folds(*keys, n_folds=N_FOLDS, seed=SEED)
    return {split: table[table["split"] == split] for split in SPLITS}
