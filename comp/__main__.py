"""The command line: parses, calls one stage, prints. `python -m comp STAGE --help` tells what each takes."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from comp.competition import COMPETITION
from comp.errors import UserError
from comp.options import override
from comp.progress import Reporter
from comp.recipe import Recipe
from comp.recipes import DEFAULT, ENSEMBLES, ON_CPU, RECIPES, chosen, listed, members, named
from comp.store import Workspace

if TYPE_CHECKING:
    from comp.kaggle import Kaggle
    from comp.train.device import Device

# Stages are imported where they are called: torch takes seconds, and neither --help nor submit needs it.


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one stage. 0 if it did what was asked, 1 after a failure that a user can act on, 130 after Ctrl-C."""
    options = _parser().parse_args(arguments)
    reporter = Reporter()
    try:
        options.call(options, reporter)
    except UserError as error:
        reporter.fail(str(error))
        return 1
    except KeyboardInterrupt:
        reporter.fail("stopped; the same command goes on from here")
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m comp", description="Dogs vs. Cats Redux, from Kaggle's archive to a score."
    )
    stages = parser.add_subparsers(required=True, metavar="STAGE")
    for name, (call, text) in _STAGES.items():
        stage = stages.add_parser(name, help=text, description=text)
        stage.set_defaults(call=call)
        stage.add_argument(
            "--home",
            type=Path,
            default=Path(),
            help="folder of data/, runs/ and submissions/ (default: here)",
        )
        if name in (
            "data",
            "train",
            "predict",
            "calibrate",
            "forecast",
            "submit",
            "rehearsal",
            "lr",
            "judge",
        ):
            default = ON_CPU if name == "rehearsal" else DEFAULT
            known = [*RECIPES, *ENSEMBLES] if name in _OF_SEVERAL else RECIPES
            stage.add_argument(
                "--recipe",
                default=default,
                metavar="NAME",
                help=f"one of {', '.join(known)} (default: {default})",
            )
            stage.add_argument(
                "--set",
                nargs="+",
                action="extend",
                default=[],
                metavar="KNOB=VALUE",
                help="such as training.epochs=3",
            )
        if name in (
            "train",
            "predict",
            "calibrate",
            "blend",
            "rehearsal",
            "scout",
            "lr",
            "audit",
            "judge",
        ):
            stage.add_argument("--device", help="cuda, mps or cpu (default: the best there is)")
        if name == "scout":
            stage.add_argument(
                "--backbones",
                nargs="+",
                metavar="NAME[=WEIGHTS]",
                help="of timm (default: those whose weights are packaged)",
            )
            stage.add_argument(
                "--budget", default="10m", help="of time: 90s, 10m, 1.5h (default: 10m)"
            )
            stage.add_argument(
                "--set",
                nargs="+",
                default=[],
                metavar="KNOB=VALUE",
                help="for all, such as folds.n_photos=5000",
            )
        if name == "audit":
            stage.add_argument(
                "runs",
                nargs="*",
                metavar="RUN",
                help="a folder of runs/, or a recipe that has one run there (default: all)",
            )
        if name == "judge":
            stage.add_argument(
                "verdicts", help="all, drop, flip, soft or the id of one photo in data/verdicts.csv"
            )
        if name == "lr":
            stage.add_argument("--steps", type=int, default=100, help="of the test (default: 100)")
        if name in ("forecast", "submit"):
            stage.add_argument(
                "--run",
                metavar="RUN",
                help="a folder of runs/, such as a blend's, instead of the recipe's",
            )
        if name == "blend":
            stage.add_argument(
                "runs",
                nargs="+",
                metavar="RUN",
                help="a folder of runs/, a recipe that has one run there, or ensemble",
            )
            methods = ("simplex", "greedy", "equal", "features")
            stage.add_argument(
                "--method",
                choices=methods,
                default="simplex",
                help="weigh logits, or one head on all their features",
            )
            stage.add_argument(
                "--set",
                nargs="+",
                default=[],
                metavar="KNOB=VALUE",
                help="of prediction., such as prediction.clip=0.01",
            )
        if name == "ablate":
            stage.add_argument(
                "runs",
                nargs=2,
                metavar="RUN",
                help="the run that is judged, and the one that it is compared with",
            )
        if name == "submit":
            stage.add_argument(
                "--force", action="store_true", help="upload even a file that was uploaded before"
            )
        if name == "bench":
            stage.add_argument(
                "--rows",
                nargs="+",
                metavar="ROW",
                help="only these; memory for the passes that show its peak",
            )
            stage.add_argument(
                "--rounds",
                type=int,
                default=3,
                help="in which every row is measured once (default: 3)",
            )
            stage.add_argument(
                "--photos", type=int, default=2000, help="where there are more (default: 2000)"
            )
            stage.add_argument(
                "--full",
                action="store_true",
                help="let the peers' runs for a score come to their end: an hour",
            )
        if name == "leaderboard":
            stage.add_argument(
                "--refresh",
                action="store_true",
                help="download the board even if the one here is less than an hour old",
            )
        if name in ("rehearsal", "bench"):
            stage.add_argument("--archive", type=Path, help="a zip like Kaggle's")
            stage.add_argument(
                "--solution", type=Path, help="its labels: a CSV of id,label with 0 or 1"
            )
    return parser


def _recipe(options: argparse.Namespace) -> Recipe:
    return override(named(options.recipe), options.set)


def _chosen(options: argparse.Namespace) -> list[Recipe]:
    return chosen(options.recipe, options.set)


def _workspace(options: argparse.Namespace) -> Workspace:
    return Workspace(options.home.resolve())


def _device(options: argparse.Namespace) -> "Device":
    from comp.train.device import find_device, keep_big_blocks

    keep_big_blocks()  # before torch allocates
    return find_device(options.device)


def _run_folder(options: argparse.Namespace) -> Path:
    from comp.predict.ensemble import made_of
    from comp.predict.finished import find_run

    workspace = _workspace(options)
    return (
        find_run(workspace, options.run)
        if options.run
        else made_of(workspace, COMPETITION, _chosen(options))
    )


def _kaggle(reporter: Reporter) -> "Kaggle":
    from comp.kaggle import Kaggle

    return Kaggle(COMPETITION, reporter)


def _data(options: argparse.Namespace, reporter: Reporter) -> None:
    from comp.data.stage import prepare
    from comp.train.backbone import input_of
    from comp.train.workbench import geometry_of

    recipe, workspace, kaggle = _chosen(options)[0], _workspace(options), _kaggle(reporter)
    geometry = geometry_of(recipe, input_of(recipe.model))
    prepare(
        workspace,
        COMPETITION,
        lambda: kaggle.download(workspace.raw),
        kaggle.is_real,
        geometry,
        reporter,
    )


def _train(options: argparse.Namespace, reporter: Reporter) -> None:
    recipes, device = _chosen(options), _device(options)
    from comp.train.stage import train

    for recipe in recipes:
        train(_workspace(options), recipe, device, reporter)


def _predict(options: argparse.Namespace, reporter: Reporter) -> None:
    recipes, device = _chosen(options), _device(options)
    from comp.predict.ensemble import predict_all

    predict_all(_workspace(options), COMPETITION, recipes, device, reporter)


def _calibrate(options: argparse.Namespace, reporter: Reporter) -> None:
    recipe, device = _recipe(options), _device(options)
    from comp.predict.bench import show_bench

    show_bench(_workspace(options), COMPETITION, recipe, device, reporter)


def _blend(options: argparse.Namespace, reporter: Reporter) -> None:
    runs = members(options.runs)
    if options.method == "features":
        device = _device(options)
        from comp.predict.concat import concat

        concat(_workspace(options), COMPETITION, runs, options.set, device, reporter)
        return
    from comp.predict.blend import blend

    blend(_workspace(options), COMPETITION, runs, options.method, options.set, reporter)


def _ablate(options: argparse.Namespace, reporter: Reporter) -> None:
    from comp.predict.ablate import ablate

    judged, against = options.runs
    ablate(_workspace(options), COMPETITION, judged, against, reporter)


def _forecast(options: argparse.Namespace, reporter: Reporter) -> None:
    from comp.predict.finished import read_run
    from comp.submit.forecast import show_forecast

    show_forecast(_workspace(options), COMPETITION, read_run(_run_folder(options)), reporter)


def _submit(options: argparse.Namespace, reporter: Reporter) -> None:
    from comp.submit.stage import submit

    submit(
        _workspace(options),
        COMPETITION,
        _kaggle(reporter),
        _run_folder(options),
        reporter,
        force=options.force,
    )


def _scores(options: argparse.Namespace, reporter: Reporter) -> None:
    from comp.submit.stage import scores

    scores(_workspace(options), COMPETITION, _kaggle(reporter), reporter)


def _leaderboard(options: argparse.Namespace, reporter: Reporter) -> None:
    from comp.submit.leaderboard import leaderboard

    leaderboard(
        _workspace(options), COMPETITION, _kaggle(reporter), reporter, refresh=options.refresh
    )


def _doctor(options: argparse.Namespace, reporter: Reporter) -> None:
    from comp.doctor.stage import PATIENCE, Quiet, examine
    from comp.kaggle import Kaggle

    examine(
        _workspace(options), COMPETITION, Kaggle(COMPETITION, Quiet(), patience=PATIENCE), reporter
    )


def _rehearsal(options: argparse.Namespace, reporter: Reporter) -> None:
    recipes, device = _chosen(options), _device(options)
    from comp.rehearsal.stage import rehearse

    rehearse(
        options.home.resolve(),
        COMPETITION,
        recipes,
        device,
        options.archive,
        options.solution,
        reporter,
    )


def _scout(options: argparse.Namespace, reporter: Reporter) -> None:
    device = _device(options)
    from comp.train.backbone import PACKAGED
    from comp.train.budget import seconds
    from comp.train.scout import scout

    backbones, budget_s = options.backbones or list(PACKAGED), seconds(options.budget)
    scout(_workspace(options), backbones, device, reporter, budget_s=budget_s, settings=options.set)


def _lr(options: argparse.Namespace, reporter: Reporter) -> None:
    recipe, device = _recipe(options), _device(options)
    from comp.train.lr_finder import find_lr

    find_lr(_workspace(options), recipe, device, reporter, n_steps=options.steps)


def _audit(options: argparse.Namespace, reporter: Reporter) -> None:
    device = _device(options)
    from comp.predict.audit import audit

    audit(_workspace(options), options.runs, device, reporter)


def _judge(options: argparse.Namespace, reporter: Reporter) -> None:
    recipe, device = _recipe(options), _device(options)
    from comp.predict.audit import judge

    judge(_workspace(options), recipe, options.verdicts, device, reporter)


def _bench(options: argparse.Namespace, reporter: Reporter) -> None:
    from comp.bench.stage import bench

    asked = {
        "names": options.rows,
        "n_rounds": options.rounds,
        "n_photos": options.photos,
        "full": options.full,
    }
    bench(
        options.home.resolve(),
        COMPETITION,
        reporter,
        archive=options.archive,
        solution=options.solution,
        **asked,
    )


def _recipes(_: argparse.Namespace, reporter: Reporter) -> None:
    for line in listed():
        reporter.say(line)


_OF_SEVERAL = (
    "data",
    "train",
    "predict",
    "forecast",
    "submit",
    "rehearsal",
)  # that an ensemble goes through like a recipe
_STAGES = {
    "data": (_data, "download, check and unpack the photos; manifest, folds and pixels"),
    "train": (_train, "fit the recipe's folds; out-of-fold log loss"),
    "predict": (_predict, "predict the test photos; calibrate and clip"),
    "calibrate": (_calibrate, "compare every way from logits to probabilities, cross-fitted"),
    "blend": (_blend, "weigh runs against each other; the result is a run"),
    "ablate": (_ablate, "compare two runs photo by photo"),
    "forecast": (_forecast, "what a run will score, and its rank, with intervals"),
    "submit": (_submit, "check, upload and score the submission; a row in the ledger"),
    "scores": (_scores, "pick up the scores that were pending"),
    "leaderboard": (_leaderboard, "own best, rank and neighbours, now and on the archived board"),
    "doctor": (_doctor, "what a run needs, line by line: fine, or what to do"),
    "rehearsal": (_rehearsal, "all four stages against a stand-in for Kaggle on this machine"),
    "scout": (_scout, "try backbones by their frozen features; tell which to fine-tune"),
    "lr": (_lr, "find a learning rate for the recipe's fine-tune"),
    "audit": (_audit, "what runs, near-duplicates and published lists say against labels"),
    "judge": (_judge, "train a recipe with and without verdicts on labels; compare"),
    "bench": (_bench, "speed and score side by side: bare models, our stages, the peers"),
    "recipes": (_recipes, "list the recipes, what each claims and which to take"),
}


if __name__ == "__main__":
    sys.exit(main())
