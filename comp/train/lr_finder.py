"""A learning rate to begin with: Smith's range test, on a copy of the weights.

The head's learning rate grows by a constant factor a step, over the recipe's own batches, parameter groups and precision, until the loss
diverges. Nothing is kept but runs/lr-<recipe>.png. Source: Smith 2017, "Cyclical learning rates for training neural networks", section 3.3;
the smoothing, the end at a multiple of the least loss and the two suggestions are those that fastai made common.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from comp.errors import RecipeError, TrainingError
from comp.plots import curve_png, text_curve
from comp.progress import Advance, Reporter
from comp.recipe import FineTune, Head, Recipe
from comp.seeds import derive_seed
from comp.store import Workspace
from comp.train.backbone import build
from comp.train.batches import Batch
from comp.train.device import Device
from comp.train.finetune import Step
from comp.train.run import open_run
from comp.train.selection import learners
from comp.train.stage import begin_fold, head_start, solved_head
from comp.train.workbench import Workbench, open_workbench

LOWEST, HIGHEST = 1e-6, 1.0
N_STEPS = 100
DECAY = 0.9  # of the smoothed loss, a step
DIVERGED, FLOOR = (
    4.0,
    0.1,
)  # times the least smoothed loss, or times FLOOR: below it, one odd photo in a batch is a multiple
N_NOISY = 10  # first steps, of which the smoothed loss is the mean of too few to be trusted


@dataclass(frozen=True, slots=True, kw_only=True)
class RangeTest:
    """What each step was taken with and what it cost."""

    rates: NDArray[np.float64]  # [n] of the head, rising
    losses: NDArray[np.float64]  # [n] of the batch before the step
    diverged: bool  # whether it ended before HIGHEST

    @property
    def smoothed(self) -> NDArray[np.float64]:
        return smoothed(self.losses)

    @property
    def least(self) -> int:
        """The step with the least smoothed loss."""
        return N_NOISY + int(self.smoothed[N_NOISY:].argmin())

    @property
    def falls(self) -> bool:
        """Whether the loss falls below that of the first steps by more than two standard errors of theirs."""
        first = self.losses[:N_NOISY]
        return bool(self.smoothed[self.least] < first.mean() - 2 * first.std() / N_NOISY**0.5)

    @property
    def steepest(self) -> float:
        """The learning rate, before the least loss, at which the loss falls fastest a factor of learning rate."""
        slopes = np.gradient(self.smoothed, np.log(self.rates))
        return float(
            self.rates[N_NOISY + int(slopes[N_NOISY : max(self.least, N_NOISY + 1)].argmin())]
        )

    @property
    def tenth(self) -> float:
        """A tenth of the learning rate at the least loss."""
        return float(self.rates[self.least]) / 10


def smoothed(losses: ArrayLike) -> NDArray[np.float64]:
    """Exponential moving averages of `losses [n]`, free of the bias towards 0 that they begin with: a constant stays itself."""
    total, means = 0.0, []
    for step, loss in enumerate(np.asarray(losses, np.float64), start=1):
        total = DECAY * total + (1 - DECAY) * float(loss)
        means.append(total / (1 - DECAY**step))
    return np.array(means)


def range_test(
    take_step: Callable[[Tensor, Tensor, float], Tensor],
    batches: Iterable[Batch],
    n_steps: int,
    advance: Advance,
) -> RangeTest:
    """Take `n_steps` steps from LOWEST to HIGHEST, or fewer where the loss diverges. TrainingError where it does so from the start."""
    rates, losses = np.geomspace(LOWEST, HIGHEST, n_steps), list[float]()
    for rate, (squares, labels) in zip(rates, batches, strict=False):
        losses.append(float(take_step(squares, labels, float(rate))))
        advance(note=f"lr {rate:.1e}, loss {losses[-1]:.4f}")
        mean = smoothed(losses)
        if not math.isfinite(losses[-1]) or (
            len(mean) > N_NOISY and mean[-1] > DIVERGED * max(mean[N_NOISY:].min(), FLOOR)
        ):
            break
    finite = [loss for loss in losses if math.isfinite(loss)]
    if len(finite) <= N_NOISY:
        raise TrainingError(
            f"the loss is not finite after {len(finite)} steps, at a learning rate of {rates[len(finite)]:.1e}: check the weights"
        )
    return RangeTest(
        rates=rates[: len(finite)],
        losses=np.array(finite),
        diverged=len(losses) < n_steps or len(finite) < n_steps,
    )


def find_lr(
    workspace: Workspace,
    recipe: Recipe,
    device: Device,
    reporter: Reporter,
    *,
    n_steps: int = N_STEPS,
) -> RangeTest:
    """The range test of fold 0 of `recipe`, shown and drawn; RecipeError if it takes no steps."""
    training = recipe.training
    if not isinstance(training, FineTune):
        raise RecipeError(
            f"{recipe.name} solves its head, without steps: it has no learning rate to find; name a recipe that fine-tunes"
        )
    if n_steps < 3 * N_NOISY:
        raise RecipeError(f"a range test takes at least {3 * N_NOISY} steps, got {n_steps}")
    network = build(recipe.model, size_px=recipe.pixels.size_px)
    bench = open_workbench(open_run(workspace, recipe), device, reporter, with_test=False)
    head = (
        solved_head(head_start(bench, network), bench.photos, 0, Head(), recipe.seed)
        if training.head_start
        else None
    )
    n_learnt = int(learners(bench.photos, 0).sum())
    training = training.replace(
        epochs=math.ceil(n_steps / (n_learnt // min(training.batch_size, n_learnt)))
    )
    network, batches = begin_fold(bench, 0, training, head)
    with torch.random.fork_rng(devices=[device.where] if device.is_cuda else []):
        torch.manual_seed(derive_seed(recipe.seed, "range test"))
        with reporter.track("range test", n_steps, "steps") as advance:
            found = range_test(
                Step(network, training, bench.shown_for(0), device), batches, n_steps, advance
            )
    _show(bench, found, training, reporter)
    return found


def _show(bench: Workbench, found: RangeTest, training: FineTune, reporter: Reporter) -> None:
    marks = {"steepest descent": found.steepest, "a tenth of the minimum's": found.tenth}
    if found.diverged:
        marks["divergence"] = float(found.rates[-1])
    path, name = bench.run.workspace.runs / f"lr-{bench.recipe.name}.png", bench.recipe.name
    curves = {"smoothed loss": found.smoothed, "loss of each batch": found.losses}
    curve_png(
        path,
        found.rates,
        curves,
        marks,
        title=f"range test of {name}",
        x_label="learning rate of the head",
        y_label="training loss",
    )
    lines = text_curve(found.smoothed)
    for line in lines:
        reporter.say(line)
    reporter.say(f"{f'lr {LOWEST:.0e}':{len(lines[0]) - 8}}{found.rates[-1]:8.0e}")
    least, n_steps = found.smoothed[found.least], len(found.rates)
    reporter.say(
        f"smoothed loss: {found.smoothed[N_NOISY]:.4f} after {N_NOISY} steps, least {least:.4f}, {found.smoothed[-1]:.4f} after {n_steps}"
    )
    reporter.say(
        "; ".join(f"{mark} {rate:.1e}" for mark, rate in marks.items())
        + ("" if found.diverged else f"; no divergence up to {HIGHEST:g}")
    )
    if not found.falls:
        reporter.warn(
            "the loss hardly falls, so only its divergence tells something: a solved head is there already; try training.head_start=false"
        )
    reporter.say(f"training.peak_lr is {training.peak_lr:g}; curve in {path}")
