"""Photos of every kind: their decode status, their pixels, and that nothing half decoded passes."""

import io
import struct
import time
import zlib
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from odd_photos import encoded, jpeg, pixels_of, scene, with_orientation, with_size
from PIL import Image, ImageFile, ImageOps, PngImagePlugin

from comp.data import photos
from comp.data.manifest import USABLE
from comp.data.photos import AHEAD, decode, in_order, read_header
from comp.data.scan import thumbnail

WHOLE = encoded(scene(1, 160, 120))
PALETTE = scene(3).quantize(200)


def decoded(data: bytes) -> np.ndarray:
    pixels = decode(data).pixels
    assert pixels is not None
    return pixels


def mean_difference(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one.astype(int) - other.astype(int)).mean())


def test_a_plain_photo_is_decoded_as_pillow_decodes_it() -> None:
    photo = decode(WHOLE)
    assert (photo.decode_status, photo.width, photo.height) == ("ok", 160, 120)
    assert photo.pixels is not None
    assert photo.pixels.flags.c_contiguous
    assert np.abs(photo.pixels.astype(int) - pixels_of(WHOLE)).max() <= 2  # two builds of libjpeg


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_set_upright_as_its_exif_says(orientation: int) -> None:
    data = with_orientation(scene(2, 90, 60), orientation)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    photo, header = decode(data), read_header(data)
    assert photo.decode_status == ("ok" if orientation == 1 else "rotated")
    assert (header.height, header.width) == (photo.height, photo.width) == upright.shape[:2]
    assert mean_difference(decoded(data), upright) < 1


@pytest.mark.parametrize(
    "exif",
    [
        b"",
        b"Exif\0\0",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x63\0\0",
    ],
)
def test_a_broken_exif_block_leaves_the_photo_as_it_is(exif: bytes) -> None:
    segment = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
    assert decode(WHOLE[:2] + segment + WHOLE[2:]).decode_status == "ok"


@pytest.mark.parametrize(
    ("status", "data", "image"),
    [
        ("grey", encoded(scene(3).convert("L")), scene(3).convert("L").convert("RGB")),
        ("cmyk", encoded(scene(3).convert("CMYK")), scene(3)),
        ("converted", encoded(scene(3), "PNG"), scene(3)),
        ("converted", encoded(scene(3), "BMP"), scene(3)),
        ("converted", encoded(scene(3), "TIFF"), scene(3)),
        ("converted", encoded(scene(3), "WEBP", lossless=True), scene(3)),
        ("converted", encoded(PALETTE, "GIF"), PALETTE.convert("RGB")),
        ("converted", encoded(PALETTE, "PNG"), PALETTE.convert("RGB")),
    ],
)
def test_a_photo_of_another_kind_has_its_status_and_its_colours(
    status: str, data: bytes, image: Image.Image
) -> None:
    assert decode(data).decode_status == read_header(data).decode_status == status
    assert mean_difference(decoded(data), np.asarray(image)) < 8


def test_transparent_parts_are_white_and_not_what_lies_beneath() -> None:
    for mode in ("RGBA", "LA"):
        image = Image.new("RGBA", (40, 30), (200, 0, 0, 0)).convert(mode)
        assert (decode(encoded(image, "PNG")).pixels == 255).all()
    assert (decoded(encoded(scene(3).quantize(8), "PNG", transparency=bytes(8))) == 255).all()


def test_sixteen_bits_are_scaled_and_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 64).astype(np.uint16)[None].repeat(8, 0)
    pixels = decoded(encoded(Image.fromarray(ramp), "PNG"))
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
def test_a_photo_cut_anywhere_in_its_pixels_is_unusable_even_if_the_cut_was_closed(
    kind: str, place: float, closed: bool
) -> None:
    whole = JPEGS[kind]
    cut = 1 + int(place * (len(whole) - 2))
    photo = decode(whole[:cut] + (b"\xff\xd9" if closed else b""))
    if photo.pixels is None:
        assert photo.decode_status in ("truncated", "undecodable")
    elif not closed:  # no more than the end marker is missing
        assert photo.decode_status == "unclosed"
        assert np.abs(photo.pixels.astype(int) - decoded(whole)).max() <= 2  # two builds of libjpeg
    else:  # only the last block is affected
        assert np.array_equal(photo.pixels[:-16], decoded(whole)[:-16])
        assert np.array_equal(photo.pixels[:, :-17], decoded(whole)[:, :-17])


ENDS = [
    WHOLE,
    encoded(scene(4).convert("L")),
    encoded(scene(4).convert("CMYK")),
    encoded(scene(4, 161, 121)),
    with_orientation(scene(4), 6),
    encoded(scene(4, 161, 121), progressive=True),
]


@pytest.mark.parametrize("whole", ENDS)
def test_a_photo_that_lacks_its_end_marker_alone_is_used(whole: bytes) -> None:
    for data in (whole[:-2], whole[:-1], whole[:-2] + bytes(9)):
        photo = decode(data)
        assert photo.decode_status in ("unclosed", "cmyk")  # Pillow's libjpeg skips zeros
        assert photo.pixels is not None
        assert np.abs(photo.pixels.astype(int) - decoded(whole)).max() <= 2
    assert decode(whole[:-4]).pixels is None


def test_a_photo_cut_before_a_restart_marker_is_unusable() -> None:
    whole = JPEGS["restarts"]
    places = [
        at for at in range(len(whole) - 200) if whole[at] == 0xFF and 0xD0 <= whole[at + 1] <= 0xD7
    ]
    assert len(places) > 10
    for at in places:
        assert decode(whole[:at] + b"\xff\xd9").decode_status == "truncated"


@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize("whole", ENDS)
def test_half_a_photo_is_truncated(whole: bytes, closed: bool) -> None:
    photo = decode(whole[: len(whole) * 2 // 3] + b"\xff\xd9" * closed)
    assert (photo.decode_status, photo.pixels) == ("truncated", None)
    assert photo.width


def test_a_cut_in_the_header_or_in_another_format_makes_a_photo_unusable() -> None:
    for n_bytes in (3, 20, 100, 300):
        assert decode(WHOLE[:n_bytes]).decode_status == "truncated"
    for format in ("PNG", "GIF", "WEBP", "BMP", "TIFF"):
        data = encoded(scene(5), format)
        assert decode(data[: len(data) // 2]).decode_status in ("truncated", "undecodable")


def test_a_whole_photo_that_ends_in_the_grey_of_a_cut_one_is_usable() -> None:
    grey = Image.new("RGB", (50, 50), (128, 128, 128))
    assert decode(encoded(grey)).decode_status == "ok"


def test_settings_of_pillow_that_another_library_changed_make_no_difference(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5)
    cmyk = encoded(scene(4).convert("CMYK"))
    assert decode(cmyk[: len(cmyk) // 2]).decode_status == "truncated"
    assert decode(cmyk).decode_status == "cmyk"
    assert ImageFile.LOAD_TRUNCATED_IMAGES
    assert Image.MAX_IMAGE_PIXELS == 5


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_claiming(width: int, height: int) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + head + pixels + chunk(b"IEND", b"")


def with_scans(image: Image.Image, n: int) -> bytes:
    """A progressive JPEG whose last scan is there `n` times."""
    data = encoded(image, progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * n + data[-2:]


FLAT = Image.new("RGB", (2500, 2000), (90, 120, 40))


@pytest.mark.parametrize(
    "data",
    [
        with_size(WHOLE, 10_000, 5_001),
        with_size(WHOLE, 60_000, 60_000),
        with_size(WHOLE, 7000, 7000),
        png_claiming(60_000, 60_000),
        png_claiming(7000, 7000),
        encoded(FLAT, progressive=True),
        encoded(FLAT, optimize=True),
        encoded(FLAT, "PNG"),
        encoded(FLAT, "GIF"),
        encoded(FLAT, "WEBP", lossless=True),
        with_scans(FLAT.crop((0, 0, 1000, 1000)), 400),
    ],
)
def test_more_pixels_than_the_bytes_of_a_photo_hold_are_refused_by_its_header(
    data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("comp.data.photos._decode_pixels", None)  # would be called
    photo = decode(data)
    assert (photo.decode_status, photo.pixels) == ("huge", None)
    assert photo.width >= 1000


def test_photos_that_are_honestly_large_are_decoded_one_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert decode(encoded(FLAT)).decode_status == "ok"
    assert decode(encoded(FLAT.crop((0, 0, 1000, 1000)), "PNG")).decode_status == "converted"
    decode_pixels, n_running, most = photos._decode_pixels, 0, 0

    def slow(*given: object) -> object:
        nonlocal n_running, most
        n_running += 1
        most = max(most, n_running)
        time.sleep(0.01)
        n_running -= 1
        return decode_pixels(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(photos, "_decode_pixels", slow)
    list(in_order(decode, [WHOLE] * 16, n_threads=4))
    assert most > 1
    most = 0
    monkeypatch.setattr(photos, "LARGE_PIXELS", 160 * 120 - 1)
    list(in_order(decode, [WHOLE] * 16, n_threads=4))
    assert most == 1


def test_a_png_is_decoded_whatever_its_metadata_and_turned_by_exif_behind_its_pixels() -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("notes", "x" * 2_000_000)
    text.add_text("bomb", "x" * 80_000_000, zip=True)
    plain, profile = encoded(scene(3), "PNG"), np.random.default_rng(0).bytes(2_000_000)
    for data in (
        encoded(scene(3), "PNG", pnginfo=text),
        encoded(scene(3), "PNG", icc_profile=profile),
        plain[:-12] + chunk(b"tEXt", bytes(2_000_000)) + plain[-12:],
        plain[:-12] + chunk(b"eXIf", b"damaged")[:-4] + b"crc?" + plain[-12:],
    ):
        assert np.array_equal(decoded(data), np.asarray(scene(3)))
    exif = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    turned = plain[:-12] + chunk(b"eXIf", exif) + plain[-12:]
    assert np.array_equal(decoded(turned), np.rot90(np.asarray(scene(3)), -1))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<html>404</html>",
        bytes(1000),
        b"\xff\xd8\xff" + b"x" * 100,
        b"GIF89a",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    ],
)
def test_what_is_not_a_photo_is_unusable(data: bytes) -> None:
    photo = decode(data)
    assert photo.decode_status in (("undecodable", "truncated") if data else ("empty",))
    assert (photo.width, photo.height, photo.pixels) == (0, 0, None)


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"]),
    hits=st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=6
    ),
    at_start=st.booleans(),
)
def test_changed_bytes_give_a_status_and_never_an_exception(
    kind: str, hits: list[tuple[float, int]], at_start: bool
) -> None:
    data = bytearray(encoded(scene(6, 40, 30), kind))
    for place, value in hits:
        data[int(place * min(len(data), 200 if at_start else len(data)))] = value
    photo = decode(bytes(data))
    assert (photo.pixels is not None) == (photo.decode_status in USABLE)
    if photo.pixels is not None:
        assert photo.pixels.shape == (photo.height, photo.width, 3)


def test_a_thumbnail_is_grey_and_averages_the_whole_photo() -> None:
    pixels = np.zeros((300, 200, 3), np.uint8)
    pixels[:150] = (255, 0, 0)
    small = thumbnail(pixels, 32)
    assert small.shape == (32, 32)
    assert set(np.unique(small[:15])) == {76}
    assert not small[17:].any()


def test_many_threads_give_what_one_gives_in_the_same_order_and_few_are_ahead() -> None:
    cmyk = encoded(scene(40).convert("CMYK"))
    files = [*(jpeg(seed) for seed in range(40)), cmyk, b"", jpeg(41)[:500]]
    n_taken = 0

    def items() -> Iterator[bytes]:
        nonlocal n_taken
        for data in files:
            n_taken += 1
            yield data

    torch.set_num_threads(2)
    results = in_order(decode, items(), n_threads=3)
    first = next(results)
    assert n_taken <= 3 * AHEAD
    for data, photo in zip(files, [first, *results], strict=True):
        alone = decode(data)
        assert photo.decode_status == alone.decode_status
        assert np.array_equal(photo.pixels, alone.pixels)  # type: ignore[arg-type]  # None is equal to None
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)


def test_an_error_in_a_thread_reaches_the_caller() -> None:
    with pytest.raises(ZeroDivisionError):
        list(in_order(lambda number: 1 // number, [3, 2, 1, 0, 1]))
