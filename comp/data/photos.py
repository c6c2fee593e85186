"""One photo: its file's bytes to a decode status, upright pixels, a canvas, a thumbnail.

comp/data/manifest.py explains the statuses.
"""

import hashlib
import io
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile
from torchvision.io import ImageReadMode  # importing it also registers torch.ops.image

from comp.data.canvas import PAD, Geometry, Interpolation
from comp.data.manifest import USABLE, DecodeStatus
from comp.data.pixels import Canvas

MAX_PIXELS = 50_000_000  # 150 MB per core; the competition's largest photo has .8 million
FREE_PIXELS = 1_000_000  # however few bytes a photo has
MAX_PIXELS_PER_BYTE = 100  # of a larger one: photos have 2 to 40, a JPEG of a single colour has 64
SCANS = 10  # of a progressive JPEG; each more costs as much as a tenth of another photo
LARGE_PIXELS = 8_000_000  # from here on one at a time: a decoder may need 12 bytes a pixel
# Not all formats that Pillow knows: to open an EPS, for one, it starts ghostscript.
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF")
_PILLOW_ERRORS = (  # what Pillow raises for broken files
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    ArithmeticError,
    AttributeError,
    RuntimeError,
    MemoryError,
    struct.error,
    zlib.error,
)
_SCAN, _END = b"\xff\xda", b"\xff\xd9"  # markers of JPEG
_large = threading.Lock()
_lock = threading.Lock()  # Pillow's settings and the warning filters belong to the whole process


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodedPhoto:
    """What is known of a photo; without pixels as far as its header tells, or if it is unusable."""

    decode_status: DecodeStatus
    width: int = 0  # px of the upright photo; 0 if the header cannot be read
    height: int = 0
    pixels: Canvas | None = None  # upright
    orientation: int = 1  # in the file: EXIF, 1 to 8
    is_jpeg: bool = False
    is_progressive: bool = False  # a JPEG whose scans each refine the whole picture


def read_header(data: bytes) -> DecodedPhoto:
    """The photo without pixels, usable unless its header is broken: `decode` finds later cuts."""
    if not data:
        return DecodedPhoto(decode_status="empty")
    is_jpeg = data.startswith(b"\xff\xd8\xff")
    try:
        with _opened(data) as image:
            orientation = _orientation(image.info.get("exif", b""))
            width, height = image.size if orientation < 5 else image.size[::-1]
            mode, is_progressive = image.mode, "progressive" in image.info
    except _PILLOW_ERRORS:
        # A JPEG that ends before its first scan was cut there.
        is_cut = is_jpeg and _SCAN not in data
        return DecodedPhoto(decode_status="truncated" if is_cut else "undecodable")
    status: DecodeStatus = "ok"
    work = width * height * max(1, data.count(_SCAN) // SCANS if is_progressive else 1)
    if width * height > MAX_PIXELS or work > max(FREE_PIXELS, MAX_PIXELS_PER_BYTE * len(data)):
        status = "huge"
    elif not is_jpeg:
        status = "converted"
    elif mode == "CMYK":
        status = "cmyk"
    elif orientation != 1:
        status = "rotated"
    elif mode == "L":
        status = "grey"
    return DecodedPhoto(
        decode_status=status,
        width=width,
        height=height,
        orientation=orientation,
        is_jpeg=is_jpeg,
        is_progressive=is_progressive,
    )


@contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
    """The first frame. A cut is an error and size is not, whatever other libraries have set."""
    with _lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS
        ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = False, None
        try:
            is_png = data.startswith(b"\x89PNG\r\n\x1a\n")
            file = io.BytesIO(_without_metadata(data) if is_png else data)
            with Image.open(file, formats=FORMATS) as image:
                yield image
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = before


def _without_metadata(png: bytes) -> bytes:
    """The chunks that decide the pixels, and the eXIf chunk, which may lie behind them, in front.

    Pillow refuses a PNG with a megabyte of text or a large profile, which no pixel depends on.
    """
    chunks, exif, start = [png[:8]], b"", 8
    while start < len(png):
        end = start + 12 + int.from_bytes(png[start : start + 4])
        kind = png[start + 4 : start + 8]
        if kind == b"eXIf":
            exif = png[start:end]
        elif kind == b"tRNS" or not kind[:1].islower():  # a small letter: may be left out
            chunks.append(png[start:end])
        start = end
    return b"".join([*chunks[:2], exif, *chunks[2:]])


def _orientation(exif: bytes) -> int:
    """1 if the block is broken or does not say."""
    tags = Image.Exif()
    try:
        tags.load(exif)
        value = tags.get(ExifTags.Base.Orientation)
    except _PILLOW_ERRORS:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def decode(data: bytes) -> DecodedPhoto:
    """The photo in `data`. Thread-safe; most of it runs without Python's lock."""
    header = read_header(data)
    if header.decode_status not in USABLE:
        return header
    with _large if header.width * header.height > LARGE_PIXELS else nullcontext():
        status, pixels = _decode_pixels(data, header)
    if pixels is None:
        return replace(header, decode_status=status)
    height, width, _ = pixels.shape
    return replace(header, decode_status=status, width=width, height=height, pixels=pixels)


def _decode_pixels(data: bytes, header: DecodedPhoto) -> tuple[DecodeStatus, Canvas | None]:
    status = header.decode_status
    is_fast = header.is_jpeg and status not in ("cmyk", "converted", "unclosed")
    try:
        pixels = _torch_pixels(data) if is_fast else _pillow_pixels(data)
    except _PILLOW_ERRORS as error:
        if "truncated" not in str(error):
            again = replace(header, decode_status="converted")
            return _decode_pixels(data, again) if is_fast else ("undecodable", None)
        if not header.is_jpeg or status == "unclosed":
            return "truncated", None
        closed = data.removesuffix(_END[:1]) + _END
        return _decode_pixels(closed, replace(header, decode_status="unclosed"))
    is_doubtful = not is_fast or header.is_progressive or _ends_grey(pixels)
    if header.is_jpeg and is_doubtful and _is_cut(data):
        return "truncated", None
    return status, _upright(pixels, header.orientation)


def _torch_pixels(jpeg: bytes) -> Canvas:
    """`[h, w, 3]` RGB as in the file."""
    # The operation behind torchvision.io.decode_jpeg, which warns since 0.29 at each call that
    # TorchCodec will replace it. requirements.txt pins both; once it is gone, change this line
    # and DECODER (comp/data/canvas.py).
    planes = torch.ops.image.decode_jpeg(
        torch.frombuffer(bytearray(jpeg), dtype=torch.uint8), ImageReadMode.RGB.value, False
    )
    pixels: Canvas = planes.permute(1, 2, 0).numpy()
    return pixels


def _pillow_pixels(data: bytes) -> Canvas:
    """`[h, w, 3]` RGB as in the file: 16 bits scaled to 8, palette resolved, alpha over white."""
    with _opened(data) as image:
        if image.mode.startswith("I") or image.mode == "F":  # convert() would clip these to 255
            values = np.asarray(image).astype(np.float32) / (1 if image.mode == "F" else 257)
            return np.array(
                Image.fromarray(np.clip(values, 0, 255).round().astype(np.uint8)).convert("RGB")
            )
        if image.has_transparency_data:
            rgba = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
        return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _ends_grey(pixels: Canvas) -> bool:
    """Whether the last row of the last block has luma 128, with which libjpeg fills up after a cut
    that was closed with an end marker; its colour may be that of the block above.

    Few whole photos end like this; `_is_cut` clears them.
    """
    last = pixels[-1, (pixels.shape[1] - 1) // 8 * 8 :].astype(np.int64)
    return bool((abs(last @ (299, 587, 114) - 128_000) <= 1500).all())


def _is_cut(data: bytes) -> bool:
    """Whether bytes inserted before the end marker change the picture.

    They do only if the decoder was still waiting for some. Pillow decodes here, because it does not
    print libjpeg's complaints about such bytes.
    """
    end = data.rfind(_END)
    while data[end - 1] == 0xFF:  # or the filler would begin with a marker
        end -= 1
    # No 0xff, which would begin a marker; first ones, because libjpeg fills up with zeros.
    noise = bytes(254 - (index * 151) % 254 for index in range(2048))
    filler = noise + b"".join(bytes((0xFF, restart)) + noise for restart in range(0xD0, 0xD8))
    try:
        pixels = (_pillow_pixels(each) for each in (data, data[:end] + filler + data[end:]))
        # one in memory at a time
        return len({hashlib.sha256(each.data).digest() for each in pixels}) > 1
    except _PILLOW_ERRORS:
        return True


def _upright(pixels: Canvas, orientation: int) -> Canvas:
    """`pixels` turned as EXIF `orientation` demands (TIFF 6.0, tag 274)."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def to_canvas(pixels: Canvas, geometry: Geometry) -> Canvas:
    """`pixels [h, w, 3]` cropped, resized and padded as `geometry` says."""
    top, left, height, width = geometry.crop(pixels.shape[1], pixels.shape[0])
    y, x, inner_height, inner_width = geometry.place(width, height)
    kept = pixels[top : top + height, left : left + width]
    photo = _resize(kept, (inner_height, inner_width), geometry.interpolation)
    if photo.shape[:2] == geometry.canvas(width, height):
        return photo
    canvas = np.full((*geometry.canvas(width, height), 3), PAD, np.uint8)
    canvas[y : y + inner_height, x : x + inner_width] = photo
    return canvas


def thumbnail(pixels: Canvas, size_px: int) -> NDArray[np.uint8]:
    """`pixels [h, w, 3]` squashed to a grey `[size_px, size_px]`: antialiased, luma of ITU-R 601.

    Of a tall photo only every n-th row is read, which costs half: each row of the thumbnail still
    averages at least two.
    """
    rows = pixels[:: max(1, len(pixels) // (2 * size_px))]
    small = _resize(rows, (size_px, size_px), "bilinear").astype(np.uint32)
    luma = small[:, :, 0] * 299 + small[:, :, 1] * 587 + small[:, :, 2] * 114
    return ((luma + 500) // 1000).astype(np.uint8)


def _resize(pixels: Canvas, size: tuple[int, int], interpolation: Interpolation) -> Canvas:
    # What torchvision's v2.functional.resize calls for uint8, without its 80 us a photo under
    # Python's lock. The batch axis comes before the axes are swapped: only then are the strides
    # those of channels-last, and the call takes 280 us instead of 690.
    if pixels.shape[:2] == size:
        return np.ascontiguousarray(pixels)
    planes = torch.from_numpy(np.ascontiguousarray(pixels)).unsqueeze(0).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(planes, size, mode=interpolation, antialias=True)
    return np.ascontiguousarray(resized[0].permute(1, 2, 0).numpy())
