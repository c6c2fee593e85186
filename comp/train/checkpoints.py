"""A run's networks: new from its recipe, or as a fold was fitted; checkpoints as safetensors.

A checkpoint of a network has timm's own names and shapes, batch norms included, so that
`timm.create_model(backbone, num_classes=1).load_state_dict(tensors)` takes it (a transformer for
images of another size than its own also needs `img_size`); not so if the recipe cuts the backbone
at a layer or gives its head hidden layers. One of a head on features has that head alone, because
its backbone is the one that everybody can load. Both say in their metadata, under `comp` as JSON,
what they are: see `description` and `Run.origin_of`.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from comp.competition import COMPETITION
from comp.errors import StaleError
from comp.network.preprocessing import canvas_ratio, preprocessing_of
from comp.recipe import FineTune, HeadShape, Recipe
from comp.store import code_commit, plain, whole
from comp.train.files import ORIGIN
from comp.train.inputs import Inputs

# What needs torch is imported where it is used: a head on kept features is solved without it.
if TYPE_CHECKING:
    from comp.network.device import Device

Arrays = dict[str, NDArray[Any]]  # a checkpoint's tensors by name
commit = cache(code_commit)


def new_network(recipe: Recipe, *, seed: int = 0, weights: str | None = None) -> Any:
    """The backbone with its weights, or `weights`, and the recipe's head, zero for every photo.

    `seed` initialises hidden layers that the head may have. Batch norms are fused if the recipe
    trains them so.
    """
    return _fused(_with_head(recipe, head_shape(recipe), seed, weights), recipe)


def _with_head(recipe: Recipe, shape: HeadShape, seed: int = 0, weights: str | None = None) -> Any:
    from comp.network.backbone import build
    from comp.network.layers import set_head

    model = recipe.model.replace(weights=weights) if weights else recipe.model
    network: Any = build(model, size_px=recipe.pixels.size_px)
    if shape != HeadShape():
        set_head(network, shape, seed)
    return network


def _fused(network: Any, recipe: Recipe) -> Any:
    from comp.network.batchnorm import fuse_batch_norm

    if isinstance(recipe.training, FineTune) and recipe.training.fuse_batch_norm:
        fuse_batch_norm(network, lambda: network(_black(recipe)))
    return network


def _black(recipe: Recipe) -> Any:
    import torch

    size_px = preprocessing_of(recipe).size_px
    return torch.zeros(1, 3, size_px, size_px)


def head_shape(recipe: Recipe) -> HeadShape:
    return recipe.training.head if isinstance(recipe.training, FineTune) else HeadShape()


def _saved_shape(recipe: Recipe) -> HeadShape:
    """The head as it is saved: as timm's, a linear layer, if there are no hidden ones."""
    shape = head_shape(recipe)
    return shape if shape.widths else HeadShape()


def arrays_of_network(network: Any, recipe: Recipe) -> Arrays:
    """What is saved of a trained `network` of `recipe`."""
    from comp.network.batchnorm import unfuse_batch_norm

    state = {name: value.detach().cpu() for name, value in network.state_dict().items()}
    if not _saved_shape(recipe).widths:
        head = network.pretrained_cfg["classifier"]
        for name in [name for name in state if name.startswith(f"{head}.")]:
            state[f"{head}.{name.rpartition('.')[2]}"] = state.pop(name)
    if isinstance(recipe.training, FineTune) and recipe.training.fuse_batch_norm:
        whole_network = _with_head(recipe, _saved_shape(recipe))
        run = lambda: whole_network(_black(recipe))  # noqa: E731
        state = unfuse_batch_norm(state, whole_network, run)
    return {name: value.numpy() for name, value in state.items()}


def load_network(path: Path, recipe: Recipe, device: "Device") -> Any:
    """The network of a fitted fold; StaleError if the checkpoint is not one of this recipe."""
    import torch

    network = _with_head(recipe, _saved_shape(recipe), weights="random")
    try:
        arrays = load_tensors(path).items()
        network.load_state_dict({name: torch.from_numpy(value) for name, value in arrays})
    except RuntimeError as error:
        cause = str(error).splitlines()[0]
        raise StaleError(
            f"{path} does not fit {recipe.model.backbone}: delete it and train again ({cause})"
        ) from error
    return _fused(network, recipe).to(device.where)


def description(inputs: Inputs, fold: int) -> dict[str, Any]:
    """What a checkpoint needs to say of itself to be used without this project."""
    recipe, preprocessing = inputs.run.recipe, inputs.preprocessing_for(fold)
    crop_pct = 1 / canvas_ratio(recipe, preprocessing)
    return {
        "backbone": recipe.model.backbone,
        "preprocessing": {
            "fit": recipe.pixels.fit,
            **plain(replace(preprocessing, crop_pct=crop_pct)),
        },
        "classes": COMPETITION.classes,  # the logit is of the second
        "recipe": recipe,
        "commit": commit(Path(__file__).parents[1]),
    }


def save_tensors(path: Path, arrays: Arrays, origin: Mapping[str, Any]) -> None:
    """`origin` goes into the metadata, for `checkpoint_origin`."""
    metadata = {ORIGIN: json.dumps(plain(origin), sort_keys=True)}
    with whole(path) as scratch:
        # It writes memory as it lies, which in channels_last is another order than it reads.
        contiguous = {name: np.asarray(array, order="C") for name, array in arrays.items()}
        # `save_file` would make a file that only its owner can read.
        scratch.write_bytes(safetensors.numpy.save(contiguous, metadata))


def resume_file(checkpoint: Path) -> Path:
    """Where training of a fold goes on that was stopped before its `checkpoint` was written."""
    return checkpoint.with_suffix(".resume.safetensors")


def forget_resume(checkpoint: Path) -> None:
    """Delete the resume file, and what a process that was killed left of it."""
    path = resume_file(checkpoint)
    for each in (path, *path.parent.glob(f".{path.name}.*.part")):
        each.unlink(missing_ok=True)


def load_tensors(path: Path) -> Arrays:
    try:
        return safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise StaleError(
            f"{path} cannot be read: delete it and run `make train` again ({error})"
        ) from error
