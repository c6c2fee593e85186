"""The door to timm: backbones and their weights, their config, its optimisers."""

import socket
import sys
from collections.abc import Callable
from dataclasses import asdict
from difflib import get_close_matches
from functools import cache, partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import timm
import torch
from huggingface_hub import constants as hub
from huggingface_hub import try_to_load_from_cache
from timm.data import resolve_data_config
from timm.layers import Conv2dSame, pad_same
from timm.models import PretrainedCfg, get_arch_pretrained_cfgs, get_pretrained_cfg, load_pretrained
from timm.optim import create_optimizer_v2, list_optimizers, param_groups_layer_decay
from torch import Tensor, nn

from comp.errors import RecipeError, WeightsError, is_without_memory
from comp.network.preprocessing import Preprocessing
from comp.network.surgery import cut
from comp.network.weights import PACKAGED, cause_of, read_weights, some, weights_file
from comp.recipe import Model

_REMEDY = (
    "name a file by SET=model.weights=PATH, or take a recipe whose weights come as a package"
    f" ({', '.join(PACKAGED)})"
)
# what networks raise on images, and timm's converters on weights, that do not suit them
_UNSUITABLE = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError),
    *(RuntimeError, TypeError, ValueError),
)
SIZE_STEPS_PX = (8, 14)  # between sizes that are tried in place of one that does not work: patches
# heads and buffers that a file may have and the network need not
_HEADS = ("head", "heads", "head_dist", "fc", "classifier", "last_linear", "AuxLogits")
_BUFFERS = ("num_batches_tracked", "relative_position_index", "attn_mask", "n_averaged")


def build(model: Model, *, size_px: int | None = None) -> nn.Module:
    """The backbone with its weights and a new head of one logit, zero for every photo.

    Up to the layer that `model` names, in evaluation mode. WeightsError if no weights are found,
    RecipeError if timm knows no such backbone or layer, or it takes no images of `size_px`.
    """
    _require_size(model.replace(weights="random"), size_px)
    with torch.random.fork_rng(devices=[]):
        # the same random weights every time: a resumed run must find the network it began with
        torch.manual_seed(0)
        network = _create(model, size_px)
    if model.weights != "random":
        _load_weights(network, model)
    network = _cut(network, model, size_px)
    nn.init.zeros_(network.get_classifier().weight)
    nn.init.zeros_(network.get_classifier().bias)
    network.eval()
    return network  # type: ignore[no-any-return]  # timm's factory is untyped


def _cut(network: Any, model: Model, size_px: int | None) -> Any:
    if model.layer is None:
        return network
    return cut(network, model, size_px or timm_config(model.backbone)["size_px"])


@cache
def _require_size(model: Model, size_px: int | None) -> None:
    """RecipeError with the nearest size that works, unless one black image goes through."""
    _require_known(model.backbone)
    own = timm_config(model.backbone)["size_px"]
    if not (why := _refusal(model, size_px, "cpu")):
        return
    wanted = size_px or own
    steps = (range(step, 2 * max(own, wanted), step) for step in SIZE_STEPS_PX)
    sizes = {own}.union(*steps) - {wanted}
    near = sorted((size for size in sizes if size >= 16), key=lambda size: abs(size - wanted))
    near = near[: near.index(own) + 1] if own in near else near
    # on a meta device first, which has no arithmetic but does not notice an index out of range
    works = (size for size in near if not any(_refusal(model, size, on) for on in ("meta", "cpu")))
    if (size := next(works, None)) is None:
        raise RecipeError(f"{model.backbone} does not work ({why}): choose another backbone")
    raise RecipeError(
        f"{model.backbone} takes no images of {wanted} px ({why}): set pixels.size_px={size}"
    )


def _refusal(model: Model, size_px: int | None, where: str) -> str:
    """Why the network cannot take an image of `size_px`; nothing if it can."""
    try:
        with torch.device(where), torch.random.fork_rng(devices=[]), torch.no_grad():
            network = _cut(_create(model, size_px), model, size_px).eval()
            side = size_px or timm_config(model.backbone)["size_px"]
            network(torch.zeros(1, 3, side, side))
    except _UNSUITABLE as error:
        if is_without_memory(error):
            raise
        return cause_of(error)
    return ""


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
    name, dot, tag = backbone.partition(".")
    # a name of old versions has no config of its own
    tags = [full.partition(".")[2] for full in get_arch_pretrained_cfgs(name)]
    if not timm.is_model(name) or not tags:
        raise RecipeError(f"timm knows no backbone {backbone!r}{_near(name, timm.list_models())}")
    if dot and tag not in filter(None, tags):
        near = _near(tag, tags) or f"; there are {some(filter(None, tags))}"
        raise RecipeError(f"timm knows no tag {tag!r} of {name}{near}")


def _near(name: str, names: list[str]) -> str:
    near = get_close_matches(name, names, n=5, cutoff=0.4)
    return f"; near it are {', '.join(near)}" if near else ""


def _load_weights(network: Any, model: Model) -> None:
    """Fill the backbone of `network`, never its head, through timm's own converter.

    From the file that `model` names, else a package, else timm's hub; WeightsError if none has it.
    """
    config, path = dict(network.pretrained_cfg), weights_file(model)
    convert = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    own, source = network.state_dict(), path or "timm's hub"
    try:
        if path is None:
            _require_hub(model, str(config.get("hf_hub_id") or ""))
            load_pretrained(network, config, num_classes=1, filter_fn=convert)
            return
        tensors = read_weights(path, own)
        if model.weights is None:  # a package's are in timm's order, under other names
            tensors = dict(zip(own, tensors.values(), strict=True))
        tensors = convert(tensors, network) if convert else tensors
        fitting = _fitting(tensors, own, config["classifier"], f"{path} for {model.backbone}")
        network.load_state_dict(fitting, strict=False)
    except (OSError, *_UNSUITABLE) as error:  # the hub's are OSErrors
        message = f"{source} gives no weights for {model.backbone}: {cause_of(error)}; {_REMEDY}"
        raise WeightsError(message) from error


def _fitting(
    tensors: dict[str, Tensor], own: dict[str, Tensor], head: str, what: str
) -> dict[str, Tensor]:
    """Those of `tensors` that fill `own`, other than the head: WeightsError unless all do."""
    needed = {name: value for name, value in own.items() if not name.startswith(f"{head}.")}
    tensors = {name: value for name, value in tensors.items() if not name.startswith(f"{head}.")}
    missing = [name for name in needed.keys() - tensors.keys() if _last(name) not in _BUFFERS]
    unused = [
        name
        for name in tensors.keys() - needed.keys()
        if _last(name) not in _BUFFERS and name.partition(".")[0] not in _HEADS
    ]
    others = [
        name
        for name in needed.keys() & tensors.keys()
        if tensors[name].shape != needed[name].shape
        or needed[name].is_floating_point() > tensors[name].is_floating_point()
    ]
    bad = [name for name in needed.keys() & tensors.keys() if not tensors[name].isfinite().all()]
    found = {"missing": missing, "not used": unused, "of another shape or type": others}
    found["not finite"] = bad
    if any(found.values()):
        text = "; ".join(f"{kind}: {some(sorted(names))}" for kind, names in found.items() if names)
        raise WeightsError(f"{what} does not fit, {text}: name a file made for this backbone")
    return tensors


def _last(name: str) -> str:
    return name.rpartition(".")[2]


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


def portable_config(network: Any, preprocessing: Preprocessing, crop_mode: str) -> dict[str, Any]:
    """Arguments of `timm.create_model` for `network`, with `preprocessing` in timm's config."""
    config = PretrainedCfg(**network.pretrained_cfg).to_dict(remove_source=True, remove_null=True)
    size_px = preprocessing.size_px
    own = asdict(preprocessing) | {"input_size": (3, size_px, size_px), "crop_mode": crop_mode}
    del own["size_px"]
    named = {"model_name": config["architecture"], **network._model_args}
    return named | {"pretrained_cfg": config | own | {"num_classes": 1}}


def load_portable(config: dict[str, Any], path: Path) -> Any:
    """The network that was exported to `path` with its `portable_config`, for inference."""
    return timm.create_model(**config, checkpoint_path=path).eval()


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
