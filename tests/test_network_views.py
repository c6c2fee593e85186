"""The crops that a network is given, and their colours."""

import numpy as np
import pytest
import torch
from tiny import IMAGENET, Canvases, random_crops

from comp.errors import RecipeError
from comp.network.embedder import network_input, normalise
from comp.network.views import CENTRE, View, crop, views_of


def test_views_cover_the_centre_the_corners_and_the_whole_each_also_mirrored() -> None:
    canvas = np.arange(6 * 8).reshape(6, 8)
    corners = (canvas[:4, :4], canvas[:4, 4:], canvas[2:, :4], canvas[2:, 4:])
    expected = {
        "none": (canvas[1:5, 2:6],),
        "flip": (canvas[1:5, 2:6],),
        "five_crop": (canvas[1:5, 2:6], *corners),
        "multi_scale": (canvas[1:5, 2:6], canvas[:, 1:7]),
    }
    for name, crops in expected.items():
        views = views_of(name, has_room=True)  # type: ignore[arg-type]
        mirrored = (False,) if name == "none" else (False, True)
        assert [view.flip for view in views] == [flip for _ in crops for flip in mirrored]
        for view, wanted in zip(views, [each for each in crops for _ in mirrored], strict=True):
            assert np.array_equal(crop(canvas, view, 4), wanted)
        assert len({view.name for view in views}) == len(views)


def test_the_key_of_a_view_is_of_what_it_shows_and_not_of_its_name() -> None:
    shown = [{"x": 0.1}, {"y": 0.1}, {"whole": True}, {"flip": True}]
    assert {*shown[0], *shown[1], *shown[2], *shown[3], "name"} == {*View.__dataclass_fields__}
    keys = {CENTRE.key, *(View(name="centre", **changed).key for changed in shown)}  # type: ignore[arg-type]
    assert len(keys) == 1 + len(shown)
    assert View(name="middle").key == CENTRE.key


def test_views_that_would_be_the_same_are_refused_where_the_canvas_leaves_no_room() -> None:
    for name in ("five_crop", "multi_scale"):
        with pytest.raises(RecipeError, match=r"set pixels\.canvas above 1"):
            views_of(name, has_room=False)  # type: ignore[arg-type]
    assert len(views_of("flip", has_room=False)) == 2


def test_a_mirrored_view_is_mirrored_and_a_whole_one_resized() -> None:
    whole = View(name="whole", whole=True, flip=True)
    crops = torch.from_numpy(whole.crops(Canvases(2), [1, 0], 32))
    assert crops.shape == (2, 40, 40, 3)
    images = network_input(crops, whole, 32, IMAGENET, torch.float32)
    plain = network_input(crops, CENTRE, 32, IMAGENET, torch.float32)
    assert images.shape == (2, 3, 32, 32)
    torch.testing.assert_close(images.flip(3), plain, check_stride=False, atol=0.02, rtol=0)
    assert images[0].mean() > images[1].mean() + 1  # in the order of the rows


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-6), (torch.bfloat16, 0.02)])
def test_colours_are_normalised_channel_by_channel_whatever_the_memory_layout(
    dtype: torch.dtype, atol: float
) -> None:
    images = random_crops(2)[:, :6, :5].permute(0, 3, 1, 2)
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (IMAGENET.mean, IMAGENET.std))
    for each in (images, images.flip(3), images.contiguous()):
        made, expected = normalise(each, IMAGENET, dtype), ((each / 255 - mean) / std).to(dtype)
        torch.testing.assert_close(made, expected, check_stride=False, atol=atol, rtol=0)
        assert made.is_contiguous(memory_format=torch.channels_last)
