"""Our own stages on the same photos."""

import re
import shutil
import threading
from collections.abc import Callable, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from comp.competition import COMPETITION
from comp.data.manifest import SPLITS, read_manifest, write_manifest
from comp.data.pixels import open_pixels, open_writer
from comp.data.scan import manifests_of, scan
from comp.metric import logit_log_loss
from comp.network.device import find_device
from comp.network.preprocessing import geometry_of
from comp.network.surgery import freeze
from comp.network.views import CENTRE, views_of
from comp.options import override
from comp.predict.stage import predict
from comp.progress import Reporter
from comp.recipe import Model, Recipe
from comp.recipes import named
from comp.store import Workspace
from comp.train.checkpoints import arrays_of_network, description, save_tensors
from comp.train.finetune import fine_tune
from comp.train.fits import open_fit
from comp.train.run import open_run
from comp.train.stage import train
from tests.bench.floors import wait
from tests.bench.photos import read_photos
from tests.bench.rows import Evaluation, Measured, Setup, Work, now, timed, without_start

SMALL = Model(backbone="mobilenetv3_small_050", weights="random")  # for passes over 25,000 photos
NO_HEAD_START = "training.head_start=false"
MANY_EPOCHS = "training.epochs=1000"  # more than any round takes


def recipe_of(setup: Setup, name: str, *settings: str, model: Model | None = None) -> Recipe:
    """The recipe called `name` with the benchmark's network and size."""
    recipe = named(name)
    pixels = recipe.pixels.replace(size_px=setup.size_px)
    return override(recipe.replace(model=model or setup.model, pixels=pixels), settings)


def data(setup: Setup) -> Work:
    """Photos to a manifest, groups, folds and the pixel store, in an empty workspace."""
    recipe, n_photos = recipe_of(setup, "lite0_head"), len(read_photos(setup.root))

    def work() -> Measured:
        workspace = _empty(setup, "data")
        return Measured(timed(lambda: _make_data(setup, workspace, recipe)), n_photos)

    return work


def decode(setup: Setup) -> Work:
    """Photos of a manifest into an empty pixel store."""
    recipe = recipe_of(setup, "lite0_head")
    workspace, geometry = _shared(setup, recipe), geometry_of(recipe)
    manifests = [read_manifest(workspace.manifest(split)) for split in SPLITS]

    def work() -> Measured:
        empty = _empty(setup, "decode")
        spent = timed(lambda: open_pixels(empty, manifests, geometry, Reporter()))
        return Measured(spent, sum(map(len, manifests)))

    return work


def features(setup: Setup, *, n: int) -> Work:
    """Features of `n` batches from pixels, one view, in the precision that suits this machine."""
    fit = _fit(setup, recipe_of(setup, "lite0_head"))
    embedder, pixels = fit.frozen.embedder, fit.inputs.pixels
    rows = range(min(n * setup.batch, len(pixels)))

    def embed(some: Sequence[int]) -> None:
        for _ in embedder.embed_photos(pixels, some, CENTRE):
            pass

    def work() -> Measured:
        embed(rows[: setup.batch])
        return Measured(timed(lambda: embed(rows)), len(rows))

    return work


def run(setup: Setup, *, recipe_name: str = "lite0_head", settings: Sequence[str] = ()) -> Work:
    """Photos on disk to out-of-fold logits; the evaluation goes on to the held-out photos'."""
    recipe, photos = recipe_of(setup, recipe_name, *settings), read_photos(setup.root)
    labels = photos[photos["split"] == "test"].set_index("id")["label"]

    def work() -> Measured:
        workspace, start = _empty(setup, "run"), now()
        _make_data(setup, workspace, recipe)
        fitted = train(workspace, recipe, "cpu", Reporter())
        spent = now() - start
        predict(workspace, COMPETITION, recipe, "cpu", Reporter())
        test = pd.read_csv(fitted.folder / "test.csv", dtype={"id": str}).set_index("id")
        # uncalibrated, as the peers' are
        loss = logit_log_loss(labels, test["logit"].loc[labels.index])
        evaluation = Evaluation(now() - start, loss)
        oof = pd.read_csv(fitted.oof)
        figures = {
            "out of fold": logit_log_loss(oof["label"], oof["logit"]),
            "out-of-fold photos": len(oof),
            "views": len(oof) * len(views_of(recipe.prediction.views, has_room=True)),
        }
        return Measured(spent, len(photos), figures, (evaluation,))

    return work


def head_again(setup: Setup) -> Work:
    """A second run: pixels and features are there, the run is not."""
    recipe = recipe_of(setup, "lite0_head")
    workspace, n_photos = _shared(setup, recipe), len(read_photos(setup.root))
    folder = open_run(workspace, recipe).folder

    def train_again() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        train(workspace, recipe, "cpu", Reporter())

    train_again()
    return lambda: Measured(timed(train_again), n_photos)


def finetune(
    setup: Setup,
    *,
    n: int,  # steps
    n_before: int = 1,  # steps that are not timed: more where processes load ahead
    only_load: bool = False,
    settings: Sequence[str] = (),
    model: Model | None = None,
    batch: int | None = None,
    device: str = "cpu",
) -> Work:
    """Steps of a fine-tune of fold 0 with its real loader, or the loader alone."""
    sizes = (f"training.batch_size={batch or setup.batch}", NO_HEAD_START, MANY_EPOCHS)
    recipe = recipe_of(setup, "lite0_finetune", *sizes, *settings, model=model)
    fit, where, training = _fit(setup, recipe, device), find_device(device), recipe.training
    network = fit.start(0)
    freeze(network, training.trainable)
    loader = fit.batches(0, training, seed=0)

    def work() -> Measured:
        batches = iter(loader)

        def steps(count: int) -> None:
            some, preprocessing = islice(batches, count), fit.inputs.preprocessing
            if only_load:
                list(some)
            else:
                fine_tune(network, some, count, training, preprocessing, where, lambda *_, **__: 0)
                wait(where)

        steps(n_before)
        return Measured(timed(lambda: steps(n)), n * training.batch_size)

    return work


def tail(setup: Setup, *, n: int) -> Work:
    """About `n` steps of the last stage on cached activations, of one draw of some photos."""
    common = (
        NO_HEAD_START,
        "training.cached_views=1",
        f"training.trainable={setup.tail}",
        f"training.batch_size={setup.batch}",
        f"folds.n_photos={10 * setup.batch}",
    )

    def fit_of(n_epochs: int) -> Any:
        return _fit(setup, recipe_of(setup, "lite0_tail", *common, f"training.epochs={n_epochs}"))

    short = fit_of(1)
    n_per_epoch = int(short.inputs.training_rows(0).sum()) // setup.batch
    n_epochs = max(1, round(n / n_per_epoch))
    long, n_photos = fit_of(1 + n_epochs), n_epochs * n_per_epoch * setup.batch
    short.fit(0)
    return without_start(lambda: short.fit(0), lambda: long.fit(0), n_photos)


def prediction(setup: Setup, *, n: int) -> Work:
    """Four views of `n` batches, by a tuned network, so that nothing is cached."""
    settings = ("prediction.views=multi_scale", NO_HEAD_START)
    fit = _fit(setup, recipe_of(setup, "lite0_finetune", *settings))
    arrays = arrays_of_network(fit.start(0), fit.inputs.run.recipe)
    save_tensors(fit.inputs.run.checkpoint(0), arrays, description(fit.inputs, 0))
    few, ids = fit.inputs.test_ids[: setup.batch], fit.inputs.test_ids[: (n + 1) * setup.batch]
    n_views = len(fit.logits(0, few))
    n_photos = n_views * (len(ids) - len(few))
    return without_start(lambda: fit.logits(0, few), lambda: fit.logits(0, ids), n_photos)


def memory_of_features(setup: Setup, *, n_photos: int, model: Model = SMALL) -> Work:
    """Features of `n_photos`, computed and cached as a head recipe does."""
    recipe = recipe_of(setup, "lite0_head", model=model)
    fit = _fit(setup, recipe, workspace=_repeated(setup, recipe, n_photos))
    return _with_peaks(lambda: fit.frozen.outputs(fit.inputs.ids, CENTRE), n_photos)


def memory_of_finetune(setup: Setup, *, n_photos: int, model: Model = SMALL) -> Work:
    """An epoch of fine-tuning on four fifths of `n_photos`."""
    settings = ("training.epochs=1", NO_HEAD_START, f"training.batch_size={setup.batch}")
    recipe = recipe_of(setup, "lite0_finetune", *settings, model=model)
    fit = _fit(setup, recipe, workspace=_repeated(setup, recipe, n_photos))
    return _with_peaks(lambda: fit.fit(0), n_photos)


def _with_peaks(work: Callable[[], object], n_photos: int) -> Work:
    def measured() -> Measured:
        peaks, is_over = read_memory(), threading.Event()

        def watch() -> None:
            while not is_over.wait(0.02):
                for name, value in read_memory().items():
                    peaks[name] = max(peaks[name], value)

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        spent = timed(work)
        is_over.set()
        watcher.join()
        return Measured(spent, n_photos, peaks)

    return measured


def read_memory() -> dict[str, float]:
    """Memory of this process in MB: all, and what no file backs. Linux only."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    fields = dict(re.findall(r"(\w+):\s+(\d+) kB", status))
    # the kernel may take pages of a file back at any time
    return {
        "peak MB": int(fields["VmRSS"]) / 1024,
        "of that no file's": int(fields["RssAnon"]) / 1024,
    }


def _repeated(setup: Setup, recipe: Recipe, n_photos: int) -> Workspace:
    """A workspace of `n_photos` that repeat real ones, each with a canvas of its own on disk."""
    real, workspace = _shared(setup, recipe), _empty(setup, f"repeated-{n_photos}")
    pixels = _fit(setup, recipe).inputs.pixels
    train = read_manifest(real.manifest("train"))
    train = train[train["id"].isin(pixels.ids)]
    repeated = train.iloc[np.arange(n_photos) % len(train)]
    names = [f"{number:064x}" for number in range(n_photos)]
    repeated = repeated.assign(id=names, sha256=names, group=range(n_photos))
    write_manifest(workspace.manifest("train"), repeated)
    write_manifest(workspace.manifest("test"), read_manifest(real.manifest("test"))[:1])
    rows = pixels.rows(list(train["id"]))
    with open_writer(workspace, geometry_of(recipe), Reporter()) as writer:
        for name, row in zip(names, cycle(rows), strict=False):
            writer.add(name, np.array(pixels.canvas(int(row))))
    return workspace


def _fit(
    setup: Setup, recipe: Recipe, device: str = "cpu", workspace: Workspace | None = None
) -> Any:
    run = open_run(workspace or _shared(setup, recipe), recipe)
    return open_fit(run, device, Reporter(), with_test=workspace is None)


def _shared(setup: Setup, recipe: Recipe) -> Workspace:
    """The workspace of all rows that need no empty one, with its manifest."""
    workspace = Workspace(setup.root / "work" / "shared")
    if not workspace.manifest("train").exists():
        _make_data(setup, _empty(setup, "shared"), recipe)
    return workspace


def _empty(setup: Setup, name: str) -> Workspace:
    """A workspace with nothing but the photos."""
    workspace = Workspace(setup.root / "work" / name)
    shutil.rmtree(workspace.root, ignore_errors=True)
    workspace.data.mkdir(parents=True)
    workspace.photos.symlink_to((setup.root / "photos").resolve())
    return workspace


def _make_data(setup: Setup, workspace: Workspace, recipe: Recipe) -> None:
    """What the stage `data` does after unpacking."""
    photos = read_photos(setup.root)
    labels = photos["label"].astype(object).where(photos["split"] == "train", None)
    keys = list(zip(photos["split"], photos["id"], labels, strict=True))
    table, thumbnails = scan(workspace, keys, geometry_of(recipe), Reporter())
    manifests = manifests_of(table, thumbnails, COMPETITION, Reporter())
    for split in SPLITS:
        write_manifest(workspace.manifest(split), manifests[split])
