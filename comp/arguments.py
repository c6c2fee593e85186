"""What the command line takes: the options of every command, described once."""

import argparse
import getpass
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGINT
from typing import TYPE_CHECKING, Any, Literal

from comp import __version__
from comp.competition import COMPETITION, Competition
from comp.errors import UserError, explain
from comp.options import flat, override
from comp.progress import Reporter
from comp.recipe import Recipe
from comp.recipes import DEFAULT, ENSEMBLES, ON_CPU, RECIPES, add_recipes, chosen, members, named
from comp.report.stage import pages_kept_current
from comp.store import Workspace

if TYPE_CHECKING:
    from comp.kaggle import Kaggle


@dataclass(frozen=True, kw_only=True)
class Call:
    """What the command line says, under the names of its options."""

    workspace: Workspace
    reporter: Reporter = field(default_factory=Reporter)
    own_recipes: Path | None = None  # a Python file, whose recipes are known already
    recipe: str | None = None
    set: Sequence[str] = ()
    seeds: int = 1
    device: str | None = None
    run: str | None = None
    a: str | None = None
    b: str | None = None
    sub: str | None = None
    yes: bool = False
    runs: Sequence[str] = ()
    verdicts: str = "all"
    method: Literal["simplex", "greedy", "equal", "features"] = "simplex"
    backbones: Sequence[str] | None = None
    budget: str = "10m"
    steps: int = 100
    over: Sequence[str] = ()
    trials: int = 20
    force: bool = False
    fold: int | None = None
    refresh: bool = False
    weights: str | None = None
    archive: Path | None = None
    solution: Path | None = None
    photos: Path | None = None
    track: str | None = None

    @property
    def recipes(self) -> list[Recipe]:
        """The recipe with its settings, or those of an ensemble, or one for each seed."""
        name = DEFAULT if self.recipe is None else self.recipe
        return chosen(name, self.settings, self.seeds)

    @property
    def settings(self) -> list[str]:
        """SET, and what has a variable of its own."""
        return [*self.set, *([f"model.weights={self.weights}"] if self.weights else [])]

    @property
    def naming(self) -> dict[str, Any]:
        """What names the recipes on another machine: options, seeds, and a file's text."""
        settings = ["--set", *self.settings] if self.settings else []
        own = self.own_recipes.read_text(encoding="utf-8") if self.own_recipes else ""
        options = ["--recipe", self.recipe or DEFAULT, *settings]
        return {"options": options, "seeds": self.seeds, "own_recipes": own}

    @property
    def one_recipe(self) -> Recipe:
        return override(named(DEFAULT if self.recipe is None else self.recipe), self.set)

    @property
    def competition(self) -> Competition:
        """As the workspace knows it."""
        from comp.data.origin import competition_of

        return competition_of(self.workspace, COMPETITION)

    @property
    def kaggle(self) -> "Kaggle":
        from comp.kaggle import Kaggle

        return Kaggle(COMPETITION, self.reporter)

    @property
    def run_folder(self) -> Path:
        """The run that RUN names, else that of the recipe with its settings."""
        from comp.predict.stage import finished_folder

        if self.run is None:
            return finished_folder(self.workspace, self.competition, self.recipes)
        if self.set or self.recipe is not None or self.seeds != 1:
            others = "RECIPE, SET and SEEDS"
            raise UserError(f'RUN names a run: leave out {others}, or write RUN="RECIPE SET"')
        return self.folder_of(self.run)

    def folder_of(self, text: str) -> Path:
        """The run that `text` names, such as "lite0_head prediction.views=none"."""
        from comp.predict.stage import find_run, with_options

        words = [text] if path_of(text).exists() else words_of([text])
        named = with_options(words)
        if len(named) != 1:
            raise UserError(f"one run is needed here, got {len(named)}: {text}")
        return find_run(self.workspace, self.competition, *named[0])

    @property
    def run_folders(self) -> list[Path]:
        """Those that RUNS names; an ensemble stands for its recipes."""
        from comp.predict.stage import find_run, with_options

        return [
            find_run(self.workspace, self.competition, member, *options)
            for name, *options in with_options(self.runs)
            for member in members([name])
        ]


def path_of(text: str) -> Path:
    """`text` as a path: shells leave the ~ of WORKSPACE=~/data to us."""
    return Path(os.path.expanduser(text))


Commands = Mapping[Callable[[Call], None], str]  # and the names of their options, some =default
NAMED = "by its name, a prefix or path of it, or RECIPE OPTION=VALUE"
ARGUMENTS: dict[str, dict[str, Any]] = {
    "runs": {"nargs": "*", "metavar": "RUN", "help": f"each {NAMED}"},
    "verdicts": {"nargs": "?", "help": "all (the default), drop, flip, soft or one photo's id"},
    "recipe": {"help": f"one that `recipes` lists; default: {DEFAULT}, to rehearse {ON_CPU}"},
    "set": {"nargs": "+", "action": "extend", "metavar": "OPTION=VALUE"},
    "seeds": {"type": int, "help": "runs of other seeds and folds to average; default: 1"},
    "device": {"help": "cuda, mps or cpu; default: the best there is"},
    "run": {"help": f"{NAMED}, instead of RECIPE with SET"},
    "a": {"help": f"a run: {NAMED}"},
    "b": {"help": "the run that it is compared with"},
    "sub": {"metavar": "FILE", "help": "a submission in the ledger"},
    "yes": {"action": "store_true", "help": "delete it; default: only say what"},
    "method": {"choices": ("simplex", "greedy", "equal", "features"), "help": "default: simplex"},
    "backbones": {"nargs": "+", "metavar": "NAME[=FILE]", "help": "of timm; default: packaged"},
    "budget": {"help": "of time, such as 90s or 1.5h; default: 10m"},
    "over": {"nargs": "+", "metavar": "OPTION=VALUES", "help": "LOW..HIGH or A,B,C"},
    "trials": {"type": int, "help": "in all, with those done; default: 20"},
    "steps": {"type": int, "help": "of the range test; default: 100"},
    "fold": {"type": int, "help": "fit this one alone; train without it collects all"},
    "force": {"action": "store_true", "help": "train, or upload, even what is done"},
    "refresh": {"action": "store_true", "help": "download the leaderboard even if it is new"},
    "weights": {"metavar": "FILE", "help": "as model.weights=FILE, uploaded once; no internet"},
    "archive": {
        "type": path_of,
        "help": "a zip like Kaggle's, or a folder that has it or its parts",
    },
    "track": {"metavar": "TRACKER", "help": "shows the curves: tensorboard, wandb, mlflow, ..."},
    "photos": {"type": path_of, "metavar": "FOLDER", "help": "with the photos to classify"},
    "solution": {"type": path_of, "help": "its labels: a CSV of id,label with 0 or 1"},
}


def make_parser(commands: Commands) -> argparse.ArgumentParser:
    """A parser of `commands` and the names of their options, some with =default."""
    text = "Dogs vs. Cats Redux, from Kaggle's archive to a score."
    parser = argparse.ArgumentParser(prog="comp", description=text)
    parser.add_argument("--version", action="version", version=f"comp {__version__}")
    stages = parser.add_subparsers(required=True, metavar="STAGE")
    for command, names in commands.items():
        text = command.__doc__ or ""
        name = command.__name__.strip("_")
        stage = stages.add_parser(name, help=text, description=text, allow_abbrev=False)
        stage.set_defaults(command=command)
        folder = "folder of data/, runs/ and submissions/; default: here"
        stage.add_argument("--workspace", type=path_of, default=Path(), help=folder)
        stage.add_argument("--recipes", type=path_of, help="a Python file with recipes of your own")
        for word in names.split():
            name, _, default = word.partition("=")
            is_bare = name in ("runs", "verdicts")
            options = ARGUMENTS[name] | ({"default": default} if default else {})
            action: Any = stage.add_argument(name if is_bare else f"--{name}", **options)
            action.completer = COMPLETERS.get(name)
    return parser


def _complete_run(parsed_args: argparse.Namespace, **_: object) -> list[str]:
    runs = Workspace(parsed_args.workspace).runs
    return [*RECIPES, *ENSEMBLES, *(oof.parent.name for oof in runs.glob("*-*/oof.csv"))]


def _complete_option(parsed_args: argparse.Namespace, **_: object) -> list[str]:
    """Those of the recipe, which depend on how it trains."""
    return [f"{name}=" for name in flat(RECIPES.get(parsed_args.recipe, RECIPES[DEFAULT])())]


def _complete_recipe(**_: object) -> list[str]:
    return [*RECIPES, *ENSEMBLES]


COMPLETERS: dict[str, Callable[..., list[str]]] = {  # what the shell offers for an option's value
    **dict.fromkeys(("run", "runs", "a", "b"), _complete_run),
    "recipe": _complete_recipe,
    "set": _complete_option,
}


def words_of(texts: Sequence[str]) -> list[str]:
    """The words of `texts`, each of which may hold several: make passes SET and RUNS as one."""
    try:
        return [word for text in texts for word in shlex.split(text)]
    except ValueError as error:
        raise UserError(f"{str(error).lower()} in {' '.join(texts)}") from None


def _stand_in_for_home() -> None:
    """Libraries ask for a home and a user name, which a container's user may not have."""
    if os.path.expanduser("~") == "~":
        os.environ["HOME"] = "/nonexistent"
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["LOGNAME"] = "nobody"


def run_command(commands: Commands, arguments: Sequence[str] | None) -> int:
    """Run one stage: 0 if it succeeded, 1 after an error that a user can fix, 130 after Ctrl-C."""
    _stand_in_for_home()
    reporter = Reporter()
    parser = make_parser(commands)
    if "_ARGCOMPLETE" in os.environ:  # the shell asks what the next word may be
        import argcomplete

        argcomplete.autocomplete(parser)
    options = vars(parser.parse_args(arguments))
    command, folder = options.pop("command"), Path(os.path.realpath(options.pop("workspace")))
    own_recipes = options.pop("recipes")
    try:
        if own_recipes:
            add_recipes(own_recipes)
        given: dict[str, Any] = {
            name: words_of(value) if isinstance(value, list) else value
            for name, value in options.items()
            if value is not None
        }
        about = {"workspace": Workspace(folder), "reporter": reporter, "own_recipes": own_recipes}
        call = Call(**about, **given)
        with pages_kept_current(call.workspace, COMPETITION, reporter):
            command(call)
    except UserError as error:
        reporter.fail(str(error))
        return 1
    except (OSError, MemoryError, RuntimeError, ImportError) as error:
        failure = explain(error, folder)
        if failure is None:
            raise
        reporter.fail(failure)
        return 1
    except KeyboardInterrupt as stop:  # where training notes where it stopped, and by which signal
        line, number = stop.args or ("stopped; the same command resumes here", SIGINT)
        reporter.fail(line)
        return 128 + int(number)
    return 0
