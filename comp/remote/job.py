"""What happens on Kaggle: comp's stages one after the other, and their runs packed to come home.

Everything under /kaggle/working is kept when the session ends, however it ends. So the runs are
written there from the start, and a session that Kaggle stops leaves resume files to go on from.
Runs before comp's packages are there, so it needs the standard library alone.
"""

import hashlib
import importlib.metadata
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from comp.competition import COMPETITION

OUTPUT = "comp.tar"  # the runs, and before them:
CONTENTS = "contents.json"  # how it ended, and the SHA-256 of each file
RESUME = ".resume.safetensors"  # of use where the run goes on, which is on Kaggle
CODE = Path(__file__).parents[2]


class JobError(Exception):
    """The job ends; what is done so far is packed."""

    def __init__(self, outcome: str, line: str) -> None:
        super().__init__(line)
        self.outcome = outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What to do on Kaggle."""

    runs: Sequence[str]  # their folders' names; what an earlier session left of them is taken up
    options: Sequence[str]  # that name the recipe, as `comp` takes them
    seeds: int
    own_recipes: str  # the text of a Python file with recipes, or ""
    device: str
    manifests: dict[str, str]  # SHA-256 of data/train.csv and test.csv at home, by split
    verdicts: str  # text of data/verdicts.csv; "" if there is none
    packages: Sequence[str]  # NAME==VERSION: what the image lacks of them is installed beside it
    weights: str  # model.weights of the recipe, if that is a file
    stop_s: float  # after which a stage is asked to stop, so that packing ends within the limit


def do(job: Job, root: Path) -> int:
    """Does the job in the tree `root`, /kaggle on Kaggle; the script's exit status."""
    end = time.monotonic() + job.stop_s
    workspace, kept = root / "temp" / "workspace", root / "working" / "runs"
    for folder in (workspace / "data", kept):
        folder.mkdir(parents=True, exist_ok=True)
    (workspace / "runs").symlink_to(kept)
    outcome, line = "failed", "it broke off: see the log"
    try:
        _take_up(job, root / "input", kept)
        _install(job.packages, root)
        _place_weights(job.weights, root / "input", workspace)
        _run_stages(job, root / "input", workspace, end)
        outcome, line = "done", ""
    except JobError as error:
        outcome, line = error.outcome, str(error)
    finally:
        pack(root / "working", {"outcome": outcome, "line": line})
    print(f"{outcome} {line}".rstrip(), flush=True)  # noqa: T201  (the session's log)
    return int(outcome == "failed")


def _take_up(job: Job, inputs: Path, kept: Path) -> None:
    """Copy what an earlier session left of the runs, whose output is an input of this one."""
    for name in job.runs:
        for found in inputs.rglob(name):
            if found.is_dir():
                shutil.copytree(found, kept / name, dirs_exist_ok=True)


def _install(packages: Sequence[str], root: Path) -> None:
    """The `packages` that the image lacks, from wheels among the inputs or else from PyPI."""
    found = {each.metadata["Name"]: each.version for each in importlib.metadata.distributions()}
    known = {re.sub("[-_.]+", "-", str(name)).lower(): found[name] for name in found}
    lacking = [pin for pin in packages if known.get(pin.split("==")[0]) != pin.split("==")[1]]
    if not lacking:
        return
    print("installing", *lacking, flush=True)  # noqa: T201
    target, options = str(root / "temp" / "packages"), ["--no-deps", "--quiet", "--target"]
    if wheels := {str(path.parent) for path in (root / "input").rglob("*.whl")}:
        options = ["--no-index", *(f"--find-links={folder}" for folder in wheels), *options]
    command = [sys.executable, "-m", "pip", "install", *options, target, *lacking]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise JobError("failed", f"packages cannot be installed: {done.stdout.strip()[-300:]}")
    os.environ["PYTHONPATH"] = target


def _place_weights(weights: str, inputs: Path, workspace: Path) -> None:
    """Put the file of weights where the recipe, whose fingerprint names its path, looks for it."""
    path = workspace / Path(weights).expanduser()
    if not weights or path.exists():
        return
    found = next(inputs.rglob(path.name), None)
    if found is None:
        raise JobError("failed", f"the dataset with {path.name} is not attached")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(found)


def _run_stages(job: Job, inputs: Path, workspace: Path, end: float) -> None:
    sample = next(inputs.rglob(COMPETITION.sample), None)
    if sample is None:
        remedy = f"accept the rules at {COMPETITION.rules_url}"
        raise JobError("failed", f"the competition's files are not attached: {remedy}")
    if job.verdicts:
        (workspace / "data" / "verdicts.csv").write_text(job.verdicts, encoding="utf-8")
    options = list(job.options)
    if job.own_recipes:
        (workspace / "own_recipes.py").write_text(job.own_recipes, encoding="utf-8")
        options += ["--recipes", "own_recipes.py"]
    _comp(["data", *options, "--archive", str(sample.parent)], workspace, end)
    for split, sha256 in job.manifests.items():
        path = workspace / "data" / f"{split}.csv"
        carried = [each for each in inputs.rglob(path.name) if _sha256(each) == sha256]
        if _sha256(path) != sha256 and carried:
            shutil.copyfile(carried[0], path)
        if _sha256(path) != sha256:
            line = f"data/{split}.csv as made on Kaggle is not the one at home"
            raise JobError("manifests", line)
    for stage in ("train", "predict"):  # on the first of two T4s: comp does not share folds yet
        _comp([stage, *options, "--seeds", str(job.seeds), "--device", job.device], workspace, end)


def _comp(arguments: Sequence[str], workspace: Path, end: float) -> None:
    """Runs a stage, its output in the log; JobError unless it succeeds before `end`."""
    command = [sys.executable, "-m", "comp", *arguments, "--workspace", str(workspace)]
    places = os.pathsep.join([str(CODE), os.environ.get("PYTHONPATH", "")])
    env = os.environ | {"PYTHONPATH": places, "PYTHONUNBUFFERED": "1"}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    stage = subprocess.Popen(command, cwd=workspace, env=env, **streams)  # type: ignore[call-overload]
    # upon which training saves its step
    clock = threading.Timer(max(end - time.monotonic(), 0.0), stage.terminate)
    clock.start()
    error = ""
    for line in stage.stdout:
        print(line, end="", flush=True)  # noqa: T201
        error = line.strip() if line.strip() else error
    status = stage.wait()
    clock.cancel()
    if status and time.monotonic() >= end:
        raise JobError("stopped", f"comp {arguments[0]} was stopped at the session's limit")
    if status:
        raise JobError("failed", f"comp {arguments[0]} failed: {error.removeprefix('error: ')}")


def pack(working: Path, contents: dict[str, object]) -> None:
    """Write OUTPUT: CONTENTS first, then the runs without their resume files."""
    files = [path for path in sorted((working / "runs").rglob("*")) if path.is_file()]
    names = {str(path.relative_to(working)): path for path in files if RESUME not in path.name}
    hashes = {name: _sha256(path) for name, path in names.items()}
    text = json.dumps({**contents, "files": hashes, "python": sys.version.split()[0]})
    with tarfile.open(working / f"{OUTPUT}.part", "w") as tar:
        entry = tarfile.TarInfo(CONTENTS)
        entry.size = len(text)
        tar.addfile(entry, io.BytesIO(text.encode()))
        for name, path in names.items():
            tar.add(path, name)
    os.replace(working / f"{OUTPUT}.part", working / OUTPUT)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
