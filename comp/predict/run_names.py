"""How a command names a run: the same in all of them.

lite0_head prediction.views=none   a recipe with the options that were set
lite0_head-1f2e3d4c5b              the name of its folder, or any prefix that no other run has
runs/lite0_head-1f2e3d4c5b         its path

A recipe's name alone means its run without changed options, on today's photos if there is one, or
else its only run. An ensemble's name means the blend of its recipes' runs.
"""

import re
from collections.abc import Sequence
from difflib import get_close_matches
from os.path import expanduser
from pathlib import Path

from comp.competition import Competition
from comp.errors import RecipeError, StaleError, UserError
from comp.predict.runs import recipe_of
from comp.predict.stage import finished_folder
from comp.recipes import ENSEMBLES, RECIPES, chosen, members
from comp.store import Workspace
from comp.train.files import again
from comp.train.run import open_run, run_folders

OPTION = re.compile(r"[\w.]+=")
N_NAMED = 8  # runs in a message


def find_runs(workspace: Workspace, competition: Competition, words: Sequence[str]) -> list[Path]:
    """The folders of the runs that `words` name, in order, each with the options after its name.

    An ensemble stands for its recipes' runs.
    """
    named: list[list[str]] = []
    for word in words:
        if named and OPTION.match(word):
            named[-1].append(word)
        else:
            named.append([word])
    return [
        find_run(workspace, competition, member, settings)
        for name, *settings in named
        for member in members([name])
    ]


def find_run(
    workspace: Workspace, competition: Competition, name: str, settings: Sequence[str] = ()
) -> Path:
    """The folder of the trained run that `name` and the recipe's `settings` mean.

    RecipeError if there is none, or more than one; StaleError if it is not trained to its end.
    """
    if settings or name in ENSEMBLES:
        return finished_folder(workspace, competition, chosen(name, settings))
    for path in (Path(expanduser(name)), workspace.root / name):
        if path.parent.resolve() == workspace.runs.resolve():
            name = path.name
    known = run_folders(workspace, "oof.csv")
    found = _matching(workspace, name, known)
    if len(found) == 1:
        return found[0]
    if found:
        raise RecipeError(f"{name!r} fits {len(found)} runs, name one of them: {_listed(found)}")
    for folder in run_folders(workspace):
        if folder.name.startswith(name):
            raise StaleError(f"{folder.name} is not trained to its end: {again(folder, 'train')}")
    raise RecipeError(f"no run {name!r} in {workspace.runs}; {_hint(name, known)}")


def _matching(workspace: Workspace, name: str, known: Sequence[Path]) -> list[Path]:
    """The runs of `known` that fit `name` best: by it all, by the recipe alone, by a prefix."""
    same = [path for path in known if path.name == name]
    of_recipe = [path for path in known if path.name.rpartition("-")[0] == name]
    plain = list[Path]()
    if name in RECIPES and len(of_recipe) > 1:
        plain = [path for path in of_recipe if recipe_of(path) == RECIPES[name]()]
        if len(plain) > 1 and workspace.manifest("train").exists():
            today = open_run(workspace, RECIPES[name]()).folder
            plain = [path for path in plain if path == today] or plain
    by_prefix = [path for path in known if name and path.name.startswith(name)]
    return same or plain or of_recipe or by_prefix


def _hint(name: str, known: Sequence[Path]) -> str:
    """What there is instead."""
    if not known or name in RECIPES:
        recipe = name if name in RECIPES else "..."
        return f"run `make train predict RECIPE={recipe}` first"
    recipes = {path.name.rpartition("-")[0] for path in known}
    near = get_close_matches(name.rpartition("-")[0] or name, sorted(recipes), n=N_NAMED)
    alike = [path for path in known if path.name.rpartition("-")[0] in near]
    return f"near it: {_listed(alike)}" if alike else f"`make runs` lists: {_listed(known)}"


def _listed(folders: Sequence[Path]) -> str:
    names = ", ".join(path.name for path in folders[:N_NAMED])
    left = len(folders) - N_NAMED
    return f"{names} and {left} more (`make runs`)" if left > 0 else names


def split_run(text: str) -> tuple[str, str]:
    """The name, which may be a path with spaces, and the options that follow it."""
    name, *options = re.split(rf"\s+(?={OPTION.pattern})", text.strip(), maxsplit=1)
    if not name:
        raise UserError("a run's name is empty: `make runs` lists them")
    return name, "".join(options)
