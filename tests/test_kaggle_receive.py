"""One try at a file: what is written, what is refused, and that two files are never spliced."""

import io
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests
from kaggle_stand import Notebook

from comp.errors import DataError
from comp.kaggle.download import OVERLAP, Archive, Pace, Version, receive
from comp.kaggle.transport import AnswerError

OLD, NEW = os.urandom(40_000), os.urandom(40_000)
START = 30_000 - OVERLAP  # of the rest of a part of 30,000 bytes
REST = {"Content-Range": f"bytes {START}-39999/40000"}
PLAUSIBLE = OLD[START:30_000] + NEW[30_000:]  # the rest of another file, whose first bytes fit


class Answer:
    """The parts of a response that `receive` looks at; its body arrives in small blocks."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status_code, self.headers, self.raw = status, headers, self
        self._body = io.BytesIO(body)

    def read1(self, amount: int, decode_content: bool) -> bytes:
        return self._body.read(min(amount, 1500))


@pytest.fixture
def part(tmp_path: Path) -> Archive:
    """The first 30,000 bytes of OLD."""
    part = Archive(tmp_path / "part")
    part.restart(Version(validator='"old"', length=len(OLD)))
    part.path.write_bytes(OLD[:30_000])
    return part


def attempt(part: Archive, status: int, headers: dict[str, str], body: bytes) -> None:
    receive(Answer(status, headers, body), part, Pace(60.0, 0), Notebook())  # type: ignore[arg-type]


@pytest.mark.parametrize("have", [30_000, 40_000])
def test_the_rest_is_requested_from_a_little_before_the_end(part: Archive, have: int) -> None:
    part.path.write_bytes(OLD[:have])
    start = have - OVERLAP
    headers = {"Accept-Encoding": "identity", "If-Range": '"old"', "Range": f"bytes={start}-"}
    assert part.request_headers() == headers
    attempt(part, 206, {"Content-Range": f"bytes {start}-39999/40000"}, OLD[start:])
    assert part.path.read_bytes() == OLD


@pytest.mark.parametrize(
    ("headers", "body", "words"),
    [
        ({"Content-Range": "bytes 0-39999/40000"}, PLAUSIBLE, "'bytes 0-39999/40000' instead"),
        ({}, PLAUSIBLE, "'no Content-Range' instead"),
        ({"Content-Range": f"bytes {START}-40000/40001"}, PLAUSIBLE, "has changed"),
        (REST | {"ETag": '"new"'}, PLAUSIBLE, "has changed"),
        (REST | {"Content-Encoding": "gzip"}, PLAUSIBLE, "has changed"),
        (REST, NEW[START:], "bytes differ"),
    ],
)
def test_a_rest_that_does_not_fit_is_refused_and_not_resumed(
    part: Archive, headers: dict[str, str], body: bytes, words: str
) -> None:
    with pytest.raises(AnswerError, match=words):
        attempt(part, 206, headers, body)
    assert part.path.read_bytes() == b""
    assert part.request_headers() == {"Accept-Encoding": "identity"}


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (200, {"Content-Type": "text/html; charset=UTF-8"}),
        (200, {"Content-Type": "application/json"}),
        (206, {"Content-Type": "multipart/byteranges"}),
        (204, {}),
        (304, {}),
    ],
)
def test_a_page_or_an_unknown_status_leaves_the_part_alone(
    part: Archive, status: int, headers: dict[str, str]
) -> None:
    with pytest.raises(AnswerError):
        attempt(part, status, headers, b"<html>")
    assert part.path.read_bytes() == OLD[:30_000]


def test_last_modified_is_a_validator_and_a_weak_etag_is_none(part: Archive) -> None:
    weak = {"ETag": 'W/"1"', "Content-Length": "40000"}
    date = "Fri, 02 Sep 2016 00:00:00 GMT"
    for headers, expected in ((weak | {"Last-Modified": date}, date), (weak, None)):
        with pytest.raises(requests.ConnectionError, match="ended at byte 30,000 of 40,000"):
            attempt(part, 200, headers, OLD[:30_000])
        assert part.request_headers().get("If-Range") == expected


def test_too_little_room_is_found_before_a_byte_is_written(
    part: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=16 << 20))
    for status, headers in ((206, REST), (200, {"Content-Length": "40000"})):
        with pytest.raises(DataError, match=r"bytes to come take .* are free .* make room"):
            attempt(part, status, headers, b"")
        assert part.path.read_bytes() == OLD[:30_000]
