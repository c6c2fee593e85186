"""The stage `train`: how a run starts, goes on and ends.

1. The run's folder is named by recipe and photos; if all its folds are there, nothing is done.
2. Folds that another run has fitted with the same settings are taken over.
3. Each fold that lacks a checkpoint is fitted on the other folds' photos, and its checkpoint written.
4. Each fold that lacks its out-of-fold logits is scored by its checkpoint, with the recipe's views.
5. oof.csv brings them together; the table shows the log loss of each fold and of all.

Killed at any point, the next call goes on at the first step that has not left its file.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from comp.data.manifest import read_manifest
from comp.errors import StaleError
from comp.metric import bootstrap_interval, per_photo_logit_loss
from comp.progress import Reporter
from comp.recipe import FineTune, Head, Recipe, Svm
from comp.recipes import ON_CPU
from comp.seeds import derive_seed
from comp.store import Workspace, write_table
from comp.train import run as runs
from comp.train.activations import BATCH, given_to, resume
from comp.train.backbone import Input, build, input_of
from comp.train.batches import Batch, Draw, InMemory, kept_batches, training_batches
from comp.train.device import Device, has_fast_bf16
from comp.train.features import Embedder, announce, weights_key
from comp.train.finetune import Point, fine_tune, set_training
from comp.train.freezing import freeze
from comp.train.fusing import fuse
from comp.train.head import LinearHead, fit_head
from comp.train.heads import FeatureHead, finished, make_layers, start_from
from comp.train.kept import Rows
from comp.train.optimisers import refuse_unknown
from comp.train.run import Run, collect_oof, open_run
from comp.train.selection import learners, select
from comp.train.workbench import Workbench, open_workbench, save_head, save_network


def train(workspace: Workspace, recipe: Recipe, device: Device, reporter: Reporter) -> Run:
    """Fit and score the folds of `recipe` that are not fitted yet; the finished run."""
    run = open_run(workspace, recipe)
    if run.is_trained():
        reporter.say(f"{run.name}: all {len(run.folds)} folds are fitted; nothing to do")
        show(run, reporter)
        return run
    if isinstance(recipe.training, FineTune):
        refuse_unknown(recipe.training)
        if device.where.type == "cpu" and not recipe.is_cached:
            _warn_of_cpu(run, recipe.training, reporter)
    network = build(recipe.model, size_px=recipe.pixels.size_px)
    bench = open_workbench(run, device, reporter)
    bench.views()  # refuses views that the canvas has no room for, before any work
    began_with = weights_key(network)
    runs.start(run, began_with, device.name)
    taken = runs.adopt(run, began_with)
    if taken:
        reporter.say(f"{run.name}: {len(taken)} folds taken over from a run with the same fit")
    start = time.perf_counter()
    if recipe.on_features:
        _train_heads(bench, network)
    elif recipe.is_cached:
        _train_tails(bench, network)
    else:
        _train_networks(bench, network, bench.fine_tune)
    collect_oof(run, bench.photos)
    reporter.say(
        f"{run.name}: {len(run.folds)} folds in {time.perf_counter() - start:.1f} s on {device.name}"
    )
    show(run, reporter)
    return run


def _train_heads(bench: Workbench, network: torch.nn.Module) -> None:
    embedder, why = bench.frozen(network)
    bench.reporter.say(f"inference in {why}")
    features = None
    for fold in bench.run.folds:
        if not bench.run.checkpoint(fold).exists():
            if features is None:
                training = bench.recipe.training
                views = bench.views("none" if isinstance(training, FineTune) else training.views)
                features = bench.mean_features(embedder, list(bench.photos["id"]), views)
            head = _fitted_head(bench, features, fold)
            runs.forget_scores(bench.run, fold)
            save_head(bench.run.checkpoint(fold), head)
        _score(bench, fold, embedder)


def _fitted_head(bench: Workbench, features: NDArray[np.float32], fold: int) -> FeatureHead:
    """The head for `fold`, solved, an SVM or trained by gradients, as the recipe says."""
    training, seed = bench.recipe.training, bench.recipe.seed
    if isinstance(training, Head):
        return solved_head(features, bench.photos, fold, training, seed)
    learns = learners(bench.photos, fold).to_numpy()
    given, targets = features[learns], bench.photos["target"].to_numpy()[learns]
    if isinstance(training, Svm):
        from comp.train.classical import fit_svm  # scikit-learn takes most of a second to load

        groups = [int(group) for group in bench.photos["group"][learns]]
        return fit_svm(
            given, targets, groups, training, seed=derive_seed(seed, "inner folds", fold)
        )
    layers = make_layers(features.shape[1], training.head, derive_seed(seed, "head", fold)).to(
        bench.device.where
    )
    if training.head_start:
        start_from(layers, solved_head(features, bench.photos, fold, Head(), seed))
    n_trained = sum(parameter.numel() for parameter in layers.parameters())
    bench.reporter.say(
        f"fold {fold}: {n_trained:,} parameters of the head train on features of {len(given):,} photos"
    )
    held, places = InMemory(given), range(len(given))
    _train_phases(
        bench,
        fold,
        layers,
        training,
        None,
        lambda phase, seed: kept_batches([held], places, list(targets), phase, seed),
    )
    return finished(layers)


def solved_head(
    features: NDArray[np.float32], photos: pd.DataFrame, fold: int, training: Head, seed: int
) -> LinearHead:
    """The head for `fold`, from `features [n, d]` of the `photos` (target, group, fold) of the other folds."""
    learns = learners(photos, fold).to_numpy()
    return fit_head(
        torch.from_numpy(features[learns]),
        torch.from_numpy(photos["target"].to_numpy()[learns]),
        [int(group) for group in photos["group"][learns]],
        penalties=training.penalties,
        n_inner=training.n_inner,
        seed=derive_seed(seed, "inner folds", fold),
    )


def out_of_fold(
    features: NDArray[np.float32],
    photos: pd.DataFrame,
    training: Head,
    seed: int,
    reporter: Reporter,
) -> NDArray[np.float64]:
    """Logits [n] of `photos`, each from the solved head of its fold; the same `features [n, d]` are learnt from and scored."""
    logits, folds = np.empty(len(photos)), sorted(set(photos["fold"]))
    with reporter.track(f"heads on {features.shape[1]:,} features", len(folds), "folds") as advance:
        for fold in folds:
            held = (photos["fold"] == fold).to_numpy()
            logits[held] = (
                solved_head(features, photos, fold, training, seed)
                .logits(torch.from_numpy(features[held]))
                .numpy()
            )
            advance()
    return logits


def _train_tails(bench: Workbench, network: torch.nn.Module) -> None:
    """The last part of each fold's network, on what the frozen part makes of some draws of the augmentation."""
    embedder, why = bench.frozen(network)
    bench.reporter.say(f"inference in {why}")
    training, seed, ids = (
        bench.fine_tune,
        derive_seed(bench.recipe.seed, "draws"),
        list(bench.photos["id"]),
    )
    assert embedder.boundary is not None
    missing = [fold for fold in bench.run.folds if not bench.run.checkpoint(fold).exists()]
    if missing:
        seen = [Draw(training, seed, number) for number in range(training.cached_views)]
        announce(
            bench.run.workspace.features,
            embedder,
            len(ids),
            len(seen) + len(bench.views()),
            bench.reporter,
        )
        draws = [bench.features(embedder, ids, draw) for draw in seen]
        features = _pooled(bench, embedder) if training.head_start else None
    for fold in bench.run.folds:
        if fold in missing:
            head = (
                solved_head(features, bench.photos, fold, Head(), bench.recipe.seed)
                if features is not None
                else None
            )
            network = _begun(bench, fold, head)
            resume(network, embedder.boundary, bench.size_px)
            _train_phases(
                bench,
                fold,
                network,
                training,
                None,
                partial(_begin_kept_phase, bench, fold, network, draws),
            )
            _keep(bench, fold, network)
        _score(bench, fold, embedder)


def _pooled(bench: Workbench, embedder: Embedder) -> NDArray[np.float32]:
    """Features [n, d] of the photos, made of kept activations by the untrained rest of the network."""
    assert embedder.boundary is not None
    network: Any = bench.network().to(bench.device.where)
    resume(network, embedder.boundary, bench.size_px)
    kept, head = (
        bench.features(embedder, list(bench.photos["id"]), bench.views("none")[0]),
        network.pretrained_cfg["classifier"],
    )
    with torch.inference_mode():
        parts = [
            torch.from_numpy(kept.take(range(start, min(start + BATCH, len(kept)))))
            for start in range(0, len(kept), BATCH)
        ]
        return torch.cat(
            [given_to(network, head, part.to(bench.device.where)).cpu() for part in parts]
        ).numpy()


def _begin_kept_phase(
    bench: Workbench,
    fold: int,
    network: torch.nn.Module,
    draws: list[Rows],
    phase: FineTune,
    seed: int,
) -> DataLoader[Batch]:
    learns = learners(bench.photos, fold).to_numpy()
    _freeze(bench, fold, network, phase, int(learns.sum()))
    return kept_batches(
        draws, list(np.flatnonzero(learns)), list(bench.photos["target"][learns]), phase, seed
    )


def _train_networks(bench: Workbench, network: torch.nn.Module, training: FineTune) -> None:
    missing = [fold for fold in bench.run.folds if not bench.run.checkpoint(fold).exists()]
    features = head_start(bench, network) if training.head_start and missing else None
    for fold in bench.run.folds:
        if fold in missing:
            head = (
                solved_head(features, bench.photos, fold, Head(), bench.recipe.seed)
                if features is not None
                else None
            )
            _fit_fold(bench, fold, training, head)
        _score(bench, fold, None)


def head_start(bench: Workbench, network: torch.nn.Module) -> NDArray[np.float32]:
    """Features [n, d] of the photos, from which the heads are solved that fine-tuning begins with. `network` is used up."""
    embedder, why = bench.embedder(network)
    bench.reporter.say(f"head start in {why}")
    return bench.mean_features(embedder, list(bench.photos["id"]), bench.views("none"))


def begin_fold(
    bench: Workbench, fold: int, training: FineTune, head: LinearHead | None
) -> tuple[torch.nn.Module, DataLoader[Batch]]:
    """The network as fine-tuning of `fold` begins it, frozen as `training` says, and all its batches."""
    network = _fused(bench, _begun(bench, fold, head))
    return network, _begin_phase(
        bench, fold, network, training, derive_seed(bench.recipe.seed, "fine-tune", fold, 0)
    )


def _begun(bench: Workbench, fold: int, head: LinearHead | None) -> torch.nn.Module:
    network = bench.network(derive_seed(bench.recipe.seed, "head", fold))
    if head is not None:
        start_from(network.get_classifier(), head)  # type: ignore[operator]  # timm's, which has no types
    return network


def _fused(bench: Workbench, network: torch.nn.Module) -> torch.nn.Module:
    """`network`, on a CPU with activations in their convolutions; where norms are folded and this CPU is fast at it, in bfloat16."""
    if bench.device.where.type == "cpu" and not bench.fine_tune.compile:
        example = torch.rand(
            1, 3, bench.size_px, bench.size_px, generator=torch.Generator().manual_seed(0)
        )
        if (
            bench.fine_tune.fuse_batch_norm
            and has_fast_bf16()
            and fuse(network, example, half=True)
        ):
            bench.reporter.say("convolutions train in bfloat16, their weights in float32")
        else:
            fuse(network, example)
    return network


def _begin_phase(
    bench: Workbench, fold: int, network: torch.nn.Module, phase: FineTune, seed: int
) -> DataLoader[Batch]:
    """Freeze what `phase` freezes, say so, and give its batches."""
    learns = bench.photos[learners(bench.photos, fold)]
    rows = [int(row) for row in bench.pixels.rows(list(learns["id"]))]
    _freeze(bench, fold, network, phase, len(rows))
    return training_batches(
        bench.pixels, rows, list(learns["target"]), phase, bench.size_px, bench.device, seed
    )


def _freeze(
    bench: Workbench, fold: int, network: torch.nn.Module, phase: FineTune, n_photos: int
) -> None:
    trained, total = freeze(network, phase.trainable)
    bench.reporter.say(
        f"fold {fold}: {trained:,} of {total:,} parameters train on {n_photos:,} photos"
    )


def _fit_fold(bench: Workbench, fold: int, training: FineTune, head: LinearHead | None) -> None:
    network = _fused(bench, _begun(bench, fold, head))
    batches_of = partial(_begin_phase, bench, fold, network)
    _train_phases(bench, fold, network, training, bench.shown_for(fold), batches_of)
    _keep(bench, fold, network)


def _keep(bench: Workbench, fold: int, network: torch.nn.Module) -> None:
    runs.forget_scores(bench.run, fold)
    save_network(bench.run.checkpoint(fold), network)


def _train_phases(
    bench: Workbench,
    fold: int,
    network: torch.nn.Module,
    training: FineTune,
    shown: Input | None,
    batches_of: Callable[[FineTune, int], DataLoader[Batch]],
) -> None:
    """Train `network`, which may be a head alone, through the phases of `training`, one after the other; keep the history."""
    history: list[Point] = []
    with torch.random.fork_rng(devices=[bench.device.where] if bench.device.is_cuda else []):
        for number, phase in enumerate(training.phases()):
            seed = derive_seed(bench.recipe.seed, "fine-tune", fold, number)
            batches = batches_of(phase, seed)
            torch.manual_seed(
                derive_seed(seed, "dropout")
            )  # of dropout and stochastic depth; not of what a GPU adds in no fixed order
            n_steps, n_photos = (
                len(batches),
                min(phase.batch_size, int(learners(bench.photos, fold).sum())),
            )
            with bench.reporter.track(f"fold {fold}", n_steps * n_photos, "photos") as advance:
                points = fine_tune(network, batches, n_steps, phase, shown, bench.device, advance)
            before = history[-1].step if history else 0
            history += [replace(point, step=before + point.step) for point in points]
    _keep_history(bench.run, fold, history)
    bench.reporter.say(
        f"fold {fold}: training loss {history[0].loss:.4f} at first, {history[-1].loss:.4f} at the end"
    )


def _keep_history(run: Run, fold: int, history: list[Point]) -> None:
    table = pd.DataFrame(
        {
            "step": [p.step for p in history],
            "loss": [p.loss for p in history],
            "lr": [p.lr for p in history],
        }
    )
    write_table(run.folder / f"fold-{fold}-history.csv", table)


def _score(bench: Workbench, fold: int, frozen: Embedder | None) -> None:
    if bench.run.scores(fold).exists():
        return
    embedder, head = bench.fitted(fold, frozen)
    ids = list(bench.photos["id"][bench.photos["fold"] == fold])
    by_view = bench.view_logits(embedder, head, ids)
    n_bad = int((~np.isfinite(sum(by_view.values()))).sum())
    if n_bad:
        raise StaleError(
            f"{n_bad} of {len(ids)} out-of-fold logits of fold {fold} are not finite: delete {bench.run.checkpoint(fold)} and train again"
        )
    runs.write_scores(bench.run, fold, ids, by_view)


def _warn_of_cpu(run: Run, training: FineTune, reporter: Reporter) -> None:
    """Say what a fine-tune will take on a CPU before it starts."""
    recipe = run.recipe
    photos = select(read_manifest(run.workspace.manifest("train")), recipe.folds, recipe.seed)
    n_learnt = sum(
        int((photos["fold"] != fold).sum())
        for fold in run.folds
        if not run.checkpoint(fold).exists()
    )
    seconds = sum(
        n_learnt * phase.epochs * _seconds_a_photo(recipe, phase) for phase in training.phases()
    )
    took = f"{seconds / 3600:.1f} hours" if seconds > 5400 else f"{seconds / 60:.0f} minutes"
    reporter.warn(
        f"no GPU: {recipe.name} will train for about {took} on this CPU; RECIPE={ON_CPU} is made for CPUs"
    )


def _seconds_a_photo(recipe: Recipe, training: FineTune) -> float:
    """Seconds of one training step a photo, measured on random weights."""
    size_px = recipe.pixels.size_px or input_of(recipe.model).size_px
    network = build(recipe.model.replace(weights="random"), size_px=recipe.pixels.size_px)
    freeze(network, training.trainable)
    set_training(network.to(memory_format=torch.channels_last))
    images = torch.zeros(4, 3, size_px, size_px).to(memory_format=torch.channels_last)
    took = []
    for _ in range(2):  # the first pass also warms up
        start = time.perf_counter()
        network(images).sum().backward()
        took.append((time.perf_counter() - start) / len(images))
    return min(took)


def show(run: Run, reporter: Reporter) -> None:
    """The table of log loss and accuracy, of each fold, or of each part of a split, and of all."""
    oof = runs.read_scores(run.oof)
    losses = per_photo_logit_loss(oof["label"], oof["logit"])
    right = ((oof["logit"] > 0) == (oof["label"] > 0.5)).to_numpy()
    rows, split = [], run.recipe.folds.split is not None
    for fold, name in enumerate(
        ("validation", "test") if split else [f"fold {fold}" for fold in run.folds]
    ):
        here = (oof["fold"] == fold).to_numpy()
        rows.append(
            (name, f"{here.sum():,}", float(losses[here].mean()), f"{right[here].mean():.2%}")
        )
    rows.append(("all", f"{len(oof):,}", float(losses.mean()), f"{right.mean():.2%}"))
    reporter.table(
        f"{run.name}, held out" if split else f"{run.name}, out of fold",
        ("", "photos", "log loss", "accuracy"),
        rows,
    )
    groups = read_manifest(run.workspace.manifest("train")).set_index("id")["group"]
    low, high = bootstrap_interval(losses, groups.loc[list(oof["id"])].to_numpy(), seed=0)
    reporter.say(f"log loss {losses.mean():.5f}, 95 % interval {low:.5f} to {high:.5f} over photos")
