"""One try at a file: what is written, what is refused, and that two files are never spliced."""

import io
import os
import resource
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st
from kaggle_stand import Notebook

from comp.errors import DataError
from comp.kaggle.download import OVERLAP, Archive, Version, receive
from comp.kaggle.session import AnswerError

OLD, NEW = os.urandom(40_000), os.urandom(40_000)
TAGS = {OLD: '"old"', NEW: '"new"'}
START = 30_000 - OVERLAP  # of the rest of a part of 30,000 bytes


class Answer:
    """The parts of a response that `receive` looks at; its body arrives in small blocks."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status_code, self.headers, self.raw = status, headers, self
        self._body, self.n_block = io.BytesIO(body), 1500

    def read1(self, amount: int, decode_content: bool) -> bytes:
        return self._body.read(min(amount, self.n_block))


@contextmanager
def partial(content: bytes = b"") -> Iterator[Archive]:
    """A part of OLD."""
    with tempfile.TemporaryDirectory() as folder:
        part = Archive(Path(folder) / "part")
        part.restart(Version(validator=TAGS[OLD], length=len(OLD)) if content else None)
        part.path.write_bytes(content)
        yield part


def good_answer(
    content: bytes, part: Archive, *, ranges: bool = True, cut: int | None = None, tag: bool = True
) -> Answer:
    """What a good server sends, up to `cut` bytes."""
    asked, start = part.request_headers(), 0
    if ranges and asked.get("If-Range") == TAGS[content]:
        start = int(asked["Range"].removeprefix("bytes=").removesuffix("-"))
    headers = {"Content-Type": "application/zip", "Content-Length": str(len(content) - start)}
    headers |= {"ETag": TAGS[content]} if tag else {}
    if start:
        headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
    return Answer(206 if start else 200, headers, content[start:][:cut])


def attempt(part: Archive, answer: Answer) -> None:
    receive(answer, part, Notebook())  # type: ignore[arg-type]


@pytest.mark.parametrize("have", [30_000, 40_000])
def test_the_rest_is_requested_from_a_little_before_the_end(have: int) -> None:
    with partial(OLD[:have]) as part:
        headers = {"Accept-Encoding": "identity", "If-Range": '"old"'}
        assert part.request_headers() == headers | {"Range": f"bytes={have - OVERLAP}-"}
        attempt(part, good_answer(OLD, part))
        assert part.path.read_bytes() == OLD


REST = {"Content-Range": f"bytes {START}-39999/40000"}
PLAUSIBLE = OLD[START:30_000] + NEW[30_000:]  # the rest of another file, whose first bytes fit


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
    headers: dict[str, str], body: bytes, words: str
) -> None:
    with partial(OLD[:30_000]) as part:
        with pytest.raises(AnswerError, match=words):
            attempt(part, Answer(206, headers, body))
        assert part.path.read_bytes() == b""
        assert part.request_headers() == {"Accept-Encoding": "identity"}


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (200, {"Content-Type": "text/html; charset=UTF-8"}),
        (200, {"Content-Type": "application/json"}),
        (206, {"Content-Type": "multipart/byteranges"}),
        (200, {"Content-Encoding": "br"}),
        (204, {}),
        (304, {}),
    ],
)
def test_a_page_or_an_unknown_encoding_or_status_leaves_the_part_alone(
    status: int, headers: dict[str, str]
) -> None:
    with partial(OLD[:30_000]) as part:
        with pytest.raises(AnswerError):
            attempt(part, Answer(status, headers, b"<html>"))
        assert part.path.read_bytes() == OLD[:30_000]


def test_last_modified_is_a_validator_and_a_weak_etag_is_none() -> None:
    weak = {"ETag": 'W/"1"', "Content-Length": "40000"}
    date = "Fri, 02 Sep 2016 00:00:00 GMT"
    with partial() as part:
        for headers, expected in ((weak | {"Last-Modified": date}, date), (weak, None)):
            with pytest.raises(requests.ConnectionError, match="ended at byte 30,000 of 40,000"):
                attempt(part, Answer(200, headers, OLD[:30_000]))
            assert part.request_headers().get("If-Range") == expected


def test_too_little_room_is_found_before_a_byte_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=16 << 20))
    with partial(OLD[:30_000]) as part:
        for answer in (good_answer(OLD, part), good_answer(NEW, part)):
            with pytest.raises(DataError, match=r"are to come, .* are free .* make room"):
                attempt(part, answer)
            assert part.path.read_bytes() == OLD[:30_000]


@pytest.mark.parametrize("n_block", [1500, 40_000])
def test_a_disk_that_fills_up_keeps_what_has_arrived(n_block: int) -> None:
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    with partial() as part:
        answer = good_answer(OLD, part)
        answer.n_block = n_block
        resource.setrlimit(resource.RLIMIT_FSIZE, (6000, unlimited[1]))
        try:
            with pytest.raises(DataError, match=r"cannot be written to .* make room"):
                attempt(part, answer)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
        assert part.path.read_bytes() == OLD[:6000]
        attempt(part, good_answer(OLD, part))
        assert part.path.read_bytes() == OLD


def bad_answer(part: Archive, status: object, content: bytes, **good: object) -> Answer:
    match status:
        case "page":
            return Answer(200, {"Content-Type": "text/html"}, b"<html>")
        case "shifted":  # the start of the file, passed off as the rest
            place = f"bytes {part.resume_at()}-{len(content) - 1}/{len(content)}"
            return Answer(206, {"ETag": TAGS[content], "Content-Range": place}, content)
        case int():
            return Answer(status, {"Content-Type": "application/zip"}, b"oops")
        case _:
            return good_answer(content, part, **good)  # type: ignore[arg-type]


FAULTS = st.lists(
    st.fixed_dictionaries(
        {
            "content": st.sampled_from([OLD, NEW]),
            "ranges": st.booleans(),
            "tag": st.booleans(),
            "cut": st.none() | st.integers(0, 40_000),
            "status": st.sampled_from([None, None, 206, 404, "page", "shifted"]),
        }
    ),
    max_size=6,
)


@given(FAULTS)
def test_after_any_faults_the_part_is_the_start_of_one_file_and_a_good_try_completes_it(
    faults: list[dict[str, object]],
) -> None:
    with partial() as part:
        for fault in faults:
            try:
                attempt(part, bad_answer(part, **fault))  # type: ignore[arg-type]
            except requests.RequestException:
                assert any(file.startswith(part.path.read_bytes()) for file in (OLD, NEW))
            else:
                assert part.path.read_bytes() in (OLD, NEW)
        attempt(part, good_answer(NEW, part))
        assert part.path.read_bytes() == NEW
