"""The stage `train`: how a run starts, resumes and ends.

1. The run's folder is named by recipe and photos; if all its folds are there, nothing is done.
2. Checkpoints of other runs with the same fit are adopted.
3. Each fold without a checkpoint is fitted on the other folds' photos.
4. Each fold without out-of-fold logits is scored by its checkpoint, under the recipe's views.
5. oof.csv collects them; the table shows the log loss of each fold and of all.

Killed at any point, the next call resumes at the first step that has not left its file.
"""

import time

from comp.data.manifest import read_manifest
from comp.metric import bootstrap_interval, per_photo_logit_loss
from comp.progress import Reporter
from comp.recipe import FineTune, Recipe
from comp.store import Workspace
from comp.train import run as runs
from comp.train.run import Run, open_run

# What needs torch is imported where it is used: a run that is done must say so in under a second.


def train(workspace: Workspace, recipe: Recipe, device: str | None, reporter: Reporter) -> Run:
    """Fit and score the folds of `recipe` that are not fitted yet; the finished run."""
    run = open_run(workspace, recipe)
    if run.is_trained():
        reporter.say(f"{run.name}: all {len(run.folds)} folds are fitted; nothing to do")
    else:
        _fit_missing(run, device, reporter)
    print_oof_table(run, reporter)
    return run


def _fit_missing(run: Run, wanted: str | None, reporter: Reporter) -> None:
    from comp.network.backbone import build
    from comp.network.device import find_device
    from comp.network.embedder import weights_key
    from comp.train.checkpoints import save_tensors
    from comp.train.fits import open_fit
    from comp.train.optimiser import check_optimiser

    recipe, device = run.recipe, find_device(wanted)
    if isinstance(recipe.training, FineTune):
        check_optimiser(recipe.training)
    network = build(recipe.model, size_px=recipe.pixels.size_px)
    key = weights_key(network)
    fit = open_fit(run, device, reporter, network=network)
    runs.start(run, key, device.name)
    adopted = runs.adopt(run, key)
    if adopted:
        reporter.say(f"{run.name}: {len(adopted)} folds adopted from a run with the same fit")
    started = time.perf_counter()
    missing = [fold for fold in run.folds if not run.checkpoint(fold).exists()]
    fit.announce(missing)
    for fold in run.folds:
        if fold in missing:
            with runs.timed(run, f"fit fold {fold}", int(fit.inputs.training_rows(fold).sum())):
                tensors = fit.fit(fold)
            runs.forget_scores(run, fold)
            save_tensors(run.checkpoint(fold), tensors)
        if not run.scores(fold).exists():
            ids = fit.inputs.held_out_ids(fold)
            with runs.timed(run, f"score fold {fold}", len(ids)):
                by_view = fit.logits(fold, ids)
            runs.write_scores(run, fold, ids, by_view)
    runs.collect_oof(run, fit.inputs.photos)
    took = time.perf_counter() - started
    reporter.say(f"{run.name}: {len(run.folds)} folds in {took:.1f} s on {device.name}")


def print_oof_table(run: Run, reporter: Reporter) -> None:
    """Log loss and accuracy of each fold, or of each part of a split, and of all."""
    oof = runs.read_scores(run.oof)
    losses = per_photo_logit_loss(oof["label"], oof["logit"])
    oof = oof.assign(loss=losses, is_right=(oof["logit"] > 0) == (oof["label"] > 0.5))
    is_split = run.recipe.folds.split is not None
    names = ("validation", "test") if is_split else [f"fold {fold}" for fold in run.folds]
    parts = [(name, oof[oof["fold"] == fold]) for fold, name in enumerate(names)]
    rows = [
        (name, f"{len(part):,}", float(part["loss"].mean()), f"{part['is_right'].mean():.2%}")
        for name, part in (*parts, ("all", oof))
    ]
    title = f"{run.name}, {'held out' if is_split else 'out of fold'}"
    reporter.table(title, ("", "photos", "log loss", "accuracy"), rows)
    groups = read_manifest(run.workspace.manifest("train")).set_index("id")["group"]
    low, high = bootstrap_interval(losses, groups.loc[list(oof["id"])].to_numpy(), seed=0)
    reporter.say(f"log loss {losses.mean():.5f}, 95 % interval {low:.5f} to {high:.5f} over photos")
