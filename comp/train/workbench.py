"""What fitting and predicting work with: the run, the device, the pixels, the backbone made ready, the fitted folds."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import nn

from comp.data.geometry import Geometry
from comp.data.manifest import read_manifest, usable
from comp.data.pixels import Pixels, open_pixels
from comp.errors import StaleError
from comp.progress import Reporter
from comp.recipe import Head, Recipe
from comp.store import whole
from comp.train.backbone import Input, build, input_of
from comp.train.device import Device
from comp.train.features import Embedder, features_of, make_embedder
from comp.train.head import LinearHead
from comp.train.run import Run
from comp.train.selection import select
from comp.train.verdicts import chosen_verdicts, refuse_unknown, summed_up, targets
from comp.train.views import View, cut, views_of

N_EXAMPLES = 32  # photos on which the precision of inference is tried


def geometry_of(recipe: Recipe, shown: Input) -> Geometry:
    """The canvas that `recipe` wants of each photo."""
    size_px = recipe.pixels.size_px or shown.size_px
    return Geometry(
        fit=recipe.pixels.fit,
        size_px=round(size_px * _canvas_ratio(recipe, shown)),
        interpolation="bilinear" if shown.interpolation == "bilinear" else "bicubic",
    )


def _canvas_ratio(recipe: Recipe, shown: Input) -> float:
    return recipe.pixels.canvas if recipe.pixels.canvas is not None else 1 / shown.crop_pct


@dataclass(frozen=True, slots=True, kw_only=True)
class Workbench:
    """Everything that the folds of one run share."""

    run: Run
    device: Device
    shown: Input
    size_px: int
    photos: pd.DataFrame  # id, label, group, fold, and what is learnt: target, see comp/train/verdicts.py
    test_ids: list[str]  # that can be decoded
    pixels: Pixels
    reporter: Reporter

    @property
    def recipe(self) -> Recipe:
        return self.run.recipe

    def views(self, name: str | None = None) -> tuple[View, ...]:
        """The views called `name`, or those that the recipe predicts with."""
        has_room = self.recipe.pixels.fit == "shorter" or _canvas_ratio(self.recipe, self.shown) > 1
        return views_of(name or self.recipe.prediction.views, has_room=has_room)  # type: ignore[arg-type]  # a ViewsName by the recipe's own check

    def network(self) -> nn.Module:
        """The backbone with its weights and a head that says 0.5."""
        return build(self.recipe.model, size_px=self.recipe.pixels.size_px)

    def embedder(self, network: nn.Module) -> tuple[Embedder, str]:
        """`network`, which is used up, made ready for inference, and a line about its precision."""
        n_examples = min(N_EXAMPLES, len(self.pixels))
        example = torch.from_numpy(cut(self.pixels, range(n_examples), View(name="centre"), self.size_px))
        return make_embedder(network, self.shown, self.size_px, self.device, example)

    def mean_features(self, embedder: Embedder, ids: Sequence[str], views: Sequence[View]) -> NDArray[np.float32]:
        """Features [n, d] averaged over `views`, kept on disk; for a linear head that is the mean of the logits."""
        folder = self.run.workspace.features
        total = np.zeros((0, 0), np.float32)
        for view in views:
            part, _ = features_of(folder, embedder, self.pixels, ids, view, self.reporter)
            total = part if total.size == 0 else total + part
        return total / np.float32(len(views))

    def logits(self, embedder: Embedder, head: LinearHead, ids: Sequence[str]) -> NDArray[np.float64]:
        """Logits [n] of `ids`, the mean over the recipe's views."""
        by_view = np.stack(list(self.view_logits(embedder, head, ids).values()))
        return np.asarray(by_view.mean(0), np.float64)

    def view_logits(self, embedder: Embedder, head: LinearHead, ids: Sequence[str]) -> dict[str, NDArray[np.float64]]:
        """Logits [n] of `ids` under each of the recipe's views. Features of a frozen backbone are kept, those of a tuned one are not."""
        views = self.views()
        if isinstance(self.recipe.training, Head):
            folder = self.run.workspace.features
            parts = {view.name: features_of(folder, embedder, self.pixels, ids, view, self.reporter)[0] for view in views}
            return {name: head.logits(torch.from_numpy(part)).numpy() for name, part in parts.items()}
        rows = [int(row) for row in self.pixels.rows(ids)]
        by_view = {}
        with self.reporter.track("predicting", len(rows) * len(views), "views") as advance:
            for view in views:
                batches = []
                for batch in embedder.features(self.pixels, rows, view):
                    batches.append(head.logits(batch))
                    advance(len(batch))
                by_view[view.name] = torch.cat(batches).numpy()
        return by_view


def open_workbench(run: Run, device: Device, reporter: Reporter, *, with_test: bool = True) -> Workbench:
    """Read the manifests, and decode what is not decoded yet; `with_test` asks for the test photos too."""
    recipe = run.recipe
    shown = input_of(recipe.model)
    train, test = (read_manifest(run.workspace.manifest(split)) for split in ("train", "test"))
    photos = select(train, recipe.folds, recipe.seed)
    photos = photos.assign(target=_targets(run, photos, train["id"], reporter))
    seen = train[train["id"].isin(photos["id"])]
    pixels = open_pixels(run.workspace, [seen, test] if with_test else [seen], geometry_of(recipe, shown), reporter)
    return Workbench(
        run=run,
        device=device,
        shown=shown,
        size_px=recipe.pixels.size_px or shown.size_px,
        photos=photos,
        test_ids=list(usable(test)["id"]) if with_test else [],
        pixels=pixels,
        reporter=reporter,
    )


def _targets(run: Run, photos: pd.DataFrame, ids: "pd.Series[str]", reporter: Reporter) -> NDArray[np.float64]:
    wanted = run.recipe.folds.verdicts
    verdicts = chosen_verdicts(run.workspace.verdicts, wanted) if wanted is not None else {}
    refuse_unknown(verdicts, ids)
    here = {id: verdict for id, verdict in verdicts.items() if id in set(photos["id"])}
    if wanted is not None:
        reporter.say(
            f"verdicts applied to {len(here)} of {len(photos):,} training photos: {summed_up(here) or 'none of them is in this run'}"
        )
    return targets(photos, here)


def save_head(path: Path, head: LinearHead) -> None:
    penalty = torch.tensor(head.penalty, dtype=torch.float64)
    _save(path, {"weight": head.weight.cpu(), "bias": head.bias.cpu(), "penalty": penalty})


def load_head(path: Path) -> LinearHead:
    state = _load(path)
    return LinearHead(weight=state["weight"], bias=state["bias"], penalty=float(state["penalty"]))


def save_network(path: Path, network: nn.Module) -> None:
    _save(path, {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()})


def load_network(path: Path, recipe: Recipe, device: Device) -> nn.Module:
    """The network that a fold was fitted to."""
    model = type(recipe.model)(backbone=recipe.model.backbone, weights="random", drop_path=recipe.model.drop_path)
    network = build(model, size_px=recipe.pixels.size_px)
    try:
        network.load_state_dict(_load(path))
    except RuntimeError as error:
        raise StaleError(
            f"{path} does not fit {recipe.model.backbone}: delete it and train again ({str(error).splitlines()[0]})"
        ) from error
    return network.to(device.where)


def head_of(network: nn.Module) -> LinearHead:
    """The head of a fine-tuned network, to be used on its pooled features."""
    classifier = network.get_classifier()  # type: ignore[operator]  # timm's, which has no types
    return LinearHead(weight=classifier.weight.detach().double().cpu()[0], bias=classifier.bias.detach().double().cpu()[0], penalty=0.0)


def _save(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    with whole(path) as scratch:
        safetensors.torch.save_file(tensors, scratch)


def _load(path: Path) -> dict[str, torch.Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise StaleError(f"{path} cannot be read: delete it and run `make train` again ({error})") from error
