"""A submission made again from the photos, and what differs if its CSV does.

`submit` keeps a capsule of each file that it uploads, `submissions/capsules/<sha256>.json`: the
recipe, or the members and method of a blend, with the code, libraries, device, weights and data
that made it. `reproduce` fits and predicts all of it in a scratch workspace, from the decoded
photos on, and compares the CSVs.
"""

import platform
import shutil
from collections.abc import Mapping
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import pandas as pd

from comp.competition import Competition
from comp.data.archive import read_sample
from comp.data.origin import REHEARSAL, origin_path
from comp.errors import DataError, SubmissionError
from comp.options import differing, restored
from comp.predict.blend import OPTIONS, blend_runs
from comp.predict.runs import read_run
from comp.predict.stage import predict
from comp.progress import Reporter
from comp.recipe import Prediction, Recipe
from comp.store import Workspace, code_commit, file_sha256, plain, read_object, write_json
from comp.submit.csvfile import write_submission
from comp.submit.ledger import LedgerRow, read_ledger
from comp.train.stage import train

CODE = Path(__file__).resolve().parents[1]
LOCK = CODE.with_name("requirements.txt")
# largest change of a probability where the device is no CPU or the environment has changed: bits
# then differ by the order of sums. Not measured on a GPU
TOLERANCE = 0.01
_CALIBRATION = {"method", "noise_rate", "clip"}
_UNLIKE = ("began", "times", "commit")  # of run.json: not what a run was made from


def keep_capsule(
    workspace: Workspace, competition: Competition, folder: Path, csv: Path
) -> Mapping[str, Any]:
    """What the submission `csv` of the run in `folder` was made from; kept, if it is new."""
    path = _capsule_path(workspace, file_sha256(csv))
    capsule: dict[str, Any] = plain(
        {
            "commit": code_commit(CODE),
            "lock": file_sha256(LOCK) if LOCK.exists() else "none",
            "processor": _processor(),
            "data": _data_of(workspace, competition),
            "calibration": read_run(folder).figures.model_dump(include=_CALIBRATION),
            "run": _made_from(folder),
        }
    )
    if not path.exists():
        write_json(path, capsule)
    return capsule


def _capsule_path(workspace: Workspace, sha256: str) -> Path:
    return workspace.submissions / "capsules" / f"{sha256[:12]}.json"


def _data_of(workspace: Workspace, competition: Competition) -> dict[str, str]:
    """The hashes of both manifests, which have those of the photos, and of the sample."""
    names = ("train.csv", "test.csv", competition.sample)
    return {name: file_sha256(workspace.data / name) for name in names}


def _processor() -> str:
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next((x.partition(": ")[2] for x in lines if x.startswith("model name")), "")
    return platform.processor()


def _made_from(folder: Path) -> dict[str, Any]:
    """run.json of the run in `folder`; of a blend, how it was made and that of each member."""
    origin = read_object(folder / "run.json")
    if "members" not in origin:
        return {key: value for key, value in origin.items() if key not in _UNLIKE}
    runs = {n: _made_from(folder.with_name(name)) for n, name in enumerate(origin["members"])}
    return {"method": origin["method"], "prediction": origin["prediction"], "runs": runs}


def reproduce(
    workspace: Workspace,
    competition: Competition,
    submission: str,
    device: str | None,
    reporter: Reporter,
) -> None:
    """Make `submission`, a file in the ledger, again; SubmissionError unless it is the same.

    Equal byte for byte on a CPU where nothing has changed; else within TOLERANCE.
    """
    row = _find_row(workspace, submission, reporter)
    capsule = _read_capsule(workspace, row)
    now = _data_of(workspace, competition)
    if other := [name for name, sha256 in capsule["data"].items() if now.get(name) != sha256]:
        raise DataError(
            f"{row.file} was made from other photos, labels or folds than there are now: data/"
            f"{other[0]} differs; restore it, or run `make data ARCHIVE=...` in another WORKSPACE"
        )
    scratch = _scratch(workspace, competition, row)
    folder = _rebuild(scratch, competition, capsule["run"], device, reporter)
    csv = scratch.submissions / row.file
    ids = read_sample((scratch.data / competition.sample).read_bytes(), competition)
    probs = read_run(folder).predictions.set_index("id")["prob"].loc[ids]
    write_submission(csv, ids, probs.tolist(), competition)
    rebuilt = keep_capsule(scratch, competition, folder, csv)
    changes = differing({"then": _flat(capsule), "now": _flat(rebuilt)})
    if changes:
        reporter.table("what has changed since", ("", "then", "now"), changes)
    devices = [text for name, text in _flat(rebuilt).items() if name.endswith(".device")]
    is_exact = not changes and all(name.startswith("CPU") for name in devices)
    reporter.say(_verdict(workspace.submissions / row.file, row, csv, 0 if is_exact else TOLERANCE))
    shutil.rmtree(scratch.root)


def _flat(capsule: Mapping[str, Any]) -> dict[str, str]:
    """Its values by dotted name, as text."""
    return {str(k): str(v) for k, v in pd.json_normalize(dict(capsule)).iloc[0].items()}


def _verdict(csv: Path, row: LedgerRow, rebuilt: Path, tolerance: float) -> str:
    """How `rebuilt` compares with the submitted `csv`; SubmissionError beyond `tolerance`."""
    if file_sha256(rebuilt) == row.sha256:
        return f"{row.file} is reproduced, byte for byte"
    if not csv.exists() or file_sha256(csv) != row.sha256:
        raise SubmissionError(
            f"{rebuilt} is not {row.file} byte for byte, and that is not there to compare with"
        )
    probs = [pd.read_csv(path, index_col=0).iloc[:, 0] for path in (csv, rebuilt)]
    change = float((probs[0] - probs[1]).abs().max())
    if change > tolerance:
        raise SubmissionError(
            f"{row.file} is not reproduced: a probability differs by {change:.3g}, allowed is"
            f" {tolerance:g}; compare {rebuilt}"
        )
    return (
        f"{row.file} is reproduced within the tolerance: the largest change of a probability is"
        f" {change:.3g}, allowed is {tolerance:g}"
    )


def _find_row(workspace: Workspace, submission: str, reporter: Reporter) -> LedgerRow:
    """The last row of the file `submission`, with or without its folder and .csv."""
    rows = read_ledger(workspace.ledger, reporter)
    name = f"{Path(submission).name.removesuffix('.csv')}.csv"
    if found := [row for row in rows if row.file == name]:
        return found[-1]
    names = get_close_matches(name, {row.file for row in rows}, cutoff=0) or ["none"]
    raise SubmissionError(f"no submission {name} in the ledger; there is {', '.join(names)}")


def _read_capsule(workspace: Workspace, row: LedgerRow) -> dict[str, Any]:
    path = _capsule_path(workspace, row.sha256)
    capsule = read_object(path)
    if "run" not in capsule:
        raise SubmissionError(
            f"{path} is missing or damaged: restore it from git; submissions made before there were"
            " capsules cannot be reproduced"
        )
    return capsule


def _scratch(workspace: Workspace, competition: Competition, row: LedgerRow) -> Workspace:
    """A workspace of the same photos and manifests, in which nothing is computed yet."""
    scratch = Workspace(workspace.root / ".reproduce" / row.sha256[:12])
    if scratch.submissions.exists():  # of an attempt that ended; an interrupted one goes on
        shutil.rmtree(scratch.root)
    scratch.data.mkdir(parents=True, exist_ok=True)
    files = [workspace.data / name for name in _data_of(workspace, competition)]
    for path in (*files, origin_path(workspace), workspace.verdicts, workspace.root / REHEARSAL):
        if path.exists():
            shutil.copyfile(path, scratch.root / path.relative_to(workspace.root))
    scratch.photos = workspace.photos
    return scratch


def _rebuild(
    scratch: Workspace,
    competition: Competition,
    made_from: Mapping[str, Any],
    device: str | None,
    reporter: Reporter,
) -> Path:
    """The folder of the run that is `made_from` this, fitted and predicted in `scratch`."""
    if not made_from:
        raise SubmissionError("a member of the blend was deleted before it was submitted")
    if "runs" not in made_from:
        recipe = restored(Recipe, made_from["recipe"])
        train(scratch, recipe, device, reporter)
        return predict(scratch, competition, recipe, device, reporter).folder
    folders = [
        _rebuild(scratch, competition, each, device, reporter)
        for each in made_from["runs"].values()
    ]
    prediction = restored(Prediction, made_from["prediction"])
    settings = [f"{path}={getattr(prediction, path.partition('.')[2])}" for path in OPTIONS]
    how = (made_from["method"], settings, device, reporter)
    return blend_runs(scratch, competition, folders, *how)
