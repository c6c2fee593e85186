"""From photos on disk to their manifests: each photo is read and decoded once, for its row, its
thumbnail and its canvas."""

import ctypes
import hashlib
import os
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch

from comp.competition import Competition
from comp.data.canvas import Geometry
from comp.data.duplicates import SIDE, Thumbnails, group_photos, near_pairs, perceptual_hashes
from comp.data.folds import assign_folds
from comp.data.manifest import SPLITS, USABLE, natural_key, photo_path, usable
from comp.data.origin import N_FOLDS, SEED
from comp.data.photos import decode, read_header, thumbnail, to_canvas
from comp.data.pixels import Canvas, PixelWriter, open_writer
from comp.data.summary import first_names
from comp.errors import DataError
from comp.progress import Reporter
from comp.store import Workspace, require_room

N_SAMPLED = 256  # photos that are looked at to estimate what the canvases will take on disk
PHOTOS_PER_TASK = 4  # of a thread: less overhead than one, little to wait for
TASKS_AHEAD = 3  # tasks per thread that run or wait to be collected
UnpackedPhoto = tuple[str, str, int | None]  # split, id, label
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


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
    doubtful: list[UnpackedPhoto] = []
    # One block of memory: as separate arrays, each would pin a piece of the heap.
    thumbnails, n_usable = np.empty((len(photos) * with_thumbnails, SIDE, SIDE), np.uint8), 0
    with ExitStack() as stack:
        writer = None
        if geometry:
            writer = stack.enter_context(open_writer(workspace, geometry, reporter))
            _announce(workspace, photos, geometry, writer, reporter)

        def look(photo: UnpackedPhoto) -> tuple[tuple[Any, ...], Canvas | None, Canvas | None]:
            data, n_said = _read(workspace, photo), os.fstat(said).st_size
            sha256, found = hashlib.sha256(data).hexdigest(), decode(data)
            if os.fstat(said).st_size > n_said:
                doubtful.append(photo)
            small, canvas = None, None
            if found.pixels is not None:
                if with_thumbnails:
                    small = thumbnail(found.pixels, SIDE)
                if geometry and writer and sha256 not in writer:
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
        _name_doubtful(workspace, doubtful, said, reporter)
    columns = ["split", "id", "label", "width", "height", "sha256", "verdict"]
    table = pd.DataFrame(rows, columns=columns).astype({"label": "Int8"})
    return table, thumbnails[:n_usable]


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
    workspace: Workspace, photos: Sequence[UnpackedPhoto], said: int, reporter: Reporter
) -> None:
    """Warn of those `photos` that libjpeg remarked on; others were decoded at the same time."""
    named = []
    for photo in sorted(photos, key=lambda photo: natural_key(photo[1])):
        n_said = os.fstat(said).st_size
        is_used = decode(_read(workspace, photo)).pixels is not None
        remarks = os.pread(said, 1000, n_said).decode(errors="replace").splitlines()
        if is_used and remarks:
            named.append(f"{photo[1]} ({remarks[0]})")
    if named:
        reporter.warn(f"{len(named):,} photos are used although damaged: {first_names(named)}")


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
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror}): delete the folder {path.parent} and run"
            " `make data`"
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
    train, test = (table[table["split"] == split] for split in SPLITS)
    classes = [train[train["label"] == label] for label in (0, 1)]
    names = [*(f"of class {name}" for name in competition.classes), "to predict"]
    for name, part in zip(names, [*classes, test], strict=True):
        if usable(part).empty:
            raise DataError(
                f"none of the {len(part):,} photos {name} can be decoded: delete the archive and"
                " run `make data` again"
            )
    train = usable(train)
    keys = list(train["id"]), list(train["label"]), list(train["group"])
    table.loc[train.index, "fold"] = assign_folds(*keys, n_folds=N_FOLDS, seed=SEED)
    return {split: table[table["split"] == split] for split in SPLITS}


def n_cores() -> int:
    """Cores this process may use; in a container or under taskset fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_order(
    function: Callable[[_Item], _Result], items: Iterable[_Item], n_threads: int = 0
) -> Iterator[_Result]:
    """`function` of each item, in the order of `items`, by `n_threads` threads (0: one per core).

    Threads, because decoding and resizing release Python's lock; torch is limited to one thread in
    each, or each would use all cores. At most TASKS_AHEAD x PHOTOS_PER_TASK results per thread are
    in memory.
    """
    n_threads = n_threads or n_cores()
    rest = iter(items)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    pool = ThreadPoolExecutor(n_threads, thread_name_prefix="photos")
    try:
        running: deque[Future[list[_Result]]] = deque()
        while task := list(islice(rest, PHOTOS_PER_TASK)):
            running.append(pool.submit(lambda items: list(map(function, items)), task))
            if len(running) == TASKS_AHEAD * n_threads:
                yield from running.popleft().result()
        while running:
            yield from running.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(before)
