"""What a page is made of, and its HTML: one file that needs no other and asks for none.

All text is escaped: names of photos and Kaggle's messages are not ours. The Content-Security-Policy
lets only this page's own script and style run, by their hashes, and forbids every request.
"""

import base64
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

TEMPLATES = Path(__file__).with_name("templates")
Rows = Sequence[Sequence[object]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """One number of the first screen."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NumberTable:
    """Rows of text; the first column is a heading, the others are aligned right."""

    title: str
    columns: tuple[str, ...]
    rows: Rows
    is_text: bool = False  # words, aligned left
    is_folded: bool = False  # words, shown on demand


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A figure, what it shows in words, and its numbers."""

    title: str
    sentence: str
    svg: str
    columns: tuple[str, ...]
    rows: Rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """A photo with what is known about it."""

    id: str
    label: str  # name of its class, or "test"
    photo: str | None  # data URI; None: there is no such photo any more
    heat: str | None = None  # data URI of a map of what the prediction is based on
    prob: float | None = None  # of its own label, out of fold
    loss: float | None = None
    alike: str = ""  # ids of its near-duplicates
    label_fix: str = ""  # in data/verdicts.csv
    notes: tuple[str, ...] = ()
    reason: str = ""  # for the line in data/verdicts.csv; empty: a photo that can have none


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A part of a page with a heading."""

    title: str
    text: str = ""
    charts: Sequence[Chart] = ()
    tables: Sequence[NumberTable] = ()
    cards: Sequence[Card] = ()
    has_toolbar: bool = False  # sorts and filters the cards, and copies lines for label fixes


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A whole page."""

    title: str
    subtitle: str
    tiles: Sequence[Tile] = ()
    sections: Sequence[Section] = ()


def render(page: Page) -> str:
    """`page` as HTML; the same page has the same bytes."""
    loader = FileSystemLoader(TEMPLATES)
    environment = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style, script = ((TEMPLATES / name).read_text("utf-8") for name in ("page.css", "page.js"))
    policy = (
        f"default-src 'none'; img-src data:; style-src {_source(style)};"
        f" script-src {_source(script)}; base-uri 'none'; form-action 'none'"
    )
    template = environment.get_template("page.html")
    return template.render(page=page, style=style, script=script, policy=policy)


def _source(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def data_uri(image: Image.Image, kind: str, **options: Any) -> str:
    file = io.BytesIO()
    image.save(file, kind, **options)
    data = base64.b64encode(file.getvalue()).decode()
    return f"data:image/{kind.lower()};base64,{data}"
