"""Optimisers by name, and the learning rate of each step as a pure function."""

import math
from typing import Any

import torch
from torch import nn

from comp.network.backbone import parameter_groups, timm_optimiser
from comp.recipe import FineTune

ONE_CYCLE_START = 1 / 25  # of the peak, where one-cycle begins; torch's and fastai's default


def make_optimiser(network: nn.Module, training: FineTune) -> torch.optim.Optimizer:
    """The optimiser that `training` names, for a network of timm's or for a head alone.

    Each group carries `lr_scale`, its factor on the head's learning rate. RecipeError if neither
    torch nor timm has the optimiser.
    """
    decay = training.weight_decay
    if hasattr(network, "pretrained_cfg"):
        groups = parameter_groups(network, weight_decay=decay, layer_decay=training.layer_decay)
        return _named(training, groups)
    matrices = [value for value in network.parameters() if value.ndim > 1]
    vectors = [value for value in network.parameters() if value.ndim <= 1]
    decayed = {"params": matrices, "weight_decay": decay, "lr_scale": 1.0}
    return _named(training, [decayed, {"params": vectors, "weight_decay": 0.0, "lr_scale": 1.0}])


def check_optimiser(training: FineTune) -> None:
    """RecipeError if there is no such optimiser."""
    _named(training, [{"params": [torch.zeros(1, requires_grad=True)]}])


def _named(training: FineTune, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    kinds = {parameter.device.type for group in groups for parameter in group["params"]}
    fused, lr, momentum = kinds <= {"cpu", "cuda"}, training.peak_lr, training.momentum
    match training.optimiser:
        case "sgd":
            nesterov = training.nesterov
            return torch.optim.SGD(groups, lr, momentum=momentum, nesterov=nesterov, fused=fused)
        case "rmsprop":
            return torch.optim.RMSprop(groups, lr, momentum=momentum)
        case "adam":
            return torch.optim.Adam(groups, lr, fused=fused)
        case "adamw":
            return torch.optim.AdamW(groups, lr, fused=fused)
        case other:
            return timm_optimiser(other, groups, lr=lr, momentum=momentum)


def learning_rate(step: int, n_steps: int, training: FineTune) -> float:
    """The head's learning rate in step 0 .. n_steps - 1 of `training`."""
    n_warm = training.warmup * n_steps
    if step < n_warm:
        return training.peak_lr * _warmup(step, n_warm, training)
    done = (step - n_warm) / max(n_steps - n_warm, 1)
    return training.peak_lr * _after_warmup(done, step * training.epochs // n_steps, training)


def _warmup(step: int, n_warm: float, training: FineTune) -> float:
    """The share of the peak in a step of the warm-up: a line from 0, or half a cosine."""
    if training.schedule == "one-cycle":
        risen = (1 - math.cos(math.pi * step / n_warm)) / 2
        return ONE_CYCLE_START + (1 - ONE_CYCLE_START) * risen
    return (step + 1) / (n_warm + 1)


def _after_warmup(done: float, epoch: int, training: FineTune) -> float:
    """The share of the peak after a fraction `done` in [0, 1) of the rest, in `epoch` from 0."""
    match training.schedule:
        case "cosine" | "one-cycle":
            return training.final_lr + (1 - training.final_lr) * (1 + math.cos(math.pi * done)) / 2
        case "step":
            return max(training.final_lr, math.pow(training.decay, epoch // training.step_epochs))
        case "exponential":
            return max(training.final_lr, math.pow(training.decay, done))
        case "constant":
            return 1.0
