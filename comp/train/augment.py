"""The only door to albumentations: what a photo may look like in training."""

import os
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from comp.recipe import FineTune
from comp.train.views import View, cut_square

os.environ.setdefault(
    "NO_ALBUMENTATIONS_UPDATE", "1"
)  # its import asks the network for a newer version otherwise

import albumentations
import cv2

Image = NDArray[np.uint8]

cv2.setNumThreads(0)  # the loader's workers share the cores already


def make_augmentation(training: FineTune, size_px: int) -> Callable[[Image, int], Image]:
    """A function of a canvas [h, w, 3] and a seed to a uint8 square [s, s, 3]: a crop, a flip, a change of colour.

    The same canvas and seed give the same square, whichever worker computes it.
    """
    steps = _crops(training, size_px)
    if training.flip:
        steps.append(albumentations.HorizontalFlip(p=0.5))
    if training.colour:
        strength = training.colour
        steps.append(
            albumentations.ColorJitter(
                brightness=strength, contrast=strength, saturation=strength, hue=0, p=0.8
            )
        )

    def augment(canvas: Image, seed: int) -> Image:
        square = (
            cut_square(canvas, View(name="centre"), size_px)
            if training.crop == "center-crop"
            else canvas
        )
        for index, step in enumerate(steps):
            step.set_random_seed(
                (seed + index) % 2**63
            )  # one seed for all would tie the flip to the crop
            square = step(image=square)["image"]
        return square

    return augment


def _crops(training: FineTune, size_px: int) -> list[Any]:
    match training.crop:
        case (
            "center-crop"
        ):  # is none of this library's: training must see the very square that prediction sees
            return []
        case "pad-and-crop":
            return [
                albumentations.Pad(padding=training.crop_pad_px),
                albumentations.RandomCrop(height=size_px, width=size_px),
            ]
        case "random-resized-crop":
            area, aspect = (
                (training.crop_area, 1.0),
                (1 / training.crop_aspect, training.crop_aspect),
            )
            size = (size_px, size_px)
            return [
                albumentations.RandomResizedCrop(
                    size=size, scale=area, ratio=aspect, interpolation=cv2.INTER_LINEAR
                )
            ]
