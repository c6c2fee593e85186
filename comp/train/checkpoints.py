"""A run's networks: new from its recipe, or as a fold was fitted; checkpoints as safetensors."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from comp.errors import StaleError
from comp.network.backbone import build
from comp.network.batchnorm import fuse_batch_norm
from comp.network.device import Device
from comp.network.heads import set_head
from comp.network.preprocessing import preprocessing_of
from comp.recipe import FineTune, HeadShape, Recipe
from comp.store import whole
from comp.train.files import ORIGIN


def new_network(recipe: Recipe, *, seed: int = 0, weights: str | None = None) -> Any:
    """The backbone with its weights, or `weights`, and the recipe's head, zero for every photo.

    `seed` initialises hidden layers that the head may have.
    """
    model = recipe.model.replace(weights=weights) if weights else recipe.model
    network: Any = build(model, size_px=recipe.pixels.size_px)
    shape = head_shape(recipe)
    if shape != HeadShape():
        set_head(network, shape, seed)
    if isinstance(recipe.training, FineTune) and recipe.training.fuse_batch_norm:
        size_px = preprocessing_of(recipe).size_px
        fuse_batch_norm(network, lambda: network(torch.zeros(1, 3, size_px, size_px)))
    return network


def head_shape(recipe: Recipe) -> HeadShape:
    return recipe.training.head if isinstance(recipe.training, FineTune) else HeadShape()


def load_network(path: Path, recipe: Recipe, device: Device) -> Any:
    """The network of a fitted fold; StaleError if the checkpoint is not one of this recipe."""
    network: nn.Module = new_network(recipe, weights="random")
    try:
        network.load_state_dict(load_tensors(path))
    except RuntimeError as error:
        cause = str(error).splitlines()[0]
        raise StaleError(
            f"{path} does not fit {recipe.model.backbone}: delete it and train again ({cause})"
        ) from error
    return network.to(device.where)


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], origin: Mapping[str, str] | None = None
) -> None:
    """`origin` goes into the metadata, for `checkpoint_origin`."""
    on_cpu = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    metadata = {ORIGIN: json.dumps(origin or {}, sort_keys=True)}
    with whole(path) as scratch:  # save_file would make a file that only its owner can read
        scratch.write_bytes(safetensors.torch.save(on_cpu, metadata))


def load_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise StaleError(
            f"{path} cannot be read: delete it and run `make train` again ({error})"
        ) from error
