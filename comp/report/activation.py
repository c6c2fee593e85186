"""What takes a run's networks: activation maps of the worst photos, and drift of the test photos.

Written to runs/<run>/looks.json by `make report`, so that reports that follow can show it without
torch.

heat   Where the evidence for the predicted class is: Grad-CAM (Selvaraju et al. 2017) at the last
       feature map, by the network of the fold that held the photo out. For a linear head on
       averaged features this is the class activation map of Zhou et al. 2016, exactly.
drift  AUC of a logistic regression that tells test photos from held-out training photos by the
       features of fold 0's network, cross-fitted, near-duplicates kept together; 0.5: no drift.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from comp.data.manifest import SPLITS, read_manifest
from comp.metric import Floats
from comp.network.backbone import embed
from comp.network.device import Device
from comp.network.embedder import network_input
from comp.network.heads import LinearHead
from comp.network.layers import start_from
from comp.network.views import CENTRE
from comp.predict.runs import read_oof, recipe_of
from comp.progress import Advance, Reporter
from comp.recipe import Head
from comp.report.run_page import LOOKS
from comp.store import Workspace, file_sha256, write_json
from comp.train.checkpoints import load_network, new_network
from comp.train.fits import HeadFit, open_fit
from comp.train.inputs import Inputs
from comp.train.run import trained_run
from comp.train.solver import out_of_fold

N_MAPPED = 24  # worst photos with a map
N_COMPARED = 400  # photos of each split, at most, for drift
N_AT_ONCE = 16
PENALTY = 1e-2  # of the logistic regression, whose features are scaled to length 1


def measure(workspace: Workspace, folder: Path, device: str | None, reporter: Reporter) -> None:
    """Write LOOKS of the run in `folder`; a blend has no network of its own, and gets none."""
    recipe = recipe_of(folder)
    if recipe is None:
        reporter.say(f"{folder.name} has no network of its own: no activation maps, no drift")
        return
    run = trained_run(workspace, recipe)
    fit = open_fit(run, device, reporter)
    oof = read_oof(folder)
    logits = oof.set_index("id")["logit"]
    worst = oof.assign(margin=np.where(oof["label"] > 0.5, oof["logit"], -oof["logit"]))
    worst = worst.nsmallest(N_MAPPED, "margin")
    heat: dict[str, dict[str, Any]] = {}
    drift = None
    with reporter.track("activation maps", len(worst), "photos") as advance:
        for fold in run.folds:
            held_out = set(fit.inputs.held_out_ids(fold))
            ids = [id for id in worst["id"] if id in held_out]
            if ids or fold == 0:
                network = _network(fit, fold)
                heat |= _heat(network, fit.inputs, fold, ids, logits, fit.frozen.device, advance)
            if fold == 0:
                drift = _drift(network, fit.inputs, fit.frozen.device, reporter)
    oof_sha256 = file_sha256(run.oof)[:10]
    write_json(folder / LOOKS, {"oof": oof_sha256, "heat": heat, "drift": drift})


def _network(fit: Any, fold: int) -> Any:
    """The whole network of a fold, in evaluation mode; with an SVM its head says nothing."""
    run, device = fit.inputs.run, fit.frozen.device
    if not isinstance(fit, HeadFit):
        return load_network(run.checkpoint(fold), run.recipe, device).eval()
    network, head = new_network(run.recipe), fit.head(fold)
    if isinstance(head, LinearHead):
        start_from(network.get_classifier(), head)
    return network.to(device.where).eval()


def _images(inputs: Inputs, fold: int, ids: Sequence[str], device: Device) -> Tensor:
    preprocessing = inputs.preprocessing_for(fold)
    rows = [int(row) for row in inputs.pixels.rows(ids)]
    crops = torch.from_numpy(CENTRE.crops(inputs.pixels, rows, preprocessing.size_px))
    where = crops.to(device.where)
    return network_input(where, CENTRE, preprocessing.size_px, preprocessing, torch.float32)


def _heat(
    network: Any,
    inputs: Inputs,
    fold: int,
    ids: Sequence[str],
    logits: "pd.Series[float]",
    device: Device,
    advance: Advance,
) -> dict[str, dict[str, Any]]:
    """Map and box of each of `ids` for which the network has a map."""
    found = {}
    for id in ids:
        heat = activation_map(network, _images(inputs, fold, [id], device), float(logits[id]))
        if heat is not None:
            box = _box(inputs, id)
            found[id] = {"map": np.round(heat, 2).tolist(), "box": [round(x, 4) for x in box]}
        advance()
    return found


def activation_map(network: Any, image: Tensor, logit: float) -> Floats | None:
    """Grad-CAM [h, w] in [0, 1] of `image [1, 3, s, s]` for the class that `logit` predicts.

    None where the network has no feature map whose positions all reach the head.
    """
    with torch.no_grad():
        features = network.forward_features(image)
    features = features.detach().requires_grad_()
    output = network.forward_head(features).sum() * (1 if logit > 0 else -1)
    if not output.requires_grad:
        return None
    (gradient,) = torch.autograd.grad(output, features)
    channels = network.num_features
    if features.ndim == 3:  # tokens [1, n, c]: the patches form a square
        n_prefix = getattr(network, "num_prefix_tokens", 0)
        side = round((features.shape[1] - n_prefix) ** 0.5)
        parts = [each[:, n_prefix:] for each in (features, gradient)]
        if parts[0].shape[1] != side**2:
            return None
        features, gradient = (each.unflatten(1, (side, side)) for each in parts)
    elif features.ndim == 4 and features.shape[1] == channels:
        features, gradient = (each.permute(0, 2, 3, 1) for each in (features, gradient))
    if features.ndim != 4 or features.shape[-1] != channels:
        return None
    weights = gradient.mean((1, 2), keepdim=True)
    heat = (features.detach() * weights).sum(-1)[0].relu()
    highest = float(heat.max())
    return None if highest == 0 else (heat / highest).double().cpu().numpy()


def _box(inputs: Inputs, id: str) -> tuple[float, float, float, float]:
    """Left, top, width and height of the network's crop, in shares of the photo."""
    row = inputs.photos[inputs.photos["id"] == id].iloc[0]
    wide, high = int(row["width"]), int(row["height"])
    geometry, side = inputs.pixels.geometry, inputs.preprocessing.size_px
    canvas_high, canvas_wide = geometry.canvas(wide, high)
    part, place = geometry.crop(wide, high), geometry.place(wide, high)

    def along(axis: int, canvas: int, length: int) -> tuple[float, float]:
        scale = part[axis + 2] / place[axis + 2]  # px of the photo for a px of the canvas
        start = part[axis] + (round((canvas - side) / 2) - place[axis]) * scale
        return start / length, side * scale / length

    (top, height), (left, width) = along(0, canvas_high, high), along(1, canvas_wide, wide)
    return left, top, width, height


def _drift(
    network: nn.Module, inputs: Inputs, device: Device, reporter: Reporter
) -> dict[str, float] | None:
    """AUC and its 95 % interval; None with fewer than 20 photos in a split."""
    train, test = (read_manifest(inputs.run.workspace.manifest(split)) for split in SPLITS)
    ids = [_spread(each, N_COMPARED) for each in (inputs.held_out_ids(0), inputs.test_ids)]
    if min(map(len, ids)) < 20:
        return None
    both = [*ids[0], *ids[1]]
    groups = pd.concat([train, test]).set_index("id")["group"].loc[both].to_numpy(np.int64)
    parts = []
    with reporter.track("features for drift", len(both), "photos") as advance:
        for start in range(0, len(both), N_AT_ONCE):
            with torch.inference_mode():
                images = _images(inputs, 0, both[start : start + N_AT_ONCE], device)
                parts.append(embed(network, images).float().cpu().numpy())
            advance(len(parts[-1]))
    is_test = np.repeat([0.0, 1.0], [len(each) for each in ids])
    photos = pd.DataFrame({"target": is_test, "group": groups, "fold": groups % 5})
    head = Head(penalties=(PENALTY,))
    scores = out_of_fold(np.concatenate(parts), photos, head, inputs.run.recipe.seed, reporter)
    auc, low, high = auc_with_interval(scores, is_test > 0.5)
    return {"auc": auc, "low": low, "high": high}


def _spread(ids: Sequence[str], n: int) -> list[str]:
    """At most `n` of `ids`, evenly spread over them."""
    return [ids[row] for row in np.unique(np.linspace(0, len(ids) - 1, n).astype(int))]


def auc_with_interval(scores: Floats, is_positive: NDArray[np.bool_]) -> tuple[float, float, float]:
    """Area under the ROC curve and its 95 % interval. Source: Hanley and McNeil 1982."""
    ranks = pd.Series(scores).rank().to_numpy()
    n, m = int(is_positive.sum()), int((~is_positive).sum())
    auc = (ranks[is_positive].sum() - n * (n + 1) / 2) / (n * m)
    pair, twice = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variance = auc * (1 - auc) + (n - 1) * (pair - auc**2) + (m - 1) * (twice - auc**2)
    half = 1.96 * (variance / (n * m)) ** 0.5
    return float(auc), float(max(auc - half, 0)), float(min(auc + half, 1))
