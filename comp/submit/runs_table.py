"""The stage `runs`: all runs by cross-validation; other photos or folds are other tables."""

from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from comp.competition import Competition
from comp.errors import StaleError, UserError
from comp.metric import bootstrap_ratios, gains, per_photo_loss
from comp.options import differing, flat
from comp.predict.calibrate import board_losses
from comp.predict.compare import groups_of
from comp.predict.runs import options_of, read_run, recipe_of
from comp.progress import Reporter, counted, table_lines
from comp.recipes import RECIPES
from comp.store import Workspace, fingerprint, read_json, whole
from comp.submit.ledger import read_ledger
from comp.train.files import again, hashes, is_intact
from comp.train.run import run_folders

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
    for runs in sorted(tables.values(), key=len, reverse=True):
        _print_table(workspace, competition, runs, reference, reporter)
    if lacking:
        reporter.say(f"{counted(len(lacking), 'run')} without a cross-validation:")
    for line in lacking:
        for part in wrap(line, 80, subsequent_indent="  "):
            reporter.say(part)
    if not tables and not lacking:
        reporter.say(f"no run in {workspace.runs}: run `make train predict` first")


def _read(folder: Path) -> Scored:
    """The run in `folder`; its calibrated probabilities are kept, in submitted-<of what>.npy.

    StaleError says what it lacks.
    """
    recorded = hashes(folder)
    stages = dict.fromkeys(["run.json", "oof.csv"], "train")
    stages |= dict.fromkeys([name for name in recorded if name.endswith(".safetensors")], "train")
    stages |= dict.fromkeys(["test.csv", "calibration.json"], "predict")
    bad = [name for name in stages if not is_intact(folder / name)]
    if bad:
        texts = [f"{x} is {'damaged' if (folder / x).exists() else 'missing'}" for x in bad]
        raise StaleError(f"{folder.name}: {', '.join(texts)}: {again(folder, stages[bad[0]])}")
    made_from = fingerprint(recorded["oof.csv"], recorded["calibration.json"])
    path = folder / f"submitted-{made_from}.npy"
    with suppress(OSError, ValueError, EOFError):
        return Scored(folder=folder, table=np.load(path))
    run = read_run(folder)
    oof = run.oof.sort_values("id")
    probs = run.out_of_fold_probs().loc[oof["id"]]
    columns = (oof["id"].to_numpy(str), oof["label"], oof["fold"], probs)
    kinds = [("id", columns[0].dtype), *((name, "f8") for name in ("label", "fold", "prob"))]
    table = np.array(list(zip(*columns, strict=True)), kinds)
    with suppress(OSError), whole(path) as scratch, scratch.open("wb") as file:
        np.save(file, table)
    return Scored(folder=folder, table=table)


def _print_table(
    workspace: Workspace,
    competition: Competition,
    runs: Sequence[Scored],
    reference: Path | None,
    reporter: Reporter,
) -> None:
    runs = sorted(runs, key=lambda run: run.loss)
    first = next((run for run in runs if run.folder == reference), runs[0])
    photos = pd.DataFrame({name: runs[0].table[name] for name in ("id", "label", "fold")})
    probs, labels = np.column_stack([run.table["prob"] for run in runs]), photos["label"]
    truth = labels.to_numpy()[:, None]
    board = board_losses(truth, probs, competition.noise_rate)
    intervals, saved, remark = ["-"] * len(runs), [("-", "-")] * len(runs), "no intervals: "
    try:
        groups = groups_of(workspace, photos)
    except UserError as error:  # too few photos, or others than there are now
        remark += str(error)
    else:
        remark = f"gain over {first.folder.name}"
        ends = bootstrap_ratios(per_photo_loss(truth, probs), np.ones(len(photos)), groups, seed=0)
        intervals = [f"{low:.4f} to {high:.4f}" for low, high in ends]
        found = gains(board[:, runs.index(first)], board, groups)
        saved = [(f"{g.mean:+.5f}", f"{g.low:+.5f} to {g.high:+.5f}") for g in found]
        saved[runs.index(first)] = ("-", "-")
    ledger = {row.file.removesuffix(".csv"): row for row in read_ledger(workspace.ledger)}
    cells = []
    for run, interval, gained in zip(runs, intervals, saved, strict=True):
        row = ledger.get(run.folder.name)
        scores = (row.public_score, row.private_score) if row else (None, None)
        texts = ["-" if score is None else f"{score:.5f}" for score in scores]
        cells.append([f"{run.loss:.5f}", interval, *gained, *texts])
    n_folds = counted(photos["fold"].nunique(), "fold")
    reporter.say(f"{counted(len(photos), 'photo')} in {n_folds}; {remark}")
    head, rule, *lines = table_lines(COLUMNS, cells)
    for line in (head, rule):
        reporter.say(line)
    for run, line in zip(runs, lines, strict=True):
        for part in (*wrap(_described(run.folder), 80, subsequent_indent="  "), line):
            reporter.say(part)
    reporter.say("")


def _described(folder: Path) -> str:
    """Name, cost, and the options that differ from the recipe's."""
    times = read_json(folder / "run.json").get("times", [])
    n_bytes = sum(path.stat().st_size for path in folder.iterdir())
    took = f"{sum(each['seconds'] for each in times) / 60:,.1f} min, " if times else ""
    options, recipe = options_of(folder), recipe_of(folder)
    if recipe and recipe.name in RECIPES:
        pairs = {"named": flat(RECIPES[recipe.name]()), "own": options}
        options = {name: own for name, _, own in differing(pairs)}
    elif recipe:
        options = {"recipe": "not listed"}
    texts = ", ".join(f"{name}={value}" for name, value in options.items())
    return f"{folder.name} ({took}{n_bytes / 1e6:,.1f} MB) {texts}".rstrip()
