"""The command line: parses, calls one stage, prints. `python -m comp STAGE --help` lists options.

A command is a function; its docstring is its help, and COMMANDS lists its options. Stages are
imported where they are called: torch takes seconds, and neither --help nor a stage that is done
needs it.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from comp.arguments import Call, run_command
from comp.competition import COMPETITION
from comp.errors import UserError
from comp.options import override
from comp.recipes import ON_CPU, listed


def _data(call: Call) -> None:
    """download, check and unpack the photos; manifest, folds and pixels"""
    from comp.data.origin import check_server
    from comp.data.stage import mention_newer_version, prepare
    from comp.network.preprocessing import geometry_of

    competition, kaggle = call.competition, call.kaggle

    def download() -> Path:
        check_server(call.workspace, kaggle)
        return kaggle.download(call.workspace.raw)

    settings = (kaggle.is_real, geometry_of(call.recipes[0]), call.reporter)
    if not prepare(call.workspace, competition, call.archive or download, *settings):
        mention_newer_version(call.workspace, competition, call.reporter)


def _train(call: Call) -> None:
    """fit the recipe's folds; out-of-fold log loss"""
    from comp.train.stage import train

    for recipe in call.recipes:
        how = (call.workspace, recipe, call.device, call.reporter)
        train(*how, force=call.force, fold=call.fold, track=call.track)


def _predict(call: Call) -> None:
    """predict the test photos; calibrate and clip"""
    from comp.predict.stage import predict_all

    predict_all(call.workspace, call.competition, call.recipes, call.device, call.reporter)


def _remote(call: Call) -> None:
    """train and predict on Kaggle's GPUs; the run comes home"""
    from comp.remote.stage import run_remotely

    run_remotely(call.workspace, call.recipes, call.naming, call.kaggle)


def _classify(call: Call) -> None:
    """P(dog) of photos of your own, by a run: writes a CSV of id,label"""
    from comp.predict.classify import classify

    if call.photos is None:
        raise UserError("photos are classified: make classify PHOTOS=<folder> RUN=<run>")
    what = (call.photos, call.run_folder, call.device)
    classify(call.workspace, call.competition, *what, call.reporter)


def _export(call: Call) -> None:
    """a run as files for use elsewhere: ONNX with preprocessing, and safetensors for timm"""
    from comp.predict.export import export

    folder = export(call.workspace, call.competition, call.run_folder, call.reporter)
    call.reporter.say(f"exported to {folder}")


def _calibrate(call: Call) -> None:
    """compare every way from logits to probabilities, cross-fitted"""
    from comp.predict.compare import compare_calibrations

    compare_calibrations(call.workspace, call.competition, call.run_folder, call.reporter)


def _blend(call: Call) -> None:
    """a run made of others: by weights on their logits, or one head on all their features"""
    from comp.predict.blend import blend_runs

    how = (call.run_folders, call.method, call.set, call.device)
    blend_runs(call.workspace, call.competition, *how, call.reporter)


def _compare(call: Call) -> None:
    """how two runs differ: options, photos, score; their losses in the report of A"""
    from comp.predict.compare import compare_runs
    from comp.report.stage import write_report

    if call.a is None or call.b is None:
        raise UserError("two runs are compared: make compare A=... B=...")
    a, b = call.folder_of(call.a), call.folder_of(call.b)
    compare_runs(call.workspace, call.competition, a, b, call.reporter)
    page = write_report(call.workspace, call.competition, a, against=b)
    call.reporter.say(f"photo by photo: {page}")


def _runs(call: Call) -> None:
    """all runs, best first: options, cross-validation, gain on one of them, scores, cost"""
    from comp.submit.overview import print_runs

    reference = call.folder_of(call.run) if call.run is not None else None
    print_runs(call.workspace, call.competition, reference, call.reporter)


def _errors(call: Call) -> None:
    """the photos that cost a run most, each with a line for data/verdicts.csv"""
    from comp.report.gallery import print_worst

    print_worst(call.workspace, call.competition, call.run_folder, call.reporter)


def _prune(call: Call) -> None:
    """free pixels, features and runs that nothing uses, after saying what"""
    from comp.submit.overview import prune

    prune(call.workspace, call.reporter, is_sure=call.yes)


def _forecast(call: Call) -> None:
    """the score and rank that a run can expect, with intervals"""
    from comp.predict.runs import read_run
    from comp.submit.forecast import print_forecast

    print_forecast(call.workspace, call.competition, read_run(call.run_folder), call.reporter)


def _report(call: Call) -> None:
    """write a run's report, with activation maps and drift: runs/<run>/report.html"""
    from comp.report.activation import measure
    from comp.report.stage import write_report

    measure(call.workspace, call.run_folder, call.device, call.reporter)
    page = write_report(call.workspace, call.competition, call.run_folder)
    call.reporter.say(f"report in {page}")


def _submit(call: Call) -> None:
    """check, upload and score the submission; a row in the ledger"""
    from comp.submit.stage import submit

    folder, kaggle = call.run_folder, call.kaggle
    submit(call.workspace, call.competition, kaggle, folder, call.reporter, force=call.force)


def _scores(call: Call) -> None:
    """pick up scores that were pending"""
    from comp.submit.stage import fetch_scores

    fetch_scores(call.workspace, call.competition, call.kaggle, call.reporter)


def _reproduce(call: Call) -> None:
    """make a submission again from the photos, and compare"""
    from comp.submit.reproduce import reproduce

    if call.sub is None:
        raise UserError("a submission is reproduced: make reproduce SUB=<file in submissions/>")
    reproduce(call.workspace, call.competition, call.sub, call.device, call.reporter)


def _leaderboard(call: Call) -> None:
    """your best, rank and neighbours, now and on the archived board"""
    from comp.submit.leaderboard import print_standings

    refresh = call.refresh
    print_standings(call.workspace, call.competition, call.kaggle, call.reporter, refresh=refresh)


def _doctor(call: Call) -> None:
    """what a run needs, line by line: fine, or what to do"""
    from comp.doctor import PATIENCE, Quiet, examine
    from comp.kaggle import Kaggle

    kaggle = Kaggle(COMPETITION, Quiet(), patience=PATIENCE)
    examine(call.workspace, COMPETITION, kaggle, call.reporter)


def _rehearsal(call: Call) -> None:
    """all four stages against a stand-in for Kaggle on this machine"""
    from comp.rehearsal.stage import rehearse

    photos = (call.archive, call.solution)
    root = call.workspace.root
    rehearse(root, COMPETITION, call.recipes, call.device, *photos, call.reporter)


def _scout(call: Call) -> None:
    """try backbones by their frozen features; say which to fine-tune"""
    from comp.train.scout import scout

    options = {"budget": call.budget, "settings": call.set}
    scout(call.workspace, call.backbones, call.device, call.reporter, **options)  # type: ignore[arg-type]


def _sweep(call: Call) -> None:
    """search a few options of a recipe; is the best better beyond noise?"""
    from comp.train.sweep import sweep

    how = (call.one_recipe, call.over, call.trials, call.device)
    sweep(call.workspace, *how, call.reporter)


def _lr(call: Call) -> None:
    """find a learning rate for the recipe's fine-tune"""
    from comp.train.lr_finder import find_lr

    recipe, steps = call.one_recipe, call.steps
    find_lr(call.workspace, recipe, call.device, call.reporter, n_steps=steps)


def _audit(call: Call) -> None:
    """labels that runs, near-duplicates and published lists contradict"""
    from comp.predict.audit import audit_labels
    from comp.report.stage import write_audit_page

    table = audit_labels(call.workspace, call.competition, call.run_folders, call.reporter)
    call.reporter.say(f"their photos: {write_audit_page(call.workspace, call.competition, table)}")


def _judge(call: Call) -> None:
    """train a recipe with and without label fixes; compare"""
    from comp.predict.compare import compare_runs
    from comp.predict.stage import predict
    from comp.train.stage import train

    plain = call.one_recipe
    fixed = override(plain, [f"folds.label_fixes={call.verdicts}"])
    for recipe in (fixed, plain):
        train(call.workspace, recipe, call.device, call.reporter)
    a, b = (
        predict(call.workspace, call.competition, recipe, call.device, call.reporter).folder
        for recipe in (fixed, plain)
    )
    compare_runs(call.workspace, call.competition, a, b, call.reporter)


def _recipes(call: Call) -> None:
    """list the recipes, what each claims and which to take"""
    for line in listed():
        call.reporter.say(line)


COMMANDS: dict[Callable[[Call], None], str] = {  # and their options, =default
    _data: "recipe set archive",
    _train: "recipe set seeds fold device force track",
    _predict: "recipe set seeds device",
    _remote: "recipe set seeds weights",
    _calibrate: "recipe set seeds run",
    _classify: "photos recipe set seeds run device",
    _export: "recipe set run",
    _blend: "runs method set device",
    _runs: "run",
    _errors: "recipe set seeds run",
    _compare: "a b",
    _prune: "yes",
    _forecast: "recipe set seeds run",
    _report: "recipe set seeds run device",
    _submit: "recipe set seeds run force",
    _scores: "",
    _reproduce: "sub device",
    _leaderboard: "refresh",
    _doctor: "",
    _rehearsal: f"recipe={ON_CPU} set seeds device archive solution",
    _scout: "backbones budget set device",
    _sweep: "recipe set over trials device",
    _lr: "recipe set steps device",
    _audit: "runs",
    _judge: "verdicts recipe set device",
    _recipes: "",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one stage: 0 if it succeeded, 1 after an error that a user can fix, 130 after Ctrl-C."""
    return run_command(COMMANDS, arguments)


if __name__ == "__main__":
    sys.exit(main())
