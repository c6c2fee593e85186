"""How a photo becomes a canvas, and a canvas the square that training sees."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from comp.data.geometry import PAD, Geometry
from comp.data.photos import to_canvas
from comp.recipe import Crop, FineTune
from comp.train.augment import make_augmentation
from comp.train.views import View, cut_square

PLAIN = FineTune(flip=False, colour=0.0)
CENTRE = PLAIN.replace(crop="center-crop")


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 256, (height, width, 3), np.uint8)


@given(width=st.integers(1, 3000), height=st.integers(1, 3000), size_px=st.integers(8, 300))
def test_a_letterbox_holds_the_whole_photo_in_its_shape_between_even_bars(
    width: int, height: int, size_px: int
) -> None:
    geometry = Geometry(fit="letterbox", size_px=size_px)
    top, left, high, wide = geometry.place(width, height)
    assert geometry.canvas(width, height) == (size_px, size_px)
    assert geometry.crop(width, height) == (0, 0, height, width)
    assert max(high, wide) == size_px
    assert min(high, wide) >= 1
    assert abs(high - size_px * height / max(width, height)) < 1
    assert abs(wide - size_px * width / max(width, height)) < 1
    for before, inside in ((top, high), (left, wide)):
        assert 0 <= size_px - before - inside - before <= 1


def test_a_letterbox_is_the_photo_on_the_colour_of_its_bars() -> None:
    canvas = to_canvas(np.full((50, 100, 3), 200, np.uint8), Geometry(fit="letterbox", size_px=64))
    assert canvas.shape == (64, 64, 3)
    assert np.array_equal(np.unique(canvas[16:48]), [200])
    assert np.array_equal(np.unique(canvas[:16].reshape(-1, 3), axis=0), [PAD])
    assert np.array_equal(np.unique(canvas[48:].reshape(-1, 3), axis=0), [PAD])


@pytest.mark.parametrize("shape", [(40, 90), (33, 32), (32, 32), (20, 90), (90, 7), (3, 5)])
def test_a_canvas_can_be_the_middle_of_the_photo_at_its_own_scale(shape: tuple[int, int]) -> None:
    photo = noise(*shape)
    canvas = to_canvas(photo, Geometry(fit="center-crop", size_px=32))
    assert canvas.shape == (32, 32, 3)
    (top, left), (y, x) = (
        [max(0, (a - b) // 2) for a, b in pairs]
        for pairs in ([(n, 32) for n in shape], [(32, n) for n in shape])
    )
    inside = canvas[y : y + min(shape[0], 32), x : x + min(shape[1], 32)]
    assert np.array_equal(inside, photo[top : top + 32, left : left + 32])
    canvas[y : y + inside.shape[0], x : x + inside.shape[1]] = PAD
    assert np.array_equal(np.unique(canvas.reshape(-1, 3), axis=0), [PAD])


@pytest.mark.parametrize("shape", [(32, 32), (40, 40), (33, 77), (90, 32)])
def test_a_centre_crop_is_the_square_that_prediction_sees(shape: tuple[int, int]) -> None:
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
