"""Small stand-ins that the tests of networks and training share."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from comp.network.backbone import build
from comp.network.device import find_device
from comp.network.preprocessing import Preprocessing
from comp.recipe import FineTune, Model, Pixels, Recipe

CPU = find_device("cpu")
IMAGENET = Preprocessing(size_px=32, crop_pct=1.0)
MODEL = Model(backbone="mobilenetv3_small_050", weights="random")
TINY = Recipe(
    name="tiny",
    model=MODEL,
    pixels=Pixels(size_px=32, canvas=1.25),
    training=FineTune(epochs=1, batch_size=8, head_start=False),
)


def random_network(backbone: str, size_px: int | None = None, **options: Any) -> Any:
    """A network of timm's with random weights; `options` are those of `Model`."""
    return build(Model(backbone=backbone, weights="random", **options), size_px=size_px)


def numbers(*shape: int) -> Tensor:
    """The same normally distributed numbers each time."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def random_crops(n: int, size_px: int = 32) -> Tensor:
    """uint8 crops [n, size_px, size_px, 3] of noise."""
    shape = (n, size_px, size_px, 3)
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


def vary_batch_norms(network: Any) -> None:
    """Statistics such as training leaves, in place of 0 and 1, which would hide a mistake."""
    rng = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for values, low, high in (
                (module.running_mean, -0.5, 0.5),
                (module.running_var, 0.5, 2.0),
                (module.weight, 0.5, 1.5),
                (module.bias, -0.5, 0.5),
            ):
                torch.nn.init.uniform_(values, low, high, generator=rng)


def trained_names(network: Any) -> set[str]:
    return {name for name, value in network.named_parameters() if value.requires_grad}


def names_with_gradient(network: Any) -> set[str]:
    """The parameters that have a gradient, each of which must be finite."""
    found = {name: value for name, value in network.named_parameters() if value.grad is not None}
    assert all(bool(torch.isfinite(value.grad).all()) for value in found.values())
    return set(found)


def changed_names(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name, value in after.items() if not torch.equal(value, before[name])}


def quiet(n: int = 1, note: str = "") -> None:
    """An `Advance` that shows nothing."""


def contents(folder: Path) -> dict[Path, bytes]:
    """Every file under `folder`."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Canvases:
    """Square photos of noise that is bright where the label is 1."""

    def __init__(self, n: int, size_px: int = 40) -> None:
        rng = np.random.default_rng(0)
        self.labels = [row % 2 for row in range(n)]
        self.sha256s = tuple(f"photo {row}" for row in range(n))
        self.canvases = [
            (rng.integers(0, 100, (size_px, size_px, 3)) + 120 * label).astype(np.uint8)
            for label in self.labels
        ]

    def canvas(self, row: int) -> np.ndarray:
        return self.canvases[row]
