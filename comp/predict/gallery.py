"""Photos with captions in one HTML file that needs no other."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from comp.data.canvas import Geometry
from comp.data.manifest import photo_path
from comp.data.photos import decode, encode_jpeg, to_canvas
from comp.store import Workspace, write_text

SMALL = Geometry(fit="shorter", size_px=160, interpolation="bilinear")
QUALITY = 75
MOST = 100  # photos of a section, about 10 kB each

_STYLE = (
    "body{font:14px sans-serif;margin:2em}section{display:flex;flex-wrap:wrap;gap:1em}figure{margin:0;width:220px}"
    "img{max-width:220px;max-height:220px}h2{width:100%}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A heading and the photos under it."""

    title: str
    photos: Sequence[tuple[str, str, str]]  # split, id, caption


def write_gallery(path: Path, title: str, sections: Sequence[Section], workspace: Workspace) -> int:
    """Write `sections` as one HTML file, at most MOST photos of each; how many photos it shows."""
    shown = [section.photos[:MOST] for section in sections]
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(title)}</title><style>{_STYLE}</style><h1>{escape(title)}</h1>"
    ]
    for section, photos in zip(sections, shown, strict=True):
        parts.append(
            f"<section><h2>{escape(section.title)}: {len(photos):,} of {len(section.photos):,}</h2>"
        )
        parts += [
            _figure(photo_path(workspace, split, id), caption) for split, id, caption in photos
        ]
        parts.append("</section>")
    write_text(path, "\n".join([*parts, "</html>\n"]))
    return sum(map(len, shown))


def _figure(photo: Path, caption: str) -> str:
    pixels = decode(photo.read_bytes()).pixels if photo.exists() else None
    picture = "<p>(no photo)</p>"
    if pixels is not None:
        data = base64.b64encode(encode_jpeg(to_canvas(pixels, SMALL), QUALITY)).decode()
        picture = f'<img src="data:image/jpeg;base64,{data}" alt="{escape(caption)}">'
    return f"<figure>{picture}<figcaption>{escape(caption)}</figcaption></figure>"
