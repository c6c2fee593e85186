"""What takes a run's networks: activation maps of the worst photos, and drift of the test photos.

`make report` writes it to runs/<run>/looks.json, where later reports find it without torch.

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
from comp.network.embedder import network_input
from comp.network.heads import LinearHead
from comp.network.layers import start_from
from comp.network.views import CENTRE
from comp.predict.runs import read_oof, recipe_of, with_losses
from comp.progress import Reporter
from comp.recipe import Head
from comp.report.run_page import LOOKS
from comp.store import Workspace, file_sha256, write_json
from comp.train.checkpoints import load_network, new_network
from comp.train.fits import HeadFit, head_of, open_fit
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
    worst = with_losses(read_oof(folder)).nlargest(N_MAPPED, "loss").set_index("id")["logit"]
    heats, drift = {}, None
    with reporter.track("activation maps", len(worst), "photos") as advance:
        for fold in run.folds:
            ids = worst.index.intersection(fit.inputs.held_out_ids(fold))
            network = _network(fit, fold)
            for id in ids:
                heat = activation_map(network, _images(fit, fold, [id]), worst[id])
                if heat is not None:
                    heats[id] = {"map": heat.round(2).tolist(), "box": _box(fit.inputs, id)}
                advance()
            if fold == 0:
                drift = _drift(network, fit, reporter)
    oof_sha256 = file_sha256(run.oof)[:10]
    write_json(folder / LOOKS, {"oof": oof_sha256, "heat": heats, "drift": drift})


def _network(fit: Any, fold: int) -> Any:
    """The whole network of a fold, in evaluation mode; with an SVM its head says nothing."""
    run, device = fit.inputs.run, fit.frozen.device
    if not isinstance(fit, HeadFit):
        return load_network(run.checkpoint(fold), run.recipe, device).eval()
    network, head = new_network(run.recipe), head_of(run, fold)
    if isinstance(head, LinearHead):
        start_from(network.get_classifier(), head)
    return network.to(device.where).eval()


def _images(fit: Any, fold: int, ids: Sequence[str]) -> Tensor:
    inputs, preprocessing = fit.inputs, fit.inputs.preprocessing_for(fold)
    size_px, rows = preprocessing.size_px, [int(row) for row in inputs.pixels.rows(ids)]
    crops = torch.from_numpy(CENTRE.crops(inputs.pixels, rows, size_px)).to(fit.frozen.device.where)
    return network_input(crops, CENTRE, size_px, preprocessing, torch.float32)


def activation_map(network: Any, image: Tensor, logit: float) -> Floats | None:
    """Grad-CAM [h, w] in [0, 1] of `image [1, 3, s, s]` for the class that `logit` predicts.

    None where the network has no feature map, as a transformer of tokens.
    """
    with torch.no_grad():
        features = network.forward_features(image)
    features = features.detach().requires_grad_()
    output = network.forward_head(features).sum() * (1 if logit > 0 else -1)
    if not output.requires_grad:
        return None
    (gradient,) = torch.autograd.grad(output, features)
    if features.ndim == 4 and features.shape[1] == network.num_features:  # channels come first
        features, gradient = (each.permute(0, 2, 3, 1) for each in (features, gradient))
    if features.ndim != 4 or features.shape[-1] != network.num_features:
        return None
    weights = gradient.mean((1, 2), keepdim=True)
    heat = (features.detach() * weights).sum(-1)[0].relu()
    highest = float(heat.max())
    return None if highest == 0 else (heat / highest).double().cpu().numpy()


def _box(inputs: Inputs, id: str) -> list[float]:
    """Left, top, width and height of the network's crop, in shares of the photo."""
    row = inputs.photos[inputs.photos["id"] == id].iloc[0]
    width, height = int(row["width"]), int(row["height"])
    geometry, side = inputs.pixels.geometry, inputs.preprocessing.size_px
    canvas = np.array(geometry.canvas(width, height))
    part, place = np.array(geometry.crop(width, height)), np.array(geometry.place(width, height))
    scale = part[2:] / place[2:]  # px of the photo for a px of the canvas; rows before columns
    start = part[:2] + (np.rint((canvas - side) / 2) - place[:2]) * scale
    (top, left), (tall, wide) = np.array([start, side * scale]) / [height, width]
    return [round(x, 4) for x in (left, top, wide, tall)]


def _drift(network: nn.Module, fit: Any, reporter: Reporter) -> dict[str, float] | None:
    """AUC and its 95 % interval; None with fewer than 20 photos in a split."""
    inputs = fit.inputs
    splits = inputs.held_out_ids(0), inputs.test_ids
    held_out, test = (ids[:: 1 + (len(ids) - 1) // N_COMPARED] for ids in splits)
    if min(len(held_out), len(test)) < 20:
        return None
    both, is_test = [*held_out, *test], np.repeat([0.0, 1.0], [len(held_out), len(test)])
    manifests = [read_manifest(inputs.run.workspace.manifest(split)) for split in SPLITS]
    groups = pd.concat(manifests).set_index("id")["group"].loc[both].to_numpy(np.int64)
    parts = []
    with reporter.track("features for drift", len(both), "photos") as advance:
        for start in range(0, len(both), N_AT_ONCE):
            with torch.inference_mode():
                images = _images(fit, 0, both[start : start + N_AT_ONCE])
                parts.append(embed(network, images).float().cpu().numpy())
            advance(len(parts[-1]))
    photos = pd.DataFrame({"target": is_test, "group": groups, "fold": groups % 5})
    head, seed = Head(penalties=(PENALTY,)), inputs.run.recipe.seed
    scores = out_of_fold(np.concatenate(parts), photos, head, seed, reporter)
    return dict(zip(("auc", "low", "high"), auc_with_interval(scores, is_test > 0.5), strict=True))


def auc_with_interval(scores: Floats, is_positive: NDArray[np.bool_]) -> tuple[float, float, float]:
    """Area under the ROC curve and its 95 % interval. Source: Hanley and McNeil 1982."""
    ranks = pd.Series(scores).rank().to_numpy()
    n, m = int(is_positive.sum()), int((~is_positive).sum())
    auc = (ranks[is_positive].sum() - n * (n + 1) / 2) / (n * m)
    pair, twice = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variance = auc * (1 - auc) + (n - 1) * (pair - auc**2) + (m - 1) * (twice - auc**2)
    half = 1.96 * (variance / (n * m)) ** 0.5
    return float(auc), float(max(auc - half, 0)), float(min(auc + half, 1))
