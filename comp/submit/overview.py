"""All runs of a workspace: the stage `runs` lists them, the stage `prune` frees what nothing uses.

Runs are listed by cross-validation; other photos or folds are other tables. What nothing uses:

Runs      of other photos, or other label fixes, than there are now, if their recipe has a run of
          today's; what FORCE=1 set aside, once that is fitted anew; logs. Never a blend, its
          members, or a run that was submitted, nor what was set aside of one.
Pixels    and features that neither a listed recipe nor a run that stays uses.
"""

import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from textwrap import wrap
from typing import Any

import numpy as np
import pandas as pd

from comp.competition import Competition
from comp.data.canvas import store_folder
from comp.errors import DataError, StaleError, UserError
from comp.metric import bootstrap_intervals, gains, per_photo_loss
from comp.network.preprocessing import geometry_of
from comp.options import differing, flat
from comp.predict.calibrate import board_losses
from comp.predict.compare import groups_of
from comp.predict.runs import options_of, read_run, recipe_of
from comp.progress import Reporter, counted, table_lines
from comp.recipe import Folds, Recipe
from comp.recipes import RECIPES
from comp.store import Workspace, read_json
from comp.submit.ledger import read_ledger
from comp.train.features import cache_name, kept_path, read_kept
from comp.train.files import again, hashes, is_intact
from comp.train.run import Run, open_run, run_folders

COLUMNS = ("CV", "95 %", "gain on board", "95 %", "public", "private")


def print_runs(
    workspace: Workspace, competition: Competition, reference: Path | None, reporter: Reporter
) -> None:
    """Print all runs, best first, with their gain on `reference`, else on the best."""
    tables, lacking = defaultdict[str, dict[Path, pd.DataFrame]](dict), list[str]()
    folders = run_folders(workspace)
    with reporter.track("reading", len(folders), "runs") as advance:
        for folder in folders:
            try:
                scored = _read(folder)
                tables[scored[["id", "label", "fold"]].to_csv()][folder] = scored
            except UserError as error:
                lacking.append(str(error))
            advance()
    for runs in sorted(tables.values(), key=len, reverse=True):
        _print_table(workspace, competition, runs, reference, reporter)
    if lacking:
        reporter.say(f"{counted(len(lacking), 'run')} without a cross-validation:")
    for line in lacking:
        _say(line, reporter)
    if not tables and not lacking:
        reporter.say(f"no run in {workspace.runs}: run `make train predict` first")


def _read(folder: Path) -> pd.DataFrame:
    """id, label, fold and prob, out of fold, by id. StaleError says what the run lacks."""
    checkpoints = [name for name in hashes(folder) if name.endswith(".safetensors")]
    stages = dict.fromkeys(["run.json", "oof.csv", *checkpoints], "train")
    stages |= dict.fromkeys(["test.csv", "calibration.json"], "predict")
    bad = [name for name in stages if not is_intact(folder / name)]
    if bad:
        stage = stages[bad[0]]  # makes the first of them, and the next stage what follows
        lost = [x for x in bad if stages[x] == stage and not (folder / x).exists()]
        what = f"{', '.join(lost)} missing" if lost else f"{bad[0]} damaged"
        raise StaleError(f"{folder.name}: {what}: {again(folder, stage)}")
    run = read_run(folder)
    probs = run.out_of_fold_probs().to_numpy(np.float64)
    return run.oof.assign(prob=probs).sort_values("id", ignore_index=True)


def _print_table(
    workspace: Workspace,
    competition: Competition,
    runs: Mapping[Path, pd.DataFrame],
    reference: Path | None,
    reporter: Reporter,
) -> None:
    photos = next(iter(runs.values()))
    truth = photos["label"].to_numpy(np.float64)
    losses = {run: per_photo_loss(truth, scored["prob"]) for run, scored in runs.items()}
    folders = sorted(runs, key=lambda folder: losses[folder].mean())
    first = reference if reference and reference in runs else folders[0]
    cells = [("-", "-", "-")] * len(runs)
    try:
        groups = groups_of(workspace, photos)
    except UserError as error:  # too few photos, or others than there are now
        remark = f"no intervals: {error}"
    else:
        remark = f"gain over {first.name}"
        columns = np.column_stack([losses[folder] for folder in folders])
        ends = bootstrap_intervals(columns, groups)
        probs = np.column_stack([runs[folder]["prob"] for folder in folders])
        board = board_losses(truth[:, None], probs, competition.noise_rate)
        saved = gains(board[:, folders.index(first)], board, groups)
        cells = [
            (f"{low:.4f} to {high:.4f}", f"{g.mean:+.5f}", f"{g.low:+.5f} to {g.high:+.5f}")
            for (low, high), g in zip(ends, saved, strict=True)
        ]
    scored = [row for row in read_ledger(workspace.ledger) if row.public_score is not None]
    scores = {
        row.file.removesuffix(".csv"): (row.public_score, row.private_score) for row in scored
    }
    rows = []
    for folder, certainty in zip(folders, cells, strict=True):
        of_run = scores.get(folder.name, (None, None))
        texts = ["-" if score is None else f"{score:.5f}" for score in of_run]
        rows.append([f"{losses[folder].mean():.5f}", *certainty, *texts])
    n_folds = counted(photos["fold"].nunique(), "fold")
    _say(f"{counted(len(photos), 'photo')} in {n_folds}; {remark}", reporter)
    head, rule, *lines = table_lines(COLUMNS, rows)
    reporter.say(head)
    reporter.say(rule)
    for folder, line in zip(folders, lines, strict=True):
        _say(_described(folder), reporter)
        reporter.say(line)
    reporter.say("")


def _say(text: str, reporter: Reporter) -> None:
    for line in wrap(
        text, 80, subsequent_indent="  ", break_on_hyphens=False, break_long_words=False
    ):
        reporter.say(line)


def _described(folder: Path) -> str:
    """Name, cost, and the options that differ from the recipe's."""
    times = read_json(folder / "run.json").get("times", [])
    n_bytes = sum(path.stat().st_size for path in folder.iterdir())
    took = f"{sum(each['seconds'] for each in times):,.0f} s, " if times else ""
    options, recipe = options_of(folder), recipe_of(folder)
    if recipe and recipe.name in RECIPES:
        pairs = {"named": flat(RECIPES[recipe.name]()), "own": options}
        options = {name: own for name, _, own in differing(pairs)}
    elif recipe:
        options = {"recipe": "not listed"}
    texts = ", ".join(f"{name}={value}" for name, value in options.items())
    return f"{folder.name} ({took}{n_bytes / 1e6:,.1f} MB) {texts}".rstrip()


def prune(workspace: Workspace, reporter: Reporter, *, is_sure: bool) -> None:
    """Say what nothing uses, and delete it if `is_sure`."""
    waste = find_waste(workspace)
    if not waste:
        reporter.say("nothing to free: all runs, pixels and features are in use")
        return
    rows = [
        (str(path.relative_to(workspace.root)), why, f"{freed([path]) / 1e6:,.1f}")
        for path, why in waste.items()
    ]
    reporter.table("what nothing uses", ("", "why", "MB"), rows)
    total = f"{counted(len(waste), 'entry', 'entries')}, {freed(waste) / 1e6:,.1f} MB"
    if not is_sure:
        reporter.say(f"{total}: nothing is deleted; YES=1 deletes it")
        return
    for path in waste:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    reporter.say(f"deleted: {total}")


def freed(paths: Iterable[Path]) -> int:
    """Bytes that deleting `paths` frees: a file that has another name elsewhere stays."""
    files = [each for path in paths for each in (path, *path.rglob("*")) if each.is_file()]
    stats = [file.stat() for file in files]
    n_names = Counter(stat.st_ino for stat in stats)
    sizes = {stat.st_ino: stat.st_size for stat in stats if n_names[stat.st_ino] == stat.st_nlink}
    return sum(sizes.values())


def find_waste(workspace: Workspace) -> dict[Path, str]:
    """What nothing uses, and why."""
    open_run(workspace, Recipe(name=""))  # refuses a workspace without a manifest
    protected = {row.file.removesuffix(".csv") for row in read_ledger(workspace.ledger)}
    of_today = dict[Path, bool]()
    for folder in run_folders(workspace, "run.json"):
        origin = read_json(folder / "run.json") if is_intact(folder / "run.json") else {}
        if "members" in origin:
            protected |= {folder.name, *origin["members"]}
        elif "data" in origin:
            of_today[folder] = _is_of_today(workspace, origin)
    recipes = {_recipe(folder) for folder, is_so in of_today.items() if is_so}
    old = {
        folder: "other photos or labels"
        for folder, is_so in of_today.items()
        if not is_so and _recipe(folder) in recipes
    }
    for path in sorted(workspace.runs.glob("*.before-*")):
        if path.with_name(path.name.partition(".before-")[0]).joinpath("oof.csv").exists():
            old[path] = "set aside by FORCE=1"
    old |= dict.fromkeys(sorted(workspace.runs.glob("*.log")), "log")
    old |= dict.fromkeys(workspace.data.glob("own"), "photos that were classified")
    waste = {p: why for p, why in old.items() if p.name.partition(".before-")[0] not in protected}
    used = set(_used(workspace, [run for run in run_folders(workspace) if run not in waste]))
    for parent in (workspace.pixels, workspace.features):
        for path in sorted(parent.glob("[!.]*")):
            if path.name.removesuffix(".lock") not in used:
                waste[path] = "of no run or recipe"
    return waste


def _recipe(folder: Path) -> str:
    return folder.name.rpartition("-")[0]


def _is_of_today(workspace: Workspace, origin: Mapping[str, Any]) -> bool:
    """Whether the run with this run.json learnt from the photos and labels that there are now."""
    fixes = origin.get("recipe", {}).get("folds", {}).get("label_fixes")
    with suppress(DataError):  # its label fixes are gone
        today = open_run(workspace, Recipe(name="", folds=Folds(label_fixes=fixes)))
        return bool(origin["data"] == today.data_key)
    return False


def _used(workspace: Workspace, folders: Iterable[Path]) -> Iterator[str]:
    """Names in data/pixels and data/features that listed recipes and the runs in `folders` use."""
    recipes = [*(make() for make in RECIPES.values()), *filter(None, map(recipe_of, folders))]
    for recipe in {each.replace(name="", prediction={}, folds={}) for each in recipes}:
        run = Run(workspace=workspace, recipe=recipe, data_key="")
        with suppress(UserError):  # a backbone that timm no longer has
            store = store_folder(workspace, geometry_of(recipe)).name
            yield store
            for device in (None, "cpu", "cuda", "mps"):
                for is_tail in (False, True):
                    if kept := read_kept(run, device, is_tail=is_tail):
                        yield kept_path(run, device, is_tail=is_tail).name
                        yield cache_name(kept.key, store)
