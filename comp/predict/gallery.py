"""Photos with captions in one HTML file that needs no other."""

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from PIL import Image

from comp.data.manifest import photo_path
from comp.data.photos import decode
from comp.store import Workspace, write_text

SIDE_PX = 220
MAX_PHOTOS = 100  # of a section, about 10 kB each
STYLE = (
    "body{font:14px sans-serif;margin:2em}section{display:flex;flex-wrap:wrap;gap:1em}"
    "figure{margin:0;width:220px}h2{width:100%}"
)
Captioned = tuple[str, str, str]  # split, id and caption of a photo


def write_gallery(
    path: Path, title: str, sections: Mapping[str, Sequence[Captioned]], workspace: Workspace
) -> int:
    """Write `sections`, photos by heading, at most MAX_PHOTOS of each; how many photos it shows."""
    head = f"<meta charset=utf-8><title>{escape(title)}</title><style>{STYLE}</style>"
    parts, n_shown = [f"<!doctype html><html lang=en>{head}<h1>{escape(title)}</h1>"], 0
    for heading, photos in sections.items():
        figures = [
            _figure(photo_path(workspace, split, id), caption)
            for split, id, caption in photos[:MAX_PHOTOS]
        ]
        counts = f"{len(figures):,} of {len(photos):,}"
        parts += [f"<section><h2>{escape(heading)}: {counts}</h2>", *figures, "</section>"]
        n_shown += len(figures)
    write_text(path, "\n".join([*parts, "</html>\n"]))
    return n_shown


def _figure(path: Path, caption: str) -> str:
    pixels = decode(path.read_bytes()).pixels if path.exists() else None
    picture = "<p>(no photo)</p>"
    if pixels is not None:
        image, file = Image.fromarray(pixels), io.BytesIO()
        image.thumbnail((SIDE_PX, SIDE_PX))
        image.save(file, "JPEG")
        data = base64.b64encode(file.getvalue()).decode()
        picture = f'<img src="data:image/jpeg;base64,{data}" alt="{escape(caption)}">'
    return f"<figure>{picture}<figcaption>{escape(caption)}</figcaption></figure>"
