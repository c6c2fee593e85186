"""What the command line takes: the options of every command, described once."""

import argparse
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from comp.competition import COMPETITION
from comp.errors import UserError
from comp.options import override
from comp.progress import Reporter
from comp.recipe import Recipe
from comp.recipes import DEFAULT, ENSEMBLES, RECIPES, chosen, named
from comp.store import Workspace

if TYPE_CHECKING:
    from comp.kaggle import Kaggle


@dataclass(frozen=True, kw_only=True)
class Call:
    """What the command line says, under the names of its options."""

    workspace: Workspace
    reporter: Reporter = field(default_factory=Reporter)
    recipe: str = DEFAULT
    set: Sequence[str] = ()
    device: str | None = None
    run: str | None = None
    runs: Sequence[str] = ()
    verdicts: str = "all"
    method: Literal["simplex", "greedy", "equal", "features"] = "simplex"
    backbones: Sequence[str] | None = None
    budget: str = "10m"
    steps: int = 100
    force: bool = False
    refresh: bool = False
    archive: Path | None = None
    solution: Path | None = None

    @property
    def recipes(self) -> list[Recipe]:
        """The recipe, or those of an ensemble, with its settings."""
        return chosen(self.recipe, self.set)

    @property
    def one_recipe(self) -> Recipe:
        return override(named(self.recipe), self.set)

    @property
    def is_real(self) -> bool:
        """Whether Kaggle itself is asked, not a stand-in; as `kaggle.is_real`, but at no cost."""
        return os.environ.get("KAGGLE_API_ENVIRONMENT") != "LOCALHOST"

    @property
    def kaggle(self) -> "Kaggle":
        from comp.kaggle import Kaggle

        return Kaggle(COMPETITION, self.reporter)

    @property
    def run_folder(self) -> Path:
        """The run to forecast or submit: by its folder's name, else that of the recipe."""
        from comp.predict.runs import find_run
        from comp.predict.stage import finished_folder

        if self.run:
            return find_run(self.workspace, self.run)
        return finished_folder(self.workspace, COMPETITION, self.recipes)


ARGUMENTS: dict[str, dict[str, Any]] = {
    "runs": {"nargs": "*", "metavar": "RUN", "help": "of runs/, by folder or recipe"},
    "verdicts": {"help": "all, drop, flip, soft or the id of one photo in data/verdicts.csv"},
    "recipe": {"metavar": "NAME", "help": f"one of {', '.join([*RECIPES, *ENSEMBLES])}"},
    "set": {"nargs": "+", "metavar": "OPTION=VALUE", "help": "such as training.epochs=3"},
    "device": {"help": "cuda, mps or cpu; default: the best there is"},
    "run": {"help": "a folder of runs/, such as a blend's, instead of the recipe's"},
    "method": {"choices": ("simplex", "greedy", "equal", "features"), "help": "how to blend"},
    "backbones": {
        "nargs": "+",
        "metavar": "NAME[=FILE]",
        "help": "of timm; default: packaged ones",
    },
    "budget": {"help": "of time, such as 90s, 10m or 1.5h"},
    "steps": {"type": int, "help": "of the range test"},
    "force": {"action": "store_true", "help": "upload even a file that was uploaded before"},
    "refresh": {"action": "store_true", "help": "download the leaderboard even if it is new"},
    "archive": {"type": Path, "help": "a zip like Kaggle's, or a folder with it or its contents"},
    "solution": {"type": Path, "help": "its labels: a CSV of id,label with 0 or 1"},
}


def make_parser(commands: Mapping[Callable[[Call], None], str]) -> argparse.ArgumentParser:
    """A parser of `commands` and the names of their options, some with =default."""
    text = "Dogs vs. Cats Redux, from Kaggle's archive to a score."
    parser = argparse.ArgumentParser(prog="python -m comp", description=text)
    stages = parser.add_subparsers(required=True, metavar="STAGE")
    for command, names in commands.items():
        text = command.__doc__ or ""
        stage = stages.add_parser(command.__name__.strip("_"), help=text, description=text)
        stage.set_defaults(command=command)
        folder = "folder of data/, runs/ and submissions/; default: here"
        stage.add_argument("--workspace", type=Path, default=Path(), help=folder)
        for word in names.split():
            name, _, default = word.partition("=")
            positional = name in ("runs", "verdicts")
            options = _argument(name, default)
            stage.add_argument(name if positional else f"--{name}", **options)
    return parser


def _argument(name: str, default: str) -> dict[str, Any]:
    options = ARGUMENTS[name].copy()
    if default:
        options["default"] = default
    shown: object = default or getattr(Call, name, None)
    if isinstance(shown, (str, int)) and name != "verdicts" and "action" not in options:
        options["help"] += f" (default: {shown})"
    if name == "set":
        options["action"] = "extend"
    return options


def words_of(settings: Sequence[str]) -> list[str]:
    """`settings`, each of which may hold several: make passes SET as one word."""
    try:
        return [word for text in settings for word in shlex.split(text)]
    except ValueError as error:
        cause = f"{str(error).lower()} in {' '.join(settings)}"
        raise UserError(f"SET cannot be read: {cause}") from None
