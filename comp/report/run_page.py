"""The report of a run: its score, what it gets wrong, where its time went, what it was made of."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from comp.competition import Competition
from comp.data.manifest import SPLITS
from comp.errors import UserError
from comp.metric import (
    Floats,
    bootstrap_interval,
    gain,
    per_photo_logit_loss,
    per_photo_loss,
    sigmoid,
)
from comp.network.preprocessing import geometry_of
from comp.options import differing, flat
from comp.predict.calibrate import board_losses, cross_fitted
from comp.predict.compare import groups_of, side_by_side
from comp.predict.runs import FinishedRun, is_predicted, read_oof, read_run, recipe_of
from comp.progress import counted
from comp.recipes import RECIPES
from comp.report import charts
from comp.report.gallery import Photos, largest_losses, near_duplicates
from comp.report.page import Chart, NumberTable, Page, Section, Tile
from comp.store import Workspace, file_sha256, read_json, read_object
from comp.submit.forecast import forecast_run
from comp.submit.leaderboard import archived_scores, ranks
from comp.submit.ledger import read_ledger, score_text
from comp.train.files import read_intact

N_WORST = 8  # on the first screen
LOOKS = "looks.json"  # of a run: what `make report` measured with its networks


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """A run as its files are now."""

    workspace: Workspace
    competition: Competition
    folder: Path
    origin: dict[str, Any]  # run.json
    oof: pd.DataFrame  # id, label, fold, logit, loss, is_right, group
    finished: FinishedRun | None  # None: not predicted since the last change
    photos: Photos
    looks: dict[str, Any]  # LOOKS, if it is of these predictions

    @property
    def labels(self) -> Floats:
        return self.oof["label"].to_numpy(np.float64)

    @cached_property
    def calibrated(self) -> Floats:
        """Cross-fitted probabilities, before noise rate and clip; needs `finished`."""
        assert self.finished is not None
        settings = self.finished.settings.replace(noise_rate=0.0, clip=0.0)
        return cross_fitted(self.oof["logit"], self.oof["label"], self.oof["fold"], settings)

    @cached_property
    def losses(self) -> dict[str, Floats]:
        """Log loss of each out-of-fold photo: raw, and where it is predicted, calibrated, ..."""
        raw = {"raw": self.oof["loss"].to_numpy(np.float64)}
        if self.finished is None:
            return raw
        own, submitted = self.finished.settings, self.finished.out_of_fold_probs()
        return raw | {
            f"calibrated: {own.method}": per_photo_loss(self.labels, self.calibrated),
            f"as submitted: noise rate {own.noise_rate:g}, clip {own.clip:g}": per_photo_loss(
                self.labels, submitted
            ),
        }

    def interval(self, losses: Floats) -> str:
        low, high = bootstrap_interval(losses, self.oof["group"])
        return f"{low:.4f} to {high:.4f}"


def read_facts(workspace: Workspace, competition: Competition, folder: Path) -> RunFacts:
    """DataError with too few photos for intervals, StaleError if the photos are others now."""
    is_done = is_predicted(workspace, folder, competition.noise_rate)
    finished = read_run(folder) if is_done else None
    oof, recipe = finished.oof if finished else read_oof(folder), recipe_of(folder)
    looks = read_object(folder / LOOKS)
    return RunFacts(
        workspace=workspace,
        competition=competition,
        folder=folder,
        origin=read_intact(folder / "run.json", read_json, "train"),
        oof=oof.assign(
            loss=per_photo_logit_loss(oof["label"], oof["logit"]),
            is_right=(oof["logit"] > 0) == (oof["label"] > 0.5),
            group=groups_of(workspace, oof),
        ),
        finished=finished,
        photos=Photos(workspace, competition, geometry_of(recipe) if recipe else None),
        looks=looks if looks.get("oof") == file_sha256(folder / "oof.csv")[:10] else {},
    )


def run_page(facts: RunFacts) -> Page:
    """The report of a run. What needs predictions is left out where there are none."""
    oof, origin = facts.oof, facts.origin
    cards = list(largest_losses(facts.photos, oof, facts.folder.name, facts.looks.get("heat", {})))
    share = oof["loss"].nlargest(N_WORST).sum() / oof["loss"].sum()
    other = best_other(facts)
    scores = NumberTable(
        title="Out-of-fold log loss, calibration cross-fitted",
        columns=("", "log loss", "95 % interval"),
        rows=[
            (name, f"{each.mean():.5f}", facts.interval(each))
            for name, each in facts.losses.items()
        ],
    )
    sections = [
        Section(
            title="Worst photos",
            text=f"{share:.0%} of the out-of-fold log loss. The gallery below has {len(cards)}.",
            cards=[replace(card, reason="") for card in cards[:N_WORST]],
        ),
        Section(title="Score", tables=[scores], charts=list(_charts(facts))),
        Section(
            title="Largest losses",
            text="Sort and filter with the controls; arrow keys move between photos, c copies a"
            " line for data/verdicts.csv. A line changes what is learnt, never what is scored.",
            cards=cards,
            has_toolbar=True,
        ),
        near_duplicates(facts.photos, oof),
        *_times(facts),
        Section(
            title="Recipe", text=_recipe_text(facts, other), tables=_recipe_tables(facts, other)
        ),
        Section(title="Origin", tables=[_origin(facts)]),
    ]
    began = f", began {origin['began']}" if "began" in origin else ""
    photos = f"{counted(len(oof), 'labelled photo')} in {counted(oof['fold'].nunique(), 'fold')}"
    return Page(
        title=facts.folder.name,
        subtitle=f"{facts.competition.title}: {photos}{began}",
        tiles=list(_tiles(facts, other)),
        sections=sections,
    )


def _tiles(facts: RunFacts, other: FinishedRun | None) -> Iterator[Tile]:
    finished, losses = facts.finished, list(facts.losses.values())
    yield Tile(
        label="Out-of-fold log loss, raw",
        value=f"{losses[0].mean():.5f}",
        note=f"95 % interval {facts.interval(losses[0])}; {facts.oof['is_right'].mean():.2%} right",
    )
    if finished is None:
        yield Tile(label="Predictions", value="none yet", note="run make predict")
        return
    yield Tile(
        label="As submitted",
        value=f"{losses[-1].mean():.5f}",
        note=f"95 % interval {facts.interval(losses[-1])}; {finished.cv_calibrated:.5f} calibrated,"
        " before noise rate and clip",
    )
    made, best = forecast_run(facts.workspace, facts.competition, finished)
    score, board = made.score, archived_scores(facts.competition)
    place = ""
    if board.size:
        rank, low, high = ranks([score.mean, score.low, score.high], board)
        place = f", rank {rank:,} ({low:,} to {high:,}) of {board.size:,}"
    yield Tile(
        label="Forecast of the public score",
        value=f"{score.mean:.5f}",
        note=f"90 % interval {score.low:.4f} to {score.high:.4f}{place}",
    )
    for row in read_ledger(facts.workspace.ledger):
        if row.file == f"{finished.folder}.csv":
            note = f"submitted {row.when[:10]}"
            note += f"; best other {score_text(best)}" if best else ""
            value = row.status if row.public_score is None else score_text(row)
            yield Tile(label="Public score", value=value, note=note)
    yield _verdict(facts, finished, other)


def best_other(facts: RunFacts) -> FinishedRun | None:
    """The other run of the same photos with the best cross-validation as submitted, if any."""
    if facts.finished is None:
        return None
    for folder in sorted(facts.workspace.runs.glob("*/"), key=_cv):
        with suppress(UserError):  # not predicted, damaged, or of other photos
            if folder != facts.folder:
                run = read_run(folder)
                side_by_side({"ours": facts.oof, "theirs": run.oof})
                return run
    return None


def _cv(folder: Path) -> float:
    """Of a run, as submitted; infinite if that cannot be read."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        return float(read_json(folder / "calibration.json")["cv_clipped"])
    return np.inf


def _verdict(facts: RunFacts, finished: FinishedRun, other: FinishedRun | None) -> Tile:
    label = "Against the best other run"
    if other is None:
        return Tile(label=label, value="-", note="no other run here has the same photos and folds")
    ids, rate = list(facts.oof["id"]), facts.competition.noise_rate
    theirs, ours = (
        board_losses(facts.labels, run.out_of_fold_probs().loc[ids].to_numpy(), rate)
        for run in (other, finished)
    )
    found = gain(theirs, ours, facts.oof["group"])
    words = "no significant difference from"
    if not found.low <= 0 <= found.high:
        words = "better than" if found.low > 0 else "worse than"
    return Tile(
        label=label,
        value=f"{found.mean:+.5f}",
        note=f"{words} {other.folder}; expected gain on the leaderboard, 95 % interval"
        f" {found.low:+.5f} to {found.high:+.5f}",
    )


def _charts(facts: RunFacts) -> Iterator[Chart]:
    folder, oof, classes = facts.folder, facts.oof, facts.competition.classes
    numbers = sorted({int(fold) for fold in oof["fold"]})
    is_split = facts.origin.get("recipe", {}).get("folds", {}).get("split") is not None
    names = {k: ("validation", "test")[k] if is_split else f"fold {k}" for k in numbers}
    yield charts.fold_losses(oof, names)
    paths = {k: folder / f"fold-{k}-history.csv" for k in numbers}
    histories = {k: pd.read_csv(path) for k, path in paths.items() if path.exists()}
    if histories:
        yield charts.learning_curves(histories)
    yield charts.loss_shares(oof["loss"].to_numpy())
    by_name, test_logits = {"before calibration": sigmoid(oof["logit"])}, None
    if facts.finished:
        if facts.finished.settings.method != "none":
            by_name["after calibration"] = facts.calibrated
        test_logits = facts.finished.predictions["logit"].dropna().to_numpy(np.float64)
    yield charts.reliability(facts.labels, by_name, classes[1])
    if facts.finished:
        settings = facts.finished.settings
        yield charts.clip_curve(facts.labels, facts.calibrated, settings, facts.competition)
    yield charts.distribution(oof, test_logits, classes, facts.looks.get("drift"))


def _times(facts: RunFacts) -> Iterator[Section]:
    if "times" in facts.origin:
        times = pd.DataFrame(facts.origin["times"])
        seconds = f"{times['seconds'].sum():,.1f} s of fitting and predicting"
        text = f"{seconds} on {facts.origin['device']}."
        yield Section(title="Time", text=text, charts=[charts.work_times(times)])


def _recipe_text(facts: RunFacts, other: FinishedRun | None) -> str:
    members = facts.origin.get("members")
    if members:
        weights = members.items() if isinstance(members, dict) else ((each, 1) for each in members)
        parts = ", ".join(f"{weight:.3g} {name}" for name, weight in weights)
        return f"A blend by {facts.origin['method']} of {parts}."
    if recipe_of(facts.folder) is None:
        return "Made by another version of this code, which has other options."
    beside = f" or from {other.folder}, the best other run" if other else ""
    return f"Options that differ from the recipe of that name{beside}."


def _recipe_tables(facts: RunFacts, other: FinishedRun | None) -> list[NumberTable]:
    recipe = recipe_of(facts.folder)
    if recipe is None:
        return []
    columns = {"this run": flat(recipe)}
    if recipe.name in RECIPES:
        columns[f"{recipe.name} as named"] = flat(RECIPES[recipe.name]())
    against = recipe_of(facts.workspace.runs / other.folder) if other else None
    if other and against:
        columns[other.folder] = flat(against)
    rows = differing(columns) or [("no option differs", *("" for _ in columns))]
    options = list(flat(recipe).items())
    return [
        NumberTable(title="Differences", columns=("option", *columns), rows=rows, is_text=True),
        NumberTable(title="All options", columns=("", "value"), rows=options, is_folded=True),
    ]


def _origin(facts: RunFacts) -> NumberTable:
    origin = facts.origin
    names = ("fingerprint", "fit_fingerprint", "commit", "began", "device", "weights", "data")
    rows = [(name.replace("_", " "), origin[name]) for name in names if name in origin]
    rows += [(name, version) for name, version in sorted(origin.get("versions", {}).items())]
    files = ("oof.csv", "test.csv", "calibration.json")
    paths = [facts.folder / name for name in files] + [facts.workspace.manifest(s) for s in SPLITS]
    rows += [(f"SHA-256 of {path.name}", file_sha256(path)) for path in paths if path.exists()]
    return NumberTable(title="", columns=("", "value"), rows=rows, is_text=True)
