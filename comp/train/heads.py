"""Heads that are not solved: layers that gradients train, and support vectors. On features, each is a function to one logit."""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from comp.recipe import HeadShape
from comp.train.head import LinearHead

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}


class FeatureHead(Protocol):
    """What every kind of head can do."""

    def logits(self, features: Tensor) -> Tensor:
        """Logits [n], float64 on the CPU, of `features [n, d]`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LayeredHead:
    """Hidden layers and a linear one, as training left them."""

    layers: nn.Module

    def logits(self, features: Tensor) -> Tensor:
        weight = next(self.layers.parameters())
        with torch.inference_mode():
            logits: Tensor = self.layers(features.to(weight))
        return logits[:, 0].double().cpu()


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelHead:
    """logit = slope * (sum over supports of dual * exp(-gamma |x - support|^2)) + bias, where x = (features - mean) / scale; float64."""

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


def make_layers(n_features: int, shape: HeadShape, seed: int) -> nn.Module:
    """The untrained head [n, d] -> [n, 1] of `shape`, which says 0.5 of everything; `seed` is of its hidden layers' weights."""
    layers: list[nn.Module] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for width in shape.widths:
            layers += [
                nn.Linear(n_features, width),
                ACTIVATIONS[shape.activation](),
                nn.Dropout(shape.dropout),
            ]
            n_features = width
        if shape.dropout and not shape.widths:
            layers.append(nn.Dropout(shape.dropout))
        layers.append(nn.Linear(n_features, 1))
    nn.init.zeros_(last_of(layers[-1]).weight)
    nn.init.zeros_(last_of(layers[-1]).bias)
    return nn.Sequential(*layers) if len(layers) > 1 else layers[0]


def last_of(head: nn.Module) -> nn.Linear:
    """The layer of `head` that gives the logit."""
    last = head[-1] if isinstance(head, nn.Sequential) else head
    assert isinstance(last, nn.Linear)
    return last


def set_head(network: Any, shape: HeadShape, seed: int) -> None:
    """Give `network`, whose head is one linear layer, a head of `shape`."""
    network.set_submodule(
        network.pretrained_cfg["classifier"],
        make_layers(network.get_classifier().in_features, shape, seed),
    )


def start_from(head: nn.Module, solved: LinearHead) -> None:
    """Put the `solved` weights into `head`, which is linear."""
    with torch.no_grad():
        last_of(head).weight.copy_(solved.weight[None])
        last_of(head).bias.copy_(solved.bias[None])


def finished(head: nn.Module) -> FeatureHead:
    """What training left in `head`: in a formula if it is linear, as layers if it is not."""
    head.eval()
    last = last_of(head)
    if sum(isinstance(module, nn.Linear) for module in head.modules()) > 1:
        return LayeredHead(layers=head)
    return LinearHead(
        weight=last.weight.detach().double().cpu()[0],
        bias=last.bias.detach().double().cpu()[0],
        penalty=0.0,
    )


def tensors_of(head: FeatureHead) -> dict[str, Tensor]:
    """Everything that `head_from` needs, to be kept as safetensors."""
    if isinstance(head, LayeredHead):
        return dict(head.layers.state_dict())
    if isinstance(head, KernelHead):
        return {name: getattr(head, name) for name in KernelHead.__dataclass_fields__}
    assert isinstance(head, LinearHead)
    return {
        "weight": head.weight,
        "bias": head.bias,
        "penalty": torch.tensor(head.penalty, dtype=torch.float64),
    }


def head_from(tensors: dict[str, Tensor], shape: HeadShape) -> FeatureHead:
    """The head that `tensors_of` took apart; `shape` is of layers, if it has any."""
    if "penalty" in tensors:
        return LinearHead(
            weight=tensors["weight"], bias=tensors["bias"], penalty=float(tensors["penalty"])
        )
    if "support" in tensors:
        return KernelHead(**tensors)
    layers = make_layers(tensors["0.weight"].shape[1], shape, seed=0)
    layers.load_state_dict(tensors)
    return LayeredHead(layers=layers.eval())
