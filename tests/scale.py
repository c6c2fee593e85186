"""How time, memory and disk grow with the number of photos.

    python -m tests.scale 25000 250000 2500000

Two thirds of the photos train and one third is predicted, as in the competition. They are JPEGs of
48 x 48 px; of more than DISTINCT the rest are hard links to those. Each stage runs in a process of
its own, so that its peak of memory is its own.
"""

import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from comp.competition import COMPETITION
from comp.data.manifest import SPLITS, write_manifest
from comp.data.scan import manifests_of, scan
from comp.network.preprocessing import geometry_of
from comp.options import override
from comp.predict.stage import predict
from comp.progress import Reporter
from comp.recipe import Model
from comp.recipes import named
from comp.store import Workspace
from comp.train.stage import train

DISTINCT = 100_000
SETTINGS = ("pixels.size_px=32", "prediction.views=none", "training.views=none")
RECIPE = override(
    named("lite0_head").replace(model=Model(backbone="mobilenetv3_small_050", weights="random")),
    SETTINGS,
)


def photos_of(n: int) -> list[tuple[str, str, int | None]]:
    """Split, id and label of `n` photos."""
    n_train = 2 * n // 3
    train = [
        ("train", f"{COMPETITION.classes[row % 2]}.{row // 2}", row % 2) for row in range(n_train)
    ]
    return [*train, *(("test", str(row + 1), None) for row in range(n - n_train))]


def lay_out(workspace: Workspace, n: int) -> None:
    """Blurred noise, brighter where the label is 1, so that a head has something to learn."""
    rng, first = np.random.default_rng(0), dict[int, Path]()
    for split in SPLITS:
        (workspace.photos / split).mkdir(parents=True)
    for number, (split, id, _) in enumerate(photos_of(n)):
        path = workspace.photos / split / f"{id}.jpg"
        known = first.get(number % DISTINCT)
        if known:
            os.link(known, path)
            continue
        first[number] = path
        small = rng.integers(0, 160, (6, 6, 3)) + 60 * (number % 2)
        Image.fromarray(small.astype(np.uint8)).resize((48, 48), Image.Resampling.BICUBIC).save(
            path
        )


def make_data(workspace: Workspace, n: int) -> None:
    table, thumbnails = scan(workspace, photos_of(n), geometry_of(RECIPE), Reporter())
    for split, manifest in manifests_of(table, thumbnails, COMPETITION, Reporter()).items():
        write_manifest(workspace.manifest(split), manifest)


def fit(workspace: Workspace, n: int) -> None:
    train(workspace, RECIPE, "cpu", Reporter())


def predict_all(workspace: Workspace, n: int) -> None:
    predict(workspace, COMPETITION, RECIPE, "cpu", Reporter())


def measure(stage: Callable[[Workspace, int], None], workspace: Workspace, n: int) -> str:
    """Seconds, peak of memory and disk of a stage, as a line."""
    began = time.monotonic()
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        peak_kb = pool.apply(_run, (stage, workspace, n))
    took, disk = time.monotonic() - began, shutil.disk_usage(workspace.root).used
    figures = f"{took:8.1f} s {peak_kb / 1e6:6.2f} GB, disk {disk / 1e9:.1f} GB"
    return f"{n:>9,} {stage.__name__:12} {figures}"


def _run(stage: Callable[[Workspace, int], None], workspace: Workspace, n: int) -> int:
    stage(workspace, n)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    for n in map(int, sys.argv[1:]):
        with tempfile.TemporaryDirectory() as folder:
            workspace = Workspace(Path(folder))
            for stage in (lay_out, make_data, fit, predict_all):
                print(measure(stage, workspace, n), flush=True)


if __name__ == "__main__":
    main()
