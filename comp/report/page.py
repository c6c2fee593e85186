"""What a page is made of, and its HTML: one file that needs no other and asks for none.

All text is escaped: names of photos and Kaggle's messages are not ours. The Content-Security-Policy
lets only this page's own script and style run, by their hashes, and forbids every request.
"""

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined

TEMPLATES = Path(__file__).with_name("templates")
Rows = Sequence[Sequence[object]]


class Tile(NamedTuple):
    """One number of the first screen."""

    label: str
    value: str
    note: str = ""


class TextTable(NamedTuple):
    """Rows of text; the first column is a heading."""

    title: str
    columns: Sequence[str]
    rows: Rows
    is_folded: bool = False  # shown on demand


class Chart(NamedTuple):
    """A figure, what it shows in words, and its numbers."""

    title: str
    sentence: str
    svg: str
    columns: Sequence[str]
    rows: Rows


class Card(NamedTuple):
    """A photo with what is known about it."""

    id: str
    label: str  # name of its class
    photo: str | None  # data URI; None: there is no such photo any more
    heat: str | None = None  # data URI of a map of what the prediction is based on
    prob: float | None = None  # of its own label, out of fold
    loss: float | None = None
    alike: str = ""  # ids of its near-duplicates
    label_fix: str = ""  # in data/verdicts.csv
    notes: Sequence[str] = ()
    reason: str = ""  # for the line in data/verdicts.csv; empty: a photo that can have none


class Section(NamedTuple):
    """A part of a page with a heading."""

    title: str
    text: str = ""
    charts: Sequence[Chart] = ()
    tables: Sequence[TextTable] = ()
    cards: Sequence[Card] = ()
    has_toolbar: bool = False  # sorts and filters the cards, and copies lines for label fixes


class Page(NamedTuple):
    """A whole page."""

    title: str
    subtitle: str
    tiles: Sequence[Tile] = ()
    sections: Sequence[Section] = ()


def render(page: Page) -> str:
    """`page` as HTML; the same page has the same bytes."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
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
