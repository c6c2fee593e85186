"""The stage `prune`: what nothing uses any more, and deleting it.

Runs      of other photos, or other label fixes, than there are now, if their recipe has a run of
          today's; what FORCE=1 set aside, once that is fitted anew; logs. Never a blend, its
          members, or a run that was submitted, nor what was set aside of one.
Pixels    and features that neither a listed recipe nor a run that stays uses.
"""

import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from comp.data.canvas import store_folder
from comp.errors import DataError, UserError
from comp.network.preprocessing import geometry_of
from comp.predict.runs import recipe_of
from comp.progress import Reporter, counted
from comp.recipe import Folds, Recipe
from comp.recipes import RECIPES
from comp.store import Workspace, read_json
from comp.submit.ledger import read_ledger
from comp.train.features import cache_name, kept_path, read_kept
from comp.train.files import is_intact
from comp.train.run import Run, open_run, run_folders


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
