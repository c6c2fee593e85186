"""One pass over all photos: each is read and decoded once, for its row in the manifest, its thumbnail and its pixels."""

import hashlib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from comp.data.duplicates import SIDE, Thumbnails
from comp.data.geometry import Geometry
from comp.data.header import read_header
from comp.data.manifest import photo_path
from comp.data.pack import Writer, read_index
from comp.data.photos import Photo, decode, thumbnail, to_canvas
from comp.data.pool import in_order
from comp.data.stores import MAX_BYTES, Store, announce, choose_store, raw_bytes, writing
from comp.data.verdict import USABLE
from comp.errors import DataError
from comp.progress import Reporter
from comp.store import Workspace

Where = tuple[str, str]  # split, id


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What one look at a photo gives."""

    photo: Photo  # without its pixels
    sha256: str
    thumbnail: NDArray[np.uint8] | None  # of a usable photo
    packed: (
        tuple[NDArray[np.uint8], int, int] | None
    )  # bytes, height and width for the store, if that wants them


def scan(
    workspace: Workspace,
    photos: Sequence[Where],
    geometry: Geometry | None,
    reporter: Reporter,
    max_bytes: int = MAX_BYTES,
) -> tuple[pd.DataFrame, Thumbnails]:
    """A row for each of `photos` with split, id, width, height, sha256 and verdict; and the thumbnails of the usable ones, in this order.

    Where a `geometry` is given, the pixels of the usable photos are in its store afterwards.
    """
    rows: list[tuple[Any, ...]] = []
    thumbnails, n_usable = (
        np.empty((len(photos), SIDE, SIDE), np.uint8),
        0,
    )  # one block: kept apart, each would pin a piece of the heap
    with ExitStack() as stack:
        store, writer = None, None
        if geometry:
            store = _store(workspace, photos, geometry, reporter, max_bytes)
            writer = stack.enter_context(writing(workspace, store, reporter))
        advance = stack.enter_context(reporter.track("decoding", len(photos), "photos"))
        looks = in_order(lambda where: _look(workspace, where, store, writer), photos)
        for where, seen in zip(photos, looks, strict=True):
            rows.append(
                (*where, seen.photo.width, seen.photo.height, seen.sha256, seen.photo.verdict)
            )
            if seen.thumbnail is not None:
                thumbnails[n_usable] = seen.thumbnail
                n_usable += 1
            if writer and seen.packed:
                writer.add(seen.sha256, where[1], *seen.packed)
            advance()
    table = pd.DataFrame(rows, columns=["split", "id", "width", "height", "sha256", "verdict"])
    return table, thumbnails[:n_usable]


def _look(workspace: Workspace, where: Where, store: Store | None, writer: Writer | None) -> Seen:
    data = _read(workspace, where)
    sha256 = hashlib.sha256(data).hexdigest()
    photo = decode(data)
    small, packed = None, None
    if photo.pixels is not None:
        small = thumbnail(photo.pixels, SIDE)
        if store and writer and sha256 not in writer:
            canvas = to_canvas(photo.pixels, store.geometry)
            packed = store.packed(canvas), canvas.shape[0], canvas.shape[1]
    return Seen(photo=photo.without_pixels(), sha256=sha256, thumbnail=small, packed=packed)


def _read(workspace: Workspace, where: Where) -> bytes:
    try:
        return photo_path(workspace, *where).read_bytes()
    except FileNotFoundError as error:
        folder = workspace.photos / where[0]
        raise DataError(
            f"photo {where[1]}.jpg is missing in {folder}: delete this folder and run `make data`"
        ) from error


def _store(
    workspace: Workspace,
    photos: Sequence[Where],
    geometry: Geometry,
    reporter: Reporter,
    max_bytes: int,
) -> Store:
    """The store that `open_pixels` will look for, chosen by the sizes that the headers tell."""
    if geometry.fit != "shorter":
        sizes = [(1, 1)] * len(photos)  # they all take the same
    else:
        headers = (read_header(_read(workspace, where)) for where in photos)
        sizes = [(header.width, header.height) for header in headers if header.verdict in USABLE]
    store = choose_store(geometry, sizes, max_bytes)
    n_stored = int(read_index(store.folder(workspace))["length"].sum())
    workspace.pixels.mkdir(parents=True, exist_ok=True)
    announce(
        workspace,
        store,
        len(sizes),
        max(0, store.disk_bytes(raw_bytes(geometry, sizes)) - n_stored),
        reporter,
    )
    return store
