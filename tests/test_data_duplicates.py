"""Copies of a photo are found whatever was done to them; photos that only look alike are not."""

import io
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from odd_photos import encoded, scene
from PIL import Image, ImageEnhance, ImageOps
from scipy.fft import dct

from comp.data.folds import (
    MAX_DISTANCE,
    SIDE,
    correlations,
    group_photos,
    near_pairs,
    perceptual_hashes,
)
from comp.data.photos import decode
from comp.data.scan import thumbnail
from comp.progress import Reporter

N = 40
SCENES = [scene(seed, 240, 180) for seed in range(N)]


def thumbnails(images: list[Image.Image]) -> np.ndarray:
    pixels = [decode(encoded(image)).pixels for image in images]
    return np.stack([thumbnail(each, SIDE) for each in pixels if each is not None])


def pairs_of(small: np.ndarray) -> set[tuple[int, ...]]:
    return set(map(tuple, near_pairs(small, Reporter()).tolist()))


def darker(image: Image.Image, share: float) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(share)


def halved(image: Image.Image) -> Image.Image:
    return image.resize((image.width // 2, image.height // 2))


COPIES = {
    "re-encoded": lambda image: Image.open(io.BytesIO(encoded(image, quality=15))),
    "halved": halved,
    "enlarged": lambda image: image.resize((image.width * 2, image.height * 2)),
    "squashed": lambda image: image.resize((image.width, image.width)),
    "cropped": lambda image: image.crop((3, 2, image.width - 3, image.height - 2)),
    "brighter": lambda image: darker(image, 1.2),
    "darker": lambda image: darker(image, 0.7),
    "grey": lambda image: image.convert("L").convert("RGB"),
    "mirrored": ImageOps.mirror,
    "mirrored and halved": lambda image: halved(ImageOps.mirror(image)),
}


@pytest.mark.parametrize("name", COPIES)
def test_a_copy_is_paired_with_its_photo_and_with_nothing_else(name: str) -> None:
    small = thumbnails(SCENES + [COPIES[name](image) for image in SCENES])
    assert pairs_of(small) == {(index, index + N) for index in range(N)}


def test_dark_photos_and_photos_of_one_colour_are_not_paired() -> None:
    flat = [Image.new("RGB", (80, 60), (grey, grey, grey)) for grey in range(0, 250, 10)]
    assert not pairs_of(thumbnails([darker(image, 0.06) for image in SCENES]))
    assert not pairs_of(thumbnails(flat))
    assert not pairs_of(np.empty((0, SIDE, SIDE), np.uint8))


def test_close_hashes_alone_do_not_make_a_pair() -> None:
    chessboard = np.where(np.indices((SIDE, SIDE)).sum(0) % 2, 60, -60)
    smooth = thumbnails(SCENES[:1])[0] * 0.3 + 90
    two = np.stack([smooth + chessboard, smooth - chessboard]).astype(np.uint8)
    assert correlations(two[:1], two[1:])[0] < 0.9
    first, second = perceptual_hashes(two)
    assert np.bitwise_count(first ^ second) <= MAX_DISTANCE
    assert not pairs_of(two)


def test_the_hash_is_that_of_the_imagehash_library() -> None:
    """Its recipe on our thumbnails: scipy's DCT over both axes, 8 x 8 lowest, above the median."""
    small = thumbnails(SCENES[:10])
    for thumb, found in zip(small, perceptual_hashes(small), strict=True):
        low = dct(dct(thumb.astype(float), axis=0), axis=1)[:8, :8]
        bits = "".join("1" if bit else "0" for bit in (low > np.median(low)).flatten())
        assert f"{int(found):016x}" == f"{int(bits, 2):016x}"


def test_the_hash_of_the_mirrored_photo_needs_no_mirrored_photo() -> None:
    small = thumbnails(SCENES)
    mirrored = perceptual_hashes(small, mirrored=True)
    assert np.array_equal(mirrored, perceptual_hashes(small[:, :, ::-1]))
    assert (np.bitwise_count(perceptual_hashes(small) ^ mirrored) > MAX_DISTANCE).any()


def test_pairs_are_found_across_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    small = thumbnails(SCENES + SCENES)
    everything = pairs_of(small)
    assert len(everything) == N
    for rows, chunk in ((7, 3), (64, 1), (1, 1024)):
        monkeypatch.setattr("comp.data.folds._ROWS", rows)
        monkeypatch.setattr("comp.data.folds._CHUNK", chunk)
        assert pairs_of(small) == everything


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
    pairs = np.array([link for link in links if max(link) < n], np.int64).reshape(-1, 2)
    ids = [f"cat.{index}" if index % 3 else str(index) for index in range(n)]
    groups = group_photos(ids, [str(file) for file in files[:n]], pairs)
    reached = np.equal.outer(files[:n], files[:n])
    for one, other in pairs:
        reached[one, other] = reached[other, one] = True
    for _ in range(n):
        reached = reached @ reached
    assert np.array_equal(np.equal.outer(groups, groups), reached)
    shuffled = np.array(order.sample(range(n), n))
    place = np.argsort(shuffled)
    again = group_photos(
        [ids[row] for row in shuffled], [str(files[row]) for row in shuffled], place[pairs[::-1]]
    )
    assert again[place].tolist() == groups.tolist()


def test_groups_are_numbered_by_their_first_ids_in_natural_order() -> None:
    groups = group_photos(["cat.10", "cat.9", "10", "2"], list("abcd"), np.array([[0, 3]]))
    assert groups.tolist() == [0, 2, 1, 0]
