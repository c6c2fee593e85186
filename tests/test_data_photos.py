"""Photos of every kind: what they are called, that they are shown rightly, and that nothing half decoded ever gets through."""

import io
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from odd_photos import encoded, jpeg, pixels_of, scene, with_orientation, with_size
from PIL import Image, ImageFile, ImageOps

from comp.data.geometry import Fit, Geometry
from comp.data.header import MAX_PIXELS, read_header
from comp.data.photos import decode, thumbnail, to_canvas
from comp.data.pool import AHEAD, BATCH, in_order
from comp.data.verdict import USABLE
from comp.errors import RecipeError

WHOLE = encoded(scene(1, 160, 120))


def far(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one.astype(int) - other.astype(int)).mean())


def test_a_plain_photo_is_decoded_as_pillow_decodes_it() -> None:
    photo = decode(WHOLE)
    assert (photo.verdict, photo.width, photo.height) == ("ok", 160, 120)
    assert photo.pixels is not None
    assert photo.pixels.flags.c_contiguous
    assert np.abs(photo.pixels.astype(int) - pixels_of(WHOLE)).max() <= 2  # two builds of libjpeg


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_set_upright_as_its_exif_says(orientation: int) -> None:
    data = with_orientation(scene(2, 90, 60), orientation)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    photo, header = decode(data), read_header(data)
    assert photo.verdict == ("ok" if orientation == 1 else "rotated")
    assert (header.height, header.width) == (photo.height, photo.width) == upright.shape[:2]
    assert photo.pixels is not None
    assert far(photo.pixels, upright) < 1


@pytest.mark.parametrize(
    "exif",
    [
        b"",
        b"Exif\0\0",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x63\0\0",
    ],
)
def test_a_broken_exif_block_leaves_the_photo_as_it_lies(exif: bytes) -> None:
    segment = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
    assert decode(WHOLE[:2] + segment + WHOLE[2:]).verdict == "ok"


@pytest.mark.parametrize(
    ("verdict", "data", "shown"),
    [
        ("grey", encoded(scene(3).convert("L")), scene(3).convert("L").convert("RGB")),
        ("cmyk", encoded(scene(3).convert("CMYK")), scene(3)),
        ("converted", encoded(scene(3), "PNG"), scene(3)),
        ("converted", encoded(scene(3), "BMP"), scene(3)),
        ("converted", encoded(scene(3), "TIFF"), scene(3)),
        ("converted", encoded(scene(3), "WEBP", lossless=True), scene(3)),
        (
            "converted",
            encoded(scene(3).quantize(200), "GIF"),
            scene(3).quantize(200).convert("RGB"),
        ),
        (
            "converted",
            encoded(scene(3).quantize(200), "PNG"),
            scene(3).quantize(200).convert("RGB"),
        ),
    ],
)
def test_a_photo_of_another_kind_is_named_and_shown_in_its_colours(
    verdict: str, data: bytes, shown: Image.Image
) -> None:
    photo = decode(data)
    assert photo.verdict == read_header(data).verdict == verdict
    assert photo.pixels is not None
    assert far(photo.pixels, np.asarray(shown)) < 8


def test_transparent_parts_are_white_and_not_what_lies_beneath() -> None:
    for mode in ("RGBA", "LA"):
        image = Image.new("RGBA", (40, 30), (200, 0, 0, 0)).convert(mode)
        assert (decode(encoded(image, "PNG")).pixels == 255).all()
    palette = scene(3).quantize(8)
    assert (decode(encoded(palette, "PNG", transparency=bytes(8))).pixels == 255).all()


def test_sixteen_bits_are_scaled_and_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 64).astype(np.uint16)[None].repeat(8, 0)
    pixels = decode(encoded(Image.fromarray(ramp), "PNG")).pixels
    assert pixels is not None
    assert np.abs(pixels[0, :, 0].astype(float) - ramp[0] / 257).max() <= 1


JPEGS = {
    "plain": WHOLE,
    "grey": encoded(scene(4, 97, 65).convert("L")),
    "full colour": encoded(scene(4, 161, 113), subsampling=0),
    "restarts": encoded(scene(4, 161, 113), restart_marker_blocks=3),
}


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(list(JPEGS)), place=st.floats(0, 1, exclude_max=True), closed=st.booleans()
)
def test_a_photo_cut_anywhere_is_unusable_even_if_the_cut_was_closed(
    kind: str, place: float, closed: bool
) -> None:
    whole = JPEGS[kind]
    cut = 1 + int(place * (len(whole) - 2))
    photo = decode(whole[:cut] + (b"\xff\xd9" if closed else b""))
    if photo.pixels is None:
        assert photo.verdict in ("truncated", "undecodable")
    else:  # nothing is wrong but for the last block
        assert closed
        assert np.array_equal(photo.pixels[:-16], pixels_by_torch(whole)[:-16])
        assert np.array_equal(photo.pixels[:, :-17], pixels_by_torch(whole)[:, :-17])


def test_a_photo_cut_before_a_restart_marker_is_unusable() -> None:
    whole = JPEGS["restarts"]
    markers = [
        at for at in range(len(whole) - 200) if whole[at] == 0xFF and 0xD0 <= whole[at + 1] <= 0xD7
    ]
    assert len(markers) > 10
    for at in markers:
        assert decode(whole[:at] + b"\xff\xd9").verdict == "truncated"


def pixels_by_torch(data: bytes) -> np.ndarray:
    pixels = decode(data).pixels
    assert pixels is not None
    return pixels


@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize(
    "whole",
    [
        WHOLE,
        encoded(scene(4).convert("L")),
        encoded(scene(4).convert("CMYK")),
        encoded(scene(4, 161, 121)),
        with_orientation(scene(4), 6),
        encoded(scene(4, 161, 121), progressive=True),
    ],
)
def test_half_a_photo_is_called_truncated(whole: bytes, closed: bool) -> None:
    photo = decode(whole[: len(whole) * 2 // 3] + b"\xff\xd9" * closed)
    assert photo.verdict == "truncated"
    assert photo.pixels is None
    assert photo.width


def test_half_of_another_format_is_unusable() -> None:
    for format in ("PNG", "GIF", "WEBP", "BMP", "TIFF"):
        data = encoded(scene(5), format)
        assert decode(data[: len(data) // 2]).verdict in ("truncated", "undecodable"), format


def test_a_whole_photo_that_ends_in_the_grey_of_a_cut_one_is_usable() -> None:
    assert decode(encoded(Image.new("RGB", (50, 50), (128, 128, 128)))).verdict == "ok"


def test_leniency_that_another_library_has_set_makes_no_difference(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    cmyk = encoded(scene(4).convert("CMYK"))
    assert decode(cmyk[: len(cmyk) // 2]).verdict == "truncated"
    assert ImageFile.LOAD_TRUNCATED_IMAGES


def test_a_huge_photo_is_refused_by_its_header() -> None:
    rows = zlib.compress(bytes(9000 * 9001 // 8))
    head = struct.pack(">IIBBBBB", 9000, 9000, 1, 0, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", rows), (b"IEND", b"")]
    png = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )
    bomb = png.replace(struct.pack(">II", 9000, 9000), struct.pack(">II", 90_000, 90_000))
    bomb = bomb.replace(
        struct.pack(">I", zlib.crc32(b"IHDR" + head)),
        struct.pack(
            ">I", zlib.crc32(b"IHDR" + struct.pack(">IIBBBBB", 90_000, 90_000, 1, 0, 0, 0, 0))
        ),
    )
    for data in (with_size(WHOLE, 10_000, 5_001), png, bomb):
        photo = decode(data)
        assert (photo.verdict, photo.pixels) == ("huge", None)
    assert (
        decode(with_size(WHOLE, 10_000, 5_000)).verdict == "truncated"
    )  # at the limit of MAX_PIXELS it is tried
    assert MAX_PIXELS == 10_000 * 5_000


@pytest.mark.parametrize(
    "data",
    [
        b"<html>404</html>",
        bytes(1000),
        b"\xff\xd8\xff" + b"x" * 100,
        b"GIF89a",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    ],
)
def test_what_is_no_photo_is_unusable(data: bytes) -> None:
    photo = decode(data)
    assert photo.verdict in ("undecodable", "truncated")
    assert (photo.width, photo.height, photo.pixels) == (0, 0, None)


def test_an_empty_file_is_called_empty() -> None:
    assert decode(b"").verdict == "empty"


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"]),
    hits=st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=6
    ),
    at_start=st.booleans(),
)
def test_flipped_bytes_give_a_verdict_and_never_an_exception(
    kind: str, hits: list[tuple[float, int]], at_start: bool
) -> None:
    data = bytearray(encoded(scene(6, 40, 30), kind))
    for place, value in hits:
        data[int(place * min(len(data), 200 if at_start else len(data)))] = value
    photo = decode(bytes(data))
    assert (photo.pixels is not None) == (photo.verdict in USABLE)
    if photo.pixels is not None:
        assert photo.pixels.shape == (photo.height, photo.width, 3)


def test_a_canvas_is_what_torchvision_makes_of_the_photo() -> None:
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2.functional import resize

    pixels = decode(jpeg(7, width=211, height=150)).pixels
    assert pixels is not None
    for name in ("bicubic", "bilinear"):
        expected = resize(
            torch.from_numpy(pixels).permute(2, 0, 1),
            [64, 64],
            InterpolationMode(name),
            antialias=True,
        )
        canvas = to_canvas(pixels, Geometry(size_px=64, interpolation=name))
        assert np.array_equal(canvas, expected.permute(1, 2, 0).numpy())


@given(width=st.integers(1, 400), height=st.integers(1, 400), size_px=st.integers(1, 64))
@settings(max_examples=60, deadline=None)
def test_a_canvas_has_the_size_that_its_geometry_announces(
    width: int, height: int, size_px: int
) -> None:
    pixels = np.zeros((height, width, 3), np.uint8)
    for fit in get_args(Fit):
        geometry = Geometry(fit=fit, size_px=size_px)
        canvas = to_canvas(pixels, geometry)
        assert canvas.shape == (*geometry.canvas(width, height), 3)
        assert min(canvas.shape[:2]) == size_px
        assert max(canvas.shape[:2]) <= 4 * size_px


def test_a_photo_that_keeps_its_shape_keeps_all_of_it_unless_it_is_a_strip() -> None:
    shorter = Geometry(fit="shorter", size_px=10)
    assert shorter.canvas(40, 30) == (10, 13)
    assert shorter.crop(40, 30) == (0, 0, 30, 40)
    assert shorter.canvas(1, 10_000) == (40, 10)
    assert shorter.crop(1, 10_000) == (4998, 0, 4, 1)
    strip = np.zeros((10, 100, 3), np.uint8)
    strip[:, 30:70] = 255
    assert (to_canvas(strip, shorter) == 255).all()


@pytest.mark.parametrize(
    "knobs",
    [
        {"fit": "stretch"},
        {"size_px": 0},
        {"size_px": 10**6},
        {"size_px": 2.5},
        {"interpolation": "nearest"},
    ],
)
def test_a_geometry_refuses_what_it_does_not_know(knobs: dict[str, object]) -> None:
    with pytest.raises(RecipeError, match=f"geometry.{next(iter(knobs))}"):
        Geometry(**knobs)  # type: ignore[arg-type]


def test_a_thumbnail_is_grey_and_averages_the_whole_photo() -> None:
    pixels = np.zeros((300, 200, 3), np.uint8)
    pixels[:150] = (255, 0, 0)
    small = thumbnail(pixels, 32)
    assert small.shape == (32, 32)
    assert set(np.unique(small[:15])) == {76}
    assert not small[17:].any()


def test_many_threads_give_what_one_gives_in_the_same_order_and_few_are_ahead() -> None:
    photos = [jpeg(seed) for seed in range(40)] + [
        encoded(scene(40).convert("CMYK")),
        b"",
        jpeg(41)[:500],
    ]
    taken = 0

    def items() -> Iterator[bytes]:
        nonlocal taken
        for data in photos:
            taken += 1
            yield data

    torch.set_num_threads(2)
    results = in_order(decode, items(), n_threads=3)
    first = next(results)
    assert taken <= 3 * AHEAD * BATCH
    for data, photo in zip(photos, [first, *results], strict=True):
        alone = decode(data)
        assert photo.verdict == alone.verdict
        assert (
            np.array_equal(photo.pixels, alone.pixels)
            if alone.pixels is not None
            else photo.pixels is None
        )
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)


def test_an_error_in_a_thread_reaches_whoever_asked() -> None:
    with pytest.raises(ZeroDivisionError):
        list(in_order(lambda number: 1 // number, [3, 2, 1, 0, 1]))


def test_geometry_and_manifests_need_no_torch() -> None:
    names = ", ".join(
        f"comp.data.{name}" for name in ("geometry", "manifest", "folds", "archive", "duplicates")
    )
    code = f"import sys, {names}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
