"""The stage `predict`: test logits of all folds, averaged, calibrated and clipped.

1. Each fold that has no logits for the test photos is asked for them, with the recipe's views; its file is written.
2. The folds are averaged in logit space: the geometric mean of their odds.
3. The recipe's calibration is fitted on the out-of-fold logits; the table shows what it and the clip do there, cross-fitted.
4. test.csv has one row for each id of the test manifest; a photo that cannot be decoded gets the prior, and a warning.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from comp.competition import Competition
from comp.data.manifest import read_manifest, usable
from comp.errors import StaleError
from comp.predict.calibrate import Settings, settings_of
from comp.predict.finished import finish, show
from comp.progress import Reporter
from comp.recipe import Recipe
from comp.store import Workspace, file_sha256, read_json, write_table
from comp.train.device import Device
from comp.train.features import Embedder
from comp.train.run import Run, read_scores, trained_run
from comp.train.workbench import Workbench, open_workbench


def predict(
    workspace: Workspace,
    competition: Competition,
    recipe: Recipe,
    device: Device,
    reporter: Reporter,
) -> Run:
    """Write test.csv and calibration.json of the fitted run of `recipe`; the run."""
    run = trained_run(workspace, recipe)
    settings = settings_of(recipe.prediction, competition)
    made_from = {
        "test": file_sha256(workspace.manifest("test"))[:10],
        "oof": file_sha256(run.oof)[:10],
    }
    if _is_done(run, made_from, settings):
        reporter.say(
            f"{run.name}: {len(pd.read_csv(run.folder / 'test.csv')):,} photos are predicted; nothing to do"
        )
    else:
        test = read_manifest(workspace.manifest("test"))
        logits = _mean_logits(run, made_from["test"], list(usable(test)["id"]), device, reporter)
        finish(
            run.folder,
            read_scores(run.oof),
            list(test["id"]),
            logits,
            settings,
            made_from,
            reporter,
        )
        reporter.say(f"{run.name}: {len(test):,} photos predicted by {len(run.folds)} folds")
    show(run.folder, reporter)
    return run


def _is_done(run: Run, made_from: dict[str, str], settings: Settings) -> bool:
    """Whether the files are there, of these photos and, where the competition's noise rate has changed since, of this one."""
    calibration = run.folder / "calibration.json"
    if not (calibration.exists() and (run.folder / "test.csv").exists()):
        return False
    figures = read_json(calibration)
    return (figures["of"], figures["noise_rate"]) == (made_from, settings.noise_rate)


def _mean_logits(
    run: Run, test_key: str, ids: list[str], device: Device, reporter: Reporter
) -> pd.Series:
    """The mean over folds, by id. A fold's file names the test photos it is of, so that other photos' logits are never taken for these."""
    paths = {fold: run.folder / f"fold-{fold}-test-{test_key}.csv" for fold in run.folds}
    if not all(path.exists() for path in paths.values()):
        bench = open_workbench(run, device, reporter)
        frozen = bench.frozen(bench.backbone())[0] if run.recipe.is_cached else None
        for fold, path in paths.items():
            if not path.exists():
                _predict_fold(bench, frozen, fold, path)
    tables = [_read_fold(path, ids) for path in paths.values()]
    mean: NDArray[np.float64] = np.mean([table.to_numpy() for table in tables], axis=0)
    return pd.Series(mean, index=ids)


def _predict_fold(bench: Workbench, frozen: Embedder | None, fold: int, path: Path) -> None:
    logits = bench.logits(*bench.fitted(fold, frozen), bench.test_ids)
    write_table(path, pd.DataFrame({"id": bench.test_ids, "logit": logits}))


def _read_fold(path: Path, ids: list[str]) -> pd.Series:
    table = read_scores(path).set_index("id")["logit"]
    if set(table.index) != set(ids) or not table.index.is_unique or not np.isfinite(table).all():
        raise StaleError(
            f"{path} does not hold one finite logit for each of {len(ids):,} test photos: delete it and predict again"
        )
    return table.loc[ids]
