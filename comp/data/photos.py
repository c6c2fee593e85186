"""The one door for photos: bytes to a verdict, upright pixels, a canvas, a thumbnail. Verdicts are explained in comp/data/verdict.py."""

import io
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.io import ImageReadMode  # importing it also registers torch.ops.image

from comp.data.geometry import PAD, Geometry, Interpolation
from comp.data.header import Header, read_header
from comp.data.pillow import ERRORS, pillow_pixels
from comp.data.verdict import USABLE, Verdict

DECODER = 1  # to be raised when the same bytes begin to give other pixels: stores made before are then not read again

Canvas = NDArray[np.uint8]  # [height, width, 3] RGB


@dataclass(frozen=True, slots=True, kw_only=True)
class Photo:
    """A verdict, the upright size (0 where unknown) and, of a usable photo only, its upright pixels."""

    verdict: Verdict
    width: int
    height: int
    pixels: Canvas | None

    def without_pixels(self) -> "Photo":
        return replace(self, pixels=None)


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
    """`pixels [h, w, 3]` cropped, resized and padded as `geometry` says."""
    top, left, height, width = geometry.crop(pixels.shape[1], pixels.shape[0])
    y, x, inner_height, inner_width = geometry.place(width, height)
    photo = _resize(
        pixels[top : top + height, left : left + width],
        (inner_height, inner_width),
        geometry.interpolation,
    )
    if photo.shape[:2] == geometry.canvas(width, height):
        return photo
    canvas = np.full((*geometry.canvas(width, height), 3), PAD, np.uint8)
    canvas[y : y + inner_height, x : x + inner_width] = photo
    return canvas


def thumbnail(pixels: Canvas, size_px: int) -> NDArray[np.uint8]:
    """`pixels [h, w, 3]` squashed to a grey `[size_px, size_px]`: antialiased, luma by ITU-R 601.

    Every n-th row of a tall photo will do, and costs half: each row of the thumbnail still averages two of them and more.
    """
    rows = pixels[:: max(1, len(pixels) // (2 * size_px))]
    small = _resize(rows, (size_px, size_px), "bilinear").astype(np.uint32)
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


def _decode_fast(data: bytes, header: Header) -> tuple[Verdict, Canvas | None]:
    try:
        pixels = _libjpeg(data)
    except RuntimeError as error:
        return (
            ("truncated", None)
            if "truncated" in str(error)
            else _decode_slow(data, replace(header, verdict="converted"))
        )
    if (header.progressive or _ends_grey(pixels)) and _is_cut(data):
        return "truncated", None
    return header.verdict, _upright(pixels, header.orientation)


def _libjpeg(data: bytes) -> Canvas:
    # The operation behind torchvision.io.decode_jpeg, which since 0.29 warns at each call that TorchCodec will take its place one day.
    # requirements.txt pins both; when the day comes, this is the line to change, and DECODER with it.
    planes = torch.ops.image.decode_jpeg(
        torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB.value, False
    )
    pixels: Canvas = planes.permute(1, 2, 0).numpy()
    return pixels


def _ends_grey(pixels: Canvas) -> bool:
    """Whether the last row of the last block has the luma 128, with which libjpeg fills up past a cut that was closed with an end marker.

    Its colour may be that of the block above. Few whole photos end so, and `_is_cut` clears them.
    """
    last = pixels[-1, (pixels.shape[1] - 1) // 8 * 8 :].astype(np.int64)
    return bool((abs(last @ (299, 587, 114) - 128_000) <= 1500).all())


def _is_cut(data: bytes) -> bool:
    """Whether bytes put before the end marker change the picture: they do only if the decoder was still waiting for some.

    Pillow is asked, because it keeps libjpeg's remarks on such bytes to itself.
    """
    end = data.rfind(b"\xff\xd9")
    while data[end - 1] == 0xFF:  # or the filler would begin with a marker
        end -= 1
    noise = bytes(1 + (index * 151) % 253 for index in range(2048))  # no 0xff: no marker
    filler = noise + b"".join(bytes((0xFF, restart)) + noise for restart in range(0xD0, 0xD8))
    try:
        return not np.array_equal(
            pillow_pixels(data[:end] + filler + data[end:]), pillow_pixels(data)
        )
    except ERRORS:
        return True


def _decode_slow(data: bytes, header: Header) -> tuple[Verdict, Canvas | None]:
    try:
        pixels = pillow_pixels(data)
    except ERRORS as error:
        return ("truncated" if "truncated" in str(error) else "undecodable"), None
    if header.jpeg and _is_cut(data):
        return "truncated", None
    return header.verdict, _upright(pixels, header.orientation)


def _upright(pixels: Canvas, orientation: int) -> Canvas:
    """`pixels` as EXIF `orientation` wants them shown (TIFF 6.0, tag 274)."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)
