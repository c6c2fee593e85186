"""The one door for photos: bytes to a verdict, upright pixels, a canvas, a thumbnail. Verdicts are explained in comp/data/verdict.py."""

import io
import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFile
from torchvision.io import ImageReadMode, decode_jpeg

from comp.data.geometry import Geometry, Interpolation
from comp.data.verdict import USABLE, Verdict

MAX_PIXELS = 50_000_000  # the competition's largest photo has .8 million, a good camera's 24; 50 million are 150 MB for each core
DECODER = 1  # to be raised when the same bytes begin to give other pixels: stores made before are then not read again

Canvas = NDArray[np.uint8]  # [height, width, 3] RGB

_FORMATS = ("PNG", "GIF", "WEBP", "BMP", "TIFF", "JPEG")  # not all that Pillow knows: opening an EPS, for one, starts ghostscript
_PILLOW_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError, struct.error, zlib.error)
_slow_path = threading.Lock()  # Pillow's settings and the warning filters belong to the whole process


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What a photo's first bytes say. `width` and `height` are those of the upright photo, and 0 where the header does not tell them."""

    verdict: Verdict
    width: int = 0
    height: int = 0
    orientation: int = 1  # EXIF, 1 to 8
    jpeg: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Photo:
    """A verdict, the upright size (0 where unknown) and, of a usable photo only, its upright pixels."""

    verdict: Verdict
    width: int
    height: int
    pixels: Canvas | None


def read_header(data: bytes) -> Header:
    """The verdict as far as the header tells it: a file that is cut later is only found by `decode`."""
    if not data:
        return Header(verdict="empty")
    header = _jpeg_header(data) if data[:3] == b"\xff\xd8\xff" else _other_header(data)
    return replace(header, verdict="huge") if header.width * header.height > MAX_PIXELS else header


def decode(data: bytes) -> Photo:
    """The photo in `data`, set upright. Safe to call from many threads at once; most of it runs without Python's lock."""
    header = read_header(data)
    verdict, pixels = header.verdict, None
    if verdict in USABLE:
        fast = header.jpeg and verdict != "cmyk"
        verdict, pixels = _decode_fast(data, header) if fast else _decode_slow(data, header)
    if pixels is None:
        return Photo(verdict=verdict, width=header.width, height=header.height, pixels=None)
    return Photo(verdict=verdict, width=pixels.shape[1], height=pixels.shape[0], pixels=pixels)


def to_canvas(pixels: Canvas, geometry: Geometry) -> Canvas:
    """`pixels [h, w, 3]` cropped and resized as `geometry` says."""
    top, left, height, width = geometry.crop(pixels.shape[1], pixels.shape[0])
    return _resize(pixels[top : top + height, left : left + width], geometry.canvas(width, height), geometry.interpolation)


def thumbnail(pixels: Canvas, size_px: int) -> NDArray[np.uint8]:
    """`pixels [h, w, 3]` squashed to a grey `[size_px, size_px]`: antialiased, luma by ITU-R 601."""
    small = _resize(pixels, (size_px, size_px), "bilinear").astype(np.uint32)
    luma = small[:, :, 0] * 299 + small[:, :, 1] * 587 + small[:, :, 2] * 114
    return ((luma + 500) // 1000).astype(np.uint8)


def encode_jpeg(pixels: Canvas, quality: int) -> bytes:
    """`pixels` as a JPEG with full colour resolution (4:4:4)."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality, subsampling=0)
    return file.getvalue()


def _resize(pixels: Canvas, size: tuple[int, int], interpolation: Interpolation) -> Canvas:
    # What torchvision's v2.functional.resize calls for uint8, without its 80 us a photo under Python's lock. The batch axis is made before
    # the axes are swapped: only so are the strides those of channels-last, and the call takes 280 us where it takes 690 otherwise.
    if pixels.shape[:2] == size:
        return np.ascontiguousarray(pixels)
    planes = torch.from_numpy(np.ascontiguousarray(pixels)).unsqueeze(0).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(planes, size, mode=interpolation, antialias=True)
    return np.ascontiguousarray(resized[0].permute(1, 2, 0).numpy())


def _jpeg_header(data: bytes) -> Header:
    """Walks the markers up to the frame header: about 10 us, where opening with Pillow costs 25 under Python's lock."""
    at, orientation = 2, 1
    while at + 4 <= len(data):
        marker = data[at + 1]
        if data[at] != 0xFF or marker in (0x00, 0xFF) or marker == 0x01 or 0xD0 <= marker <= 0xD8:
            at += 2 if data[at] == 0xFF and marker != 0xFF else 1  # stray or fill bytes, markers without a length
            continue
        if marker in (0xD9, 0xDA):
            return Header(verdict="undecodable")
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return _frame_header(data[at + 4 : at + 10], orientation)
        end = at + 2 + max(2, int.from_bytes(data[at + 2 : at + 4]))
        if marker == 0xE1 and data[at + 4 : at + 10] == b"Exif\0\0":
            orientation = _orientation(data[at + 4 : end])
        at = end
    return Header(verdict="truncated")


def _frame_header(frame: bytes, orientation: int) -> Header:
    if len(frame) < 6:
        return Header(verdict="truncated")
    _, height, width, n_channels = struct.unpack(">BHHB", frame)
    if orientation >= 5:
        width, height = height, width
    verdict: Verdict = "ok"
    if not width or not height:
        verdict = "undecodable"
    elif n_channels == 4:
        verdict = "cmyk"
    elif orientation != 1:
        verdict = "rotated"
    elif n_channels == 1:
        verdict = "grey"
    return Header(verdict=verdict, width=width, height=height, orientation=orientation)


def _orientation(exif: bytes) -> int:
    """EXIF orientation, 1 to 8; 1 where the block is broken or does not say."""
    tiff = exif.removeprefix(b"Exif\0\0")
    order: Literal["<", ">"] = "<" if tiff[:2] == b"II" else ">"
    try:
        (directory,) = struct.unpack_from(f"{order}I", tiff, 4)
        (n_tags,) = struct.unpack_from(f"{order}H", tiff, directory)
        for index in range(min(n_tags, 256)):
            tag, kind, n_values, value = struct.unpack_from(f"{order}HHIH", tiff, directory + 2 + 12 * index)
            if tag == 0x0112:
                return value if kind == 3 and n_values == 1 and 1 <= value <= 8 else 1
    except struct.error:
        pass  # a directory that points outside of its block
    return 1


def _other_header(data: bytes) -> Header:
    try:
        with _opened(data) as image:
            orientation = _orientation(image.info.get("exif") or b"")
            width, height = image.size if orientation < 5 else image.size[::-1]
            return Header(verdict="converted", width=width, height=height, orientation=orientation, jpeg=False)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return Header(verdict="huge", jpeg=False)
    except _PILLOW_ERRORS:
        return Header(verdict="undecodable", jpeg=False)


def _decode_fast(data: bytes, header: Header) -> tuple[Verdict, Canvas | None]:
    try:
        pixels = _libjpeg(data)
    except RuntimeError as error:
        return ("truncated", None) if "truncated" in str(error) else _decode_slow(data, replace(header, verdict="converted"))
    # Past a cut libjpeg fills up with grey, without an error if the cut was closed with an end marker. Few whole photos end so.
    height, width = pixels.shape[:2]
    last_block = pixels[(height - 1) // 8 * 8 :, (width - 1) // 8 * 8 :]
    if (last_block == 128).all() and _is_cut(data, pixels, _libjpeg):
        return "truncated", None
    return header.verdict, _upright(pixels, header.orientation)


def _libjpeg(data: bytes) -> Canvas:
    planes = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)
    pixels: Canvas = planes.permute(1, 2, 0).numpy()
    return pixels


def _is_cut(data: bytes, pixels: Canvas, decoder: Callable[[bytes], Canvas]) -> bool:
    """Whether bytes put before the end marker change the picture: they do only if the decoder was still waiting for some."""
    end = data.rfind(b"\xff\xd9")
    filler = bytes(1 + (index * 151) % 253 for index in range(2048))  # no 0xff: no marker
    try:
        return not np.array_equal(decoder(data[:end] + filler + data[end:]), pixels)
    except (RuntimeError, *_PILLOW_ERRORS):
        return True


def _decode_slow(data: bytes, header: Header) -> tuple[Verdict, Canvas | None]:
    try:
        pixels = _pillow(data)
    except _PILLOW_ERRORS as error:
        return ("truncated" if "truncated" in str(error) else "undecodable"), None
    if header.jpeg and _is_cut(data, pixels, _pillow):
        return "truncated", None
    return header.verdict, _upright(pixels, header.orientation)


def _pillow(data: bytes) -> Canvas:
    with _opened(data) as image:
        return np.array(_to_rgb(image))


@contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
    """The first frame as Pillow sees it, with a bomb as an error and a cut as an error whatever other libraries have set."""
    with _slow_path, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        lenient, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
        try:
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                yield image
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = lenient


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":  # 16 bits and more; convert() would clip them to 255
        values = np.asarray(image).astype(np.float64)
        image = Image.fromarray(np.clip(values / 257 if image.mode != "F" else values, 0, 255).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _upright(pixels: Canvas, orientation: int) -> Canvas:
    """`pixels` as EXIF `orientation` wants them shown (TIFF 6.0, tag 274)."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)
