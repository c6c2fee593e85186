"""Our own stages, as they are, on the same photos."""

import shutil
from collections.abc import Sequence
from itertools import islice

import pandas as pd
import torch
from torch import nn
from torch.utils.data import DataLoader

from comp.bench.floors import wait
from comp.bench.photos import files, held_labels
from comp.bench.rows import Clock, Course, Done, Setup, Silent, Work, unheard
from comp.competition import COMPETITION
from comp.data.manifest import SPLITS, read_manifest, write_manifest
from comp.data.pixels import open_pixels
from comp.data.scan import manifests_of, scan
from comp.metric import logit_log_loss
from comp.options import override
from comp.predict.stage import predict
from comp.recipe import FineTune, Model, Recipe
from comp.recipes import named
from comp.store import Workspace
from comp.train.activations import resume
from comp.train.batches import Batch, Draw, kept_batches
from comp.train.device import Device, find_device
from comp.train.finetune import fine_tune
from comp.train.freezing import freeze
from comp.train.head import LinearHead
from comp.train.run import Run, open_run
from comp.train.stage import begin_fold, train
from comp.train.views import View, views_of
from comp.train.workbench import Workbench, geometry_of, input_for, open_workbench

SILENT = Silent()
MANY = 1000  # epochs: more than any round takes


def recipe_of(
    setup: Setup, name: str, settings: Sequence[str] = (), model: Model | None = None
) -> Recipe:
    """The recipe called `name` with the network and size of the bench, and `settings` such as training.epochs=3."""
    recipe = named(name)
    return override(
        recipe.replace(
            model=model or setup.model, pixels=recipe.pixels.replace(size_px=setup.size_px)
        ),
        settings,
    )


def data(setup: Setup) -> Work:
    """Photos to a manifest, groups, folds and the store of pixels, in an empty workspace."""
    recipe = recipe_of(setup, "lite0_head")

    def work(clock: Clock) -> Done:
        workspace = _empty(setup, "data")
        with clock:
            _make_data(setup, workspace, recipe)
        return Done(n_photos=len(files(setup.root)))

    return work


def decode(setup: Setup) -> Work:
    """Photos of a manifest into an empty store of pixels."""
    recipe = recipe_of(setup, "lite0_head")
    workspace = _shared(setup, recipe)
    manifests, geometry = (
        [read_manifest(workspace.manifest(split)) for split in SPLITS],
        geometry_of(recipe, input_for(recipe)),
    )

    def work(clock: Clock) -> Done:
        empty = _empty(setup, "decode")
        with clock:
            pixels = open_pixels(empty, manifests, geometry, SILENT)
        return Done(n_photos=len(pixels))

    return work


def features(setup: Setup, *, n_batches: int) -> Work:
    """The frozen backbone over one view of photos in the store, in the precision that suits this machine."""
    bench = workbench(setup, recipe_of(setup, "lite0_head"))
    embedder, _ = bench.embedder(bench.network())
    rows = range(min(n_batches * setup.batch, len(bench.pixels)))

    def over(part: Sequence[int]) -> None:
        for _ in embedder.features(bench.pixels, part, View(name="centre")):
            pass

    def work(clock: Clock) -> Done:
        over(rows[: setup.batch])
        with clock:
            over(rows)
        return Done(n_photos=len(rows))

    return work


def run(setup: Setup, *, name: str = "lite0_head", settings: Sequence[str] = ()) -> Work:
    """A recipe from photos on disk to out-of-fold logits, which is what is timed; and on to the held-out ones, for the look."""
    recipe = recipe_of(setup, name, settings)

    def work(clock: Clock) -> Done:
        workspace, device, course = _empty(setup, "run"), find_device("cpu"), Course()
        with course.look() as found:
            with clock:
                _make_data(setup, workspace, recipe)
                fitted = train(workspace, recipe, device, SILENT)
            predict(workspace, COMPETITION, recipe, device, SILENT)
            found(_held_loss(setup, fitted))
        oof = pd.read_csv(fitted.oof)
        figures = {
            "out of fold": logit_log_loss(oof["label"], oof["logit"]),
            "out-of-fold photos": len(oof),
        }
        figures["views"] = len(oof) * _n_views(recipe)
        return Done(n_photos=len(files(setup.root)), figures=figures, looks=tuple(course.looks))

    return work


def head_again(setup: Setup) -> Work:
    """Its second run: pixels and features are there, the run is not."""
    recipe = recipe_of(setup, "lite0_head")
    workspace = _shared(setup, recipe)
    train(workspace, recipe, find_device("cpu"), SILENT)

    def work(clock: Clock) -> Done:
        shutil.rmtree(workspace.runs)
        with clock:
            train(workspace, recipe, find_device("cpu"), SILENT)
        return Done(n_photos=len(files(setup.root)))

    return work


def finetune(
    setup: Setup,
    *,
    n_steps: int,
    n_before: int = 1,  # steps of each round that are not timed: more where processes load ahead
    settings: Sequence[str] = (),
    model: Model | None = None,
    batch: int | None = None,
    device: str = "cpu",
) -> Work:
    """Steps of a fine-tune of fold 0, with its real loader."""
    bench, training, network, batches = _begun(setup, settings, model, batch or setup.batch, device)

    def work(clock: Clock) -> Done:
        endless = iter(batches)

        def steps(n: int) -> None:
            fine_tune(network, islice(endless, n), n, training, bench.shown, bench.device, unheard)
            wait(bench.device)

        steps(n_before)
        with clock:
            steps(n_steps)
        return Done(n_photos=n_steps * training.batch_size)

    return work


def tail(setup: Setup, *, n_steps: int) -> Work:
    """Steps of the last stage on activations that are kept, of one draw of some photos."""
    few = f"folds.n_photos={10 * setup.batch}"
    recipe = recipe_of(
        setup,
        "lite0_tail",
        (
            "training.cached_views=1",
            "training.head_start=false",
            f"training.trainable={setup.tail}",
            few,
        ),
    )
    bench = workbench(setup, recipe)
    training = bench.fine_tune.replace(batch_size=setup.batch, epochs=MANY)
    embedder, _ = bench.frozen(bench.backbone())
    assert embedder.boundary is not None
    kept = bench.features(embedder, list(bench.photos["id"]), Draw(training, 0, 0))
    network = bench.network()
    resume(network, embedder.boundary, bench.size_px)
    freeze(network, training.trainable)
    batches = kept_batches([kept], range(len(kept)), list(bench.photos["target"]), training, seed=0)

    def steps(n: int) -> None:
        fine_tune(network, islice(batches, n), n, training, None, bench.device, unheard)

    def work(clock: Clock) -> Done:
        steps(2)
        with clock:
            steps(n_steps)
        return Done(n_photos=n_steps * setup.batch)

    return work


def loader(
    setup: Setup, *, n_batches: int, n_before: int, model: Model, batch: int, device: str
) -> Work:
    """The loader alone, as fine-tuning on `device` sets it up."""
    _, training, _, batches = _begun(setup, (), model, batch, device)

    def work(clock: Clock) -> Done:
        endless = iter(batches)
        for _ in islice(endless, n_before):
            pass
        with clock:
            for _ in islice(endless, n_batches):
                pass
        return Done(n_photos=n_batches * training.batch_size)

    return work


def _begun(
    setup: Setup, settings: Sequence[str], model: Model | None, batch: int, device: str
) -> tuple[Workbench, FineTune, nn.Module, DataLoader[Batch]]:
    """A fine-tune of fold 0 that is about to begin, with batches for longer than any round takes."""
    recipe = recipe_of(
        setup,
        "lite0_finetune",
        (f"training.batch_size={batch}", "training.head_start=false", *settings),
        model,
    )
    bench, training = workbench(setup, recipe, find_device(device)), recipe.training
    assert isinstance(training, FineTune)
    network, batches = begin_fold(bench, 0, training.replace(epochs=MANY), None)
    return bench, training, network, batches


def prediction(setup: Setup, *, n_batches: int) -> Work:
    """Logits of photos under four views, by a network that is not frozen, so that nothing is kept. A view of each counts as one."""
    recipe = recipe_of(setup, "lite0_finetune", ("prediction.views=multi_scale",))
    bench = workbench(setup, recipe)
    embedder, _ = bench.embedder(bench.network())
    ids = bench.test_ids[: n_batches * setup.batch]
    n_features = bench.network().get_classifier().in_features  # type: ignore[operator]  # timm's, which has no types
    blank = LinearHead(
        weight=torch.zeros(n_features, dtype=torch.float64),
        bias=torch.zeros(1, dtype=torch.float64)[0],
        penalty=0.0,
    )

    def work(clock: Clock) -> Done:
        bench.logits(embedder, blank, ids[: setup.batch])
        with clock:
            bench.logits(embedder, blank, ids)
        return Done(n_photos=len(ids) * _n_views(recipe))

    return work


def _n_views(recipe: Recipe) -> int:
    return len(views_of(recipe.prediction.views, has_room=True))


def _held_loss(setup: Setup, fitted: Run) -> float:
    """The log loss of the run's mean logits on the held-out photos, uncalibrated as the peers'."""
    labels = held_labels(setup.root)
    test = pd.read_csv(fitted.folder / "test.csv", dtype={"id": str}).set_index("id")
    return logit_log_loss(labels, test["logit"].loc[labels.index])


def workbench(setup: Setup, recipe: Recipe, device: Device | None = None) -> Workbench:
    return open_workbench(
        open_run(_shared(setup, recipe), recipe), device or find_device("cpu"), SILENT
    )


def _shared(setup: Setup, recipe: Recipe) -> Workspace:
    """The workspace of all rows that need no empty one, its manifest made."""
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
    photos = [
        (split, id, COMPETITION.classes.index(id.partition(".")[0]) if split == "train" else None)
        for split, id in files(setup.root)
    ]
    geometry = geometry_of(recipe, input_for(recipe))
    table, thumbnails = scan(workspace, photos, geometry, SILENT)
    manifests = manifests_of(table, thumbnails, COMPETITION)
    for split in SPLITS:
        write_manifest(workspace.manifest(split), manifests[split])
