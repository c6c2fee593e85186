"""A backbone that ends at one of its layers, under a head of its own."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from comp.recipe import Model

BELOW = "below"  # a cut network's name for its backbone; no timm 1.0.31 network has such a module


def timm_name(name: str) -> str:
    """timm's name of the module or parameter that a network here calls `name`."""
    return name.removeprefix(f"{BELOW}.")


class CutNetwork(nn.Module):
    """A network that ends at a layer. It has the methods of timm's own networks that we call."""

    def __init__(
        self, below: nn.Module, whole: Any, model: Model, depth: Mapping[str, int], example: Tensor
    ) -> None:
        """`below` maps images to {layer: its output} and is a part of the network `whole`.

        `depth` is that of each of its parameters, `example` a batch of images.
        """
        super().__init__()
        assert model.layer is not None
        self.below = below
        self.pretrained_cfg = dict(whole.pretrained_cfg) | {
            "classifier": "head",
            "cut": f"{model.layer} {model.pool}",
        }
        self._layer: str = model.layer
        self._pool = model.pool
        self._depth = depth
        is_channels_last = getattr(whole, "output_fmt", "NCHW") == "NHWC"
        # the axes of tokens; of rows and columns
        self._axes = {3: (1,), 4: (1, 2) if is_channels_last else (2, 3)}
        undecayed = whole.no_weight_decay() if hasattr(whole, "no_weight_decay") else ()
        self._undecayed = {f"{BELOW}.{name}" for name in undecayed}
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
        if self._pool == "flatten" or output.ndim == 2:
            features = output.flatten(1)
        else:
            features = output.mean(self._axes[output.ndim])
        logits: Tensor = features if pre_logits else self.head(features)
        return logits

    def get_classifier(self) -> nn.Module:
        return self.head

    def group_matcher(self, coarse: bool = False) -> Callable[[str], float]:  # noqa: ARG002  # timm names it
        """A parameter's depth by its name; the head's is the largest."""
        return lambda name: self._depth.get(timm_name(name), float("inf"))

    def no_weight_decay(self) -> set[str]:
        return self._undecayed
