"""Heads that are layers, trained by gradients."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from comp.network.device import Room
from comp.network.heads import FeatureHead, LinearHead, Numbers, arrays_of
from comp.recipe import HeadShape

N_AT_ONCE = 256  # photos that a module is given at once
ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleHead:
    """Trained layers, or the last part of a network on cached activations; in evaluation mode."""

    module: nn.Module
    room: Room = field(default_factory=lambda: Room(N_AT_ONCE))

    def logits(self, features: NDArray[np.float32]) -> Numbers:
        weight, given = next(self.module.parameters()), torch.from_numpy(features)

        def run(n_photos: int) -> Tensor:
            return torch.cat(
                [self.module(part.to(weight))[:, 0] for part in torch.split(given, n_photos)]
            )

        with torch.inference_mode():
            return self.room.run(run).double().cpu().numpy()


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
        last_layer(head).weight.copy_(torch.from_numpy(solved.weight)[None])
        last_layer(head).bias.fill_(float(solved.bias))


def trained_head(layers: nn.Module) -> FeatureHead:
    """A trained head: as a formula if it is linear, else as its layers."""
    layers.eval()
    if sum(isinstance(module, nn.Linear) for module in layers.modules()) > 1:
        return ModuleHead(module=layers)
    last = last_layer(layers)
    weight, bias = (value.detach().double().cpu()[0] for value in (last.weight, last.bias))
    return LinearHead(weight=weight.numpy(), bias=bias.numpy())


def arrays_of_layers(layers: nn.Module) -> dict[str, NDArray[Any]]:
    """What is saved of a trained head: everything that `layers_from` or `head_from` needs."""
    head = trained_head(layers)
    if isinstance(head, LinearHead):
        return arrays_of(head)
    return {name: value.detach().cpu().numpy() for name, value in layers.state_dict().items()}


def layers_from(arrays: dict[str, NDArray[Any]], shape: HeadShape) -> ModuleHead:
    """The trained layers of `shape` whose state is `arrays`."""
    layers = make_layers(arrays["0.weight"].shape[1], shape, seed=0)
    layers.load_state_dict({name: torch.from_numpy(value) for name, value in arrays.items()})
    return ModuleHead(module=layers.eval())
