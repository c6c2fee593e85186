"""One try at a file, against answers made by hand: what is written, what is refused, and that no sequence of faults splices two files."""

import errno
import io
import json
import os
import shutil
import tempfile
from collections import namedtuple
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comp.kaggle.download import (
    OVERLAP,
    CutError,
    DifferentError,
    FullError,
    Part,
    StoppedError,
    UnwritableError,
    receive,
    wanted,
)

OLD = os.urandom(40_000)
NEW = os.urandom(40_000)
TAGS = {OLD: '"old"', NEW: '"new"'}
Usage = namedtuple("Usage", "free")


class Answer:
    """A response with the parts that are looked at; its body comes in small pieces."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status_code = status
        self.headers = headers
        self.raw = self
        self._body = io.BytesIO(body)

    def read1(self, amount: int, decode_content: bool) -> bytes:
        return self._body.read(min(amount, 1500))


@contextmanager
def partial(content: bytes = b"", of: bytes = OLD) -> Iterator[Part]:
    with tempfile.TemporaryDirectory() as folder:
        fd = os.open(Path(folder) / "part", os.O_RDWR | os.O_CREAT)
        try:
            part = Part(fd, Path(folder) / "part.json")
            if content:
                part.note.write_text(json.dumps({"validator": TAGS[of], "length": len(of)}))
                os.pwrite(fd, content, 0)
            yield part
        finally:
            os.close(fd)


def serve(
    content: bytes,
    headers: dict[str, str],
    *,
    ranges: bool = True,
    cut: int | None = None,
    validator: bool = True,
) -> Answer:
    """What a good server answers, up to `cut` bytes."""
    start = 0
    if ranges and "Range" in headers and headers["If-Range"] == TAGS[content]:
        start = int(headers["Range"].removeprefix("bytes=").removesuffix("-"))
    about = {"Content-Type": "application/zip", "Content-Length": str(len(content) - start)}
    if validator:
        about["ETag"] = TAGS[content]
    if start:
        about["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
    return Answer(206 if start else 200, about, content[start:][:cut])


def attempt(part: Part, answer: Answer) -> None:
    receive(answer, part, part.resume_at(), lambda *_: None, lambda _: None)


def content_of(part: Part) -> bytes:
    return os.pread(part.fd, part.n_bytes, 0)


def test_the_rest_is_asked_for_from_a_little_before_the_end_and_only_of_the_same_file() -> None:
    with partial(OLD[:30_000]) as part:
        assert wanted(part) == {
            "Accept-Encoding": "identity",
            "Range": f"bytes={30_000 - OVERLAP}-",
            "If-Range": '"old"',
        }
        attempt(part, serve(OLD, wanted(part)))
        assert content_of(part) == OLD


def test_what_is_complete_already_is_found_to_be_so() -> None:
    with partial(OLD) as part:
        attempt(part, serve(OLD, wanted(part)))
        assert content_of(part) == OLD


START = 30_000 - OVERLAP
REST = f"bytes {START}-39999/40000"
PLAUSIBLE = (
    OLD[START:30_000] + NEW[30_000:]
)  # another file's rest, which no comparison of bytes tells from ours


@pytest.mark.parametrize(
    ("headers", "body", "words"),
    [
        ({"Content-Range": "bytes 0-39999/40000"}, PLAUSIBLE, "'bytes 0-39999/40000' came"),
        ({}, PLAUSIBLE, "'no Content-Range' came"),
        ({"Content-Range": f"bytes {START}-40000/40001"}, PLAUSIBLE, "has changed"),
        ({"Content-Range": REST, "ETag": '"new"'}, PLAUSIBLE, "has changed"),
        ({"Content-Range": REST, "Content-Encoding": "gzip"}, PLAUSIBLE, "has changed"),
        ({"Content-Range": REST}, NEW[START:], "does not fit"),
    ],
)
def test_a_part_that_does_not_fit_is_refused_and_nothing_is_continued_from(
    headers: dict[str, str], body: bytes, words: str
) -> None:
    with partial(OLD[:30_000]) as part:
        with pytest.raises(DifferentError, match=words):
            attempt(part, Answer(206, headers, body))
        assert content_of(part) == b""
        assert wanted(part) == {"Accept-Encoding": "identity"}


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
def test_a_page_or_an_unknown_encoding_or_status_leaves_the_part_as_it_is(
    status: int, headers: dict[str, str]
) -> None:
    with partial(OLD[:30_000]) as part:
        with pytest.raises(DifferentError):
            attempt(part, Answer(status, headers, b"<html>"))
        assert content_of(part) == OLD[:30_000]


def test_a_weak_etag_is_no_validator_but_last_modified_is() -> None:
    with partial() as part:
        headers = {
            "ETag": 'W/"1"',
            "Last-Modified": "Fri, 02 Sep 2016 00:00:00 GMT",
            "Content-Length": "40000",
        }
        with pytest.raises(CutError):
            attempt(part, Answer(200, headers, OLD[:30_000]))
        assert wanted(part)["If-Range"] == "Fri, 02 Sep 2016 00:00:00 GMT"
        with pytest.raises(CutError):
            attempt(part, Answer(200, {"ETag": 'W/"1"', "Content-Length": "40000"}, OLD[:30_000]))
        assert "Range" not in wanted(part)


def test_too_little_room_is_found_before_a_byte_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(free=16 << 20))
    with partial(OLD[:30_000]) as part:
        with pytest.raises(FullError, match=r"are to come and .* are free"):
            attempt(part, serve(OLD, wanted(part)))
        assert content_of(part) == OLD[:30_000]


def test_a_disk_that_fills_up_keeps_what_has_arrived(monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.pwrite

    def fills(fd: int, block: bytes, position: int) -> int:
        if position >= 6000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(fd, bytes(block)[:700], position)  # a short write is not the end

    monkeypatch.setattr(os, "pwrite", fills)
    with partial() as part:
        with pytest.raises(UnwritableError, match="No space left"):
            attempt(part, serve(OLD, {}))
        monkeypatch.undo()
        assert content_of(part) == OLD[:6000]
        attempt(part, serve(OLD, wanted(part)))
        assert content_of(part) == OLD


faults = st.lists(
    st.fixed_dictionaries(
        {
            "content": st.sampled_from([OLD, NEW]),
            "ranges": st.booleans(),
            "validator": st.booleans(),
            "cut": st.none() | st.integers(0, 40_000),
            "status": st.sampled_from([None, None, 206, 404, "page", "shifted"]),
        }
    ),
    max_size=6,
)


@given(faults)
def test_after_any_faults_what_is_here_is_the_start_of_one_file_and_one_good_try_completes_it(
    faults: list[dict[str, object]],
) -> None:
    with partial() as part:
        for fault in faults:
            try:
                attempt(part, misbehave(part, **fault))  # type: ignore[arg-type]
            except StoppedError:
                assert any(file.startswith(content_of(part)) for file in (OLD, NEW))
            else:
                assert content_of(part) in (OLD, NEW)
        attempt(part, serve(NEW, wanted(part)))
        assert content_of(part) == NEW


def misbehave(
    part: Part, content: bytes, ranges: bool, validator: bool, cut: int | None, status: object
) -> Answer:
    answer = serve(content, wanted(part), ranges=ranges, cut=cut, validator=validator)
    match status:
        case "page":
            return Answer(200, {"Content-Type": "text/html"}, b"<html>")
        case "shifted":  # a server that answers with the start of the file, and says so or not
            place = {"Content-Range": f"bytes {part.resume_at()}-{len(content) - 1}/{len(content)}"}
            return Answer(206, {"ETag": TAGS[content]} | place, content)
        case int():
            return Answer(status, {"Content-Type": "application/zip"}, b"oops")
        case _:
            return answer
