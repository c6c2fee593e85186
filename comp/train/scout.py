"""Which backbone deserves a fine-tune: the features of each, frozen, under a solved head, in five folds and within a budget of time.

A backbone's features are computed once, without mirroring, and kept where `make train` looks for them. Then the features of the best ones
are laid side by side, as ypwhs did for .04141 on this board. The table is in runs/scout.csv, whole after each backbone.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray

from comp.data.manifest import read_manifest
from comp.errors import UserError
from comp.metric import bootstrap_interval, gain, per_photo_logit_loss
from comp.options import override
from comp.progress import Reporter
from comp.recipe import Folds, Head, Model, Pixels, Recipe
from comp.store import Workspace, write_table
from comp.train.backbone import build, input_of
from comp.train.budget import Clock
from comp.train.device import Device
from comp.train.features import BATCH, BATCH_GPU, Embedder
from comp.train.run import open_run
from comp.train.selection import select
from comp.train.stage import out_of_fold
from comp.train.workbench import Workbench, open_workbench

N_PHOTOS = 2000  # enough to tell .03 from .02, and a few minutes on a CPU
MOST_TOGETHER = 4  # backbones whose features are laid side by side
FASTER = 1.5  # times, from which on another backbone is named beside the best
HEAD = Head(views="none")
COLUMNS = (
    "backbone",
    "log_loss",
    "low",
    "high",
    "photos_per_s",
    "n_parameters",
    "front",
    "n_photos",
    "note",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """A backbone, or several side by side, as far as it came."""

    name: str
    note: str = ""  # why it was not scored
    losses: NDArray[np.float64] = field(
        default_factory=lambda: np.empty(0)
    )  # out-of-fold log loss [n] of each photo, if it was scored
    features: NDArray[np.float32] = field(
        default_factory=lambda: np.empty((0, 0), np.float32)
    )  # [n, d]
    photo_s: float = np.inf  # seconds that its features take, a photo
    n_parameters: int = 0
    n_together: int = 1

    @property
    def loss(self) -> float:
        return float(self.losses.mean()) if self.losses.size else np.inf


def scout(
    workspace: Workspace,
    backbones: Sequence[str],
    device: Device,
    reporter: Reporter,
    *,
    budget_s: float,
    settings: Sequence[str] = (),
) -> pd.DataFrame:
    """Try each of `backbones`, a timm name or NAME=FILE with its weights, on the same photos; the table, best first.

    `settings` are overrides of what is common to all, such as pixels.size_px=320 or folds.n_photos=5000. A backbone that has no weights or
    does not fit into the budget keeps its row, with the reason. A step is not interrupted: the budget may be overrun by one batch, one
    fold's head, or a download.
    """
    clock = Clock(reporter, budget_s)
    recipes = [_recipe(text, settings) for text in dict.fromkeys(backbones)]
    for recipe in recipes:
        input_of(recipe.model)  # refuses a name that timm does not know before any work
    photos = select(read_manifest(workspace.manifest("train")), recipes[0].folds, recipes[0].seed)
    tried: list[Tried] = []
    for recipe in recipes:
        tried.append(_try(workspace, recipe, device, clock))
        _write(workspace, tried, photos)
    singles = sorted((one for one in tried if one.losses.size), key=lambda one: one.loss)
    if not singles:
        raise UserError(
            f"none of {len(tried)} backbones could be scored; {tried[0].name}: {tried[0].note}"
        )
    for n_together in range(2, min(len(singles), MOST_TOGETHER) + 1):
        tried.append(_side_by_side(singles[:n_together], photos, clock))
    table = _write(workspace, tried, photos)
    _show(
        table,
        f"frozen features under a solved head, {len(photos):,} photos, {photos['fold'].nunique()} folds",
        reporter,
    )
    for line in advice(tried, photos["group"]):
        reporter.say(line)
    return table


def _recipe(text: str, settings: Sequence[str]) -> Recipe:
    """What the head recipes of comp/recipes.py see, so that features are shared with them."""
    backbone, _, weights = text.partition("=")
    model, pixels = (
        Model(backbone=backbone, weights=weights or None),
        Pixels(fit="shorter", canvas=1.0),
    )
    return override(
        Recipe(
            name="scout", model=model, pixels=pixels, folds=Folds(n_photos=N_PHOTOS), training=HEAD
        ),
        settings,
    )


def _try(workspace: Workspace, recipe: Recipe, device: Device, clock: Clock) -> Tried:
    name = recipe.model.backbone
    try:
        clock.check()
        network = build(recipe.model, size_px=recipe.pixels.size_px)
        n_parameters = sum(parameter.numel() for parameter in network.parameters())
        bench = open_workbench(open_run(workspace, recipe), device, clock, with_test=False)
        embedder, _ = bench.embedder(network)
        photo_s = _seconds_a_photo(bench, embedder, clock)
        features = bench.mean_features(embedder, list(bench.photos["id"]), bench.views("none"))
        losses = _losses(features, bench.photos, clock)
    except (UserError, torch.OutOfMemoryError) as error:
        return Tried(name=name, note=str(error).splitlines()[0])
    return Tried(
        name=name, losses=losses, features=features, photo_s=photo_s, n_parameters=n_parameters
    )


def _seconds_a_photo(bench: Workbench, embedder: Embedder, clock: Clock) -> float:
    """Of two batches after a first that warms up; measured each time, because cached features take none."""
    size = BATCH_GPU if bench.device.is_cuda else BATCH
    ended = []
    for _ in embedder.features(
        bench.pixels, [row % len(bench.pixels) for row in range(3 * size)], bench.views("none")[0]
    ):
        ended.append(time.monotonic())
        clock.check()
    return (ended[-1] - ended[0]) / (2 * size)


def _losses(
    features: NDArray[np.float32], photos: pd.DataFrame, clock: Clock
) -> NDArray[np.float64]:
    logits = out_of_fold(features, photos.assign(target=photos["label"]), HEAD, 0, clock)
    return per_photo_logit_loss(photos["label"], logits)


def _side_by_side(parts: Sequence[Tried], photos: pd.DataFrame, clock: Clock) -> Tried:
    name = " + ".join(part.name for part in parts)
    try:
        clock.check()
        losses = _losses(np.hstack([part.features for part in parts]), photos, clock)
    except UserError as error:
        return Tried(name=name, note=str(error))
    photo_s, n_parameters = (
        sum(part.photo_s for part in parts),
        sum(part.n_parameters for part in parts),
    )
    return Tried(
        name=name, losses=losses, photo_s=photo_s, n_parameters=n_parameters, n_together=len(parts)
    )


def pareto(losses: ArrayLike, costs: ArrayLike) -> NDArray[np.bool_]:
    """Which of n have a finite loss and no other that is at least as good in `losses [n]` and `costs [n]` and better in one of them."""
    loss, cost = np.asarray(losses, np.float64), np.asarray(costs, np.float64)
    no_worse = (loss[:, None] <= loss) & (cost[:, None] <= cost)
    better = (loss[:, None] < loss) | (cost[:, None] < cost)
    return np.isfinite(loss) & ~(no_worse & better).any(0)


def _write(workspace: Workspace, tried: Sequence[Tried], photos: pd.DataFrame) -> pd.DataFrame:
    """runs/scout.csv, best first; log loss and its 95 % interval are empty where a backbone could not be scored."""
    rows = []
    front = pareto([one.loss for one in tried], [one.photo_s for one in tried])
    for one, on_front in zip(tried, front, strict=True):
        low, high = (
            bootstrap_interval(one.losses, photos["group"], seed=0)
            if one.losses.size
            else (np.nan, np.nan)
        )
        rows.append(
            (
                one.name,
                one.loss,
                low,
                high,
                1 / one.photo_s,
                one.n_parameters,
                on_front,
                len(photos),
                one.note,
            )
        )
    table = (
        pd.DataFrame(rows, columns=list(COLUMNS))
        .sort_values("log_loss", kind="stable")
        .replace({"log_loss": np.inf}, np.nan)
    )
    write_table(workspace.runs / "scout.csv", table)
    return table


def _show(table: pd.DataFrame, title: str, reporter: Reporter) -> None:
    rows = []
    for row in table[table["note"] == ""].to_dict("records"):
        name = row["backbone"] + " *" * row["front"]
        figures = (
            f"{row['low']:.4f} to {row['high']:.4f}",
            f"{row['photos_per_s']:,.1f}",
            f"{row['n_parameters'] / 1e6:.1f}",
        )
        rows.append((name, row["log_loss"], *figures))
    reporter.table(
        f"{title}; * nothing else is better and as fast",
        ("", "log loss", "95 %", "photos/s", "M weights"),
        rows,
    )
    for row in table[table["note"] != ""].to_dict("records"):
        reporter.warn(f"{row['backbone']} is not scored: {row['note']}")


def advice(tried: Sequence[Tried], groups: ArrayLike) -> list[str]:
    """Whether features side by side beat the best single backbone, and, last, which backbone to fine-tune."""
    scored = sorted((one for one in tried if one.losses.size), key=lambda one: one.loss)
    singles, together = (
        [one for one in scored if one.n_together == 1],
        [one for one in scored if one.n_together > 1],
    )
    best, lines = singles[0], []
    if together:
        found = gain(best.losses, together[0].losses, groups)
        verdict = (
            "beats every single backbone"
            if found.low > 0
            else f"does not measurably beat {best.name} alone"
        )
        lines.append(f"side by side, {together[0].name} {verdict}: a gain of {found}")
    line = f"fine-tune {best.name}: log loss {best.loss:.5f}"
    rivals = [
        one
        for one in singles[1:]
        if FASTER * one.photo_s <= best.photo_s and gain(one.losses, best.losses, groups).low <= 0
    ]
    if rivals:
        fast = min(rivals, key=lambda one: one.photo_s)
        lost = gain(fast.losses, best.losses, groups)
        line += f"; or {fast.name}, {best.photo_s / fast.photo_s:.1f} times as fast and not measurably worse: {lost}"
    return [*lines, line]
