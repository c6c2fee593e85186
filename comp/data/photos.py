"""One photo: its file's bytes to a decode status (comp/data/manifest.py) and upright pixels."""

import hashlib
import io
import os
import struct
import threading
import warnings
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from PIL import ExifTags, Image, ImageFile
from torchvision.io import ImageReadMode  # importing it also registers torch.ops.image

from comp.data.manifest import USABLE, DecodeStatus
from comp.data.pixels import Canvas

MAX_PIXELS = 50_000_000  # 150 MB per core; the competition's largest photo has .8 million
FREE_PIXELS = 1_000_000  # however few bytes a photo has
MAX_PIXELS_PER_BYTE = 100  # of a larger one: photos have 2 to 40, a JPEG of a single colour has 64
SCANS = 10  # of a progressive JPEG; each more costs as much as a tenth of another photo
LARGE_PIXELS = 8_000_000  # from here on one at a time: a decoder may need 12 bytes a pixel
AHEAD = 12  # photos per thread that are being decoded or wait to be collected
# Not all formats that Pillow knows: to open an EPS, for one, it starts ghostscript.
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF")
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, ArithmeticError)
_PILLOW_ERRORS = (*_BROKEN, AttributeError, RuntimeError, MemoryError, struct.error, zlib.error)
_SCAN, _END = b"\xff\xda", b"\xff\xd9"  # markers of JPEG
_large = threading.Lock()
_lock = threading.Lock()  # Pillow's settings and the warning filters belong to the whole process
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


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
    """The chunks that decide the pixels, and in front the eXIf chunk, which may lie behind them.

    Pillow refuses a PNG with a megabyte of text or a large profile, which no pixel depends on.
    """
    chunks, exif, start = [png[:8]], b"", 8
    while start < len(png):
        end = start + 12 + int.from_bytes(png[start : start + 4])
        kind = png[start + 4 : start + 8]
        is_intact = zlib.crc32(png[start + 4 : end - 4]) == int.from_bytes(png[end - 4 : end])
        if kind == b"eXIf" and is_intact:
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
    # The operation behind torchvision.io.decode_jpeg, which warns at each call that TorchCodec will
    # replace it. Once it is gone, change this line and DECODER (comp/data/canvas.py).
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
    """Whether the last row of the last block has luma 128, with which libjpeg fills up after a cut.

    Few whole photos end like this; `_is_cut` clears them.
    """
    last = pixels[-1, (pixels.shape[1] - 1) // 8 * 8 :].astype(np.int64)
    return bool((abs(last @ (299, 587, 114) - 128_000) <= 1500).all())


def _is_cut(data: bytes) -> bool:
    """Whether bytes inserted before the end marker change the picture: the decoder missed some.

    Pillow decodes here, because it does not print libjpeg's complaints about such bytes.
    """
    end = data.rfind(_END)
    while data[end - 1] == 0xFF:  # or the filler would begin with a marker
        end -= 1
    # No 0xff, which would begin a marker; first ones, because libjpeg fills up with zeros.
    noise = bytes(254 - (index * 151) % 254 for index in range(2048))
    filler = noise + b"".join(bytes((0xFF, restart)) + noise for restart in range(0xD0, 0xD8))
    try:
        pixels = (_pillow_pixels(each) for each in (data, data[:end] + filler + data[end:]))
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


def n_cores() -> int:
    """Cores this process may use; in a container or under taskset fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_order(
    function: Callable[[_Item], _Result], items: Iterable[_Item], n_threads: int = 0
) -> Iterator[_Result]:
    """`function` of each item, in the order of `items`, by `n_threads` threads (0: one per core).

    torch is limited to one thread in each. At most AHEAD results per thread are in memory.
    """
    n_threads, before = n_threads or n_cores(), torch.get_num_threads()
    torch.set_num_threads(1)
    pool = ThreadPoolExecutor(n_threads, thread_name_prefix="photos")
    try:
        running: deque[Future[_Result]] = deque()
        for item in items:
            running.append(pool.submit(function, item))
            if len(running) == AHEAD * n_threads:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(before)
