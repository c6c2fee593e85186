"""A run as one module, from photos of any size to probabilities, and that module as ONNX."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from comp.data.canvas import Geometry
from comp.network.preprocessing import Preprocessing
from comp.network.views import View
from comp.predict.calibrate import Curve

Photos = NDArray[np.uint8]  # [h, w, 3] or [n, h, w, 3], RGB, upright


@dataclass(frozen=True, kw_only=True)
class Member:
    """The networks of a run, one for each fold, or one that is their mean."""

    weight: float  # of the run in a blend
    networks: Sequence[nn.Module]  # normalised images [n, 3, s, s] to logits [n, 1]
    preprocessings: Sequence[Preprocessing]  # of each network
    geometry: Geometry  # "squash" or "shorter"
    views: Sequence[View]


class Portable(nn.Module):
    """uint8 photos [n, h, w, 3] to the calibrated P(positive) [n]; in float32."""

    def __init__(self, members: Sequence[Member], curve: Curve) -> None:
        super().__init__()
        self.networks = nn.ModuleList(n for member in members for n in member.networks)
        self._members, self._curve = members, curve
        self.eval()

    def forward(self, photos: Tensor) -> Tensor:
        planes = photos.permute(0, 3, 1, 2).float()
        z = torch.stack([_logits(member, planes) for member in self._members]).sum(0)
        above, below = nn.functional.softplus(z), nn.functional.softplus(-z)
        curve = self._curve
        return torch.sigmoid(curve.above * above - curve.below * below + curve.shift)

    @torch.inference_mode()
    def prob(self, photo: Photos) -> float:
        """P(positive) of a photo [h, w, 3]."""
        return float(self(torch.from_numpy(photo[None])))


def _logits(member: Member, planes: Tensor) -> Tensor:
    """The weighted mean over views and networks, [n], of photos [n, 3, h, w]."""
    canvas, logits = _canvas(planes, member.geometry), list[Tensor]()
    for network, preprocessing in zip(member.networks, member.preprocessings, strict=True):
        crops = [
            _crop(canvas, view, member.geometry, preprocessing.size_px) for view in member.views
        ]
        mean, std = torch.tensor([preprocessing.mean, preprocessing.std])[:, :, None, None]
        by_view = network((torch.cat(crops) / 255 - mean) / std)  # each view more would be traced
        logits.append(by_view.view(len(crops), -1).mean(0))
    return member.weight * torch.stack(logits).mean(0)


def _canvas(planes: Tensor, geometry: Geometry) -> Tensor:
    """As `comp.data.scan.to_canvas`, for sizes that are symbols while the module is traced."""
    size, (height, width) = geometry.size_px, planes.shape[2:]
    if geometry.fit == "squash":
        return _resized(planes, (size, size), geometry)
    shorter = torch.sym_min(height, width)
    shape = [(2 * size * side + shorter) // (2 * shorter) for side in (height, width)]  # rounded
    return _resized(planes, shape, geometry)


def _resized(planes: Tensor, shape: Sequence[Any], geometry: Geometry) -> Tensor:
    mode = geometry.interpolation
    resized = nn.functional.interpolate(planes, list(shape), mode=mode, antialias=True)
    return resized.round().clamp(0, 255)


def _crop(canvas: Tensor, view: View, geometry: Geometry, size_px: int) -> Tensor:
    """As `comp.network.views.crop`, mirrored and resized."""
    side = geometry.size_px if view.whole else size_px
    for axis, share in ((2, view.y), (3, view.x)):
        room = canvas.shape[axis] - side
        half = (room + room // 2 % 2) // 2  # round() of a half goes to the even number
        start = {0.0: 0, 0.5: half, 1.0: room}[share]
        canvas = canvas.index_select(axis, torch.arange(side) + start)
    crop = _resized(canvas, (size_px, size_px), geometry) if view.whole else canvas
    return crop.flip(3) if view.flip else crop


def write_onnx(module: Portable, path: Path, example: Photos, about: Mapping[str, str]) -> None:
    """`module` as ONNX: `photos` in, `prob` out, `about` as metadata; traced by a photo."""
    sizes = dict.fromkeys(range(3), torch.export.Dim.DYNAMIC)
    two = torch.from_numpy(np.stack([example, example]))  # one photo would fix n at 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the exporter's own future
        program = torch.onnx.export(
            module,
            (two,),
            dynamo=True,
            verbose=False,
            dynamic_shapes=(sizes,),
            input_names=["photos"],
            output_names=["prob"],
        )
    assert program is not None
    program.model.metadata_props.update(about)
    program.save(path)


def onnx_model(path: Path) -> Callable[[Photos], float]:
    """P(positive) of a photo [h, w, 3] by an ONNX file, on the CPU."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda photo: float(session.run(None, {"photos": photo[None]})[0][0])
