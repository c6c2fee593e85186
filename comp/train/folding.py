"""Batch norms in evaluation mode, folded into the convolutions before them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights


@torch.no_grad()
def fold_batch_norm(network: nn.Module, run: Callable[[], object], keep: str | None = None) -> int:
    """How many batch norms of `network`, changed in place, went into the convolution whose output alone feeds them.

    Pairs are found by watching `run` take one picture through the network, or through its first part, so that any architecture is
    understood; the module called `keep` is no part of it. In float32 the result is the same up to rounding (about 1e-5 in pooled features).
    The network must be in evaluation mode.
    """
    assert not network.training
    pairs = watch(network, run, (nn.BatchNorm2d,), keep).pairs
    for conv_name, norm_name in pairs.items():
        conv: Any = network.get_submodule(conv_name)
        norm: Any = network.get_submodule(norm_name)
        weight, bias = fuse_conv_bn_weights(
            conv.weight,
            conv.bias,
            norm.running_mean,
            norm.running_var,
            norm.eps,
            norm.weight,
            norm.bias,
        )
        conv.weight, conv.bias = weight, bias
        put(network, norm_name, _rest_of(norm))
    return len(pairs)


@dataclass(frozen=True, slots=True)
class Watched:
    """What one forward pass shows of a network's convolutions, by name."""

    pairs: dict[str, str] = field(
        default_factory=dict
    )  # the module that a convolution's output is given to, where each runs once
    shapes: dict[str, tuple[int, ...]] = field(
        default_factory=dict
    )  # of the input of those that run once


def watch(
    network: nn.Module,
    run: Callable[[], object],
    kinds: tuple[type[nn.Module], ...],
    keep: str | None = None,
) -> Watched:
    """Which modules of `kinds`, but for `keep`, are given a convolution's output, as it was made, while `run` runs `network`."""
    made: dict[
        int, tuple[Tensor, str, int]
    ] = {}  # the tensor is kept, so that its id is not given to another
    uses: dict[str, int] = {}
    pairs: list[tuple[str, str]] = []
    shapes: dict[str, tuple[int, ...]] = {}

    def after_conv(name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            uses[name] = uses.get(name, 0) + 1
            shapes[name] = tuple(inputs[0].shape)
            made[id(output)] = (output, name, output._version)

        return hook

    def before(name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            uses[name] = uses.get(name, 0) + 1
            if (
                id(inputs[0]) in made and inputs[0]._version == made[id(inputs[0])][2]
            ):  # a shortcut that was added in place makes another
                pairs.append((made[id(inputs[0])][1], name))

        return hook

    hooks = []
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            hooks.append(module.register_forward_hook(after_conv(name)))
        elif isinstance(module, kinds) and name != keep:
            hooks.append(module.register_forward_pre_hook(before(name)))
    try:
        with (
            torch.inference_mode(False),
            torch.no_grad(),
        ):  # only so do tensors count what happens to them
            run()
    finally:
        for handle in hooks:
            handle.remove()
    convs = [conv for conv, _ in pairs]
    return Watched(
        pairs={
            conv: name for conv, name in pairs if convs.count(conv) == uses[conv] == uses[name] == 1
        },
        shapes={conv: shape for conv, shape in shapes.items() if uses[conv] == 1},
    )


def put(network: nn.Module, name: str, module: nn.Module) -> None:
    """Let `module` be the one called `name` in `network`."""
    parent, _, leaf = name.rpartition(".")
    setattr(network.get_submodule(parent), leaf, module)


def _rest_of(norm: nn.Module) -> nn.Module:
    """What a norm did besides: timm's BatchNormAct2d carries the activation and a dropout that evaluation skips."""
    act = getattr(norm, "act", None)
    return act if isinstance(act, nn.Module) else nn.Identity()
