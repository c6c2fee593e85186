"""The stage `runs`: all runs by cross-validation; other photos or folds are other tables."""

from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from textwrap import wrap

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from comp.competition import Competition
from comp.errors import StaleError, UserError
from comp.metric import bootstrap_intervals, gains, per_photo_loss
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

Scored = NDArray[np.void]  # id, label, fold and prob, out of fold, as submitted; in order of ids
COLUMNS = ("CV", "95 %", "gain on board", "95 %", "public", "private")


def print_runs(
    workspace: Workspace, competition: Competition, reference: Path | None, reporter: Reporter
) -> None:
    """Print all runs, best first, and their gain on `reference`, else on the best.

    The gain is that on the expected leaderboard. Last come runs that lack something.
    """
    tables, lacking = defaultdict[bytes, dict[Path, Scored]](dict), list[str]()
    for folder in run_folders(workspace):
        try:
            scored = _read(folder)
        except UserError as error:
            lacking.append(str(error))
            continue
        photos = b"".join(scored[name].tobytes() for name in ("id", "label", "fold"))
        tables[photos][folder] = scored
    for runs in sorted(tables.values(), key=len, reverse=True):
        _print_table(workspace, competition, runs, reference, reporter)
    if lacking:
        reporter.say(f"{counted(len(lacking), 'run')} without a cross-validation:")
    for line in lacking:
        for part in _wrapped(line):
            reporter.say(part)
    if not tables and not lacking:
        reporter.say(f"no run in {workspace.runs}: run `make train predict` first")


def _read(folder: Path) -> Scored:
    """The run in `folder`; its calibrated probabilities are kept, in submitted-<of what>.npy.

    StaleError says what it lacks.
    """
    recorded = hashes(folder)
    checkpoints = [name for name in recorded if name.endswith(".safetensors")]
    stages = dict.fromkeys(["run.json", "oof.csv", *checkpoints], "train")
    stages |= dict.fromkeys(["test.csv", "calibration.json"], "predict")
    bad = [name for name in stages if not is_intact(folder / name)]
    if bad:
        stage = stages[bad[0]]  # makes the first of them, and the next stage what follows
        lost = [x for x in bad if stages[x] == stage and not (folder / x).exists()]
        what = f"{', '.join(lost)} missing" if lost else f"{bad[0]} damaged"
        raise StaleError(f"{folder.name}: {what}: {again(folder, stage)}")
    made_from = fingerprint(recorded["oof.csv"], recorded["calibration.json"])
    path = folder / f"submitted-{made_from}.npy"
    with suppress(OSError, ValueError, EOFError):
        return np.load(path)  # type: ignore[no-any-return]
    run = read_run(folder)
    oof = run.oof.sort_values("id")
    columns = (oof["id"].to_numpy(str), oof["label"], oof["fold"])
    kinds = [("id", columns[0].dtype), *((name, "f8") for name in ("label", "fold", "prob"))]
    probs = run.out_of_fold_probs().loc[oof["id"]]
    scored: Scored = np.array(list(zip(*columns, probs, strict=True)), kinds)
    with suppress(OSError), whole(path) as scratch, scratch.open("wb") as file:
        np.save(file, scored)
    return scored


def _print_table(
    workspace: Workspace,
    competition: Competition,
    runs: Mapping[Path, Scored],
    reference: Path | None,
    reporter: Reporter,
) -> None:
    def loss(folder: Path) -> float:
        return float(per_photo_loss(runs[folder]["label"], runs[folder]["prob"]).mean())

    folders = sorted(runs, key=loss)
    first = reference if reference and reference in runs else folders[0]
    photos = pd.DataFrame({name: runs[first][name] for name in ("id", "label", "fold")})
    truth, probs = photos[["label"]], np.column_stack([runs[each]["prob"] for each in folders])
    intervals, saved = ["-"] * len(runs), [("-", "-")] * len(runs)
    try:
        groups = groups_of(workspace, photos)
    except UserError as error:  # too few photos, or others than there are now
        remark = f"no intervals: {error}"
    else:
        remark, at = f"gain over {first.name}", folders.index(first)
        ends = bootstrap_intervals(per_photo_loss(truth, probs), groups)
        intervals = [f"{low:.4f} to {high:.4f}" for low, high in ends]
        board = board_losses(truth, probs, competition.noise_rate)
        found = gains(board[:, at], board, groups)
        saved = [(f"{g.mean:+.5f}", f"{g.low:+.5f} to {g.high:+.5f}") for g in found]
        saved[at] = ("-", "-")
    scored = [row for row in read_ledger(workspace.ledger) if row.public_score is not None]
    ledger = {row.file.removesuffix(".csv"): row for row in scored}
    rows = []
    for folder, interval, gained in zip(folders, intervals, saved, strict=True):
        row = ledger.get(folder.name)
        scores = (row.public_score, row.private_score) if row else (None, None)
        texts = ["-" if score is None else f"{score:.5f}" for score in scores]
        rows.append([f"{loss(folder):.5f}", interval, *gained, *texts])
    n_folds = counted(photos["fold"].nunique(), "fold")
    head, rule, *lines = table_lines(COLUMNS, rows)
    said = [*_wrapped(f"{counted(len(photos), 'photo')} in {n_folds}; {remark}"), head, rule]
    for folder, line in zip(folders, lines, strict=True):
        said += [*_wrapped(_described(folder)), line]
    for line in [*said, ""]:
        reporter.say(line)


def _wrapped(text: str) -> list[str]:
    return wrap(text, 80, subsequent_indent="  ", break_on_hyphens=False, break_long_words=False)


def _described(folder: Path) -> str:
    """Name, cost, and the options that differ from the recipe's."""
    times = read_json(folder / "run.json").get("times", [])
    n_bytes = sum(path.stat().st_size for path in folder.iterdir())
    took = f"{sum(each['seconds'] for each in times):,.0f} s, " if times else ""
    options, recipe = options_of(folder), recipe_of(folder)
    if recipe and recipe.name in RECIPES:
        pairs = {"named": flat(RECIPES[recipe.name]()), "own": options}
        options = {name: own for name, _, own in differing(pairs)}
    elif recipe:
        options = {"recipe": "not listed"}
    texts = ", ".join(f"{name}={value}" for name, value in options.items())
    return f"{folder.name} ({took}{n_bytes / 1e6:,.1f} MB) {texts}".rstrip()
