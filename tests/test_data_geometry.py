"""How a photo is placed on its canvas."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from comp.data.geometry import PAD, Geometry
from comp.data.photos import to_canvas


@given(width=st.integers(1, 3000), height=st.integers(1, 3000), size_px=st.integers(8, 300))
def test_a_letterbox_shows_the_whole_photo_in_its_shape_between_even_bars(
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


def test_a_letterbox_has_bars_of_the_padding_colour() -> None:
    canvas = to_canvas(np.full((50, 100, 3), 200, np.uint8), Geometry(fit="letterbox", size_px=64))
    assert canvas.shape == (64, 64, 3)
    assert (canvas[16:48] == 200).all()
    assert (canvas[:16] == PAD).all()
    assert (canvas[48:] == PAD).all()


@pytest.mark.parametrize("shape", [(40, 90), (33, 32), (32, 32), (20, 90), (90, 7), (3, 5)])
def test_a_canvas_can_be_the_middle_of_the_photo_at_its_own_scale(shape: tuple[int, int]) -> None:
    photo = np.random.default_rng(0).integers(1, 256, (*shape, 3), np.uint8)
    canvas = to_canvas(photo, Geometry(fit="center-crop", size_px=32))
    assert canvas.shape == (32, 32, 3)
    top, left = (max(0, (n - 32) // 2) for n in shape)
    y, x = (max(0, (32 - n) // 2) for n in shape)
    inside = canvas[y : y + min(shape[0], 32), x : x + min(shape[1], 32)]
    assert np.array_equal(inside, photo[top : top + 32, left : left + 32])
    canvas[y : y + inside.shape[0], x : x + inside.shape[1]] = PAD
    assert (canvas == PAD).all()
