"""The door to timm: backbones, their config, the order of their layers, its optimisers."""

from difflib import get_close_matches
from typing import Any

import timm
import torch
from timm.data import resolve_data_config
from timm.models import get_pretrained_cfg
from timm.optim import (
    create_optimizer_v2,
    list_optimizers,
    param_groups_layer_decay,
)
from torch import Tensor, nn

from comp.errors import RecipeError
from comp.network.surgery import cut
from comp.network.weights import load_weights
from comp.recipe import Model


def build(model: Model, *, size_px: int | None = None) -> nn.Module:
    """The backbone with its weights and a new head of one logit, zero for every photo.

    Up to the layer that `model` names, in evaluation mode. WeightsError if no weights are found,
    RecipeError if timm knows no such backbone or layer.
    """
    with torch.random.fork_rng(devices=[]):
        # the same random weights every time: a resumed run must find the network it began with
        torch.manual_seed(0)
        network = _create(model, size_px)
    if model.weights != "random":
        load_weights(network, model)
    if model.layer is not None:
        side = size_px or timm_config(model.backbone)["size_px"]
        network = cut(network, model, side)
    nn.init.zeros_(network.get_classifier().weight)
    nn.init.zeros_(network.get_classifier().bias)
    network.eval()
    return network  # type: ignore[no-any-return]  # timm's factory is untyped


def _create(model: Model, size_px: int | None) -> Any:
    _require_known(model.backbone)
    options: dict[str, Any] = {"num_classes": 1}
    if model.drop_path:
        options["drop_path_rate"] = model.drop_path
    if size_px:
        options["img_size"] = size_px  # transformers are built for a size
    while True:
        try:
            network = timm.create_model(model.backbone, **options)
            break
        except TypeError as error:
            refused = [name for name in options if f"'{name}'" in str(error)]
            if refused == ["drop_path_rate"]:
                raise RecipeError(
                    f"timm's {model.backbone} has no drop_path_rate: set model.drop_path=0"
                ) from error
            if refused != ["img_size"]:
                raise
            del options["img_size"]  # convolutional networks take any size
    if not isinstance(network.get_classifier(), nn.Linear):
        kind = type(network.get_classifier()).__name__
        raise RecipeError(
            f"{model.backbone} ends in {kind}, not in one linear layer: choose another backbone"
        )
    return network


def _require_known(backbone: str) -> None:
    name = backbone.partition(".")[0]
    if not timm.is_model(name):
        near = timm.list_models(f"*{name[:8]}*")[:5]
        hint = f"; near it are {', '.join(near)}" if near else ""
        raise RecipeError(f"timm knows no backbone {backbone!r}{hint}")


def timm_config(backbone: str) -> dict[str, Any]:
    """What timm's config says of the input: the fields of `Preprocessing`."""
    _require_known(backbone)
    config = resolve_data_config(pretrained_cfg=get_pretrained_cfg(backbone).to_dict())
    return {
        "size_px": config["input_size"][-1],
        "crop_pct": config["crop_pct"],
        "interpolation": config["interpolation"],
        "mean": tuple(config["mean"]),
        "std": tuple(config["std"]),
    }


def embed(network: Any, images: Tensor) -> Tensor:
    """Pooled features [n, d], the input of the head's linear layer, of `images [n, 3, s, s]`."""
    features: Tensor = network.forward_head(network.forward_features(images), pre_logits=True)
    return features


def parameter_groups(
    network: Any, *, weight_decay: float, layer_decay: float
) -> list[dict[str, Any]]:
    """An optimiser's groups: `lr_scale` falls by `layer_decay` per block from the head down.

    Norms, biases and other vectors get no weight decay.
    """
    exempt = set(network.no_weight_decay()) if hasattr(network, "no_weight_decay") else set()
    groups = param_groups_layer_decay(
        network, weight_decay=weight_decay, layer_decay=layer_decay, no_weight_decay_list=exempt
    )
    return list(groups)


def timm_optimiser(
    name: str, groups: list[dict[str, Any]], *, lr: float, momentum: float
) -> torch.optim.Optimizer:
    """The optimiser that timm calls `name`; RecipeError with near names if there is none."""
    names = list_optimizers()
    if name not in names:
        near = get_close_matches(name, names, n=5, cutoff=0.4)
        hint = f"; near it are {', '.join(near)}" if near else ""
        raise RecipeError(f"neither torch nor timm has an optimiser {name!r}{hint}")
    optimiser: torch.optim.Optimizer = create_optimizer_v2(groups, name, lr=lr, momentum=momentum)
    return optimiser
