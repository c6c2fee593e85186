"""Peak memory of a pass over a store of pixels, small and large, in a process of its own.

The store is synthetic: its photos repeat the real ones, each with bytes of its own on disk. The network is small, so that 25,000 photos do
not take an hour; what is looked for hangs on their number and not on it. Linux alone tells these figures.
"""

import re
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import pandas as pd

from comp.bench.ours import SILENT, recipe_of, workbench
from comp.bench.rows import Clock, Done, Setup, Work, unheard
from comp.data.canvas import store_folder
from comp.data.pixels import PixelStore, PixelWriter, read_index
from comp.recipe import FineTune, Model
from comp.store import Workspace
from comp.train.batches import training_batches
from comp.train.features import features_of
from comp.train.finetune import fine_tune
from comp.train.views import View

SMALL = Model(backbone="mobilenetv3_small_050", weights="random")
EVERY_S = 0.02  # between two looks at memory that no file backs


def features(setup: Setup, *, n_photos: int, model: Model = SMALL) -> Work:
    """Features of `n_photos`, as a head recipe computes and keeps them."""
    recipe = recipe_of(setup, "lite0_head", model=model)
    bench = workbench(setup, recipe)
    embedder, _ = bench.embedder(bench.network())
    pixels = _repeated(setup, bench.pixels, n_photos)

    def work(clock: Clock) -> Done:
        with clock, peaks() as figures:
            features_of(
                setup.root / "work" / f"kept-{n_photos}",
                embedder,
                pixels,
                list(pixels.ids),
                View(name="centre"),
                SILENT,
            )
        return Done(n_photos=n_photos, figures=figures)

    return work


def finetune(setup: Setup, *, n_photos: int, model: Model = SMALL) -> Work:
    """An epoch of fine-tuning over `n_photos`."""
    recipe = recipe_of(setup, "lite0_finetune", ("training.epochs=1",), model)
    bench = workbench(setup, recipe)
    training, pixels = recipe.training, _repeated(setup, bench.pixels, n_photos)
    assert isinstance(training, FineTune)
    training = training.replace(batch_size=setup.batch)

    def work(clock: Clock) -> Done:
        labels = [float(row % 2) for row in range(n_photos)]
        with clock, peaks() as figures:
            batches = training_batches(
                pixels, range(n_photos), labels, training, setup.size_px, bench.device, seed=0
            )
            fine_tune(
                bench.network(), batches, len(batches), training, bench.shown, bench.device, unheard
            )
        return Done(n_photos=n_photos, figures=figures)

    return work


@contextmanager
def peaks() -> Iterator[dict[str, float]]:
    """The most memory that the block needs, in MB: all of it, and what no file backs; the kernel may take the rest back at any time."""
    figures: dict[str, float] = {}
    Path("/proc/self/clear_refs").write_text(
        "5", encoding="ascii"
    )  # the peak begins anew: man 5 proc
    highest, over = [_status_mb("RssAnon")], threading.Event()

    def watch() -> None:
        while not over.wait(EVERY_S):
            highest[0] = max(highest[0], _status_mb("RssAnon"))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield figures
    finally:
        over.set()
        watcher.join()
    figures |= {"peak MB": _status_mb("VmHWM"), "of that no file's": highest[0]}


def _status_mb(name: str) -> float:
    found = re.search(
        rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"), re.MULTILINE
    )
    return int(found[1]) / 1024 if found else float("nan")


def _repeated(setup: Setup, real: PixelStore, n_photos: int) -> PixelStore:
    """`n_photos` of a store in which the `real` canvases stand again and again."""
    folder = store_folder(Workspace(setup.root / "work" / "synthetic"), real.geometry)
    keys = [f"{row:064x}" for row in range(n_photos)]
    with closing(PixelWriter(folder)) as writer:
        for key, row in islice(zip(keys, cycle(range(len(real))), strict=False), n_photos):
            if key not in writer:
                writer.add(key, key, np.array(real.canvas(row)))
    wanted = pd.DataFrame({"id": keys, "sha256": keys})
    return PixelStore(folder, real.geometry, wanted, read_index(folder))
