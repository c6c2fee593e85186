"""The only door to albumentations: what a photo may look like in training."""

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from comp.network.views import CENTRE, crop
from comp.recipe import Augmentation

# its import asks the network for a newer version otherwise
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import albumentations
import cv2

Image = NDArray[np.uint8]
JITTER_SHARE = 0.8  # of the photos whose colours change

cv2.setNumThreads(0)  # the loader's workers share the cores already


def make_augmentation(options: Augmentation, size_px: int) -> Callable[[Image, int], Image]:
    """A function of a canvas [h, w, 3] and a seed to an augmented uint8 crop [size_px, size_px, 3].

    The same canvas and seed give the same crop in every process.
    """
    steps = _crop_steps(options, size_px)
    if options.flip:
        steps.append(albumentations.HorizontalFlip(p=0.5))
    if options.colour:
        most = dict.fromkeys(("brightness", "contrast", "saturation"), options.colour)
        steps.append(albumentations.ColorJitter(**most, hue=0, p=JITTER_SHARE))

    return partial(_augment, steps, size_px if options.crop == "center-crop" else None)


def _augment(steps: Sequence[Any], centre_px: int | None, canvas: Image, seed: int) -> Image:
    """Not a local function: workers that are not forked get it pickled."""
    image = crop(canvas, CENTRE, centre_px) if centre_px else canvas
    for index, step in enumerate(steps):
        step.set_random_seed((seed + index) % 2**63)  # one seed would tie the flip to the crop
        image = step(image=image)["image"]
    return image


def _crop_steps(options: Augmentation, size_px: int) -> list[Any]:
    match options.crop:
        case "center-crop":  # not albumentations': training must see exactly what prediction sees
            return []
        case "pad-and-crop":
            pad = albumentations.Pad(padding=options.pad_px)
            return [pad, albumentations.RandomCrop(height=size_px, width=size_px)]
        case "random-resized-crop":
            resized = albumentations.RandomResizedCrop(
                size=(size_px, size_px),
                scale=(options.area, 1.0),
                ratio=(1 / options.aspect, options.aspect),
                interpolation=cv2.INTER_LINEAR,
            )
            return [resized]
