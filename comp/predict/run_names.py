"""How every command names a run: a recipe with options, such as `lite0_head prediction.views=none`;
the name of its folder, or any prefix that no other run has; or its path.

A recipe's name alone means its run without changed options, on today's photos if there is one, or
else its only run. An ensemble's name means the blend of its recipes' runs.
"""

import re
from collections.abc import Sequence
from difflib import get_close_matches
from os.path import expanduser
from pathlib import Path

from comp.competition import Competition
from comp.errors import RecipeError, StaleError
from comp.predict.runs import recipe_of
from comp.predict.stage import finished_folder
from comp.recipes import ENSEMBLES, RECIPES, chosen
from comp.store import Workspace
from comp.train.files import again
from comp.train.run import open_run, run_folders

N_NAMED = 8  # runs in a message


def with_options(words: Sequence[str]) -> list[list[str]]:
    """`words` by run: each name with the options that follow it."""
    named: list[list[str]] = []
    for word in words:
        if named and re.match(r"[\w.]+=", word):
            named[-1].append(word)
        else:
            named.append([word])
    return named


def find_run(workspace: Workspace, competition: Competition, name: str, *settings: str) -> Path:
    """The folder of the trained run that `name` and the recipe's `settings` mean.

    RecipeError if there is none, or more than one; StaleError if it is not trained to its end.
    """
    if settings or name in ENSEMBLES:
        return finished_folder(workspace, competition, chosen(name, settings))
    for path in (Path(expanduser(name)), workspace.root / name):
        if path.parent.resolve() == workspace.runs.resolve():
            name = path.name
    known = run_folders(workspace, "oof.csv")
    found = _matching(workspace, name, known) or _matching(workspace, name, run_folders(workspace))
    if len(found) == 1:
        if found[0] in known:
            return found[0]
        raise StaleError(f"{found[0].name} is not trained to its end: {again(found[0], 'train')}")
    names = [path.name for path in found or known]
    near = get_close_matches(name, names, n=N_NAMED, cutoff=0.5)
    told = ", ".join(((found and names) or near or names)[:N_NAMED])
    if found:
        raise RecipeError(f"{name!r} fits {len(found)} runs, name one of them: {told}")
    what = f"near it: {told}" if near else f"there are: {told}" if names else "there are none"
    remedy = f"`make train predict RECIPE={name if name in RECIPES else '...'}` makes one"
    raise RecipeError(f"no run {name!r}; {what}; {remedy}")


def _matching(workspace: Workspace, name: str, folders: Sequence[Path]) -> list[Path]:
    """Those of `folders` that fit `name` best: by all of it, by the recipe alone, by a prefix."""
    same = [path for path in folders if path.name == name]
    of_recipe = [path for path in folders if path.name.rpartition("-")[0] == name]
    plain = [path for path in of_recipe if name in RECIPES and recipe_of(path) == RECIPES[name]()]
    today = [path for path in plain if path == open_run(workspace, RECIPES[name]()).folder]
    by_prefix = [path for path in folders if path.name.startswith(name)]
    return next(filter(None, (same, today, plain, of_recipe, by_prefix)), [])
