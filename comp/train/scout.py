"""Which backbone deserves a fine-tune: frozen features of each under a solved head, in a budget.

Features are computed without mirroring and cached where `make train` looks for them. The table is
in runs/scout.csv, whole after each backbone. `make blend METHOD=features` puts the features of
several backbones side by side.
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
FASTER = 1.5  # times, from which on another backbone is named beside the best
RATE_S = 3.0  # that progress is watched before its rate is believed
HEAD = Head(views="none")


class OutOfTimeError(UserError):
    """The time budget is too small for what was begun."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """A backbone, as far as it came."""

    name: str
    note: str = ""  # why it was not scored
    # out-of-fold log loss [n] of each photo, if it was scored
    losses: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    photo_s: float = np.inf  # seconds per photo that its features take
    n_parameters: int = 0

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
    photos = select(read_manifest(workspace.manifest("train")), recipes[0].folds)
    tried: list[Tried] = []
    for recipe in recipes:
        tried.append(_try(workspace, recipe, device, clock))
        table = _write(workspace, tried, photos)
    if table["log_loss"].isna().all():
        raise UserError(
            f"no backbone could be scored ({len(tried)} tried); {tried[0].name}: {tried[0].note}"
        )
    n_folds = photos["fold"].nunique()
    title = f"frozen features under a solved head, {len(photos):,} photos, {n_folds} folds"
    _print(table, title, reporter)
    reporter.say(advice(tried, photos["group"]))
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
        logits = out_of_fold(features, inputs.photos, HEAD, 0, clock)
        losses = per_photo_logit_loss(inputs.photos["label"], logits)
    except (UserError, torch.OutOfMemoryError) as error:
        return Tried(name=name, note=str(error).splitlines()[0])
    return Tried(name=name, losses=losses, photo_s=photo_s, n_parameters=n_parameters)


def _seconds_per_photo(frozen: FrozenNetwork, clock: "Clock") -> float:
    """From two batches after a first to warm up; cached features would take no time."""
    pixels, size, ended = frozen.inputs.pixels, frozen.embedder.batch_size, []
    rows = [row % len(pixels) for row in range(3 * size)]
    for _ in frozen.embedder.embed_photos(pixels, rows, CENTRE):
        ended.append(time.monotonic())
        clock.check()
    return (ended[-1] - ended[0]) / (2 * size)


def _write(workspace: Workspace, tried: Sequence[Tried], photos: pd.DataFrame) -> pd.DataFrame:
    """runs/scout.csv, best first; the log loss is empty where a backbone could not be scored."""
    rows = []
    for one in tried:
        low, high = np.nan, np.nan
        if one.losses.size:
            low, high = bootstrap_interval(one.losses, photos["group"])
        row = {"backbone": one.name, "log_loss": one.loss, "low": low, "high": high}
        row |= {"photos_per_s": 1 / one.photo_s, "n_parameters": one.n_parameters}
        rows.append(row | {"n_photos": len(photos), "note": one.note})
    table = pd.DataFrame(rows).sort_values("log_loss", kind="stable")
    write_table(workspace.runs / "scout.csv", table)
    return table


def _print(table: pd.DataFrame, title: str, reporter: Reporter) -> None:
    rows = []
    for row in table[table["note"] == ""].to_dict("records"):
        interval = f"{row['low']:.4f} to {row['high']:.4f}"
        speed, size = f"{row['photos_per_s']:,.1f}", f"{row['n_parameters'] / 1e6:.1f}"
        rows.append((row["backbone"], row["log_loss"], interval, speed, size))
    columns = ("", "log loss", "95 %", "photos/s", "M weights")
    reporter.table(title, columns, rows)
    for row in table[table["note"] != ""].to_dict("records"):
        reporter.warn(f"{row['backbone']} is not scored: {row['note']}")


def advice(tried: Sequence[Tried], groups: ArrayLike) -> str:
    """Which backbone to fine-tune: the best, and one that is faster and not measurably worse."""
    scored = (one for one in tried if one.losses.size)
    best, *others = sorted(scored, key=lambda one: one.loss)
    line = f"fine-tune {best.name}: log loss {best.loss:.5f}"
    faster = [one for one in others if FASTER * one.photo_s <= best.photo_s]
    rivals = [one for one in faster if gain(one.losses, best.losses, groups).low <= 0]
    if rivals:
        fast = min(rivals, key=lambda one: one.photo_s)
        lost = gain(fast.losses, best.losses, groups)
        times = f"{best.photo_s / fast.photo_s:.1f} times as fast"
        line += f"; or {fast.name}, {times} and not measurably worse: {lost}"
    return line


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
