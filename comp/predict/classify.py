"""The stage `classify`: P(positive) of photos of one's own, by a run.

1. Each file in a folder, and in those below it, is decoded as the run's own photos were. What
   cannot be decoded is named and gets no row.
2. Logits are averaged over views and folds, and those of a blend's runs by their weights.
3. Calibrated on the out-of-fold logits, without noise rate and clip: those insure against wrong
   labels of a leaderboard.

Pixels and features are kept in data/own: killed, the next call goes on from them.
"""

import os
from pathlib import Path

import numpy as np
import pandas as pd

from comp.competition import Competition
from comp.data.manifest import USABLE, natural_key
from comp.errors import DataError, RecipeError, StaleError
from comp.metric import Floats
from comp.network.preprocessing import geometry_of, preprocessing_of
from comp.predict.blend import blend_folder
from comp.predict.calibrate import Curve, Settings, Steps, fit_curve
from comp.predict.runs import fitted_run, read_oof, read_run, recipe_of, run_origin
from comp.progress import Reporter, counted
from comp.store import Workspace, write_table
from comp.train.inputs import Inputs
from comp.train.run import Run

N_NAMED = 10  # files in a warning


def classify(
    workspace: Workspace,
    competition: Competition,
    photos: Path,
    folder: Path,
    device: str | None,
    reporter: Reporter,
) -> Path:
    """The CSV `id,label` of the files under `photos`, by the run in `folder`."""
    table = classified(workspace, photos, folder, device, reporter)
    path = folder / f"classified-{photos.resolve().name}.csv"
    write_table(path, table)
    n_positive = int((table["label"] > 0.5).sum())
    negative, positive = competition.classes
    n_each = f"{n_positive:,} {positive}, {len(table) - n_positive:,} {negative}"
    reporter.say(f"{counted(len(table), 'photo')}: {n_each}; P({positive}) of each in {path}")
    return path


def classified(
    workspace: Workspace, photos: Path, folder: Path, device: str | None, reporter: Reporter
) -> pd.DataFrame:
    """`id`, a file's path below `photos`, and `label`, its calibrated P(positive)."""
    files = _files(photos)
    curve = curve_of(folder)
    own = Workspace(workspace.root)
    own.pixels, own.features = (workspace.data / "own" / name for name in ("pixels", "features"))
    logits = sum(
        weight * _logits(fitted_run(own, member), files, device, reporter)
        for member, weight in weighted(workspace, folder).items()
    )
    assert isinstance(logits, pd.Series)
    lost = [name for name in files if name not in logits.index]
    if lost:
        more = f" and {len(lost) - N_NAMED:,} more" * (len(lost) > N_NAMED)
        names = ", ".join(lost[:N_NAMED]) + more
        reporter.warn(f"{counted(len(lost), 'file')} that cannot be decoded, left out: {names}")
    return pd.DataFrame({"id": logits.index, "label": curve.probs(logits)})


def curve_of(folder: Path) -> Curve | Steps:
    """How the run in `folder` calibrates, fitted to all its out-of-fold logits."""
    recipe, oof = recipe_of(folder), read_oof(folder)
    method = recipe.prediction.calibration if recipe else read_run(folder).figures.method
    return fit_curve(method, oof["logit"], oof["label"])


def weighted(workspace: Workspace, folder: Path) -> dict[Path, float]:
    """The folders of the runs that the run in `folder` is made of, with their weights."""
    origin = run_origin(folder)
    members = origin.members
    if not members:
        return {folder: 1.0}
    if not isinstance(members, dict):
        raise RecipeError(
            f"{folder.name} is one head on the features of {len(members)} runs, which is not kept:"
            " blend them by weights, such as METHOD=equal, and take that"
        )
    figures = read_run(folder).figures
    settings = Settings(**{name: getattr(figures, name) for name in Settings.model_fields})
    if blend_folder(workspace, members, origin.method, settings) != folder:
        raise StaleError(f"runs of {folder.name} have changed since: blend them again")
    found = dict[Path, float]()
    for name, weight in members.items():
        for path, share in weighted(workspace, folder.with_name(name)).items():
            found[path] = found.get(path, 0.0) + weight * share
    return {path: weight for path, weight in found.items() if weight}


def _files(photos: Path) -> dict[str, Path]:
    """The files under `photos` by the name that they get in the table; no hidden ones."""
    if not photos.is_dir():
        raise DataError(f"no folder {photos}: name one by PHOTOS=")
    below = {path.relative_to(photos): path for path in photos.rglob("*") if path.is_file()}
    seen = {
        os.fsencode(name).decode(errors="backslashreplace"): path
        for name, path in below.items()
        if not any(part.startswith(".") for part in name.parts)
    }
    if not seen:
        raise DataError(f"no file is in {photos}: name a folder of photos by PHOTOS=")
    return {name: seen[name] for name in sorted(seen, key=natural_key)}


def _logits(
    run: Run, files: dict[str, Path], device: str | None, reporter: Reporter
) -> "pd.Series[float]":
    """The mean over views and folds of the logits of `files` that can be decoded, by name."""
    from comp.train.fits import open_fit  # loads torch

    inputs = _inputs(run, files, reporter)
    fit = open_fit(run, device, reporter, inputs=inputs)
    by_fold: list[Floats] = []
    for fold in run.folds:
        by_view = fit.logits(fold, inputs.test_ids)
        by_fold.append(np.mean(list(by_view.values()), axis=0))
    mean: Floats = np.mean(by_fold, axis=0)
    return pd.Series(mean, index=inputs.test_ids)


def _inputs(run: Run, files: dict[str, Path], reporter: Reporter) -> Inputs:
    from comp.data.pixels import open_pixels
    from comp.data.scan import scan

    names = [name for name, path in files.items() if os.access(path, os.R_OK)]
    geometry, workspace = geometry_of(run.recipe), run.workspace
    photos, find = [("own", name, None) for name in names], lambda _, name: files[name]
    table, _ = scan(workspace, photos, geometry, reporter, with_thumbnails=False, path_of=find)
    ids = list(table["id"][table["verdict"].isin(USABLE)])
    if not ids:
        raise DataError(f"none of {counted(len(files), 'file')} can be decoded: name photos")
    return Inputs(
        run=run,
        photos=table[:0],
        test_ids=ids,
        pixels=open_pixels(workspace, [table], geometry, reporter),
        preprocessing=preprocessing_of(run.recipe),
    )
