"""The stage `runs`: all runs by cross-validation, those of other photos or folds in other tables."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from comp.competition import Competition
from comp.errors import StaleError, UserError
from comp.metric import Floats, bootstrap_ratios, gains, per_photo_loss
from comp.options import differing, flat
from comp.predict.calibrate import board_losses
from comp.predict.compare import groups_of
from comp.predict.runs import options_of, read_run, recipe_of
from comp.progress import Reporter, counted, table_lines
from comp.recipes import RECIPES
from comp.store import Workspace, fingerprint, read_json, whole
from comp.submit.ledger import LedgerRow, read_ledger
from comp.train.files import again, hashes, is_intact
from comp.train.run import run_folders

RESULTS = {"run.json": "train", "oof.csv": "train", "calibration.json": "predict"}
RESULTS["test.csv"] = "predict"
COLUMNS = ("CV", "95 %", "gain on board", "95 %", "public", "private")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """A run whose cross-validation is known."""

    folder: Path
    table: NDArray[np.void]  # id, label, fold and prob, out of fold, as submitted; in order of ids

    @property
    def key(self) -> bytes:
        """Equal for runs of the same photos with the same labels in the same folds."""
        return b"".join(self.table[name].tobytes() for name in ("id", "label", "fold"))

    @property
    def loss(self) -> float:
        return float(per_photo_loss(self.table["label"], self.table["prob"]).mean())


def print_runs(
    workspace: Workspace, competition: Competition, reference: Path | None, reporter: Reporter
) -> None:
    """Print all runs, best first, and their gain on `reference`, else on the best.

    The gain is that on the expected leaderboard. Last come runs that lack something.
    """
    tables, lacking = defaultdict[bytes, list[Scored]](list), list[str]()
    for folder in run_folders(workspace):
        try:
            run = _read(folder)
            tables[run.key].append(run)
        except UserError as error:
            lacking.append(str(error))
    rows = {row.file.removesuffix(".csv"): row for row in read_ledger(workspace.ledger, reporter)}
    for runs in sorted(tables.values(), key=len, reverse=True):
        runs.sort(key=lambda run: run.loss)
        first = next((run for run in runs if run.folder == reference), runs[0])
        _print_table(workspace, competition, runs, first, rows, reporter)
    if lacking:
        reporter.say(f"{counted(len(lacking), 'run')} without a cross-validation:")
    for line in lacking:
        reporter.say(line)
    if not tables and not lacking:
        reporter.say(f"no run in {workspace.runs}: run `make train predict` first")


def _read(folder: Path) -> Scored:
    """The probabilities are calibrated once, and kept in submitted-<what they are made from>.npy.

    StaleError says what the run lacks.
    """
    absent = [name for name in RESULTS if not (folder / name).exists()]
    recorded = hashes(folder)
    checkpoints = [name for name in recorded if name.endswith(".safetensors")]
    bad = [name for name in (*RESULTS, *checkpoints) if not is_intact(folder / name)]
    damaged = [name for name in bad if name not in absent]
    if bad:
        texts = [f"no {', '.join(absent)}"] * bool(absent)
        texts += [f"damaged or lost: {', '.join(damaged)}"] * bool(damaged)
        remedy = again(folder, RESULTS.get(bad[0], "train"))
        raise StaleError(f"{folder.name}: {'; '.join(texts)}: {remedy}")
    made_from = fingerprint([recorded[name] for name in ("oof.csv", "calibration.json")])
    path = folder / f"submitted-{made_from}.npy"
    try:
        return Scored(folder=folder, table=np.load(path))
    except (OSError, ValueError, EOFError):
        run = read_run(folder)
    oof = run.oof.sort_values("id").reset_index(drop=True)
    probs = run.out_of_fold_probs().loc[oof["id"]].to_numpy()
    columns = {"id": oof["id"].to_numpy(str), **oof[["label", "fold"]], "prob": probs}
    kinds = [(name, np.asarray(column).dtype) for name, column in columns.items()]
    table = np.array(list(zip(*columns.values(), strict=True)), kinds)
    with suppress(OSError), whole(path) as scratch, scratch.open("wb") as file:
        np.save(file, table)
    return Scored(folder=folder, table=table)


def _print_table(
    workspace: Workspace,
    competition: Competition,
    runs: list[Scored],
    reference: Scored,
    rows: Mapping[str, LedgerRow],
    reporter: Reporter,
) -> None:
    photos = pd.DataFrame({name: runs[0].table[name] for name in ("id", "label", "fold")})
    labels = photos["label"].to_numpy()
    probs = np.column_stack([run.table["prob"] for run in runs])
    own = per_photo_loss(labels[:, None], probs)
    board = board_losses(labels[:, None], probs, competition.noise_rate)
    n_folds = photos["fold"].nunique()
    title = f"{counted(len(photos), 'photo')} in {counted(n_folds, 'fold')}"
    intervals, saved = ["-"] * len(runs), [("-", "-")] * len(runs)
    try:
        groups = groups_of(workspace, photos)
    except UserError as error:  # too few, or others than there are now
        remark = f"no intervals: {error}"
    else:
        remark = f"gain over {reference.folder.name}"
        ends = bootstrap_ratios(own, np.ones(len(own)), groups, seed=0)
        intervals = [f"{low:.4f} to {high:.4f}" for low, high in ends]
        found = gains(board[:, [run is reference for run in runs]].squeeze(1), board, groups)
        saved = [(f"{g.mean:+.5f}", f"{g.low:+.5f} to {g.high:+.5f}") for g in found]
    cells = []
    for run, interval, gained in zip(runs, intervals, saved, strict=True):
        row = rows.get(run.folder.name)
        scores = (row.public_score, row.private_score) if row else (None, None)
        texts = ["-" if score is None else f"{score:.5f}" for score in scores]
        gained = ("-", "-") if run is reference else gained
        cells.append([f"{run.loss:.5f}", interval, *gained, *texts])
    reporter.say(f"{title}; {remark}")
    head, rule, *lines = table_lines(COLUMNS, cells)
    reporter.say(head)
    reporter.say(rule)
    for run, line in zip(runs, lines, strict=True):
        for part in wrap(_described(run.folder), 80, subsequent_indent="  "):
            reporter.say(part)
        reporter.say(line)
    reporter.say("")


def _described(folder: Path) -> str:
    """Name, cost, and the options that differ from the recipe's."""
    times = read_json(folder / "run.json").get("times", [])
    seconds = sum(each["seconds"] for each in times)
    n_bytes = sum(path.stat().st_size for path in folder.iterdir())
    took = [f"{seconds / 60:,.1f} min" if seconds >= 60 else f"{seconds:.0f} s"] * bool(times)
    recipe = recipe_of(folder)
    if recipe is None:
        options: Iterable[str] = (f"{k} {v}" for k, v in options_of(folder).items())
    elif recipe.name in RECIPES:
        pairs = {"named": flat(RECIPES[recipe.name]()), "own": flat(recipe)}
        options = (f"{name}={own}" for name, _, own in differing(pairs))
    else:
        options = ["a recipe that is not listed"]
    cost = ", ".join([*took, f"{n_bytes / 1e6:,.1f} MB"])
    return f"{folder.name} ({cost}) {', '.join(options)}".rstrip()
