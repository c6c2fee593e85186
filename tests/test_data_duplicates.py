"""Copies of a photo are found whatever was done to them, and photos that only resemble each other are not."""

import io
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from odd_photos import encoded, scene
from PIL import Image, ImageEnhance, ImageOps
from scipy.fft import dct

from comp.data.duplicates import (
    MAX_DISTANCE,
    SIDE,
    correlations,
    group_photos,
    near_pairs,
    perceptual_hashes,
)
from comp.data.photos import decode, thumbnail

N = 40
WIDTH, HEIGHT = 240, 180


def scenes() -> list[Image.Image]:
    return [scene(seed, WIDTH, HEIGHT) for seed in range(N)]


def thumbnails(images: list[Image.Image], **options: int) -> np.ndarray:
    pixels = [decode(encoded(image, **options)).pixels for image in images]
    return np.stack([thumbnail(each, SIDE) for each in pixels if each is not None])


COPIES = {
    "re-encoded": lambda image: Image.open(io.BytesIO(encoded(image, quality=15))),
    "halved": lambda image: image.resize((image.width // 2, image.height // 2)),
    "enlarged": lambda image: image.resize((image.width * 2, image.height * 2)),
    "squashed": lambda image: image.resize((image.width, image.width)),
    "cropped": lambda image: image.crop((3, 2, image.width - 3, image.height - 2)),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.2),
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.7),
    "grey": lambda image: image.convert("L").convert("RGB"),
    "mirrored": ImageOps.mirror,
    "mirrored and halved": lambda image: ImageOps.mirror(image).resize(
        (image.width // 2, image.height // 2)
    ),
}


@pytest.mark.parametrize("name", COPIES)
def test_a_copy_is_paired_with_its_photo_and_with_nothing_else(name: str) -> None:
    originals = scenes()
    pairs = set(near_pairs(thumbnails(originals + [COPIES[name](image) for image in originals])))
    assert pairs == {(index, index + N) for index in range(N)}


def test_different_dark_photos_are_not_paired() -> None:
    dark = [ImageEnhance.Brightness(image).enhance(0.06) for image in scenes()]
    assert not list(near_pairs(thumbnails(dark)))


def test_photos_of_one_colour_are_not_paired() -> None:
    assert not list(
        near_pairs(
            thumbnails(
                [Image.new("RGB", (80, 60), (grey, grey, grey)) for grey in range(0, 250, 10)]
            )
        )
    )


def test_close_hashes_alone_do_not_make_a_pair() -> None:
    rng = np.random.default_rng(0)
    base = rng.integers(0, 256, (SIDE, SIDE)).astype(float)
    smooth = np.add.outer(np.cos(np.arange(SIDE) / 9), np.cos(np.arange(SIDE) / 7)) * 30 + 128
    two = (
        np.stack([smooth + (base - 128) * 0.9, smooth - (base - 128) * 0.9])
        .clip(0, 255)
        .astype(np.uint8)
    )
    assert correlations(two[:1], two[1:])[0] < 0.9
    first, second = perceptual_hashes(np.stack([two[0], two[0]]))
    assert first == second
    assert not list(near_pairs(two))


def test_the_hash_is_that_of_the_imagehash_library() -> None:
    """Its recipe, line by line, on our thumbnail: scipy's DCT over both axes, the 8 x 8 lowest, larger than their median."""
    small = thumbnails(scenes()[:10])
    for thumb, found in zip(small, perceptual_hashes(small), strict=True):
        low = dct(dct(thumb.astype(float), axis=0), axis=1)[:8, :8]
        bits = "".join("1" if bit else "0" for bit in (low > np.median(low)).flatten())
        assert f"{int(found):016x}" == f"{int(bits, 2):016x}"


def test_the_hash_of_the_mirrored_photo_needs_no_mirrored_photo() -> None:
    small = thumbnails(scenes())
    assert np.array_equal(
        perceptual_hashes(small, mirrored=True), perceptual_hashes(small[:, :, ::-1])
    )
    assert (
        np.bitwise_count(perceptual_hashes(small) ^ perceptual_hashes(small, mirrored=True))
        > MAX_DISTANCE
    ).any()


def test_pairs_are_found_across_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    small = thumbnails(scenes() + scenes())
    everything = set(near_pairs(small))
    for rows, columns, batch in ((7, 13, 3), (64, 5, 1), (1, 1, 1024)):
        monkeypatch.setattr("comp.data.duplicates._ROWS", rows)
        monkeypatch.setattr("comp.data.duplicates._COLUMNS", columns)
        monkeypatch.setattr("comp.data.duplicates._BATCH", batch)
        assert set(near_pairs(small)) == everything
    assert len(everything) == N


@settings(max_examples=80, deadline=None)
@given(
    n=st.integers(1, 25),
    links=st.lists(st.tuples(st.integers(0, 24), st.integers(0, 24)), max_size=25),
    files=st.lists(st.integers(0, 12), min_size=25, max_size=25),
    order=st.randoms(use_true_random=False),
)
def test_groups_are_what_chains_of_pairs_and_equal_files_connect_in_any_order(
    n: int, links: list[tuple[int, int]], files: list[int], order: random.Random
) -> None:
    pairs = [(one, other) for one, other in links if max(one, other) < n]
    ids = [f"cat.{index}" if index % 3 else str(index) for index in range(n)]
    groups = group_photos(ids, [str(file) for file in files[:n]], pairs)
    reached = np.equal.outer(files[:n], files[:n])
    for one, other in pairs:
        reached[one, other] = reached[other, one] = True
    for _ in range(n):
        reached = reached @ reached
    assert np.array_equal(np.equal.outer(groups, groups), reached)
    shuffled = list(range(n))
    order.shuffle(shuffled)
    place = {row: at for at, row in enumerate(shuffled)}
    again = group_photos(
        [ids[row] for row in shuffled],
        [str(files[row]) for row in shuffled],
        [(place[one], place[other]) for one, other in reversed(pairs)],
    )
    assert [again[place[row]] for row in range(n)] == groups.tolist()


def test_groups_are_numbered_by_their_first_ids_in_natural_order() -> None:
    assert group_photos(["cat.10", "cat.9", "10", "2"], list("abcd"), [(0, 3)]).tolist() == [
        0,
        2,
        1,
        0,
    ]


def test_no_photos_have_no_pairs_and_no_groups() -> None:
    assert not list(near_pairs(np.empty((0, SIDE, SIDE), np.uint8)))
    assert group_photos([], [], []).tolist() == []
