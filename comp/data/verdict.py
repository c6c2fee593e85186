"""What a photo file turned out to be, in one word.

Usable, and what is done to them:

    ok         a three-channel JPEG
    grey       a JPEG with one channel, which becomes R = G = B
    cmyk       a JPEG with four channels, converted by Pillow
    rotated    a JPEG whose EXIF says it lies on its side or is mirrored; set upright
    converted  another format (PNG, GIF, WebP, BMP, TIFF) under a .jpg name: first frame, 16 bits to 8, palette to RGB, alpha over white

Unusable; nothing is made of them, least of all a half-grey or black canvas:

    empty        no bytes
    truncated    cut short, also where somebody closed the cut with an end-of-image marker (found unless only the last block of 16 x 16
                 pixels or less is hurt, or a progressive JPEG was cut exactly between two scans)
    huge         more pixels by its header than anyone needs; refused before one is decoded
    undecodable  anything else
"""

from typing import Literal

Verdict = Literal[
    "ok", "grey", "cmyk", "rotated", "converted", "empty", "truncated", "huge", "undecodable"
]
USABLE: frozenset[Verdict] = frozenset({"ok", "grey", "cmyk", "rotated", "converted"})
