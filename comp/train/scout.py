"""Which backbone deserves a fine-tune: frozen features of each under a solved head, in a budget.

Features are computed without mirroring and cached where `make train` looks for them. Then those of
the best backbones are put side by side. The table is in runs/scout.csv, whole after each backbone.
"""

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray

from comp.data.manifest import read_manifest
from comp.errors import UserError
from comp.metric import bootstrap_interval, gain, per_photo_logit_loss
from comp.network.backbone import build
from comp.network.device import find_device
from comp.network.preprocessing import preprocessing_of
from comp.network.views import CENTRE
from comp.network.weights import PACKAGED
from comp.options import override
from comp.progress import Advance, Reporter
from comp.recipe import Folds, Head, Model, Pixels, Recipe
from comp.store import Workspace, write_table
from comp.train.features import FrozenNetwork
from comp.train.inputs import read_inputs
from comp.train.labels import select
from comp.train.run import open_run
from comp.train.solver import out_of_fold

N_PHOTOS = 2000  # enough to tell .03 from .02, and a few minutes on a CPU
MAX_TOGETHER = 4  # backbones whose features are put side by side
FASTER = 1.5  # times, from which on another backbone is named beside the best
RATE_S = 3.0  # that progress is watched before its rate is believed
HEAD = Head(views="none")


class OutOfTimeError(UserError):
    """The time budget is too small for what was begun."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """A backbone, or several side by side, as far as it came."""

    name: str
    note: str = ""  # why it was not scored
    # out-of-fold log loss [n] of each photo, if it was scored
    losses: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    features: NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0), np.float32))
    photo_s: float = np.inf  # seconds per photo that its features take
    n_parameters: int = 0
    n_together: int = 1

    @property
    def loss(self) -> float:
        return float(self.losses.mean()) if self.losses.size else np.nan


def scout(
    workspace: Workspace,
    backbones: Sequence[str] | None,
    device: str | None,
    reporter: Reporter,
    *,
    budget: str,
    settings: Sequence[str] = (),
) -> pd.DataFrame:
    """Try each of `backbones`, a timm name or NAME=FILE, on the same photos; the table, best first.

    None: those whose weights are packaged. `settings` override what is common to all, such as
    pixels.size_px=320. A backbone that has no weights or does not fit into the `budget` keeps its
    row, with the reason. The budget may be overrun by one batch, one fold's head, or a download.
    """
    clock = Clock(seconds_of(budget))
    recipes = [_recipe(text, settings) for text in dict.fromkeys(backbones or PACKAGED)]
    find_device(device)  # as this does an unknown device
    for recipe in recipes:
        preprocessing_of(recipe)  # refuses unknown names before any work
    photos = select(read_manifest(workspace.manifest("train")), recipes[0].folds, recipes[0].seed)
    tried: list[Tried] = []
    for recipe in recipes:
        tried.append(_try(workspace, recipe, device, clock))
        _write(workspace, tried, photos)
    singles = _best_first(tried)
    if not singles:
        raise UserError(
            f"none of {len(tried)} backbones could be scored; {tried[0].name}: {tried[0].note}"
        )
    for n_together in range(2, min(len(singles), MAX_TOGETHER) + 1):
        tried.append(_side_by_side(singles[:n_together], photos, clock))
    table = _write(workspace, tried, photos)
    n_folds = photos["fold"].nunique()
    title = f"frozen features under a solved head, {len(photos):,} photos, {n_folds} folds"
    _print(table, title, reporter)
    for line in advice(tried, photos["group"]):
        reporter.say(line)
    return table


def _recipe(text: str, settings: Sequence[str]) -> Recipe:
    """The preprocessing of the head recipes, so that features are shared with them."""
    backbone, _, weights = text.partition("=")
    recipe = Recipe(
        name="scout",
        model=Model(backbone=backbone, weights=weights or None),
        pixels=Pixels(fit="shorter", canvas=1.0),
        folds=Folds(n_photos=N_PHOTOS),
        training=HEAD,
    )
    return override(recipe, settings)


def _try(workspace: Workspace, recipe: Recipe, device: str | None, clock: "Clock") -> Tried:
    name = recipe.model.backbone
    try:
        clock.check()
        network = build(recipe.model, size_px=recipe.pixels.size_px)
        n_parameters = sum(parameter.numel() for parameter in network.parameters())
        inputs = read_inputs(open_run(workspace, recipe), clock, with_test=False)
        frozen = FrozenNetwork(inputs, device, clock, network=network)
        photo_s = _seconds_per_photo(frozen, clock)
        features = frozen.mean_features(inputs.ids, [CENTRE])
        losses = _losses(features, inputs.photos, clock)
    except (UserError, torch.OutOfMemoryError) as error:
        return Tried(name=name, note=str(error).splitlines()[0])
    return Tried(
        name=name, losses=losses, features=features, photo_s=photo_s, n_parameters=n_parameters
    )


def _seconds_per_photo(frozen: FrozenNetwork, clock: "Clock") -> float:
    """From two batches after a first to warm up; cached features would take no time."""
    pixels, size, ended = frozen.inputs.pixels, frozen.embedder.batch_size, []
    rows = [row % len(pixels) for row in range(3 * size)]
    for _ in frozen.embedder.embed_photos(pixels, rows, CENTRE):
        ended.append(time.monotonic())
        clock.check()
    return (ended[-1] - ended[0]) / (2 * size)


def _losses(
    features: NDArray[np.float32], photos: pd.DataFrame, clock: "Clock"
) -> NDArray[np.float64]:
    logits = out_of_fold(features, photos.assign(target=photos["label"]), HEAD, 0, clock)
    return per_photo_logit_loss(photos["label"], logits)


def _side_by_side(parts: Sequence[Tried], photos: pd.DataFrame, clock: "Clock") -> Tried:
    name = " + ".join(part.name for part in parts)
    try:
        clock.check()
        losses = _losses(np.hstack([part.features for part in parts]), photos, clock)
    except UserError as error:
        return Tried(name=name, note=str(error))
    return Tried(
        name=name,
        losses=losses,
        photo_s=sum(part.photo_s for part in parts),
        n_parameters=sum(part.n_parameters for part in parts),
        n_together=len(parts),
    )


def pareto(losses: ArrayLike, costs: ArrayLike) -> NDArray[np.bool_]:
    """Which of n have a finite loss and are not dominated in `losses [n]` and `costs [n]`."""
    loss, cost = np.asarray(losses, np.float64), np.asarray(costs, np.float64)
    no_worse = (loss[:, None] <= loss) & (cost[:, None] <= cost)
    better = (loss[:, None] < loss) | (cost[:, None] < cost)
    return np.isfinite(loss) & ~(no_worse & better).any(0)


def _write(workspace: Workspace, tried: Sequence[Tried], photos: pd.DataFrame) -> pd.DataFrame:
    """runs/scout.csv, best first; the log loss is empty where a backbone could not be scored."""
    front = pareto([one.loss for one in tried], [one.photo_s for one in tried])
    rows = []
    for one, on_front in zip(tried, front, strict=True):
        low, high = np.nan, np.nan
        if one.losses.size:
            low, high = bootstrap_interval(one.losses, photos["group"], seed=0)
        row = {"backbone": one.name, "log_loss": one.loss, "low": low, "high": high}
        row |= {"photos_per_s": 1 / one.photo_s, "n_parameters": one.n_parameters}
        rows.append(row | {"front": on_front, "n_photos": len(photos), "note": one.note})
    table = pd.DataFrame(rows).sort_values("log_loss", kind="stable")
    write_table(workspace.runs / "scout.csv", table)
    return table


def _print(table: pd.DataFrame, title: str, reporter: Reporter) -> None:
    rows = []
    for row in table[table["note"] == ""].to_dict("records"):
        interval = f"{row['low']:.4f} to {row['high']:.4f}"
        speed, size = f"{row['photos_per_s']:,.1f}", f"{row['n_parameters'] / 1e6:.1f}"
        rows.append((row["backbone"] + " *" * row["front"], row["log_loss"], interval, speed, size))
    columns = ("", "log loss", "95 %", "photos/s", "M weights")
    reporter.table(f"{title}; * nothing else is better and as fast", columns, rows)
    for row in table[table["note"] != ""].to_dict("records"):
        reporter.warn(f"{row['backbone']} is not scored: {row['note']}")


def _best_first(tried: Sequence[Tried]) -> list[Tried]:
    return sorted((one for one in tried if one.losses.size), key=lambda one: one.loss)


def advice(tried: Sequence[Tried], groups: ArrayLike) -> list[str]:
    """Whether features side by side beat the best backbone, and, last, which one to fine-tune."""
    scored, lines = _best_first(tried), []
    best, *others = (one for one in scored if one.n_together == 1)
    together = next((one for one in scored if one.n_together > 1), None)
    if together:
        found = gain(best.losses, together.losses, groups)
        worse = f"does not measurably beat {best.name} alone"
        outcome = worse if found.low <= 0 else "beats every single backbone"
        lines.append(f"side by side, {together.name} {outcome}: a gain of {found}")
    line = f"fine-tune {best.name}: log loss {best.loss:.5f}"
    faster = [one for one in others if FASTER * one.photo_s <= best.photo_s]
    rivals = [one for one in faster if gain(one.losses, best.losses, groups).low <= 0]
    if rivals:
        fast = min(rivals, key=lambda one: one.photo_s)
        lost = gain(fast.losses, best.losses, groups)
        times = f"{best.photo_s / fast.photo_s:.1f} times as fast"
        line += f"; or {fast.name}, {times} and not measurably worse: {lost}"
    return [*lines, line]


def seconds_of(text: str) -> float:
    """The seconds in `text`, such as 90s, 10m or 1.5h; UserError if it is something else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text.strip())
    if not found or not float(found[1]):
        raise UserError(f"a budget reads 90s, 10m or 1.5h, got {text!r}")
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2]]


class Clock(Reporter):
    """A reporter that ends work that cannot end within `budget_s`."""

    def __init__(self, budget_s: float) -> None:
        super().__init__()
        self._end = time.monotonic() + budget_s

    def check(self, needed_s: float = 0.0) -> None:
        """OutOfTimeError unless `needed_s` seconds are left."""
        left = self._end - time.monotonic()
        if left <= needed_s:
            needed = f", about {needed_s:.0f} s needed" if needed_s else ""
            raise OutOfTimeError(f"no time: {max(left, 0):.0f} s of the budget left{needed}")

    @contextmanager
    def track(self, label: str, total: int, unit: str) -> Iterator[Advance]:
        """As the reporter's; the first step warms up and does not count for the rate."""
        done, first = 0, (0.0, 0)
        with super().track(label, total, unit) as inner:

            def advance(n: int = 1, note: str = "") -> None:
                nonlocal done, first
                done += n
                inner(n, note)
                now = time.monotonic()
                first = first if first[1] else (now, done)
                took = now - first[0]
                self.check(took * (total - done) / (done - first[1]) if took > RATE_S else 0.0)

            yield advance
