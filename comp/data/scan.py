"""From photos on disk to their manifests: each photo is read and decoded once, for its row, its
thumbnail and its canvas."""

import hashlib
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from comp.competition import Competition
from comp.data.canvas import Canvas, Geometry
from comp.data.duplicates import SIDE, Thumbnails, group_photos, near_pairs, perceptual_hashes
from comp.data.folds import N_FOLDS, SEED, assign_folds
from comp.data.manifest import SPLITS, USABLE, usable
from comp.data.photos import decode, in_order, read_header, thumbnail, to_canvas
from comp.data.pixels import announce_pixels, open_writer, read_index, read_photo, store_folder
from comp.errors import DataError
from comp.progress import Reporter
from comp.store import Workspace

UnpackedPhoto = tuple[str, str, int | None]  # split, id, label


def scan(
    workspace: Workspace,
    photos: Sequence[UnpackedPhoto],
    geometry: Geometry | None,
    reporter: Reporter,
) -> tuple[pd.DataFrame, Thumbnails]:
    """The manifest columns split, id, label, width, height, sha256 and verdict of `photos`; and the
    thumbnails of the usable ones, in this order.

    With a `geometry`, the canvases of the usable photos are in its store afterwards.
    """
    rows: list[tuple[Any, ...]] = []
    # One block of memory: as separate arrays, each would pin a piece of the heap.
    thumbnails, n_usable = np.empty((len(photos), SIDE, SIDE), np.uint8), 0
    with ExitStack() as stack:
        writer = None
        if geometry:
            _announce(workspace, photos, geometry, reporter)
            writer = stack.enter_context(open_writer(workspace, geometry, reporter))

        def look(
            photo: UnpackedPhoto,
        ) -> tuple[tuple[Any, ...], NDArray[np.uint8] | None, Canvas | None]:
            data = read_photo(workspace, photo[0], photo[1])
            sha256, found = hashlib.sha256(data).hexdigest(), decode(data)
            small, canvas = None, None
            if found.pixels is not None:
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
    workspace: Workspace, photos: Sequence[UnpackedPhoto], geometry: Geometry, reporter: Reporter
) -> None:
    sizes = [(1, 1)] * len(photos)
    if geometry.fit == "shorter":  # the one fit whose canvases differ in size
        headers = [read_header(read_photo(workspace, split, id)) for split, id, _ in photos]
        sizes = [(each.width, each.height) for each in headers if each.decode_status in USABLE]
    index = read_index(store_folder(workspace, geometry))
    n_bytes = max(0, geometry.n_bytes(sizes) - int(index["length"].sum()))
    announce_pixels(workspace, geometry, len(sizes), n_bytes, reporter)


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
