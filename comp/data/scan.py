"""From photos on disk to their manifests: each photo is read and decoded once, for its row, its
thumbnail and its canvas."""

import ctypes
import hashlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from comp.competition import Competition
from comp.data.canvas import PAD, Geometry, Interpolation
from comp.data.folds import (
    SIDE,
    Thumbnails,
    assign_folds,
    group_photos,
    near_pairs,
    perceptual_hashes,
)
from comp.data.manifest import SPLITS, USABLE, natural_key, photo_path, usable
from comp.data.origin import N_FOLDS, SEED
from comp.data.photos import decode, in_order, read_header
from comp.data.pixels import Canvas, PixelWriter, open_writer
from comp.errors import DataError
from comp.progress import Reporter, counted
from comp.store import Workspace, require_room

N_SAMPLED = 256  # photos that are looked at to estimate what the canvases will take on disk
MANY = 0.05  # of the photos of a split
N_NAMED = 5  # photos listed by name in one line
UnpackedPhoto = tuple[str, str, int | None]  # split, id, label
PathOf = Callable[[str, str], Path]  # a photo's file by its split and id


def scan(
    workspace: Workspace,
    photos: Sequence[UnpackedPhoto],
    geometry: Geometry | None,
    reporter: Reporter,
    *,
    with_thumbnails: bool = True,
    path_of: PathOf | None = None,
) -> tuple[pd.DataFrame, Thumbnails]:
    """The first seven columns of the manifests of `photos`, and thumbnails of the usable ones.

    With a `geometry`, the canvases of the usable photos are in its store afterwards. `path_of` says
    where a photo's file is, if not in data/photos.
    """
    rows, doubtful = list[tuple[Any, ...]](), list[UnpackedPhoto]()
    find = path_of or partial(photo_path, workspace)
    # One block of memory: as separate arrays, each would pin a piece of the heap.
    thumbnails, n_usable = np.empty((len(photos) * with_thumbnails, SIDE, SIDE), np.uint8), 0
    with ExitStack() as stack:
        writer = None
        if geometry:
            writer = stack.enter_context(open_writer(workspace, geometry, reporter))
            _announce(workspace, find, photos, geometry, writer, reporter)

        def look(photo: UnpackedPhoto) -> tuple[tuple[Any, ...], Canvas | None, Canvas | None]:
            data, n_said = _read(find(*photo[:2])), os.lseek(said, 0, os.SEEK_CUR)
            sha256, found = hashlib.sha256(data).hexdigest(), decode(data)
            if os.lseek(said, 0, os.SEEK_CUR) > n_said:
                doubtful.append(photo)
            small, canvas = None, None
            if found.pixels is not None and with_thumbnails:
                small = thumbnail(found.pixels, SIDE)
            if found.pixels is not None and geometry and writer and sha256 not in writer:
                canvas = to_canvas(found.pixels, geometry)
            return (found.width, found.height, sha256, found.decode_status), small, canvas

        said = stack.enter_context(_kept_remarks())
        advance = stack.enter_context(reporter.track("decoding", len(photos), "photos"))
        for photo, (row, small, canvas) in zip(photos, in_order(look, photos), strict=True):
            rows.append((*photo, *row))
            if small is not None:
                thumbnails[n_usable] = small
                n_usable += 1
            if writer and canvas is not None:
                writer.add(row[2], canvas)
            advance()
        _name_doubtful(find, doubtful, said, reporter)
    columns = ["split", "id", "label", "width", "height", "sha256", "verdict"]
    table = pd.DataFrame(rows, columns=columns).astype({"label": "Int8"})
    return table, thumbnails[:n_usable]


def to_canvas(pixels: Canvas, geometry: Geometry) -> Canvas:
    """`pixels [h, w, 3]` cropped, resized and padded as `geometry` says."""
    top, left, height, width = geometry.crop(pixels.shape[1], pixels.shape[0])
    y, x, inner_height, inner_width = geometry.place(width, height)
    kept = pixels[top : top + height, left : left + width]
    photo = _resize(kept, (inner_height, inner_width), geometry.interpolation)
    if photo.shape[:2] == geometry.canvas(width, height):
        return photo
    canvas = np.full((*geometry.canvas(width, height), 3), PAD, np.uint8)
    canvas[y : y + inner_height, x : x + inner_width] = photo
    return canvas


def thumbnail(pixels: Canvas, size_px: int) -> NDArray[np.uint8]:
    """`pixels [h, w, 3]` squashed to a grey `[size_px, size_px]`: antialiased, luma of ITU-R 601.

    Of a tall photo only every n-th row is read, which costs half.
    """
    rows = pixels[:: max(1, len(pixels) // (2 * size_px))]
    small = _resize(rows, (size_px, size_px), "bilinear").astype(np.uint32)
    luma = small[:, :, 0] * 299 + small[:, :, 1] * 587 + small[:, :, 2] * 114
    return ((luma + 500) // 1000).astype(np.uint8)


def _resize(pixels: Canvas, size: tuple[int, int], interpolation: Interpolation) -> Canvas:
    # What torchvision's resize calls for uint8, without its 80 us a photo under Python's lock. With
    # the batch axis added first the strides are those of channels-last: 280 us instead of 690.
    if pixels.shape[:2] == size:
        return np.ascontiguousarray(pixels)
    planes = torch.from_numpy(np.ascontiguousarray(pixels)).unsqueeze(0).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(planes, size, mode=interpolation, antialias=True)
    return np.ascontiguousarray(resized[0].permute(1, 2, 0).numpy())


@contextmanager
def _kept_remarks() -> Iterator[int]:
    """Keeps what libjpeg prints, which names no photo, from the terminal; the file it goes to."""
    libc, name = ctypes.CDLL(None), "__stderrp" if sys.platform == "darwin" else "stderr"
    libc.fdopen.restype = ctypes.c_void_p
    stderr = ctypes.c_void_p.in_dll(libc, name)
    with tempfile.TemporaryFile() as file:
        # never closed, because a thread that is not done may still write to it
        stream = ctypes.c_void_p(libc.fdopen(os.dup(file.fileno()), b"w"))
        libc.setbuf(stream, None)
        before, stderr.value = stderr.value, stream.value
        try:
            yield file.fileno()
        finally:
            stderr.value = before


def _name_doubtful(
    path_of: PathOf, photos: Sequence[UnpackedPhoto], said: int, reporter: Reporter
) -> None:
    """Warn of those `photos` that libjpeg remarked on; others were decoded at the same time."""
    named = []
    for photo in sorted(photos, key=lambda photo: natural_key(photo[1])):
        n_said = os.lseek(said, 0, os.SEEK_CUR)
        is_used = decode(_read(path_of(*photo[:2]))).pixels is not None
        remarks = os.pread(said, 1000, n_said).decode(errors="replace").splitlines()
        if is_used and remarks:
            named.append(f"{photo[1]} ({remarks[0]})")
    if named:
        reporter.warn(f"{counted(len(named), 'damaged photo')} used: {first_names(named)}")


def _announce(
    workspace: Workspace,
    path_of: PathOf,
    photos: Sequence[UnpackedPhoto],
    geometry: Geometry,
    writer: PixelWriter,
    reporter: Reporter,
) -> None:
    """Say what new canvases will take on disk, by a sample of the photos; DataError if too much."""
    sample, sizes = photos[:: -(-len(photos) // N_SAMPLED)], []
    for photo in sample:
        data = _read(path_of(*photo[:2]))
        header = read_header(data)
        if header.decode_status in USABLE and hashlib.sha256(data).hexdigest() not in writer:
            sizes.append((header.width, header.height))
    n_bytes = geometry.n_bytes(sizes) * len(photos) // len(sample)
    what = f"pixels {geometry.name} of {len(photos):,} photos"
    remedy = "make room, or choose fewer pixels by pixels.size_px or pixels.canvas"
    reporter.say(require_room(workspace.pixels, n_bytes, what, remedy))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        remedy = f"delete the folder {path.parent} and run `make data`"
        raise DataError(f"{path} cannot be read ({error.strerror}): {remedy}") from error


def manifests_of(
    table: pd.DataFrame, thumbnails: Thumbnails, competition: Competition, reporter: Reporter
) -> dict[str, pd.DataFrame]:
    """Both manifests by split, from what `scan` returns."""
    usable_rows = np.flatnonzero(table["verdict"].isin(USABLE))
    phashes = np.full(len(table), "", dtype=object)
    phashes[usable_rows] = [f"{phash:016x}" for phash in perceptual_hashes(thumbnails).tolist()]
    # equal files share a group without being looked at
    first = np.flatnonzero(~table["sha256"].iloc[usable_rows].duplicated())
    pairs = usable_rows[first[near_pairs(thumbnails[first], reporter)]]
    groups = group_photos(list(table["id"]), list(table["sha256"]), pairs)
    folds = pd.array([pd.NA] * len(table), "Int8")
    table = table.assign(phash=phashes, group=groups, fold=folds)
    train, test = (table[table["split"] == split] for split in SPLITS)
    parts = {
        f"of class {name}": train[train["label"] == label]
        for label, name in enumerate(competition.classes)
    }
    for name, part in (parts | {"to predict": test}).items():
        if usable(part).empty:
            raise DataError(
                f"none of the {len(part):,} photos {name} can be decoded: delete the archive and"
                " run `make data` again"
            )
    train = usable(train)
    keys = list(train["id"]), list(train["label"]), list(train["group"])
    table.loc[train.index, "fold"] = assign_folds(*keys, n_folds=N_FOLDS, seed=SEED)
    return {split: table[table["split"] == split] for split in SPLITS}


def print_summary(
    train: pd.DataFrame, test: pd.DataFrame, competition: Competition, reporter: Reporter
) -> None:
    """A table by class and split, then one line for each thing to look at."""
    parts = [train[train["label"] == label] for label in (0, 1)] + [test]
    photos = pd.concat([train, test], ignore_index=True)
    near = photos[photos["group"].duplicated(keep=False)]
    rows: list[list[object]] = [["photos", *map(len, parts)]]
    for status in photos["verdict"].value_counts().index:
        rows.append([status, *((part["verdict"] == status).sum() for part in parts)])
    shared = (part["group"].isin(near["group"]).sum() for part in parts)
    rows.append(["with near-duplicates", *shared])
    reporter.table("photos", ["", *competition.classes, "test"], rows)
    n_labels, n_copies = near.groupby("group")["label"].nunique(), near["sha256"].duplicated().sum()
    groups = f"near-duplicates: {len(near):,} photos in {counted(len(n_labels), 'group')}"
    reporter.say(f"{groups}; exact duplicates: {n_copies:,}")
    mixed = near[near["group"].isin(n_labels[n_labels > 1].index)]
    if len(mixed):
        reporter.warn(
            f"{counted(mixed['group'].nunique(), 'group')} of near-duplicates of different classes,"
            f" so that a label must be wrong: {first_names(list(mixed['id']))}"
        )
    unclosed = photos[photos["verdict"] == "unclosed"]
    _warn(unclosed, "photo", "lacking only the end marker, and used", reporter)
    outcomes = "set aside", "predicted by the prior probability"
    for split, part, outcome in zip(("training", "test"), (train, test), outcomes, strict=True):
        lost = part[~part["verdict"].isin(USABLE)]
        _warn(lost, f"{split} photo", f"that cannot be decoded, {outcome}", reporter)
        if len(lost) > MANY * len(part):
            reporter.warn(
                f"{len(lost) / len(part):.0%} OF ALL {split.upper()} PHOTOS CANNOT BE DECODED:"
                " more than chance damages, so delete the archive and run `make data` again"
            )


def _warn(photos: pd.DataFrame, noun: str, what: str, reporter: Reporter) -> None:
    if len(photos):
        named = [f"{id} ({status})" for id, status in photos[["id", "verdict"]].to_numpy()]
        reporter.warn(f"{counted(len(photos), noun)} {what}: {first_names(named)}")


def first_names(names: Sequence[str]) -> str:
    more = len(names) - N_NAMED
    return ", ".join(names[:N_NAMED]) + (f" and {more:,} more" if more > 0 else "")
