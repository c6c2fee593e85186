"""How a canvas becomes the crop that training sees."""

import numpy as np
import pytest

from comp.recipe import Crop, FineTune
from comp.train.augment import make_augmentation
from comp.train.views import View, cut_square

PLAIN = FineTune(flip=False, colour=0.0)
CENTRE = PLAIN.replace(crop="center-crop")


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("shape", [(32, 32), (40, 40), (33, 77), (90, 32)])
def test_a_centre_crop_is_what_prediction_sees(shape: tuple[int, int]) -> None:
    canvas = noise(*shape)
    square = make_augmentation(CENTRE, 32)(canvas, 7)
    assert np.array_equal(square, cut_square(canvas, View(name="centre"), 32))
    assert np.array_equal(square, make_augmentation(CENTRE, 32)(canvas, 8))


def test_pad_and_crop_shifts_the_photo_by_up_to_the_padding_and_fills_with_black() -> None:
    canvas = noise(32, 32)
    augment = make_augmentation(PLAIN.replace(crop="pad-and-crop", crop_pad_px=4), 32)
    padded = np.pad(canvas, ((4, 4), (4, 4), (0, 0)))
    seen = set()
    for seed in range(200):
        square = augment(canvas, seed)
        places = [
            (y, x)
            for y in range(9)
            for x in range(9)
            if np.array_equal(square, padded[y : y + 32, x : x + 32])
        ]
        assert len(places) == 1
        seen.add(places[0])
    assert {y for y, _ in seen} == {x for _, x in seen} == set(range(9))


@pytest.mark.parametrize("crop", ["random-resized-crop", "pad-and-crop", "center-crop"])
def test_every_crop_gives_the_size_that_the_network_takes_and_the_same_for_the_same_seed(
    crop: Crop,
) -> None:
    augment = make_augmentation(FineTune().replace(crop=crop), 32)
    for shape in ((32, 32), (40, 61)):
        canvas = noise(*shape)
        assert augment(canvas, 3).shape == (32, 32, 3)
        assert augment(canvas, 3).dtype == np.uint8
        assert np.array_equal(augment(canvas, 3), augment(canvas, 3))
        assert any(
            not np.array_equal(augment(canvas, 3), augment(canvas, seed)) for seed in range(4, 10)
        )
