"""Pillow, made safe: for the photos that the fast decoder cannot read."""

import io
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

FORMATS = (
    "PNG",
    "GIF",
    "WEBP",
    "BMP",
    "TIFF",
    "JPEG",
)  # not all that Pillow knows: opening an EPS, for one, starts ghostscript
ERRORS = (  # what Pillow raises for a broken file
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
_lock = threading.Lock()  # Pillow's settings and the warning filters belong to the whole process


@contextmanager
def opened(data: bytes) -> Iterator[Image.Image]:
    """The first frame as Pillow sees it, with a bomb as an error and a cut as an error whatever other libraries have set."""
    with _lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        lenient, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                yield image
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = lenient


def pillow_pixels(data: bytes) -> NDArray[np.uint8]:
    """`[h, w, 3]` RGB as it lies in the file: 16 bits scaled to 8, palette resolved, alpha over white. Raises ERRORS."""
    with opened(data) as image:
        return np.array(_to_rgb(image))


def _to_rgb(image: Image.Image) -> Image.Image:
    if (
        image.mode.startswith("I") or image.mode == "F"
    ):  # 16 bits and more; convert() would clip them to 255
        values = np.asarray(image).astype(np.float64)
        image = Image.fromarray(
            np.clip(values / 257 if image.mode != "F" else values, 0, 255).round().astype(np.uint8)
        )
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")
