"""Optimisers by name: torch's own four, and any other that timm has."""

from typing import Any

import torch
from torch import nn

from comp.recipe import FineTune
from comp.train.backbone import parameter_groups, timm_optimiser


def make_optimiser(network: nn.Module, training: FineTune) -> torch.optim.Optimizer:
    """The optimiser that `training` names, of the parameters of `network` that train.

    Each group carries `lr_scale`, its share of the head's learning rate: of a head alone, all of it. RecipeError if neither torch nor timm
    has the optimiser.
    """
    if hasattr(network, "pretrained_cfg"):
        return _named(
            training,
            parameter_groups(
                network, weight_decay=training.weight_decay, layer_decay=training.layer_decay
            ),
        )
    matrices, vectors = (
        [p for p in network.parameters() if (p.ndim > 1) == is_matrix]
        for is_matrix in (True, False)
    )
    decayed = {"params": matrices, "weight_decay": training.weight_decay, "lr_scale": 1.0}
    return _named(training, [decayed, {"params": vectors, "weight_decay": 0.0, "lr_scale": 1.0}])


def refuse_unknown(training: FineTune) -> None:
    """RecipeError if there is no such optimiser."""
    _named(training, [{"params": [torch.zeros(1, requires_grad=True)]}])


def _named(training: FineTune, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    fused = {parameter.device.type for group in groups for parameter in group["params"]} <= {
        "cpu",
        "cuda",
    }
    match training.optimiser:
        case "sgd":
            return torch.optim.SGD(
                groups,
                training.peak_lr,
                momentum=training.momentum,
                nesterov=training.nesterov,
                fused=fused,
            )
        case "rmsprop":
            return torch.optim.RMSprop(groups, training.peak_lr, momentum=training.momentum)
        case "adam":
            return torch.optim.Adam(groups, training.peak_lr, fused=fused)
        case "adamw":
            return torch.optim.AdamW(groups, training.peak_lr, fused=fused)
        case other:
            return timm_optimiser(other, groups, lr=training.peak_lr, momentum=training.momentum)
