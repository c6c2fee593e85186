"""The stage `predict`: test logits of all folds, averaged, calibrated and clipped.

1. Each fold that has no logits for the test photos is asked for them, with the recipe's views; its file is written.
2. The folds are averaged in logit space: the geometric mean of their odds.
3. The temperature is fitted on the out-of-fold logits; the table shows what it and the clip do there, cross-fitted.
4. test.csv has one row for each id of the test manifest; a photo that cannot be decoded gets the prior, and a warning.
"""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from comp.data.manifest import read_manifest, usable
from comp.errors import StaleError
from comp.metric import prior_logit
from comp.predict.calibrate import Calibration, calibrate, out_of_fold_losses
from comp.progress import Reporter
from comp.recipe import Head, Recipe
from comp.store import Workspace, file_sha256, read_json, write_json, write_table
from comp.train.device import Device
from comp.train.features import Embedder
from comp.train.run import Run, read_scores, trained_run
from comp.train.workbench import Workbench, head_of, load_head, load_network, open_workbench


def predict(workspace: Workspace, recipe: Recipe, device: Device, reporter: Reporter) -> Run:
    """Write test.csv and calibration.json of the fitted run of `recipe`; the run."""
    run = trained_run(workspace, recipe)
    key = {"test": file_sha256(workspace.manifest("test"))[:10], "oof": file_sha256(run.oof)[:10]}
    if _is_done(run, key):
        reporter.say(f"{run.name}: {len(pd.read_csv(run.folder / 'test.csv')):,} photos are predicted; nothing to do")
        _show(run, reporter)
        return run
    oof = read_scores(run.oof)
    test = read_manifest(workspace.manifest("test"))
    logits = _mean_logits(run, key["test"], list(usable(test)["id"]), device, reporter)
    prediction = recipe.prediction
    labels = oof["label"].to_numpy()
    calibration = calibrate(oof["logit"], labels, noise_rate=prediction.noise_rate, clip=prediction.clip)
    losses = out_of_fold_losses(oof["logit"], labels, oof["fold"], noise_rate=prediction.noise_rate, clip=prediction.clip)
    table = probabilities(list(test["id"]), logits, calibration, prior_logit(labels))
    n_blind = int(table["logit"].isna().sum())
    if n_blind:
        reporter.warn(f"{n_blind:,} test photos cannot be decoded, {table['id'][table['logit'].isna()].iloc[0]} first: each gets the prior")
    write_table(run.folder / "test.csv", table)
    figures = {f"cv_{name}": value for name, value in asdict(losses).items()}
    write_json(run.folder / "calibration.json", asdict(calibration) | figures | {"of": key, "n_without_photo": n_blind})
    reporter.say(f"{run.name}: {len(table):,} photos predicted by {len(run.folds)} folds")
    _show(run, reporter)
    return run


def probabilities(ids: list[str], logits: pd.Series, calibration: Calibration, prior: float) -> pd.DataFrame:
    """id, logit, prob for all `ids`, joined by id. An id without a logit gets the prior's probability, clipped but not calibrated."""
    table = pd.DataFrame({"id": ids, "logit": logits.reindex(ids).to_numpy(np.float64)})
    blind = table["logit"].isna().to_numpy()
    probs = np.empty(len(table))
    probs[~blind] = calibration.apply(table["logit"][~blind])
    probs[blind] = Calibration(temperature=1.0, noise_rate=0.0, clip=calibration.clip).apply([prior])[0]
    return table.assign(prob=probs)


def _is_done(run: Run, key: dict[str, str]) -> bool:
    calibration = run.folder / "calibration.json"
    return calibration.exists() and (run.folder / "test.csv").exists() and read_json(calibration)["of"] == key


def _mean_logits(run: Run, test_key: str, ids: list[str], device: Device, reporter: Reporter) -> pd.Series:
    """The mean over folds, by id. A fold's file names the test photos it is of, so that other photos' logits are never taken for these."""
    paths = {fold: run.folder / f"fold-{fold}-test-{test_key}.csv" for fold in run.folds}
    if not all(path.exists() for path in paths.values()):
        bench = open_workbench(run, device, reporter)
        frozen = bench.embedder(bench.network())[0] if isinstance(run.recipe.training, Head) else None
        for fold, path in paths.items():
            if not path.exists():
                _predict_fold(bench, frozen, fold, path)
    tables = [_read_fold(path, ids) for path in paths.values()]
    mean: NDArray[np.float64] = np.mean([table.to_numpy() for table in tables], axis=0)
    return pd.Series(mean, index=ids)


def _predict_fold(bench: Workbench, frozen: Embedder | None, fold: int, path: Path) -> None:
    checkpoint = bench.run.checkpoint(fold)
    if frozen is not None:
        embedder, head = frozen, load_head(checkpoint)
    else:
        network = load_network(checkpoint, bench.recipe, bench.device)
        head = head_of(network)
        embedder, _ = bench.embedder(network)
    logits = bench.logits(embedder, head, bench.test_ids)
    write_table(path, pd.DataFrame({"id": bench.test_ids, "logit": logits}))


def _read_fold(path: Path, ids: list[str]) -> pd.Series:
    table = read_scores(path).set_index("id")["logit"]
    if set(table.index) != set(ids) or not table.index.is_unique or not np.isfinite(table).all():
        raise StaleError(f"{path} does not hold one finite logit for each of {len(ids):,} test photos: delete it and predict again")
    return table.loc[ids]


def _show(run: Run, reporter: Reporter) -> None:
    figures = read_json(run.folder / "calibration.json")
    rows = [
        ("raw", figures["cv_raw"]),
        (f"temperature {figures['temperature']:.3f}", figures["cv_calibrated"]),
        (f"and clip {figures['clip']:g}", figures["cv_clipped"]),
    ]
    reporter.table("out-of-fold log loss, the last two cross-fitted", ("", "log loss"), rows)
