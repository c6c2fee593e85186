"""The stage `train`: how a run starts, resumes and ends.

1. The run's folder is named by recipe and photos; if all its files are intact, nothing is done.
   Forced, it is set aside as `<run>.before-N`, fitted anew and compared with that.
2. Checkpoints of other runs with the same fit are adopted.
3. Each fold without an intact checkpoint is fitted on the other folds' photos.
4. Each fold without intact out-of-fold logits is scored by its checkpoint, under all views.
5. oof.csv collects them; the table shows the log loss of each fold and of all.

Killed at any point, the next call resumes at the first step that has not left its file; training by
gradients, where the fold's resume file says.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from comp.data.manifest import read_manifest
from comp.errors import RecipeError
from comp.metric import bootstrap_interval, per_photo_logit_loss
from comp.progress import Reporter, counted
from comp.recipe import Recipe
from comp.store import Workspace, read_object
from comp.train import run as runs
from comp.train.run import Run, open_run

# What needs torch is imported where it is used: a run that is done must say so in under a second.


def train(
    workspace: Workspace,
    recipe: Recipe,
    device: str | None,
    reporter: Reporter,
    *,
    force: bool = False,
    fold: int | None = None,
    track: str | None = None,
    after_fold: Callable[[Run, int], None] | None = None,
) -> Run:
    """Fit and score the folds of `recipe` that are not fitted yet; the finished run.

    `force`: fit all of them anew, beside those of a finished run, and compare. `fold`: that one
    alone, for machines that share the work; the run is not finished by it. `track`: what of
    accelerate's shows the curves, such as "tensorboard". `after_fold` is called when a fold of an
    unfinished run is scored, and may end the run there by an exception.
    """
    run = open_run(workspace, recipe)
    folds = counted(len(run.folds), "fold")
    if force and run.oof.exists():
        reporter.say(f"the earlier run is kept as {runs.set_aside(run).name}")
    if fold is not None and fold not in run.folds:
        raise RecipeError(f"FOLD must be 0 to {len(run.folds) - 1}, got {fold}")
    if run.is_trained():
        reporter.say(f"{run.name}: {folds} fitted; nothing to do")
        print_oof_table(run, reporter)
    else:
        todo = run.folds if fold is None else [fold]
        with reporter.logged(run.folder), _tracked(run, track, reporter):
            _fit_missing(run, todo, device, reporter, may_adopt=not force, after_fold=after_fold)
            if fold is not None:
                reporter.say(f"fold {fold} is fitted; `make train` without FOLD collects all")
                return run
            print_oof_table(run, reporter)
    if others := runs.folds_of_other_code(run):
        reporter.say(
            f"fitted by other code than there is now: {len(others)} of {folds}; FORCE=1 fits all"
            " anew and compares"
        )
    if force and (earlier := runs.set_aside_before(run)):
        _print_change(run, earlier[max(earlier)], reporter)
    return run


def _tracked(run: Run, kind: str | None, reporter: Reporter) -> AbstractContextManager[None]:
    if kind is None:
        return nullcontext()
    from comp.train.tracking import tracked

    return tracked(run, kind, reporter)


def _fit_missing(
    run: Run,
    folds: Sequence[int],
    wanted: str | None,
    reporter: Reporter,
    *,
    may_adopt: bool,
    after_fold: Callable[[Run, int], None] | None,
) -> None:
    from comp.train.checkpoints import description, forget_resume, save_tensors
    from comp.train.fits import open_fit

    code = runs.code_digest()
    fit = open_fit(run, wanted, reporter, new=True)
    weights, device = fit.frozen.weights, fit.frozen.device_name
    began_by = read_object(run.origin).get("code")
    runs.start(run, weights, device, code, reporter)
    for fold in () if may_adopt else folds:
        forget_resume(run.checkpoint(fold))
    if may_adopt and (adopted := runs.adopt(run, weights, began_by, folds)):
        reporter.say(f"{run.name}: {counted(len(adopted), 'fold')} adopted from the same fit")
    started = time.perf_counter()
    missing = [fold for fold in folds if not run.is_fitted(fold)]
    fit.announce(missing)
    with reporter.track("fitting", len(folds), "folds") as advance:
        for fold in folds:
            if fold in missing:
                with runs.timed(run, f"fit fold {fold}", int(fit.inputs.training_rows(fold).sum())):
                    tensors = fit.fit(fold)
                runs.forget_scores(run, fold)
                origin = {
                    **run.origin_of(fold, weights),
                    "code": code,
                    **description(fit.inputs, fold),
                }
                save_tensors(run.checkpoint(fold), tensors, origin)
                runs.record_fit(run, fold)
            forget_resume(run.checkpoint(fold))
            if not run.is_scored(fold):
                ids = fit.inputs.held_out_ids(fold)
                with runs.timed(run, f"score fold {fold}", len(ids)):
                    by_view = fit.logits(fold, ids)
                runs.write_scores(run, fold, ids, by_view)
            advance()
            if after_fold:
                after_fold(run, fold)
    if len(folds) == len(run.folds):
        runs.collect_oof(run, fit.inputs.photos)
    took = time.perf_counter() - started
    reporter.say(f"{run.name}: {counted(len(folds), 'fold')} in {took:.1f} s on {device}")


def _print_change(run: Run, earlier: Path, reporter: Reporter) -> None:
    """What fitting anew has changed: the check after a change of the code or the libraries."""
    paths = earlier / run.oof.name, run.oof
    before, now = (runs.read_scores(path).set_index("id") for path in paths)
    losses = [per_photo_logit_loss(oof["label"], oof["logit"]).mean() for oof in (before, now)]
    is_same = paths[0].read_bytes() == paths[1].read_bytes()
    reporter.say(
        f"log loss {losses[1]:.5f}, in {earlier.name} {losses[0]:.5f}; largest change of a logit"
        f" {(now['logit'] - before['logit']).abs().max():.3g}; oof.csv is"
        f" {'the same' if is_same else 'not the same'}, byte for byte"
    )


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
    reporter.measure({f"out of fold/{row[0]}": row[2] for row in rows}, 0)
    title = f"{run.name}, {'held out' if is_split else 'out of fold'}"
    reporter.table(title, ("", "photos", "log loss", "accuracy"), rows)
    groups = read_manifest(run.workspace.manifest("train")).set_index("id")["group"]
    low, high = bootstrap_interval(losses, groups.loc[list(oof["id"])].to_numpy())
    reporter.say(f"log loss {losses.mean():.5f}, 95 % interval {low:.5f} to {high:.5f} over photos")
