"""The only door to albumentations: what a photo may look like in training."""

import os
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from comp.recipe import FineTune

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # its import asks the network for a newer version otherwise

import albumentations
import cv2

Image = NDArray[np.uint8]

cv2.setNumThreads(0)  # the loader's workers share the cores already


def make_augmentation(training: FineTune, size_px: int) -> Callable[[Image, int], Image]:
    """A function of a canvas [h, w, 3] and a seed to a uint8 square [s, s, 3]: a random crop, a flip, a change of colour.

    The same canvas and seed give the same square, whichever worker computes it.
    """
    steps = [
        albumentations.RandomResizedCrop(
            size=(size_px, size_px),
            scale=(training.crop_area, 1.0),
            ratio=(1 / training.crop_aspect, training.crop_aspect),
            interpolation=cv2.INTER_LINEAR,
        )
    ]
    if training.flip:
        steps.append(albumentations.HorizontalFlip(p=0.5))
    if training.colour:
        strength = training.colour
        steps.append(albumentations.ColorJitter(brightness=strength, contrast=strength, saturation=strength, hue=0, p=0.8))

    def augment(canvas: Image, seed: int) -> Image:
        for index, step in enumerate(steps):
            step.set_random_seed((seed + index) % 2**63)  # one seed for all would tie the flip to the crop
            canvas = step(image=canvas)["image"]
        return canvas

    return augment
