"""Changes to a backbone's extent: cut at a layer, or frozen up to one."""

import warnings
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

import torch
from timm.models import create_feature_extractor, group_parameters
from timm.optim import auto_group_layers
from torch import Tensor, nn
from torch.fx.proxy import TraceError

from comp.errors import RecipeError
from comp.recipe import Model

_BELOW = "below"  # a cut network's name for its backbone; no timm 1.0.31 network has such a module


def cut(network: Any, model: Model, size_px: int) -> "CutNetwork":
    """`network` up to `model.layer`; RecipeError if it has no such layer or cannot be traced."""
    assert model.layer is not None
    _module_index(network, model.layer)
    example = torch.zeros(1, 3, size_px, size_px, device=next(network.parameters()).device)
    network.eval()
    with warnings.catch_warnings():
        # torchvision warns that dropout makes the graphs of training and evaluation differ
        warnings.simplefilter("ignore")
        try:
            below = create_feature_extractor(network, {model.layer: model.layer})
        except (RuntimeError, TypeError, ValueError, TraceError) as error:
            cause = str(error).strip().partition("\n")[0]
            raise RecipeError(
                f"torch.fx cannot cut {model.backbone} at {model.layer}: {cause};"
                " set model.layer=none"
            ) from error
    return CutNetwork(below, network, model, example)


class CutNetwork(nn.Module):
    """A network that ends at a layer. It has the methods of timm's own networks that we call."""

    def __init__(self, below: nn.Module, whole: Any, model: Model, example: Tensor) -> None:
        """`below` maps images such as `example` to {layer: its output}; it is a part of `whole`."""
        super().__init__()
        self.below = below
        self.pretrained_cfg = dict(whole.pretrained_cfg) | {
            "classifier": "head",
            "cut": f"{model.layer} {model.pool}",
        }
        self._layer, self._pool, self._depths = model.layer, model.pool, _depths(whole)
        is_channels_last = getattr(whole, "output_fmt", "NCHW") == "NHWC"
        # the axes of tokens; of rows and columns
        self._axes = {3: (1,), 4: (1, 2) if is_channels_last else (2, 3)}
        undecayed = whole.no_weight_decay() if hasattr(whole, "no_weight_decay") else ()
        self._undecayed = {f"{_BELOW}.{name}" for name in undecayed}
        self.eval()
        with torch.no_grad():
            features = self.forward_head(self.forward_features(example), pre_logits=True)
            self.head = nn.Linear(features.shape[1], 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))

    def forward_features(self, images: Tensor) -> Tensor:
        """The layer's output: [n, c, h, w], [n, h, w, c], [n, tokens, c] or [n, c]."""
        output: Tensor = self.below(images)[self._layer]
        return output

    def forward_head(self, output: Tensor, pre_logits: bool = False) -> Tensor:
        """The logit [n, 1], or the head's input [n, d], of a layer's output."""
        is_flat = self._pool == "flatten" or output.ndim == 2
        features = output.flatten(1) if is_flat else output.mean(self._axes[output.ndim])
        logits: Tensor = features if pre_logits else self.head(features)
        return logits

    def get_classifier(self) -> nn.Module:
        return self.head

    def group_matcher(self, coarse: bool = False) -> Callable[[str], float]:  # noqa: ARG002  # timm names it
        """A parameter's depth by its name; the head's is the largest."""
        return lambda name: self._depths.get(_timm_name(name), float("inf"))

    def no_weight_decay(self) -> set[str]:
        return self._undecayed


def freeze(network: Any, *trainable: str) -> tuple[int, int]:
    """Let gradients reach only what any of `trainable` names; how many, of how many.

    See `comp.recipe.Layers`. RecipeError if there is no such block or module.
    """
    trained = set().union(*(_trained(network, layers) for layers in trainable))
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in trained)
    sizes = {name: parameter.numel() for name, parameter in network.named_parameters()}
    return sum(sizes[name] for name in trained), sum(sizes.values())


def _trained(network: Any, trainable: str) -> set[str]:
    """The parameters that `trainable` names, and the head's.

    from:NAME is what the network defines from NAME on. That is also what runs from there on in 94
    of the 98 families that timm 1.0.31 can run on a meta device; coat, efficientvim, hrnet and
    twins define their parts in another order.
    """
    kind, _, what = trainable.partition(":")
    names = [name for name, _ in network.named_parameters()]
    head = {name for name in names if name.startswith(f"{network.pretrained_cfg['classifier']}.")}
    if kind == "all":
        return set(names)
    if kind == "from":
        after = [name for name, _ in network.named_modules()][_module_index(network, what) :]
        return head | {name for name in names if name.rpartition(".")[0] in after}
    if kind == "last":
        depths = _depths(network)
        blocks = sorted({depth for name, depth in depths.items() if name not in head})
        if int(what) > len(blocks):
            raise RecipeError(
                f"training.trainable={trainable}: {network.pretrained_cfg['architecture']} has"
                f" {len(blocks)} blocks below its head"
            )
        return head | {name for name, depth in depths.items() if depth in blocks[-int(what) :]}
    return head


def _depths(network: Any) -> dict[str, float]:
    """timm's depth of each parameter of `network`, by name: 0 in the stem, most in the head."""
    if not hasattr(network, "group_matcher"):
        return dict(auto_group_layers(network))
    return dict(group_parameters(network, network.group_matcher(coarse=False), reverse=True))


def _module_index(network: Any, wanted: str) -> int:
    """Where timm's module `wanted` is in `network`; RecipeError with near names if nowhere."""
    names = [_timm_name(name) for name, _ in network.named_modules()]
    if wanted in names[1:]:
        return names.index(wanted)
    near = get_close_matches(wanted, names[1:], n=5, cutoff=0.4)
    near = near or [name for name in names[1:] if "." not in name]
    raise RecipeError(
        f"{network.pretrained_cfg['architecture']} has no module {wanted!r}; near it are"
        f" {', '.join(near[:5])}"
    )


def _timm_name(name: str) -> str:
    """timm's name of the module or parameter that a network here calls `name`."""
    return name.removeprefix(f"{_BELOW}.")
