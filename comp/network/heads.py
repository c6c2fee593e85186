"""Heads: functions from features to one logit. Solved, trained by gradients, or support vectors."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from comp.recipe import HeadShape

N_AT_ONCE = 256  # photos that a module is given at once
ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh}


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearHead:
    """logit = features @ weight + bias, for raw features, in float64."""

    weight: Tensor  # [d]
    bias: Tensor  # []
    penalty: float = 0.0  # the L2 penalty that inner folds chose; 0: it was not solved

    def logits(self, features: Tensor) -> Tensor:
        return features.double() @ self.weight + self.bias


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleHead:
    """Trained layers, or the last part of a network on cached activations; in evaluation mode."""

    module: nn.Module

    def logits(self, features: Tensor) -> Tensor:
        weight = next(self.module.parameters())
        parts = torch.split(features, N_AT_ONCE)
        with torch.inference_mode():
            logits = torch.cat([self.module(part.to(weight))[:, 0] for part in parts])
        return logits.double().cpu()


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelHead:
    """logit = slope * (sum over supports of dual * exp(-gamma |x - support|^2)) + bias.

    x = (features - mean) / scale, all in float64.
    """

    mean: Tensor  # [d]
    scale: Tensor  # [d]
    support: Tensor  # [s, d]
    dual: Tensor  # [s]
    gamma: Tensor  # []
    slope: Tensor  # []
    bias: Tensor  # []

    def logits(self, features: Tensor) -> Tensor:
        distance = torch.cdist((features.double() - self.mean) / self.scale, self.support)
        return self.slope * (torch.exp(-self.gamma * distance.square()) @ self.dual) + self.bias


# `logits` gives float64 [n] on the CPU, of features [n, d] or of a tail's activations
FeatureHead = LinearHead | ModuleHead | KernelHead


def make_layers(n_features: int, shape: HeadShape, seed: int) -> nn.Module:
    """An untrained head [n, d] -> [n, 1], zero for every photo; `seed` is of its hidden layers."""
    layers: list[nn.Module] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for width in shape.widths:
            activation = ACTIVATIONS[shape.activation]()
            layers += [nn.Linear(n_features, width), activation, nn.Dropout(shape.dropout)]
            n_features = width
        if shape.dropout and not shape.widths:
            layers.append(nn.Dropout(shape.dropout))
        last = nn.Linear(n_features, 1)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(*layers, last) if layers else last


def last_layer(head: nn.Module) -> nn.Linear:
    """The layer of `head` that computes the logit."""
    last = head[-1] if isinstance(head, nn.Sequential) else head
    assert isinstance(last, nn.Linear)
    return last


def set_head(network: Any, shape: HeadShape, seed: int) -> None:
    """Give `network`, whose head is one linear layer, a head of `shape`."""
    layers = make_layers(network.get_classifier().in_features, shape, seed)
    network.set_submodule(network.pretrained_cfg["classifier"], layers)


def start_from(head: nn.Module, solved: LinearHead) -> None:
    """Copy the `solved` weights into `head`, which is linear."""
    with torch.no_grad():
        last_layer(head).weight.copy_(solved.weight[None])
        last_layer(head).bias.copy_(solved.bias[None])


def trained_head(layers: nn.Module) -> FeatureHead:
    """A trained head: as a formula if it is linear, else as its layers."""
    layers.eval()
    if sum(isinstance(module, nn.Linear) for module in layers.modules()) > 1:
        return ModuleHead(module=layers)
    last = last_layer(layers)
    weight, bias = (value.detach().double().cpu()[0] for value in (last.weight, last.bias))
    return LinearHead(weight=weight, bias=bias)


def tensors_of(head: FeatureHead) -> dict[str, Tensor]:
    """Everything that `head_from` needs."""
    if isinstance(head, ModuleHead):
        return dict(head.module.state_dict())
    if isinstance(head, KernelHead):
        return {name: getattr(head, name) for name in KernelHead.__dataclass_fields__}
    penalty = torch.tensor(head.penalty, dtype=torch.float64)
    return {"weight": head.weight, "bias": head.bias, "penalty": penalty}


def head_from(tensors: dict[str, Tensor], shape: HeadShape) -> FeatureHead:
    """The head that `tensors_of` took apart; `shape` is that of its layers, if it has any."""
    if "penalty" in tensors:
        return LinearHead(**tensors | {"penalty": float(tensors["penalty"])})  # type: ignore[arg-type]
    if "support" in tensors:
        return KernelHead(**tensors)
    layers = make_layers(tensors["0.weight"].shape[1], shape, seed=0)
    layers.load_state_dict(tensors)
    return ModuleHead(module=layers.eval())
