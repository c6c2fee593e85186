"""A backbone up to one of its layers, under a head of its own."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

BELOW = "below"  # what a cut network calls the backbone under its head; no network of timm 1.0.31 has a module of that name


def timm_name(name: str) -> str:
    """What timm calls the module or parameter that a network of ours calls `name`."""
    return name.removeprefix(f"{BELOW}.")


class Cut(nn.Module):
    """It answers to what timm's own networks answer to, so that freezing, caching and training need not know of it."""

    def __init__(
        self,
        below: nn.Module,
        whole: Any,
        layer: str,
        pool: Literal["mean", "flatten"],
        depth: Mapping[str, int],
        example: Tensor,
    ) -> None:
        """`below`: images to {layer: its output}, taken from the network `whole`, whose parameters lie as deep as `depth` says."""
        super().__init__()
        self.below = below
        self.pretrained_cfg = dict(whole.pretrained_cfg) | {
            "classifier": "head",
            "cut": f"{layer} {pool}",
        }
        self._layer, self._pool, self._depth = layer, pool, depth
        self._axes = {
            3: (1,),
            4: (1, 2) if getattr(whole, "output_fmt", "NCHW") == "NHWC" else (2, 3),
        }  # of tokens; of rows and columns
        self._undecayed = {
            f"{BELOW}.{name}"
            for name in (whole.no_weight_decay() if hasattr(whole, "no_weight_decay") else ())
        }
        self.eval()
        with torch.no_grad():
            self.head = nn.Linear(
                self.forward_head(self.forward_features(example), pre_logits=True).shape[1], 1
            )

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))

    def forward_features(self, images: Tensor) -> Tensor:
        """What the layer gives out for `images [n, 3, s, s]`: [n, c, h, w], [n, h, w, c], [n, tokens, c] or [n, c]."""
        output: Tensor = self.below(images)[self._layer]
        return output

    def forward_head(self, output: Tensor, pre_logits: bool = False) -> Tensor:
        """The logit [n, 1], or what the head is given [n, d], of a layer's output."""
        features = (
            output.flatten(1)
            if self._pool == "flatten" or output.ndim == 2
            else output.mean(self._axes[output.ndim])
        )
        logits: Tensor = features if pre_logits else self.head(features)
        return logits

    def get_classifier(self) -> nn.Module:
        return self.head

    def group_matcher(self, coarse: bool = False) -> Callable[[str], float]:  # noqa: ARG002  # timm names it when it asks
        """timm's way to ask how deep a parameter lies; one of the head is deepest."""
        return lambda name: self._depth.get(timm_name(name), float("inf"))

    def no_weight_decay(self) -> set[str]:
        return self._undecayed
