"""Convolutions on a CPU that apply the activation after them while their output is in the cache.

The operations are oneDNN's, those that torch's own compiler emits for CPUs; put in place of modules
they need no compiling. Where memory is the limit, as in convolutions of few channels, this is worth
more than any arithmetic: Lite0 embeds 338 photos a second instead of 214, and trains on 35 instead
of 31 in float32, on 48 in bfloat16 (LOG.md).
"""

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from comp.network.backbone import embed, explicit_padding
from comp.network.batchnorm import Kinds, Shape, trace_convolutions

# Largest relative change of a network's output: another order of summation, in either precision,
# and one precision in place of the other.
_FLOAT_TOLERANCE, _BF16_TOLERANCE, _MIXED_TOLERANCE = 1e-4, 0.02, 0.10
_N_TRIED = 4  # photos that it is measured on
# raised by layers in float32 that refuse bfloat16, and by code that reads a convolution's padding
_UNSUITABLE = (RuntimeError, AttributeError)
Pad = Callable[[Tensor], Tensor]
Run = Callable[[nn.Module, Tensor], Tensor]
Activation = tuple[str, list[float], str]  # oneDNN's name of it, its numbers, its algorithm
Make = Callable[[Any, Pad, Activation, Shape], nn.Module | None]

_NONE: Activation = ("none", [], "")
_ACTIVATIONS: dict[type[Any], Callable[[Any], Activation]] = {
    nn.ReLU: lambda _: ("relu", [], ""),
    nn.ReLU6: lambda _: ("hardtanh", [0.0, 6.0], ""),
    nn.SiLU: lambda _: ("swish", [], ""),
    nn.Hardswish: lambda _: ("hardswish", [], ""),
    nn.GELU: lambda act: ("gelu", [], act.approximate),
}
# activations whose gradient follows from their output: it is 1 between these
_BOUNDED = (nn.ReLU, nn.ReLU6)
_BOUNDS = {"relu": (0.0, math.inf), "hardtanh": (0.0, 6.0)}


def is_available() -> bool:
    """Whether torch has these operations on this machine."""
    return torch._C._has_mkldnn and hasattr(torch.ops.mkldnn, "_convolution_pointwise")


def packed(network: nn.Module, example: Tensor, run: Run) -> nn.Module:
    """A copy of `network` for inference: activations fused, weights laid out as oneDNN wants them.

    `example [n, 3, s, s]` has the precision and size that `run` will be given. The network itself
    where oneDNN is missing or would change its output.
    """
    if not is_available():
        return network
    changed, some = copy.deepcopy(network), example[:_N_TRIED]

    def pack(conv: Any, pad: Pad, act: Activation, shape: Shape) -> nn.Module:
        return _PackedConv(conv, pad, act, (len(example), *shape[1:]))

    try:
        _replace(changed, lambda: run(changed, some), tuple(_ACTIVATIONS), pack)
        tolerance = _BF16_TOLERANCE if example.dtype == torch.bfloat16 else _FLOAT_TOLERANCE
        is_same = _is_close(run(changed, some), run(network, some), tolerance)
    except (*_UNSUITABLE, MemoryError):  # or oneDNN has no bfloat16 for this CPU, or no room
        is_same = False
    return changed if is_same else network


@torch.no_grad()
def fuse_activations(network: Any, example: Tensor, *, half: bool = False) -> int:
    """Let convolutions apply the activation after them, trained as before; how many changed.

    In place; parameters keep their names and stay in float32. Only activations whose gradient
    follows from their output are fused, so that nothing else is stored. `half` computes
    convolutions in bfloat16, other than the gradients of depthwise ones, which oneDNN is slow at.
    0 where oneDNN is missing or would change the output for `example [n, 3, s, s]`, on the CPU.
    """
    if not is_available():
        return 0

    def fuse(conv: Any, pad: Pad, act: Activation, _: Shape) -> nn.Module | None:
        return _FusedConv(conv, pad, act, half) if half or act != _NONE else None

    before = embed(network, example)
    replaced = _replace(network, lambda: embed(network, example), _BOUNDED, fuse)
    tolerance = _MIXED_TOLERANCE if half else _FLOAT_TOLERANCE
    try:
        is_same = _is_close(embed(network, example), before, tolerance)
    except _UNSUITABLE:
        is_same = False
    if not is_same:
        for name, module in replaced.items():
            network.set_submodule(name, module)
        return 0
    if half and replaced:
        network.get_classifier().register_forward_pre_hook(_as_float)
    return sum(isinstance(module, nn.Conv2d) for module in replaced.values())


def _as_float(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (inputs[0].float(), *inputs[1:])


def _replace(
    network: nn.Module, run: Callable[[], object], kinds: Kinds, make: Make
) -> dict[str, nn.Module]:
    """Put what `make` gives in place of convolutions and activations; what was there, by name."""
    replaced = {}
    followers, shapes = trace_convolutions(network, run, kinds)
    for name, shape in shapes.items():
        conv, follower = network.get_submodule(name), followers.get(name)
        act, pad = network.get_submodule(follower) if follower else None, explicit_padding(conv)
        # a class of somebody's own may do something else than the one it derives from
        fused = _ACTIVATIONS[type(act)](act) if type(act) in _ACTIVATIONS else _NONE
        made = make(conv, pad, fused, shape) if pad else None
        if made:
            replaced[name] = conv
            network.set_submodule(name, made)
            if follower and act and fused != _NONE:
                replaced[follower] = act
                network.set_submodule(follower, nn.Identity())
    return replaced


def _is_close(output: Tensor, expected: Tensor, tolerance: float) -> bool:
    change = (output.float() - expected.float()).norm()
    return bool(change <= tolerance * expected.float().norm())


class _PackedConv(nn.Module):
    """A convolution and its activation, for inference."""

    def __init__(self, conv: nn.Conv2d, pad: Pad, act: Activation, shape: Shape) -> None:
        super().__init__()
        self._geometry, self._pad, self._act = _geometry(conv), pad, act
        padded = list(pad(torch.empty(shape, device="meta")).shape)
        self._weight = torch.ops.mkldnn._reorder_convolution_weight(
            conv.weight.detach(), *self._geometry, padded
        )
        self._bias = conv.bias.detach() if conv.bias is not None else None

    def forward(self, images: Tensor) -> Tensor:
        output: Tensor = torch.ops.mkldnn._convolution_pointwise(
            self._pad(images), self._weight, self._bias, *self._geometry, *self._act
        )
        return output


class _FusedConv(nn.Module):
    """A convolution and its activation, for training; its parameters are those of `conv`."""

    def __init__(self, conv: nn.Conv2d, pad: Pad, act: Activation, half: bool) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        self._pad, self._settings = pad, (_geometry(conv), act, _BOUNDS.get(act[0]), half)

    def forward(self, images: Tensor) -> Tensor:
        output: Tensor = _ConvActivation.apply(
            self._pad(images), self.weight, self.bias, self._settings
        )
        return output


def _geometry(conv: nn.Conv2d) -> tuple[Any, ...]:
    return list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups


class _ConvActivation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, images: Tensor, weight: Tensor, bias: Tensor | None, settings: tuple[Any, ...]
    ) -> Tensor:
        geometry, act, bounds, half = settings
        ctx.settings, ctx.bias_sizes = settings, [len(bias)] if bias is not None else None
        dtype = torch.bfloat16 if half else torch.float32
        images = images.to(dtype)
        parameters = (weight.to(dtype), bias.to(dtype) if bias is not None else None)
        output: Tensor = torch.ops.mkldnn._convolution_pointwise(
            images, *parameters, *geometry, *act
        )
        # the output is kept only where the gradient needs it: elsewhere a shortcut may be added to
        # it in place
        ctx.save_for_backward(images, weight, *([output] if bounds else []))
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        images, weight, *output = ctx.saved_tensors
        (padding, stride, dilation, groups), _, bounds, half = ctx.settings
        gradient = gradients[0]
        if bounds:
            gradient = torch.ops.aten.hardtanh_backward(gradient, *output, *bounds)
        dtype = torch.bfloat16 if half and groups == 1 else torch.float32
        needed = [*ctx.needs_input_grad[:2], bool(ctx.bias_sizes) and ctx.needs_input_grad[2]]
        geometry = (ctx.bias_sizes, stride, padding, dilation, False, [0, 0], groups)
        results = torch.ops.aten.convolution_backward(
            gradient.to(dtype), images.to(dtype), weight.to(dtype), *geometry, needed
        )
        return (*results, None)  # autograd casts each to the dtype of its input
