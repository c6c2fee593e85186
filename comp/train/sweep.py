"""Search a few options of a recipe: Optuna proposes, bad trials end early, noise is told from gain.

Every trial is a run like any other. After each fold a trial whose log loss is above the median of
earlier ones at that fold is given up. runs/sweep-<key>.log keeps the study, so that the same
command goes on after a kill, and with more TRIALS searches on.

The best of many trials looks better than it is. So in each fold the trial that is best in the other
folds stands for the search, and those losses are compared with the recipe's.
"""

import random
import re
from collections import Counter
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import optuna
import pandas as pd
from numpy.typing import NDArray
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.pruners import MedianPruner
from optuna.samplers import TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial
from optuna.trial import TrialState as State

from comp.data.manifest import read_manifest
from comp.errors import RecipeError, UserError
from comp.metric import Floats, Gain, gain, per_photo_logit_loss
from comp.options import override
from comp.progress import Reporter, counted
from comp.recipe import Recipe
from comp.store import Workspace, fingerprint
from comp.train.run import Run, open_run, read_scores
from comp.train.stage import train

N_SHOWN = 10  # trials
REFUSED = "refused"  # a trial that could not be fitted
DONE = (State.COMPLETE, State.PRUNED)
LOG_RATIO = 10  # from which on a range is searched on a log scale
Space = dict[str, BaseDistribution]


def space_of(over: Sequence[str], recipe: Recipe) -> Space:
    """What `over` searches: each OPTION=LOW..HIGH, or OPTION=A,B,C. RecipeError names a bad one."""
    if not over:
        example = 'OVER="training.peak_lr=1e-5..1e-3 training.wise_ft=0.25,0.5,1"'
        raise RecipeError(f"a sweep needs options to search: {example}")
    space: Space = {}
    for text in over:
        path, _, values = text.partition("=")
        low, is_range, high = values.partition("..")
        ends = (low, high) if is_range else re.split(r",(?![^\[]*\])", values)
        for end in ends:
            override(recipe, [f"{path}={end}"])  # refuses what is no option or out of bounds
        space[path] = _range(text, low, high) if is_range else CategoricalDistribution(ends)
    return space


def _range(text: str, low: str, high: str) -> BaseDistribution:
    try:
        first, last = float(low), float(high)
    except ValueError:
        first, last = 0, 0
    if not first < last:
        raise RecipeError(f"a range reads OPTION=LOW..HIGH with LOW below HIGH, got {text!r}")
    is_log = first > 0 and last / first >= LOG_RATIO
    if low.isdecimal() and high.isdecimal():
        return IntDistribution(int(low), int(high), log=is_log)
    return FloatDistribution(first, last, log=is_log)


def sweep(
    workspace: Workspace,
    recipe: Recipe,
    over: Sequence[str],
    n_trials: int,
    device: str | None,
    reporter: Reporter,
) -> Gain:
    """Train up to `n_trials` variants of `recipe`; what the best gains on it, beyond the choice."""
    space = space_of(over, recipe)
    if len(open_run(workspace, recipe).folds) < 2:
        raise RecipeError("a sweep compares over folds and needs 2 or more: leave out folds.fit")
    baseline = train(workspace, recipe, device, reporter)
    labels = read_manifest(workspace.manifest("train")).set_index("id")["label"].astype(float)
    study = _open_study(workspace, recipe, space)

    def objective(trial: Trial) -> float:
        for path, values in space.items():
            _suggest(trial, path, values)
        settings = settings_in(trial)
        reporter.say(f"trial {trial.number + 1}: {' '.join(settings)}")
        done: list[Floats] = []

        def after_fold(run: Run, fold: int) -> None:
            logits = read_scores(run.scores(fold)).set_index("id")["logit"]
            done.append(per_photo_logit_loss(labels.loc[logits.index], logits))
            trial.report(float(np.concatenate(done).mean()), fold)
            if trial.should_prune():
                raise optuna.TrialPruned

        try:
            variant = override(recipe, settings)
            run = train(workspace, variant, device, reporter, after_fold=after_fold)
        except UserError as error:
            reporter.warn(str(error))
            trial.set_user_attr(REFUSED, REFUSED)
            raise
        return float(_losses(run).mean())

    n_left = n_trials - sum(map(is_tried, study.trials))
    if _grid(space, recipe.seed):
        n_left = min(n_left, len(study.get_trials(states=(State.WAITING,))))
    if n_left > 0:
        study.optimize(objective, n_left, catch=(UserError,))
    return _print_result(workspace, recipe, baseline, study, reporter)


def is_tried(trial: FrozenTrial) -> bool:
    """Whether it has ended by itself: one that was stopped is tried again."""
    return trial.state in DONE or REFUSED in trial.user_attrs


def _suggest(trial: Trial, path: str, values: BaseDistribution) -> None:
    if isinstance(values, CategoricalDistribution):
        trial.suggest_categorical(path, values.choices)
    elif isinstance(values, IntDistribution):
        trial.suggest_int(path, values.low, values.high, log=values.log)
    elif isinstance(values, FloatDistribution):
        trial.suggest_float(path, values.low, values.high, log=values.log)


def settings_in(trial: Trial | FrozenTrial) -> list[str]:
    """What the trial changes, numbers to four digits, so that a run's options can be typed."""
    return [
        f"{path}={value:.4g}" if isinstance(value, float) else f"{path}={value}"
        for path, value in trial.params.items()
    ]


def _open_study(workspace: Workspace, recipe: Recipe, space: Space) -> optuna.Study:
    """The study of this search. Waiting in it are trials that were stopped, or all of a grid."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    key = fingerprint(recipe.key(), {path: str(values) for path, values in space.items()})
    path = workspace.runs / f"sweep-{key}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(path))),
        sampler=TPESampler(seed=recipe.seed),
        pruner=MedianPruner(n_startup_trials=4),
        study_name="sweep",
        load_if_exists=True,
    )
    stopped = [trial for trial in study.trials if trial.state in (State.RUNNING, State.FAIL)]
    for trial in stopped:
        if trial.state == State.RUNNING:
            study.tell(trial.number, state=State.FAIL)
    wanted = _grid(space, recipe.seed) or [trial.params for trial in stopped]
    known = [trial.params for trial in study.trials if is_tried(trial)]
    waiting = study.get_trials(states=(State.WAITING,))
    known += [trial.system_attrs.get("fixed_params", {}) for trial in waiting]
    for params in wanted:
        if params not in known:
            study.enqueue_trial(params)
    return study


def _grid(space: Space, seed: int) -> list[dict[str, Any]]:
    """Every combination of choices in a random order; none if there is a range."""
    choices = [
        values.choices for values in space.values() if isinstance(values, CategoricalDistribution)
    ]
    if len(choices) < len(space):
        return []
    combinations = [dict(zip(space, each, strict=True)) for each in product(*choices)]
    random.Random(seed).shuffle(combinations)
    return combinations


def _losses(run: Run) -> "pd.Series[float]":
    """Per photo, by id."""
    oof = read_scores(run.oof).set_index("id")
    return pd.Series(per_photo_logit_loss(oof["label"], oof["logit"]), oof.index)


def chosen_in_other_folds(losses: Floats, folds: NDArray[np.float64]) -> Floats:
    """Of `losses [n, trials]`, in each fold those of the trial with the least in the other folds.

    So that no photo is scored by a trial that was chosen on it.
    """
    chosen = np.empty(len(losses))
    for fold in np.unique(folds):
        here = folds == fold
        chosen[here] = losses[here, losses[~here].mean(0).argmin()]
    return chosen


def _print_result(
    workspace: Workspace, recipe: Recipe, baseline: Run, study: optuna.Study, reporter: Reporter
) -> Gain:
    tried = [trial for trial in study.trials if is_tried(trial)]
    states = Counter(trial.user_attrs.get(REFUSED) or trial.state.name.lower() for trial in tried)
    told = ", ".join(f"{n} {state}" for state, n in states.items())
    complete = [trial for trial in study.trials if trial.state == State.COMPLETE]
    if not complete:
        raise UserError(f"no trial of the sweep is complete ({told}): see the lines above")
    complete.sort(key=lambda trial: trial.value or 0.0)
    rows = [(trial.number + 1, trial.value, " ".join(settings_in(trial))) for trial in complete]
    reference = _losses(baseline)
    title = f"{counted(len(tried), 'trial')} ({told}); {recipe.name} {reference.mean():.5f}"
    reporter.table(title, ("trial", "log loss", "options"), rows[:N_SHOWN])
    runs = [open_run(workspace, override(recipe, settings_in(trial))) for trial in complete]
    oof = read_scores(baseline.oof)
    losses = np.column_stack([_losses(run).loc[oof["id"]] for run in runs])
    chosen = chosen_in_other_folds(losses, oof["fold"].to_numpy())
    groups = read_manifest(workspace.manifest("train")).set_index("id")["group"].loc[oof["id"]]
    found = gain(np.asarray(reference, np.float64), chosen, groups)
    reporter.say(f"the best trial, chosen in the other folds, over {recipe.name}: {found}")
    best = f'make train predict RECIPE={recipe.name} SET="{rows[0][2]}"'
    advice = (
        "better beyond noise" if found.low > 0 else f"no better than {recipe.name} beyond noise"
    )
    reporter.say(f"{advice}; the best: {best}")
    return found
