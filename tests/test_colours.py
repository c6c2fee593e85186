"""Colours are measured over every pixel of the photos that train, and of no others."""

import numpy as np
from comp.train.colours import measured


class Canvases:
    """Canvases of several shapes."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.photos = [
            rng.integers(low, 256, (8 + low, 9, 3), np.uint8) for low in (0, 20, 90, 250)
        ]

    def canvas(self, row: int) -> np.ndarray:
        return self.photos[row]


def test_mean_and_spread_are_those_of_all_pixels() -> None:
    canvases = Canvases()
    pixels = np.concatenate([canvases.photos[row].reshape(-1, 3) for row in (0, 2)]) / 255
    mean, std = measured(canvases, [0, 2])
    assert np.allclose(mean, pixels.mean(0))
    assert np.allclose(std, pixels.std(0))


def test_photos_that_do_not_train_have_no_say() -> None:
    canvases = Canvases()
    before = measured(canvases, [0, 2])
    canvases.photos[1][:] = 255
    assert measured(canvases, [0, 2]) == before
    canvases.photos[2][:] = 255
    assert measured(canvases, [0, 2]) != before


def test_photos_in_one_colour_leave_nothing_to_divide_by_zero() -> None:
    canvases = Canvases()
    canvases.photos[0][:] = 7
    assert min(measured(canvases, [0])[1]) > 0
