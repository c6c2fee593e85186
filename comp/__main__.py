"""The command line: parses, calls one stage, prints. `python -m comp STAGE --help` lists options.

A command is a function: its docstring is its help, its parameters are its options, which ARGUMENTS
describes. Stages are imported where they are called: torch takes seconds, and neither --help nor a
stage that is done needs it.
"""

import argparse
import inspect
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comp.competition import COMPETITION
from comp.errors import UserError
from comp.options import override
from comp.progress import Reporter
from comp.recipes import DEFAULT, ENSEMBLES, ON_CPU, RECIPES, chosen, listed, members, named
from comp.store import Workspace

if TYPE_CHECKING:
    from comp.kaggle import Kaggle

Strings = Sequence[str]
ARGUMENTS: dict[str, dict[str, Any]] = {  # by parameter
    "runs": {"nargs": "*", "metavar": "RUN", "help": "of runs/, by folder or recipe; default: all"},
    "blended": {"nargs": "+", "metavar": "RUN", "help": "of runs/, by folder or recipe; ensemble"},
    "pair": {"nargs": 2, "metavar": "RUN", "help": "a run, and the one that it is compared with"},
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
    "archive": {"type": Path, "help": "a zip like Kaggle's"},
    "solution": {"type": Path, "help": "its labels: a CSV of id,label with 0 or 1"},
}
POSITIONAL = ("runs", "blended", "pair", "verdicts")


def data(
    workspace: Workspace, reporter: Reporter, recipe: str = DEFAULT, set: Strings = ()
) -> None:
    """download, check and unpack the photos; manifest, folds and pixels"""
    from comp.data.stage import prepare
    from comp.network.preprocessing import geometry_of

    kaggle, geometry = _kaggle(reporter), geometry_of(chosen(recipe, set)[0])

    def download() -> Path:
        return kaggle.download(workspace.raw)

    prepare(workspace, COMPETITION, download, kaggle.is_real, geometry, reporter)


def train(
    workspace: Workspace,
    reporter: Reporter,
    recipe: str = DEFAULT,
    set: Strings = (),
    device: str | None = None,
) -> None:
    """fit the recipe's folds; out-of-fold log loss"""
    from comp.train.stage import train as train_one

    for each in chosen(recipe, set):
        train_one(workspace, each, device, reporter)


def predict(
    workspace: Workspace,
    reporter: Reporter,
    recipe: str = DEFAULT,
    set: Strings = (),
    device: str | None = None,
) -> None:
    """predict the test photos; calibrate and clip"""
    from comp.predict.ensemble import predict_all

    predict_all(workspace, COMPETITION, chosen(recipe, set), device, reporter)


def calibrate(
    workspace: Workspace,
    reporter: Reporter,
    recipe: str = DEFAULT,
    set: Strings = (),
    device: str | None = None,
) -> None:
    """compare every way from logits to probabilities, cross-fitted"""
    from comp.predict.bench import show_bench

    one = override(named(recipe), set)
    show_bench(workspace, COMPETITION, one, device, reporter)


def blend(
    workspace: Workspace,
    reporter: Reporter,
    blended: Strings,
    method: str = "simplex",
    set: Strings = (),
    device: str | None = None,
) -> None:
    """a run made of others: by weights on their logits, or one head on all their features"""
    runs = members(blended)
    if method == "features":
        from comp.predict.concat import concat

        concat(workspace, COMPETITION, runs, set, device, reporter)
    else:
        from comp.predict.blend import blend as blend_logits

        blend_logits(workspace, COMPETITION, runs, method, set, reporter)


def ablate(workspace: Workspace, reporter: Reporter, pair: Strings) -> None:
    """compare two runs photo by photo"""
    from comp.predict.ablate import ablate as compare

    ours, theirs = pair
    compare(workspace, COMPETITION, ours, theirs, reporter)


def forecast(
    workspace: Workspace,
    reporter: Reporter,
    recipe: str = DEFAULT,
    set: Strings = (),
    run: str | None = None,
) -> None:
    """the score and rank that a run can expect, with intervals"""
    from comp.predict.finished import read_run
    from comp.submit.forecast import print_forecast

    finished = read_run(_run_folder(workspace, recipe, set, run))
    print_forecast(workspace, COMPETITION, finished, reporter)


def submit(
    workspace: Workspace,
    reporter: Reporter,
    recipe: str = DEFAULT,
    set: Strings = (),
    run: str | None = None,
    force: bool = False,
) -> None:
    """check, upload and score the submission; a row in the ledger"""
    from comp.submit.stage import submit as upload

    folder = _run_folder(workspace, recipe, set, run)
    upload(workspace, COMPETITION, _kaggle(reporter), folder, reporter, force=force)


def scores(workspace: Workspace, reporter: Reporter) -> None:
    """pick up scores that were pending"""
    from comp.submit.stage import fetch_scores

    fetch_scores(workspace, COMPETITION, _kaggle(reporter), reporter)


def leaderboard(workspace: Workspace, reporter: Reporter, refresh: bool = False) -> None:
    """your best, rank and neighbours, now and on the archived board"""
    from comp.submit.leaderboard import print_standings

    print_standings(workspace, COMPETITION, _kaggle(reporter), reporter, refresh=refresh)


def doctor(workspace: Workspace, reporter: Reporter) -> None:
    """what a run needs, line by line: fine, or what to do"""
    from comp.doctor import PATIENCE, Quiet, examine
    from comp.kaggle import Kaggle

    examine(workspace, COMPETITION, Kaggle(COMPETITION, Quiet(), patience=PATIENCE), reporter)


def rehearsal(
    workspace: Workspace,
    reporter: Reporter,
    recipe: str = ON_CPU,
    set: Strings = (),
    device: str | None = None,
    archive: Path | None = None,
    solution: Path | None = None,
) -> None:
    """all four stages against a stand-in for Kaggle on this machine"""
    from comp.rehearsal.stage import rehearse

    recipes = chosen(recipe, set)
    rehearse(workspace.root, COMPETITION, recipes, device, archive, solution, reporter)


def scout(
    workspace: Workspace,
    reporter: Reporter,
    backbones: Strings | None = None,
    budget: str = "10m",
    set: Strings = (),
    device: str | None = None,
) -> None:
    """try backbones by their frozen features; say which to fine-tune"""
    from comp.train.scout import scout as try_backbones

    try_backbones(workspace, backbones, device, reporter, budget=budget, settings=set)


def lr(
    workspace: Workspace,
    reporter: Reporter,
    recipe: str = DEFAULT,
    set: Strings = (),
    steps: int = 100,
    device: str | None = None,
) -> None:
    """find a learning rate for the recipe's fine-tune"""
    from comp.train.lr_finder import find_lr

    find_lr(workspace, override(named(recipe), set), device, reporter, n_steps=steps)


def audit(
    workspace: Workspace, reporter: Reporter, runs: Strings = (), device: str | None = None
) -> None:
    """labels that runs, near-duplicates and published lists contradict"""
    from comp.predict.audit import audit as audit_labels

    audit_labels(workspace, runs, device, reporter)


def judge(
    workspace: Workspace,
    reporter: Reporter,
    verdicts: str,
    recipe: str = DEFAULT,
    set: Strings = (),
    device: str | None = None,
) -> None:
    """train a recipe with and without label fixes; compare"""
    from comp.predict.audit import judge as judge_fixes

    judge_fixes(workspace, override(named(recipe), set), verdicts, device, reporter)


def recipes(workspace: Workspace, reporter: Reporter) -> None:  # noqa: ARG001  # every command has both
    """list the recipes, what each claims and which to take"""
    for line in listed():
        reporter.say(line)


COMMANDS: tuple[Callable[..., None], ...] = (
    *(data, train, predict, calibrate, blend, ablate, forecast, submit, scores, leaderboard),
    *(doctor, rehearsal, scout, lr, audit, judge, recipes),
)


def main(arguments: Strings | None = None) -> int:
    """Run one stage: 0 if it succeeded, 1 after an error that a user can fix, 130 after Ctrl-C."""
    options = vars(_parser().parse_args(arguments))
    command, home = options.pop("command"), options.pop("workspace")
    reporter = Reporter()
    try:
        if "set" in options:
            options["set"] = _words(options["set"])
        command(Workspace(home.resolve()), reporter, **options)
    except UserError as error:
        reporter.fail(str(error))
        return 1
    except KeyboardInterrupt:
        reporter.fail("stopped; the same command resumes here")
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    text = "Dogs vs. Cats Redux, from Kaggle's archive to a score."
    parser = argparse.ArgumentParser(prog="python -m comp", description=text)
    stages = parser.add_subparsers(required=True, metavar="STAGE")
    for command in COMMANDS:
        stage = stages.add_parser(
            command.__name__, help=command.__doc__, description=command.__doc__
        )
        stage.set_defaults(command=command)
        folder = "folder of data/, runs/ and submissions/; default: here"
        stage.add_argument("--workspace", type=Path, default=Path(), help=folder)
        for name, parameter in list(inspect.signature(command).parameters.items())[2:]:
            options = ARGUMENTS[name].copy()
            default = None if parameter.default is parameter.empty else parameter.default
            if isinstance(default, (str, int)) and "action" not in options:
                options["help"] += f" (default: {default})"
            if name in POSITIONAL:
                stage.add_argument(name, **options)
            elif "action" in options:
                stage.add_argument(f"--{name}", **options)
            else:
                if default == ():
                    default, options["action"] = [], "extend"
                stage.add_argument(f"--{name}", default=default, **options)
    return parser


def _words(settings: Strings) -> list[str]:
    """`settings`, each of which may hold several: make passes SET as one word."""
    try:
        return [word for text in settings for word in shlex.split(text)]
    except ValueError as error:
        raise UserError(
            f"SET cannot be read: {str(error).lower()} in {' '.join(settings)}"
        ) from None


def _run_folder(workspace: Workspace, recipe: str, set: Strings, run: str | None) -> Path:
    from comp.predict.ensemble import made_of
    from comp.predict.finished import find_run

    if run:
        return find_run(workspace, run)
    return made_of(workspace, COMPETITION, chosen(recipe, set))


def _kaggle(reporter: Reporter) -> "Kaggle":
    from comp.kaggle import Kaggle

    return Kaggle(COMPETITION, reporter)


if __name__ == "__main__":
    sys.exit(main())
