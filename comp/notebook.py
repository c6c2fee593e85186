"""What a notebook wants of a workspace, as `import comp` gives it.

    import comp

    comp.manifest("train")                          # photos, labels, folds, near-duplicate groups
    comp.oof_table("lite0_head").nlargest(9, "loss")
    comp.predictions("lite0_head prediction.views=none")
    comp.classify_photos("holiday", "lite0_head")   # photos of your own

A run is named as on the command line: by its name, a prefix or path of it, or RECIPE OPTION=VALUE.
`workspace` is the folder of data/ and runs/; by default the one that the notebook runs in.
"""

import os
from pathlib import Path

import pandas as pd

from comp.arguments import Call
from comp.data.manifest import read_manifest
from comp.predict.classify import classified
from comp.predict.runs import FinishedRun, check_current, read_oof, read_run, with_losses
from comp.store import Workspace

Folder = str | os.PathLike[str]


def _call(workspace: Folder) -> Call:
    return Call(workspace=Workspace(Path(workspace).expanduser().resolve()))


def manifest(split: str = "train", workspace: Folder = ".") -> pd.DataFrame:
    """The photos of "train" or "test", a row each; comp/data/manifest.py says what columns mean."""
    return read_manifest(_call(workspace).workspace.manifest(split))


def finished_run(run: str, workspace: Folder = ".") -> FinishedRun:
    """A predicted run: its `figures`, `predictions` and `oof`, and `out_of_fold_probs()`."""
    call = _call(workspace)
    found = read_run(call.folder_of(run))
    check_current(call.workspace, found)
    return found


def oof_table(run: str, workspace: Folder = ".") -> pd.DataFrame:
    """A row for each out-of-fold photo: id, label, fold, logit and loss, both raw."""
    return with_losses(read_oof(_call(workspace).folder_of(run)))


def predictions(run: str, workspace: Folder = ".") -> pd.DataFrame:
    """A row for each test photo: id, logit and the prob that is submitted."""
    return finished_run(run, workspace).predictions


def classify_photos(
    photos: Folder, run: str, workspace: Folder = ".", device: str | None = None
) -> pd.DataFrame:
    """A row for each photo in the folder `photos`: id and label, its calibrated P(positive)."""
    call = _call(workspace)
    where = Path(photos).expanduser(), call.folder_of(run), device
    return classified(call.workspace, *where, call.reporter)
