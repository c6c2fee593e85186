"""What fitting and predicting work with: the run, the device, the pixels, the backbone made ready, the fitted folds."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import nn

from comp.data.canvas import Geometry
from comp.data.manifest import read_manifest, usable
from comp.data.pixels import PixelStore, open_pixels
from comp.errors import StaleError
from comp.progress import Reporter
from comp.recipe import FineTune, HeadShape, Model, Recipe
from comp.store import whole
from comp.train.activations import Boundary, Tail, find_boundary, resume
from comp.train.backbone import Input, build, input_of
from comp.train.colours import measured
from comp.train.device import Device
from comp.train.features import Embedder, features_of, make_embedder, weights_key
from comp.train.folding import fold_batch_norm
from comp.train.freezing import freeze_phases
from comp.train.heads import FeatureHead, finished, head_from, set_head, tensors_of
from comp.train.kept import Rows
from comp.train.run import Run, refuse_other_weights
from comp.train.selection import learners, select
from comp.train.verdicts import chosen_verdicts, refuse_unknown, summed_up, targets
from comp.train.views import Seen, View, views_of

N_EXAMPLES = 32  # photos on which the precision of inference is tried
N_AT_ONCE = 1024  # photos whose kept features or activations are in memory


def geometry_of(recipe: Recipe, shown: Input) -> Geometry:
    """The canvas that `recipe` wants of each photo."""
    size_px = recipe.pixels.size_px or shown.size_px
    return Geometry(
        fit=recipe.pixels.fit,
        size_px=round(size_px * _canvas_ratio(recipe, shown)),
        interpolation="bilinear" if shown.interpolation == "bilinear" else "bicubic",
    )


def input_for(recipe: Recipe) -> Input:
    """What the network of `recipe` is shown: what its backbone was, but for colours that the recipe normalises by constants."""
    shown, pixels = input_of(recipe.model), recipe.pixels
    if pixels.normalise != "constants":
        return shown
    return replace(shown, mean=pixels.mean, std=pixels.std)


def _canvas_ratio(recipe: Recipe, shown: Input) -> float:
    return recipe.pixels.canvas if recipe.pixels.canvas is not None else 1 / shown.crop_pct


@dataclass(frozen=True, slots=True, kw_only=True)
class Workbench:
    """Everything that the folds of one run share."""

    run: Run
    device: Device
    shown: Input
    size_px: int
    photos: (
        pd.DataFrame
    )  # id, label, group, fold, and what is learnt: target, see comp/train/verdicts.py
    test_ids: list[str]  # that can be decoded
    pixels: PixelStore
    reporter: Reporter

    @property
    def recipe(self) -> Recipe:
        return self.run.recipe

    def views(self, name: str | None = None) -> tuple[View, ...]:
        """The views called `name`, or those that the recipe predicts with."""
        has_room = _canvas_ratio(self.recipe, self.shown) > 1
        return views_of(name or self.recipe.prediction.views, has_room=has_room)  # type: ignore[arg-type]  # a ViewsName by the recipe's own check

    def network(self, seed: int = 0) -> nn.Module:
        """The backbone with its weights and the recipe's head, which says 0.5; `seed` is of hidden layers that the head may have."""
        return _network(self.recipe, self.recipe.model, seed)

    def backbone(self) -> nn.Module:
        """The backbone with its weights, as nobody has trained it; StaleError if they are not those that the run began with."""
        network = build(self.recipe.model, size_px=self.recipe.pixels.size_px)
        refuse_other_weights(self.run, weights_key(network))
        return network

    def shown_for(self, fold: int) -> Input:
        """What the network of `fold` is shown: with the colours of its own training photos where the recipe measures them."""
        if self.recipe.pixels.normalise != "measured":
            return self.shown
        learns = self.photos["id"][learners(self.photos, fold)]
        mean, std = measured(self.pixels, [int(row) for row in self.pixels.rows(list(learns))])
        return replace(self.shown, mean=mean, std=std)

    def embedder(
        self, network: nn.Module, shown: Input | None = None, boundary: Boundary | None = None
    ) -> tuple[Embedder, str]:
        """`network` up to its head, or to `boundary`, made ready for inference and used up by it, and a line about its precision."""
        n_examples = min(N_EXAMPLES, len(self.pixels))
        example = torch.from_numpy(
            View(name="centre").squares(self.pixels, range(n_examples), self.size_px)
        )
        return make_embedder(
            network, shown or self.shown, self.size_px, self.device, example, boundary
        )

    def frozen(self, network: nn.Module) -> tuple[Embedder, str]:
        """The part of `network`, the backbone, that all folds of a run on kept features or activations share; used up."""
        if self.recipe.on_features:
            return self.embedder(network)
        trained = self.network()
        freeze_phases(trained, self.fine_tune)
        return self.embedder(network, boundary=find_boundary(trained, self.size_px))

    @property
    def fine_tune(self) -> FineTune:
        training = self.recipe.training
        assert isinstance(training, FineTune)
        return training

    def fitted(self, fold: int, frozen: Embedder | None) -> tuple[Embedder, FeatureHead]:
        """What scores photos for the fitted `fold`: what all folds share, if there is that, or the fold's own backbone; and a head."""
        checkpoint = self.run.checkpoint(fold)
        if frozen is not None and frozen.boundary is None:
            return frozen, load_head(checkpoint, _shape(self.recipe))
        network = load_network(checkpoint, self.recipe, self.device)
        if frozen is not None and frozen.boundary is not None:
            resume(network, frozen.boundary, self.size_px)
            return frozen, Tail(network=network, device=self.device)
        head = finished(network.get_classifier())  # type: ignore[operator]  # timm's, which has no types
        return self.embedder(network, self.shown_for(fold))[0], head

    def features(self, embedder: Embedder, ids: Sequence[str], view: Seen) -> Rows:
        """Features or activations of one view, kept on disk."""
        return features_of(
            self.run.workspace.features, embedder, self.pixels, ids, view, self.reporter
        )

    def mean_features(
        self, embedder: Embedder, ids: Sequence[str], views: Sequence[View]
    ) -> NDArray[np.float32]:
        """Features [n, d] averaged over `views`."""
        total = self.features(embedder, ids, views[0]).all()
        for view in views[1:]:
            total += self.features(embedder, ids, view).all()
        return total / np.float32(len(views))

    def logits(
        self, embedder: Embedder, head: FeatureHead, ids: Sequence[str]
    ) -> NDArray[np.float64]:
        """Logits [n] of `ids`, the mean over the recipe's views."""
        by_view = np.stack(list(self.view_logits(embedder, head, ids).values()))
        return np.asarray(by_view.mean(0), np.float64)

    def view_logits(
        self, embedder: Embedder, head: FeatureHead, ids: Sequence[str]
    ) -> dict[str, NDArray[np.float64]]:
        """Logits [n] of `ids` under each of the recipe's views. What a frozen part makes is kept, what a tuned one makes is not."""
        views = self.views()
        if self.recipe.is_cached:
            return {
                view.name: _logits_of(self.features(embedder, ids, view), head) for view in views
            }
        return self.view_logits_of_pixels(embedder, head, ids)

    def view_logits_of_pixels(
        self, embedder: Embedder, head: FeatureHead, ids: Sequence[str]
    ) -> dict[str, NDArray[np.float64]]:
        """The same, with nothing kept."""
        views, rows = self.views(), [int(row) for row in self.pixels.rows(ids)]
        by_view = {}
        with self.reporter.track("predicting", len(rows) * len(views), "views") as advance:
            for view in views:
                batches = []
                for batch in embedder.features(self.pixels, rows, view):
                    batches.append(head.logits(batch))
                    advance(len(batch))
                by_view[view.name] = torch.cat(batches).numpy()
        return by_view


def _logits_of(rows: Rows, head: FeatureHead) -> NDArray[np.float64]:
    parts = [
        rows.take(range(start, min(start + N_AT_ONCE, len(rows))))
        for start in range(0, len(rows), N_AT_ONCE)
    ]
    return (
        torch.cat([head.logits(torch.from_numpy(part)) for part in parts]).numpy()
        if parts
        else np.empty(0)
    )


def open_workbench(
    run: Run, device: Device, reporter: Reporter, *, with_test: bool = True
) -> Workbench:
    """Read the manifests, and decode what is not decoded yet; `with_test` asks for the test photos too."""
    recipe = run.recipe
    shown = input_for(recipe)
    train, test = (read_manifest(run.workspace.manifest(split)) for split in ("train", "test"))
    photos = select(train, recipe.folds, recipe.seed)
    photos = photos.assign(target=_targets(run, photos, train["id"], reporter))
    seen = train[train["id"].isin(photos["id"])]
    pixels = open_pixels(
        run.workspace, [seen, test] if with_test else [seen], geometry_of(recipe, shown), reporter
    )
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


def _targets(
    run: Run, photos: pd.DataFrame, ids: "pd.Series[str]", reporter: Reporter
) -> NDArray[np.float64]:
    wanted = run.recipe.folds.label_fixes
    verdicts = chosen_verdicts(run.workspace.verdicts, wanted) if wanted is not None else {}
    refuse_unknown(verdicts, ids)
    here = {id: verdict for id, verdict in verdicts.items() if id in set(photos["id"])}
    if wanted is not None:
        reporter.say(
            f"verdicts applied to {len(here)} of {len(photos):,} training photos: {summed_up(here) or 'none of them is in this run'}"
        )
    return targets(photos, here)


def _network(recipe: Recipe, model: Model, seed: int) -> nn.Module:
    network, shape, training = (
        build(model, size_px=recipe.pixels.size_px),
        _shape(recipe),
        recipe.training,
    )
    if shape != HeadShape():
        set_head(network, shape, seed)
    if isinstance(training, FineTune) and training.fuse_batch_norm:
        size_px = recipe.pixels.size_px or input_of(model).size_px
        fold_batch_norm(network, lambda: network(torch.zeros(1, 3, size_px, size_px)))
    return network


def _shape(recipe: Recipe) -> HeadShape:
    return recipe.training.head if isinstance(recipe.training, FineTune) else HeadShape()


def save_head(path: Path, head: FeatureHead) -> None:
    _save(path, tensors_of(head))


def load_head(path: Path, shape: HeadShape) -> FeatureHead:
    return head_from(_load(path), shape)


def save_network(path: Path, network: nn.Module) -> None:
    _save(path, dict(network.state_dict()))


def load_network(path: Path, recipe: Recipe, device: Device) -> nn.Module:
    """The network that a fold was fitted to."""
    network = _network(recipe, recipe.model.replace(weights="random"), seed=0)
    try:
        network.load_state_dict(_load(path))
    except RuntimeError as error:
        raise StaleError(
            f"{path} does not fit {recipe.model.backbone}: delete it and train again ({str(error).splitlines()[0]})"
        ) from error
    return network.to(device.where)


def _save(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    with whole(path) as scratch:
        safetensors.torch.save_file(
            {key: value.detach().cpu().contiguous() for key, value in tensors.items()}, scratch
        )


def _load(path: Path) -> dict[str, torch.Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise StaleError(
            f"{path} cannot be read: delete it and run `make train` again ({error})"
        ) from error
