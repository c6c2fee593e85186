"""Batch norms in evaluation mode, fused into the convolutions before them."""

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

Kinds = tuple[type[nn.Module], ...]
Shape = tuple[int, ...]
_OFF = 1e-12  # a batch norm's weight below which its channel is constant


@torch.no_grad()
def fuse_batch_norm(network: nn.Module, run: Callable[[], object]) -> int:
    """Fuse each batch norm of `network` into the convolution that alone feeds it; how many.

    In place; see also `unfuse_batch_norm`. Pairs are found by watching `run` take one image through
    the network, or its first part, so that any architecture works. In float32 the result is the
    same up to rounding (about 1e-5 in pooled features). Needs evaluation mode.
    """
    assert not network.training
    pairs = _pairs(network, run)
    for conv_name, norm_name in pairs:
        conv: Any = network.get_submodule(conv_name)
        norm: Any = network.get_submodule(norm_name)
        statistics = (norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
        weight, bias = fuse_conv_bn_weights(conv.weight, conv.bias, *statistics)
        conv.weight, conv.bias = weight, bias
        # timm's BatchNormAct2d carries the activation, and a dropout that evaluation skips
        act = getattr(norm, "act", None)
        network.set_submodule(norm_name, act if isinstance(act, nn.Module) else nn.Identity())
    return len(pairs)


@torch.no_grad()
def unfuse_batch_norm(
    state: dict[str, Tensor], network: nn.Module, run: Callable[[], object]
) -> dict[str, Tensor]:
    """The state with which `network` computes what it does with `state` once it is fused.

    `state` may have been trained since. A batch norm keeps its statistics and scale, so that it can
    be trained by others; a channel that it scales by 0 gets a scale of 1.
    """
    own = network.state_dict()
    result = {name: state.get(name, value) for name, value in own.items()}
    for conv_name, norm_name in _pairs(network, run):
        conv: Any = network.get_submodule(conv_name)
        norm: Any = network.get_submodule(norm_name)
        kept = (norm.running_mean, norm.running_var, norm.weight)
        mean, variance, weight = (each.clone() for each in kept)
        is_off = weight.abs() < _OFF
        mean[is_off], variance[is_off], weight[is_off] = 0, 1, 1
        scale = weight * torch.rsqrt(variance + norm.eps)
        shift = (0 if conv.bias is None else conv.bias) - mean
        result |= {
            f"{conv_name}.weight": state[f"{conv_name}.weight"] / scale[:, None, None, None],
            f"{norm_name}.bias": state[f"{conv_name}.bias"] - shift * scale,
            f"{norm_name}.weight": weight,
            f"{norm_name}.running_mean": mean,
            f"{norm_name}.running_var": variance,
        }
        if conv.bias is not None:
            result[f"{conv_name}.bias"] = own[f"{conv_name}.bias"]
    return result


def _pairs(network: nn.Module, run: Callable[[], object]) -> list[tuple[str, str]]:
    """Names of convolutions and the batch norms that are fused into them."""
    pairs, _ = trace_convolutions(network, run, (nn.BatchNorm2d,))
    return [
        (conv, norm)
        for conv, norm in pairs.items()
        if [name for name, _ in network.get_submodule(norm).named_parameters()]
        == ["weight", "bias"]
    ]


def trace_convolutions(
    network: nn.Module, run: Callable[[], object], kinds: Kinds
) -> tuple[dict[str, str], dict[str, Shape]]:
    """Of the convolutions that run once while `run` runs, by name: followers, and input shapes.

    A follower is the module of `kinds` that alone receives a convolution's output, unchanged.
    """
    names = {module: name for name, module in network.named_modules()}
    outputs: dict[int, tuple[Tensor, str, int]] = {}  # keeps the tensors, so that ids stay unique
    n_calls = Counter[str]()
    pairs: list[tuple[str, str]] = []
    shapes: dict[str, Shape] = {}

    def after_convolution(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        name = names[module]
        n_calls[name] += 1
        shapes[name] = tuple(inputs[0].shape)
        outputs[id(output)] = (output, name, output._version)

    def before_follower(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        n_calls[names[module]] += 1
        output = outputs.get(id(inputs[0]))
        if output and output[0]._version == output[2]:  # nothing was added to it in place
            pairs.append((output[1], names[module]))

    # tensors count their versions only outside inference mode
    with ExitStack() as hooks, torch.inference_mode(False), torch.no_grad():
        for module in names:
            if isinstance(module, nn.Conv2d):
                hooks.enter_context(module.register_forward_hook(after_convolution))
            elif isinstance(module, kinds):
                hooks.enter_context(module.register_forward_pre_hook(before_follower))
        run()
    n_received = Counter(conv for conv, _ in pairs)
    followers = {
        conv: name
        for conv, name in pairs
        if n_received[conv] == n_calls[conv] == n_calls[name] == 1
    }
    return followers, {conv: shape for conv, shape in shapes.items() if n_calls[conv] == 1}
