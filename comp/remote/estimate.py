"""What a run will take on Kaggle's GPUs, roughly: operations counted, speed assumed."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from comp.network.backbone import build
from comp.network.preprocessing import preprocessing_of
from comp.network.views import views_of
from comp.recipe import FineTune, Recipe

SPEED = (
    5e12  # operations a second of a T4 in float16; assumed, from figures for ResNet-50 of others
)
PASSES = 3.0  # forward passes that a training step costs: one, and twice that backwards
FIXED_S = 600.0  # setting up, unpacking and decoding on four cores; assumed


def estimated_hours(recipe: Recipe, n_train: int, n_test: int) -> float:
    """Hours of one T4 for the folds of `recipe` and the predictions for all photos."""
    size_px = preprocessing_of(recipe).size_px
    network = build(recipe.model.replace(weights="random"), size_px=recipe.pixels.size_px)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, size_px, size_px))
    training, folds = recipe.training, recipe.folds
    n_folds = 1 if folds.split is not None else folds.fit or folds.n
    n_seen = min(folds.n_photos or n_train, n_train)
    n_views = len(views_of(recipe.prediction.views, has_room=True))
    n_forward = (n_seen + n_test) * n_views  # frozen networks are run once for all folds
    if isinstance(training, FineTune) and not recipe.is_cached:
        share = 1 - 1 / folds.n if folds.split is None else 1 - sum(folds.split)
        n_epochs = sum(phase.epochs for phase in training.phases())
        n_trained = n_folds * share * n_seen * n_epochs
        n_predicted = (n_seen + n_folds * n_test) * n_views
        n_forward = int(PASSES * n_trained + n_predicted + n_seen * training.head_start)
    return (FIXED_S + n_forward * float(counter.get_total_flops()) / SPEED) / 3600
