"""The learning rate in each step: a rise over the warm-up, then one of five shapes; all of them pure functions of the step."""

import math

from comp.recipe import FineTune

ONE_CYCLE_START = 1 / 25  # of the peak, where one-cycle begins; torch's and fastai's default


def learning_rate(step: int, n_steps: int, training: FineTune) -> float:
    """The head's learning rate in step 0 .. n_steps - 1 of `training`."""
    n_warm = training.warmup * n_steps
    if step < n_warm:
        return training.peak_lr * _risen(step, n_warm, training)
    done = (step - n_warm) / max(n_steps - n_warm, 1)
    return training.peak_lr * _left(done, step * training.epochs // n_steps, training)


def _risen(step: int, n_warm: float, training: FineTune) -> float:
    """The share of the peak in a step of the warm-up: a line from 0, or a cosine from ONE_CYCLE_START."""
    if training.schedule == "one-cycle":
        return ONE_CYCLE_START + (1 - ONE_CYCLE_START) * (1 - math.cos(math.pi * step / n_warm)) / 2
    return (step + 1) / (n_warm + 1)


def _left(done: float, epoch: int, training: FineTune) -> float:
    """The share of the peak after the warm-up, of which a fraction `done` in [0, 1) is over; `epoch` counts from 0 and from the start."""
    match training.schedule:
        case "cosine" | "one-cycle":
            return training.final_lr + (1 - training.final_lr) * (1 + math.cos(math.pi * done)) / 2
        case "step":
            return max(training.final_lr, math.pow(training.decay, epoch // training.step_epochs))
        case "exponential":
            return max(training.final_lr, math.pow(training.decay, done))
        case "constant":
            return 1.0
