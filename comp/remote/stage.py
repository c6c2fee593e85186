"""The command `remote`: a recipe's folds fitted and its test photos predicted on Kaggle's GPUs.

1. The run is named by recipe and photos, as at home; if all of it is here, nothing is done.
2. If a session of it is under way, this attaches to it; else one is pushed as a private script.
3. Its log is printed until it has ended.
4. What it made comes home as one tar, checked by its SHA-256s, and into runs/.
5. A session that ended at its limit is followed by another, which takes up its output.

Killed at any point, the same command goes on; the session on Kaggle goes on by itself.
"""

import math
import os
import shutil
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from signal import SIGINT
from tempfile import TemporaryDirectory
from typing import Any

from comp.data.manifest import SPLITS, read_manifest
from comp.data.origin import check_server, edited_manifests
from comp.errors import KaggleError, UserError
from comp.kaggle import Kaggle
from comp.kaggle.datasets import dataset_of
from comp.kaggle.kernels import Script, fetch_output, quota_of, url_of
from comp.network.weights import weights_file
from comp.recipe import Recipe
from comp.remote.attempts import Attempt, Note, begin, find, follow
from comp.remote.job import CONTENTS, OUTPUT, Job
from comp.remote.pack import script_for
from comp.remote.packages import download_wheels, pins
from comp.store import (
    Workspace,
    file_sha256,
    fingerprint,
    locked,
    read_json,
    read_object,
    write_json,
)
from comp.train.files import RECORD
from comp.train.run import Run, open_run

DEVICE = "cuda"  # a session without a GPU ends at once, instead of being slow
MOST_S = 12 * 3600  # that a session may last on Kaggle
LEAST_H = 0.25  # of quota, below which no session is begun
PACK_S = 900  # at most, for packing before the limit
OUT_OF_TIME = "exceeded the max"  # what Kaggle says of a session that it ended at its limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Errand:
    """What is to be done on Kaggle, and what names it here."""

    workspace: Workspace
    runs: Sequence[Run]
    naming: Mapping[str, Any]  # the fields of a Job by which Kaggle's machine knows the recipes

    @property
    def name(self) -> str:
        """Short, for a kernel's title: Kaggle takes 50 characters."""
        first = self.runs[0]
        names = [run.name for run in self.runs]
        key = first.fingerprint if len(names) == 1 else fingerprint(names)
        return f"{first.recipe.name[:24]} {key}"

    @property
    def note(self) -> Note:
        return Note(self.workspace.runs / f".{self.name.replace(' ', '-')}.kaggle.json")

    def is_done(self) -> bool:
        """Whether all folds are here, with their logits of the test photos."""
        key = file_sha256(self.workspace.manifest("test"))[:10]
        return all(
            run.is_trained() and (run.folder / f"fold-{fold}-test-{key}.csv").exists()
            for run in self.runs
            for fold in run.folds
        )


def run_remotely(
    workspace: Workspace, recipes: Sequence[Recipe], naming: Mapping[str, Any], kaggle: Kaggle
) -> None:
    """Fits `recipes` on Kaggle, where `naming` names them; their runs are then in `workspace`."""
    check_server(workspace, kaggle)
    runs = [open_run(workspace, recipe) for recipe in recipes]
    errand = Errand(workspace=workspace, runs=runs, naming=naming)
    say, names = kaggle.reporter.say, ", ".join(run.name for run in runs)
    note = errand.note
    with locked(note.path.with_suffix(".lock"), kaggle.reporter):
        if is_over := errand.is_done():
            say(f"{names}: fitted and predicted; nothing to do")
            return
        while not is_over:
            attempt = find(kaggle, note)
            said = "going on with" if attempt.slug else "pushed:"
            attempt = attempt if attempt.slug else _start(kaggle, errand)
            url = url_of(kaggle, attempt.slug)
            say(f"{said} {url}")
            try:
                status, why = follow(kaggle, note, attempt)
            except KeyboardInterrupt:
                on = f"the session goes on: the same command attaches to it, deleting {url} ends it"
                raise KeyboardInterrupt(on, SIGINT) from None
            is_over = _settle(kaggle, errand, attempt, status, why)
    on = "`make predict submit` with the same RECIPE and SET goes on here"
    weights = _own_weights(errand)
    on += f", and SET=model.weights={weights} for WEIGHTS" if weights else ""
    say(f"{names}: fitted and predicted on Kaggle; {on}")


def _start(kaggle: Kaggle, errand: Errand) -> Attempt:
    limit_s = _check_quota(kaggle, errand)
    weights = _own_weights(errand)
    files = _upload(kaggle, errand, weights)
    workspace, verdicts = errand.workspace, errand.workspace.verdicts
    job = Job(
        runs=[run.name for run in errand.runs],
        **errand.naming,
        device=DEVICE,
        manifests={split: file_sha256(workspace.manifest(split)) for split in SPLITS},
        verdicts=verdicts.read_text(encoding="utf-8") if verdicts.exists() else "",
        packages=pins([run.recipe.model for run in errand.runs]),
        weights=weights,
        stop_s=limit_s - min(PACK_S, limit_s / 10),
    )
    text = script_for(job)

    def script(title: str, attempt: Attempt) -> Script:
        kernels = [f"{kaggle.owner}/{attempt.source}"] if attempt.source else []
        sources = {"datasets": files, "kernels": kernels}
        return Script(title=title, text=text, limit_s=limit_s, internet=not weights, **sources)

    return begin(kaggle, errand.note, errand.name, limit_s, script)


def _check_quota(kaggle: Kaggle, errand: Errand) -> int:
    """Says what is left and what it may take; how long a session may last, in seconds."""
    quota, say = quota_of(kaggle), kaggle.reporter.say
    renewed = f", renewed {quota.renewed}" if quota.renewed else ""
    left = f"{quota.left_h:.1f} left" if quota.left_h < math.inf else "Kaggle sets no limit"
    say(f"GPU hours of this week: {quota.used_h:.1f} used, {left}{renewed}")
    if quota.left_h < LEAST_H:
        raise KaggleError(f"too few GPU hours are left: run this again when they are{renewed}")
    if not errand.note.read().source:  # else it takes what is left of that
        from comp.remote.estimate import SPEED, estimated_hours  # loads torch

        tables = (read_manifest(errand.workspace.manifest(split)) for split in SPLITS)
        n_train, n_test = map(len, tables)
        hours = sum(estimated_hours(run.recipe, n_train, n_test) for run in errand.runs)
        say(
            f"estimate: {hours:.1f} h of one T4, if it does {SPEED:.0e} operations/s (not measured)"
        )
        if hours > quota.left_h:
            kaggle.reporter.warn("that is more than is left: the folds that are done come home")
    return int(min(MOST_S, quota.left_h * 3600))


def _own_weights(errand: Errand) -> str:
    """The file of weights that the recipes name, as they name it; "" if they name none."""
    models = [run.recipe.model for run in errand.runs]
    return next((each.weights for each in models if each.weights and weights_file(each)), "")


def _upload(kaggle: Kaggle, errand: Errand, weights: str) -> list[str]:
    """The dataset of all that the session can get nowhere else, if there is any such thing."""
    workspace, files = errand.workspace, list[Path]()
    if errand.note.read().carry or edited_manifests(workspace):
        files += [workspace.manifest(split) for split in SPLITS]
    with TemporaryDirectory() as folder:
        if weights:  # then without the internet, so that packages have to come along
            path = Path(weights).expanduser()
            if not path.is_file():
                raise UserError(f"no weights at {path}: name a .safetensors or .pth file")
            wanted = pins([run.recipe.model for run in errand.runs])
            files += [path, *download_wheels(wanted, Path(folder))]
        return [dataset_of(kaggle, files)] if files else []


def _settle(kaggle: Kaggle, errand: Errand, attempt: Attempt, status: str, why: str) -> bool:
    """Brings home what an ended session made: True if that is all, False if another has to go on.

    KaggleError if it failed. The next attempt takes up what there is of the folds.
    """
    folder = errand.workspace.runs / f".{attempt.slug}"
    folder.mkdir(parents=True, exist_ok=True)  # what has arrived is kept if this is killed
    tar = fetch_output(kaggle, attempt.slug, OUTPUT, folder)
    if status == "COMPLETE" and not tar:
        look = f"run this again in a minute, or look at {url_of(kaggle, attempt.slug)}"
        raise KaggleError(f"the session has ended, but Kaggle shows no {OUTPUT} of it: {look}")
    ended = bring_home(tar, errand.workspace) if tar else {}
    shutil.rmtree(folder)
    errand.note.write(Attempt(source=attempt.slug, carry=attempt.carry))
    outcome, line = str(ended.get("outcome") or ""), str(ended.get("line") or why)
    if outcome == "done":
        if not errand.is_done():
            raise KaggleError(f"what came from {attempt.slug} is incomplete: run this again")
        errand.note.forget()
        return True
    if outcome == "manifests" and not attempt.carry:
        kaggle.reporter.warn(f"{line}: another session follows, with those from here")
        errand.note.write(Attempt(source=attempt.source, carry=True))
        return False
    if outcome == "stopped" or (not outcome and OUT_OF_TIME in why):
        kaggle.reporter.say(
            f"{attempt.slug} ended at its limit; another session goes on from there"
        )
        return False
    raise KaggleError(_failure(kaggle, errand, attempt, status, line))


def _failure(kaggle: Kaggle, errand: Errand, attempt: Attempt, status: str, line: str) -> str:
    remedy = f"see {url_of(kaggle, attempt.slug)}; the same command goes on from what is there"
    if "memory" in line:
        remedy = "set a smaller training.micro_batch or pixels.size_px"
    elif status != "CANCELACKNOWLEDGED" and attempt.source:
        remedy += f", or from nothing if you delete {errand.note.path}"
    how = "was stopped" if status == "CANCELACKNOWLEDGED" else "failed"
    return f"the session on Kaggle {how} ({line or 'Kaggle does not say why'}): {remedy}"


def bring_home(tar: Path, workspace: Workspace) -> dict[str, object]:
    """Puts the runs of `tar` into place; how the session says it ended.

    KaggleError, and nothing is put anywhere, unless each file is as it was written on Kaggle.
    """
    try:
        with tarfile.open(tar) as opened:
            opened.extractall(tar.parent, filter="data")
        contents: dict[str, object] = read_json(tar.parent / CONTENTS)
        hashes = dict(contents["files"])  # type: ignore[call-overload]
        for name, sha256 in hashes.items():
            if file_sha256(tar.parent / name) != sha256:
                raise ValueError(f"{name} is not as it was written")
    except (tarfile.TarError, ValueError, KeyError, OSError) as error:
        raise KaggleError(f"{tar.name} came home damaged ({error}): run this again") from None
    for name in hashes:
        path = tar.parent / name
        home = workspace.runs / Path(name).relative_to("runs")
        home.parent.mkdir(parents=True, exist_ok=True)
        if home.name == RECORD:
            write_json(home, {**read_object(home), **read_object(path)})
        else:
            os.replace(path, home)
    return contents
