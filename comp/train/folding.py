"""Batch norms in evaluation mode, folded into the convolutions before them."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights


@torch.no_grad()
def fold_batch_norm(network: nn.Module, example: Tensor) -> int:
    """How many batch norms of `network`, changed in place, went into the convolution whose output alone feeds them.

    Pairs are found by watching one forward pass of `example [n, 3, s, s]`, so that any architecture is understood. In float32 the result
    is the same up to rounding (about 1e-5 in pooled features). The network must be in evaluation mode and must not be trained afterwards.
    """
    assert not network.training
    pairs = _watched_pairs(network, example)
    for conv, norm_name in pairs:
        norm: Any = network.get_submodule(norm_name)
        weight, bias = fuse_conv_bn_weights(conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
        conv.weight, conv.bias = weight, bias
        parent, _, leaf = norm_name.rpartition(".")
        setattr(network.get_submodule(parent), leaf, _rest_of(norm))
    return len(pairs)


def _watched_pairs(network: nn.Module, example: Tensor) -> list[tuple[nn.Conv2d, str]]:
    made: dict[int, tuple[Tensor, nn.Conv2d, int]] = {}  # the tensor is kept, so that its id is not given to another
    uses: dict[nn.Module, int] = {}
    pairs: list[tuple[nn.Conv2d, str]] = []

    def after_conv(module: nn.Module, _: Any, output: Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        uses[module] = uses.get(module, 0) + 1
        made[id(output)] = (output, module, output._version)

    def before_norm(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            uses[module] = uses.get(module, 0) + 1
            if id(inputs[0]) in made:
                pairs.append((made[id(inputs[0])][1], name))

        return hook

    hooks = []
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            hooks.append(module.register_forward_hook(after_conv))
        elif isinstance(module, nn.BatchNorm2d):
            hooks.append(module.register_forward_pre_hook(before_norm(name)))
    network(example)
    for hook in hooks:
        hook.remove()
    once = {conv for conv, _ in pairs if [c for c, _ in pairs].count(conv) == 1}
    return [(conv, name) for conv, name in pairs if conv in once and uses[conv] == 1 and uses[network.get_submodule(name)] == 1]


def _rest_of(norm: nn.Module) -> nn.Module:
    """What a norm did besides: timm's BatchNormAct2d carries the activation and a dropout that evaluation skips."""
    act = getattr(norm, "act", None)
    return act if isinstance(act, nn.Module) else nn.Identity()
