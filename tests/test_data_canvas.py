"""How a photo becomes a canvas."""

from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from odd_photos import jpeg
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize

from comp.data.canvas import MAX_ASPECT, PAD, CanvasFit, Geometry, Interpolation
from comp.data.photos import decode
from comp.data.scan import to_canvas


@pytest.mark.parametrize("name", get_args(Interpolation))
def test_a_canvas_is_what_torchvision_makes_of_the_photo(name: Interpolation) -> None:
    pixels = decode(jpeg(7, width=211, height=150)).pixels
    assert pixels is not None
    planes = torch.from_numpy(pixels).permute(2, 0, 1)
    expected = resize(planes, [64, 64], InterpolationMode(name), antialias=True)
    canvas = to_canvas(pixels, Geometry(size_px=64, interpolation=name))
    assert np.array_equal(canvas, expected.permute(1, 2, 0).numpy())


@given(width=st.integers(1, 400), height=st.integers(1, 400), size_px=st.integers(1, 64))
@settings(max_examples=60, deadline=None)
def test_a_canvas_has_the_size_that_its_geometry_announces(
    width: int, height: int, size_px: int
) -> None:
    pixels = np.zeros((height, width, 3), np.uint8)
    for fit in get_args(CanvasFit):
        geometry = Geometry(fit=fit, size_px=size_px)
        canvas = to_canvas(pixels, geometry)
        assert canvas.shape == (*geometry.canvas(width, height), 3)
        assert min(canvas.shape[:2]) == size_px
        assert max(canvas.shape[:2]) <= MAX_ASPECT * size_px
        assert canvas.nbytes == geometry.n_bytes([(width, height)])


def test_a_photo_that_keeps_its_shape_is_kept_whole_unless_it_is_a_strip() -> None:
    shorter = Geometry(fit="shorter", size_px=10)
    assert shorter.canvas(40, 30) == (10, 13)
    assert shorter.crop(40, 30) == (0, 0, 30, 40)
    assert shorter.canvas(1, 10_000) == (40, 10)
    assert shorter.crop(1, 10_000) == (4998, 0, 4, 1)
    strip = np.zeros((10, 100, 3), np.uint8)
    strip[:, 30:70] = 255
    assert (to_canvas(strip, shorter) == 255).all()


@given(width=st.integers(1, 3000), height=st.integers(1, 3000), size_px=st.integers(8, 300))
def test_a_letterbox_has_the_whole_photo_in_its_shape_between_even_bars(
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
    assert (canvas[16:48] == 200).all()
    assert (canvas[:16] == PAD).all()
    assert (canvas[48:] == PAD).all()


@pytest.mark.parametrize("shape", [(40, 90), (33, 32), (32, 32), (20, 90), (90, 7), (3, 5)])
def test_a_canvas_can_be_the_middle_of_the_photo_without_resizing(shape: tuple[int, int]) -> None:
    photo = np.random.default_rng(0).integers(1, 256, (*shape, 3), np.uint8)
    canvas = to_canvas(photo, Geometry(fit="center-crop", size_px=32))
    assert canvas.shape == (32, 32, 3)
    top, left = (max(0, (side - 32) // 2) for side in shape)
    y, x = (max(0, (32 - side) // 2) for side in shape)
    inside = canvas[y : y + shape[0], x : x + shape[1]]
    assert np.array_equal(inside, photo[top : top + 32, left : left + 32])
    canvas[y : y + shape[0], x : x + shape[1]] = PAD
    assert (canvas == PAD).all()
