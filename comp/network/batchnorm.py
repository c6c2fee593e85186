"""Batch norms in evaluation mode, fused into the convolutions before them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

Kinds = tuple[type[nn.Module], ...]


@torch.no_grad()
def fuse_batch_norm(
    network: nn.Module, run: Callable[[], object], exclude: str | None = None
) -> int:
    """Fuse each batch norm of `network` into the convolution that alone feeds it; how many.

    In place. Pairs are found by watching `run` take one image through the network, or its first
    part, so that any architecture works; the module `exclude` is left alone. In float32 the result
    is the same up to rounding (about 1e-5 in pooled features). Needs evaluation mode.
    """
    assert not network.training
    pairs = trace_convolutions(network, run, (nn.BatchNorm2d,), exclude).followers
    for conv_name, norm_name in pairs.items():
        conv: Any = network.get_submodule(conv_name)
        norm: Any = network.get_submodule(norm_name)
        statistics = (norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
        weight, bias = fuse_conv_bn_weights(conv.weight, conv.bias, *statistics)
        conv.weight, conv.bias = weight, bias
        # timm's BatchNormAct2d carries the activation, and a dropout that evaluation skips
        act = getattr(norm, "act", None)
        network.set_submodule(norm_name, act if isinstance(act, nn.Module) else nn.Identity())
    return len(pairs)


@dataclass(frozen=True, slots=True)
class Trace:
    """What one forward pass shows of a network's convolutions that run once, by name."""

    followers: dict[str, str]  # the module that alone receives a convolution's output
    shapes: dict[str, tuple[int, ...]]  # of the convolution's input


def trace_convolutions(
    network: nn.Module, run: Callable[[], object], kinds: Kinds, exclude: str | None = None
) -> Trace:
    """Which modules of `kinds` receive a convolution's output unchanged while `run` runs."""
    outputs: dict[int, tuple[Tensor, str, int]] = {}  # keeps the tensors, so that ids stay unique
    n_calls: dict[str, int] = {}
    pairs: list[tuple[str, str]] = []
    shapes: dict[str, tuple[int, ...]] = {}

    def after_convolution(name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            n_calls[name] = n_calls.get(name, 0) + 1
            shapes[name] = tuple(inputs[0].shape)
            outputs[id(output)] = (output, name, output._version)

        return hook

    def before_follower(name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            n_calls[name] = n_calls.get(name, 0) + 1
            output = outputs.get(id(inputs[0]))
            if output and output[0]._version == output[2]:  # nothing was added to it in place
                pairs.append((output[1], name))

        return hook

    hooks = []
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            hooks.append(module.register_forward_hook(after_convolution(name)))
        elif isinstance(module, kinds) and name != exclude:
            hooks.append(module.register_forward_pre_hook(before_follower(name)))
    try:
        # tensors count their versions only outside inference mode
        with torch.inference_mode(False), torch.no_grad():
            run()
    finally:
        for handle in hooks:
            handle.remove()
    receivers = [conv for conv, _ in pairs]
    alone = {
        conv: name
        for conv, name in pairs
        if receivers.count(conv) == n_calls[conv] == n_calls[name] == 1
    }
    return Trace(alone, {conv: shape for conv, shape in shapes.items() if n_calls[conv] == 1})
