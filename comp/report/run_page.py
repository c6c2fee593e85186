"""The report of a run: its score, what it gets wrong, where its time went, what it was made of."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from comp.competition import Competition
from comp.data.manifest import SPLITS
from comp.errors import UserError
from comp.metric import Floats, bootstrap_interval, gain, per_photo_loss, sigmoid
from comp.options import differing, flat
from comp.predict.calibrate import board_losses, cross_fitted
from comp.predict.compare import conclusion, groups_of, side_by_side
from comp.predict.runs import (
    FinishedRun,
    is_predicted,
    options_of,
    read_oof,
    read_run,
    recipe_of,
    with_losses,
)
from comp.progress import counted
from comp.recipes import RECIPES
from comp.report import charts
from comp.report.gallery import Photos, largest_losses, near_duplicates
from comp.report.page import Chart, Page, Section, TextTable, Tile
from comp.store import Workspace, file_sha256, read_json, read_object
from comp.submit.forecast import forecast_run
from comp.submit.leaderboard import archived_scores, ranks
from comp.submit.ledger import read_ledger, score_text
from comp.train.files import is_intact, read_intact
from comp.train.run import run_folders

N_WORST = 8  # on the first screen
LOOKS = "looks.json"  # of a run: what `make report` measured with its networks


class RunFacts:
    """A run as its files are now."""

    def __init__(self, workspace: Workspace, competition: Competition, folder: Path) -> None:
        """DataError with too few photos for intervals, StaleError if the photos are others now."""
        self.workspace, self.competition, self.folder = workspace, competition, folder
        self.origin: dict[str, Any] = read_intact(folder / "run.json", read_json, "train")
        oof = with_losses(read_oof(folder))
        is_right = (oof["logit"] > 0) == (oof["label"] > 0.5)
        self.oof = oof.assign(is_right=is_right, group=groups_of(workspace, oof))
        self.labels = oof["label"].to_numpy(np.float64)
        self.losses = {"raw": oof["loss"].to_numpy(np.float64)}  # of each photo, by what was done
        is_done = is_predicted(workspace, folder, competition.noise_rate)
        self.finished = read_run(folder) if is_done else None
        if self.finished:
            own = self.finished.figures
            plain = own.replace(noise_rate=0.0, clip=0.0)
            self.calibrated = cross_fitted(oof["logit"], oof["label"], oof["fold"], plain)
            last = f"as submitted: noise rate {own.noise_rate:g}, clip {own.clip:g}"
            self.losses |= {
                f"calibrated: {own.method}": per_photo_loss(self.labels, self.calibrated),
                last: per_photo_loss(self.labels, own.finish(self.calibrated)),
            }
        looks = read_object(folder / LOOKS)  # of these predictions, or of earlier ones
        self.looks = looks if looks.get("oof") == file_sha256(folder / "oof.csv")[:10] else {}

    def interval(self, losses: Floats) -> str:
        low, high = bootstrap_interval(losses, self.oof["group"])
        return f"{low:.4f} to {high:.4f}"


def run_page(facts: RunFacts, against: Path | None) -> Page:
    """The report of a run, its losses beside those of the run in `against`."""
    oof, folder = facts.oof, facts.folder
    photos = Photos(facts.workspace, facts.competition)
    cards = list(largest_losses(photos, oof, folder.name, facts.looks.get("heat", {})))
    first = [card._replace(reason="") for card in cards[:N_WORST]]
    share = oof["loss"].nlargest(N_WORST).sum() / oof["loss"].sum()
    carry = f"These {len(first)} of {len(oof):,} photos carry {share:.0%} of the log loss"
    worst = f"{carry}. The gallery below has {len(cards)}."
    help_text = (
        "Sort and filter with the controls; arrow keys move between photos, c copies a line for"
        " data/verdicts.csv. A line changes what is learnt, never what is scored."
    )
    beside = [charts.loss_pairs(oof, read_oof(against), against.name)] if against else []
    rows = [(name, f"{x.mean():.5f}", facts.interval(x)) for name, x in facts.losses.items()]
    title = "Out-of-fold log loss, calibration cross-fitted"
    scores = TextTable(title, ("", "log loss", "95 % interval"), rows)
    other = best_other(facts)
    sections = [
        Section("Worst photos", worst, cards=first),
        Section("Score", charts=[*beside, *_charts(facts)], tables=[scores]),
        Section("Largest losses", help_text, cards=cards, has_toolbar=True),
        near_duplicates(photos, oof),
        _recipe(facts, other),
        Section("Origin", tables=[_origin(facts)]),
    ]
    began = f", began {facts.origin['began']}" if "began" in facts.origin else ""
    n_photos = f"{counted(len(oof), 'labelled photo')} in {counted(oof['fold'].nunique(), 'fold')}"
    subtitle = f"{facts.competition.title}: {n_photos}{began}"
    return Page(folder.name, subtitle, list(_tiles(facts, other)), sections)


def _tiles(facts: RunFacts, other: FinishedRun | None) -> Iterator[Tile]:
    finished, losses = facts.finished, list(facts.losses.values())
    raw, last = losses[0], losses[-1]
    right = f"{facts.oof['is_right'].mean():.2%} right"
    note = f"95 % interval {facts.interval(raw)}; {right}"
    yield Tile("Out-of-fold log loss, raw", f"{raw.mean():.5f}", note)
    if finished is None:
        yield Tile("Predictions", "none yet", "run make predict")
        return
    before = f"{finished.figures.cv_calibrated:.5f} calibrated, before noise rate and clip"
    note = f"95 % interval {facts.interval(last)}; {before}"
    yield Tile("As submitted", f"{last.mean():.5f}", note)
    made, best = forecast_run(facts.workspace, facts.competition, finished)
    score, board = made.score, archived_scores(facts.competition)
    note = f"90 % interval {score.low:.4f} to {score.high:.4f}"
    if board.size:
        rank, low, high = ranks([score.mean, score.low, score.high], board)
        note += f", rank {rank:,} ({low:,} to {high:,}) of {board.size:,}"
    yield Tile("Forecast of the public score", f"{score.mean:.5f}", note)
    for row in read_ledger(facts.workspace.ledger):
        if row.file == f"{finished.folder}.csv":
            value = row.status if row.public_score is None else score_text(row)
            note = f"; best other {score_text(best)}" if best else ""
            yield Tile("Public score", value, f"submitted {row.when[:10]}{note}")
    yield _beside(facts, finished, other)


def best_other(facts: RunFacts) -> FinishedRun | None:
    """The other run of the same photos with the best cross-validation as submitted, if any."""
    paths = [folder / "calibration.json" for folder in run_folders(facts.workspace, "oof.csv")]
    paths = [path for path in paths if path.parent != facts.folder and is_intact(path)]
    for path in sorted(paths, key=lambda path: float(read_json(path)["cv_clipped"])):
        with suppress(UserError):  # damaged, or of other photos
            run = read_run(path.parent)
            side_by_side({"ours": facts.oof, "theirs": run.oof})
            return run if facts.finished else None
    return None


def _beside(facts: RunFacts, finished: FinishedRun, other: FinishedRun | None) -> Tile:
    label = "Against the best other run"
    if other is None:
        return Tile(label, "-", "no other run here has the same photos and folds")
    ids, rate = facts.oof["id"], facts.competition.noise_rate
    theirs, ours = (
        board_losses(facts.labels, run.out_of_fold_probs().loc[ids], rate)
        for run in (other, finished)
    )
    found = gain(theirs, ours, facts.oof["group"])
    interval = f"95 % interval {found.low:+.5f} to {found.high:+.5f}"
    words = conclusion(finished.folder, other.folder, found)
    note = f"expected gain on the leaderboard, {interval}: {words}"
    return Tile(label, f"{found.mean:+.5f}", note)


def _charts(facts: RunFacts) -> Iterator[Chart]:
    folder, oof, finished = facts.folder, facts.oof, facts.finished
    classes, numbers = facts.competition.classes, sorted({int(fold) for fold in oof["fold"]})
    is_split = facts.origin.get("recipe", {}).get("folds", {}).get("split") is not None
    names = {k: ("validation", "test")[k] if is_split else f"fold {k}" for k in numbers}
    yield charts.fold_losses(oof, names)
    paths = {k: folder / f"fold-{k}-history.csv" for k in numbers}
    histories = {k: pd.read_csv(path) for k, path in paths.items() if path.exists()}
    if histories:
        yield charts.learning_curves(histories)
    probs, test_logits = {"before calibration": sigmoid(oof["logit"])}, None
    if finished and finished.figures.method != "none":
        probs["after calibration"] = facts.calibrated
    yield charts.reliability(facts.labels, probs, classes[1])
    if finished:
        test_logits = finished.predictions["logit"].dropna().to_numpy(np.float64)
        own = finished.figures
        yield charts.clip_curve(facts.labels, facts.calibrated, own, facts.competition)
    yield charts.distribution(oof, test_logits, classes, facts.looks.get("drift"))
    if "times" in facts.origin:
        yield charts.work_times(pd.DataFrame(facts.origin["times"]), facts.origin["device"])


def _recipe(facts: RunFacts, other: FinishedRun | None) -> Section:
    """Of a blend the method and the runs; else the options, and how they differ from others."""
    own, recipe, tables = options_of(facts.folder), recipe_of(facts.folder), []
    if recipe:
        columns = {"this run": own}
        if recipe.name in RECIPES:
            columns[f"{recipe.name} as named"] = flat(RECIPES[recipe.name]())
        if other and recipe_of(facts.workspace.runs / other.folder):
            columns[other.folder] = options_of(facts.workspace.runs / other.folder)
        rows = differing(columns) or [("no option differs", *("" for _ in columns))]
        tables = [TextTable("Differences", ("option", *columns), rows)]
    tables.append(TextTable("All options", ("", "value"), list(own.items()), bool(recipe)))
    unknown = "Made by another version of this code, which has other options."
    return Section("Recipe", "" if own else unknown, tables=tables if own else [])


def _origin(facts: RunFacts) -> TextTable:
    origin = facts.origin
    names = ("fingerprint", "fit_fingerprint", "commit", "began", "device", "weights", "data")
    rows = [(name.replace("_", " "), origin[name]) for name in names if name in origin]
    rows += [(name, version) for name, version in sorted(origin.get("versions", {}).items())]
    files = ("oof.csv", "test.csv", "calibration.json")
    paths = [facts.folder / name for name in files] + [facts.workspace.manifest(s) for s in SPLITS]
    rows += [(f"SHA-256 of {path.name}", file_sha256(path)) for path in paths if path.exists()]
    return TextTable("", ("", "value"), rows)
