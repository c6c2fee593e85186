"""The stage `export`: a run in files that need nothing of this project.

runs/<run>/export/model.onnx            uint8 photos [n, h, w, 3], upright RGB, of any size ->
                                        P(positive) [n]: resize, crop, views, all folds, all runs
                                        of a blend, their weights and the calibration are inside
runs/<run>/export/model.safetensors     timm's network and config for one view, calibrated: sigmoid
                                        of its logit is P(positive)

What is exact: the mean over folds of linear heads on one frozen backbone is one linear head, so
such a run is one network. Fine-tuned folds are not: averaging their weights is another model. Of
those there are model-fold-0.safetensors, model-fold-1.safetensors ..., whose logits are averaged,
and the ONNX file has them all. A calibration by slope and shift goes into the last layer.

What is not: everything is in float32, where the run may use bfloat16; other code resizes. So both
files are compared, on real photos, with torch and with what the run said of them.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from comp.competition import Competition
from comp.data.manifest import photo_path
from comp.errors import DataError, RecipeError
from comp.metric import Floats
from comp.network.heads import LinearHead
from comp.network.preprocessing import canvas_ratio, geometry_of, preprocessing_of
from comp.network.views import views_of
from comp.predict.calibrate import Curve
from comp.predict.classify import curve_of, weighted
from comp.predict.runs import fitted_run, read_run
from comp.progress import Reporter, counted
from comp.store import Workspace, whole
from comp.train.checkpoints import head_shape, load_network, load_tensors, save_tensors
from comp.train.fits import head_of
from comp.train.inputs import fitted_preprocessing
from comp.train.run import Run, check_weights

if TYPE_CHECKING:  # they load torch
    from comp.predict.portable import Member, Photos

N_CHECKED = 16  # photos on which the files are compared
TOLERANCE = 2e-3  # of a probability, between torch in this process and the files
MAX_BYTES = 1.9e9  # of weights in one ONNX file: protobuf ends at 2 GB
CROP_MODES = {"squash": "squash", "shorter": "center"}  # timm's names


def export(
    workspace: Workspace, competition: Competition, folder: Path, reporter: Reporter
) -> Path:
    """The folder of the exported files; DataError unless they say what torch does."""
    from comp.predict.portable import Portable, onnx_model, write_onnx

    curve = curve_of(folder)
    if not isinstance(curve, Curve):
        raise RecipeError(
            f"{folder.name} is calibrated by steps, which no layer has: export the run of"
            " SET=prediction.calibration=temperature, which shares its folds"
        )
    runs = {fitted_run(workspace, path): x for path, x in weighted(workspace, folder).items()}
    photos, said = _photos(workspace, folder, curve)
    members = [_member(run, share) for run, share in runs.items()]
    networks = [network for member in members for network in member.networks]
    n_bytes = sum(4 * value.numel() for each in networks for value in each.parameters())
    if n_bytes > MAX_BYTES:
        raise DataError(f"{n_bytes / 1e9:.1f} GB of weights, and an ONNX file holds 2: fewer folds")
    module, path = Portable(members, curve), folder / "export" / "model.onnx"
    probs = _probs(module.prob, photos, "torch", reporter)
    reporter.say(f"writing ONNX of {counted(len(networks), 'network')}: some 15 s for each")
    with whole(path) as scratch:
        about = {"run": folder.name, "positive": competition.classes[1]}
        write_onnx(module, scratch, photos[0], about)
        _check(path.name, probs, _probs(onnx_model(scratch), photos, "ONNX", reporter), reporter)
    reporter.say(f"the run itself says the same within {np.abs(probs - said).max():.1g}")
    if why_not := _why_not_timm(list(runs), curve):
        reporter.say(f"no file for timm: {why_not}")
        return path.parent
    (run,), (member,) = runs, members
    loaded = replace(member, networks=_write_timm(run, member, curve, path.parent))
    calibrated = Portable([loaded], Curve(below=1.0, above=1.0))
    _check("safetensors", probs, _probs(calibrated.prob, photos, "timm", reporter), reporter)
    return path.parent


def _photos(workspace: Workspace, folder: Path, curve: Curve) -> tuple[list["Photos"], Floats]:
    """Some test photos [h, w, 3], and what the run in `folder` says of them."""
    from comp.data.photos import decode

    table, photos = read_run(folder).predictions.dropna().head(N_CHECKED), []
    for id in table["id"]:
        path = photo_path(workspace, "test", id)
        pixels = decode(path.read_bytes()).pixels if path.exists() else None
        if pixels is None:
            raise DataError(f"files are compared on test photos, and {path} is gone: `make data`")
        photos.append(pixels)
    return photos, curve.probs(table["logit"])


def _member(run: Run, share: float) -> "Member":
    """The run with one network for each fold, or one for all where that is the same."""
    from comp.network.device import find_device
    from comp.predict.portable import Member

    recipe, own = run.recipe, preprocessing_of(run.recipe)
    if recipe.pixels.fit not in CROP_MODES:
        known = " and ".join(CROP_MODES)
        raise RecipeError(f"pixels.fit={recipe.pixels.fit} is not exported: only {known} are")
    if recipe.on_features:
        networks, preprocessings = [_with_mean_head(run)], [own]
    else:
        device = find_device("cpu")
        networks = [load_network(run.checkpoint(fold), recipe, device) for fold in run.folds]
        preprocessings = [fitted_preprocessing(run, fold) for fold in run.folds]
    return Member(
        weight=share,
        networks=networks,
        preprocessings=preprocessings,
        geometry=geometry_of(recipe),
        views=views_of(recipe.prediction.views, has_room=canvas_ratio(recipe, own) > 1),
    )


def _with_mean_head(run: Run) -> Any:
    from comp.network.backbone import build
    from comp.network.embedder import weights_key
    from comp.network.layers import start_from

    heads = [head for fold in run.folds if isinstance(head := head_of(run, fold), LinearHead)]
    if len(heads) < len(run.folds):
        raise RecipeError(
            f"{run.name} has a head of hidden layers or kernels, which is not exported"
        )
    network: Any = build(run.recipe.model, size_px=run.recipe.pixels.size_px)
    check_weights(run, weights_key(network))
    weight = np.mean([head.weight for head in heads], axis=0)
    bias = np.float64(np.mean([head.bias for head in heads]))
    start_from(network.get_classifier(), LinearHead(weight=weight, bias=bias))
    return network


def _probs(
    model: Callable[["Photos"], float], photos: Sequence["Photos"], name: str, reporter: Reporter
) -> Floats:
    found = []
    with reporter.track(f"photos by {name}", len(photos), "photos") as advance:
        for photo in photos:
            found.append(model(photo))
            advance()
    return np.array(found)


def _check(name: str, ours: Floats, theirs: Floats, reporter: Reporter) -> None:
    change = float(np.abs(ours - theirs).max())
    if not change <= TOLERANCE:
        raise DataError(f"{name} differs from torch by {change:.2g} on {len(ours)} photos")
    reporter.say(f"{name}: as torch within {change:.1g} on {counted(len(ours), 'photo')}")


def _why_not_timm(runs: Sequence[Run], curve: Curve) -> str:
    """Why timm cannot load what is exported; nothing if it can."""
    recipe = runs[0].recipe
    reasons = {
        f"a blend of {len(runs)} runs is no network of timm's": len(runs) > 1,
        f"{recipe.model.backbone} is cut at {recipe.model.layer}": recipe.model.layer is not None,
        "its head has hidden layers": bool(head_shape(recipe).widths),
        "beta calibration does not go into a linear layer": curve.below != curve.above,
    }
    return next((reason for reason, is_so in reasons.items() if is_so), "")


def _write_timm(run: Run, member: "Member", curve: Curve, folder: Path) -> list[Any]:
    """Write a file for each network, the calibration in its head; those networks, as loaded."""
    from comp.network.backbone import load_portable, portable_config

    loaded, is_one = [], len(member.networks) == 1
    for old in folder.glob("*.safetensors"):
        old.unlink()
    for fold, network in enumerate[Any](member.networks):
        if run.recipe.on_features:
            arrays = {name: value.numpy() for name, value in network.state_dict().items()}
        else:
            arrays = load_tensors(run.checkpoint(fold))
        head = network.pretrained_cfg["classifier"]
        for name, shift in ((f"{head}.weight", 0.0), (f"{head}.bias", curve.shift)):
            arrays[name] = (curve.above * arrays[name] + shift).astype(np.float32)
        preprocessing = member.preprocessings[fold]
        share = preprocessing.size_px / member.geometry.size_px
        if math.floor(preprocessing.size_px / share) < member.geometry.size_px:
            share = math.nextafter(share, 0)  # timm resizes to floor(size / crop_pct)
        what = (replace(preprocessing, crop_pct=share), CROP_MODES[run.recipe.pixels.fit])
        config = portable_config(network, *what)
        about = {"timm": config, "run": run.name, "views": [view.name for view in member.views]}
        path = folder / ("model.safetensors" if is_one else f"model-fold-{fold}.safetensors")
        save_tensors(path, arrays, about)
        loaded.append(load_portable(config, path))
    return loaded
