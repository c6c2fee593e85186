"""A learning rate to begin with: Smith's range test, on a copy of the weights.

The head's learning rate grows by a constant factor per step, over the recipe's own batches,
parameter groups and precision, until the loss diverges. Leaves only runs/lr-<run>-<steps>.png.
Source: Smith 2017, "Cyclical learning rates for training neural networks", section 3.3; the
smoothing, the end at a multiple of the least loss and the two suggestions are fastai's.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from comp.errors import RecipeError, TrainingError
from comp.network.backbone import build
from comp.network.device import find_device
from comp.network.surgery import freeze
from comp.plots import curve_png
from comp.progress import Advance, Reporter, counted
from comp.recipe import FineTune, Recipe
from comp.store import Workspace, derive_seed
from comp.train.batches import Batch
from comp.train.features import FrozenNetwork
from comp.train.finetune import Step
from comp.train.inputs import read_inputs
from comp.train.run import open_run
from comp.train.tuning import NetworkFit, freeze_for

LOWEST, HIGHEST = 1e-6, 1.0
DECAY = 0.9  # of the smoothed loss, per step
# the loss has diverged at this multiple of the least smoothed loss, or of FLOOR if that is larger:
# below it, one odd photo in a batch is a multiple
DIVERGED, FLOOR = 4.0, 0.1
N_NOISY = 10  # first steps, whose smoothed loss averages too few


@dataclass(frozen=True, kw_only=True)
class RangeTest:
    """The learning rate of each step and its loss."""

    rates: NDArray[np.float64]  # [n] of the head, rising
    losses: NDArray[np.float64]  # [n] of the batch before the step
    diverged: bool  # whether it ended before HIGHEST

    @cached_property
    def smoothed(self) -> NDArray[np.float64]:
        return smooth(self.losses)

    @property
    def least(self) -> int:
        """The step with the least smoothed loss."""
        return N_NOISY + int(self.smoothed[N_NOISY:].argmin())

    @property
    def shown(self) -> slice:
        """The steps until the loss rises above where it began: beyond, it dwarfs all else."""
        above = self.smoothed[self.least :] > max(self.smoothed[: self.least + 1].max(), FLOOR)
        return slice(self.least + int(above.argmax()) if above.any() else len(self.losses))

    @property
    def falls(self) -> bool:
        """Whether the loss falls below the first steps' by two standard errors of theirs."""
        first = self.losses[:N_NOISY]
        return bool(self.smoothed[self.least] < first.mean() - 2 * first.std() / N_NOISY**0.5)

    def suggestions(self) -> dict[str, float]:
        """Learning rates by name; the steepest descent per factor of the rate is sought before the
        least loss."""
        slopes = np.gradient(self.smoothed, np.log(self.rates))
        steepest = N_NOISY + int(slopes[N_NOISY : max(self.least, N_NOISY + 1)].argmin())
        rates = {"steepest descent": self.rates[steepest]}
        rates["a tenth of the minimum's"] = self.rates[self.least] / 10
        return rates | ({"divergence": self.rates[-1]} if self.diverged else {})


def smooth(losses: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    """Exponential moving averages of `losses [n]`, corrected so that a constant stays itself."""
    return pd.Series(losses).ewm(alpha=1 - DECAY).mean().to_numpy()


def range_test(
    take_step: Callable[[Tensor, Tensor, float], Tensor],
    batches: Iterable[Batch],
    n_steps: int,
    advance: Advance,
) -> RangeTest:
    """Up to `n_steps` steps from LOWEST to HIGHEST; TrainingError if the loss diverges at once."""
    rates, losses = np.geomspace(LOWEST, HIGHEST, n_steps), list[float]()
    for rate, (arrays, labels) in zip(rates, batches, strict=False):
        loss = float(take_step(arrays, labels, float(rate)))
        advance(note=f"lr {rate:.1e}, loss {loss:.4f}")
        if not math.isfinite(loss):
            break
        losses.append(loss)
        mean = smooth(losses)
        if len(mean) > N_NOISY and mean[-1] > DIVERGED * max(mean[N_NOISY:].min(), FLOOR):
            break
    n = len(losses)
    if n <= N_NOISY:
        raise TrainingError(
            f"the loss is not finite after {counted(n, 'step')}, at a learning rate of"
            f" {rates[n]:.1e}: check the weights"
        )
    return RangeTest(rates=rates[:n], losses=np.array(losses), diverged=n < n_steps)


def find_lr(
    workspace: Workspace, recipe: Recipe, device: str | None, reporter: Reporter, n_steps: int = 100
) -> RangeTest:
    """The range test of fold 0 of `recipe`, printed and drawn; RecipeError if it takes no steps."""
    training = recipe.training
    if not isinstance(training, FineTune):
        raise RecipeError(
            f"{recipe.name} solves its head and has no learning rate to find: name a recipe that"
            " fine-tunes"
        )
    if n_steps < 3 * N_NOISY:
        raise RecipeError(f"a range test takes at least {3 * N_NOISY} steps, got {n_steps}")
    where = find_device(device)
    network = build(recipe.model, size_px=recipe.pixels.size_px)  # refused before any work
    freeze(network, training.trainable)  # so are layers that it does not have
    inputs = read_inputs(open_run(workspace, recipe), reporter, with_test=False)
    fit = NetworkFit(FrozenNetwork(inputs, device, reporter, network=network))
    n_training = int(inputs.training_rows(0).sum())
    per_epoch = n_training // min(training.batch_size, n_training)
    training = training.replace(epochs=math.ceil(n_steps / per_epoch))
    network = fit.start(0)
    freeze_for(training, network, 0, fit.frozen)
    batches = fit.batches(0, training, derive_seed(recipe.seed, "fine-tune", 0, 0))
    with torch.random.fork_rng(devices=[where.where] if where.is_cuda else []):
        torch.manual_seed(derive_seed(recipe.seed, "range test"))
        take_step = Step(network, training, inputs.preprocessing_for(0), where)
        with reporter.track("range test", n_steps, "steps") as advance:
            found = range_test(take_step, batches, n_steps, advance)
    _print(found, workspace.runs / f"lr-{inputs.run.name}-{n_steps}.png", reporter)
    return found


def _print(found: RangeTest, path: Path, reporter: Reporter) -> None:
    """Draw the curve, to `path` and on the terminal, and name what it suggests."""
    rates, smoothed = found.rates[found.shown], found.smoothed[found.shown]
    curves = {"smoothed loss": smoothed, "loss of each batch": found.losses[found.shown]}
    labels = {"x_label": "learning rate of the head", "y_label": "training loss"}
    curve_png(path, rates, curves, found.suggestions(), title=path.stem, **labels)
    reporter.say(
        f"lr {LOWEST:.0e} to {found.rates[-1]:.0e}, drawn to {rates[-1]:.0e}; smoothed loss"
        f" {smoothed[N_NOISY]:.4f} after {N_NOISY} steps, least {smoothed[found.least]:.4f},"
        f" {found.smoothed[-1]:.4f} at the end"
    )
    marks = "; ".join(f"{name} {rate:.1e}" for name, rate in found.suggestions().items())
    reporter.say(marks + ("" if found.diverged else f"; no divergence up to {HIGHEST:g}"))
    reporter.say(f"curve in {path}")
    if not found.falls:
        reporter.warn(
            "the loss hardly falls, because the solved head is good already; only the divergence"
            " is informative: try training.head_start=false"
        )
