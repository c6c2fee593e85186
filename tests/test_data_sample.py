"""The sample submission in every dress it comes in."""

import codecs
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comp.competition import COMPETITION
from comp.data.sample import read_sample, write_sample
from comp.errors import ArchiveError

PLAIN = "id,label\n1,0.5\n2,0.5\n10,0.5\n1000,0.5\n"
IDS = ["1", "2", "10", "1000"]

DRESSES: dict[str, Callable[[str], bytes]] = {
    "plain": str.encode,
    "byte order mark": lambda text: codecs.BOM_UTF8 + text.encode(),
    "UTF-16": lambda text: text.encode("utf-16"),
    "CRLF": lambda text: text.replace("\n", "\r\n").encode(),
    "CR": lambda text: text.replace("\n", "\r").encode(),
    "no last line end": lambda text: text.rstrip("\n").encode(),
    "blank lines": lambda text: text.replace("\n", "\n\n").encode() + b"\n , \n",
    "quoted": lambda text: "\n".join(
        ",".join(f'"{cell}"' for cell in line.split(",")) for line in text.split()
    ).encode(),
    "spaces": lambda text: text.replace(",", " , ").encode(),
    "floats": lambda text: (
        text.replace("\n1,", "\n1.0,").replace("1000,", "1000.,").replace("2,", "2.000,").encode()
    ),
    "scientific": lambda text: text.replace("1000,", "1e3,").replace("10,", "1.0E+01,").encode(),
    "scientific labels": lambda text: text.replace("0.5", "5e-1").encode(),
}


@pytest.mark.parametrize("dress", DRESSES)
def test_the_ids_are_the_same_in_every_dress(dress: str) -> None:
    assert read_sample(DRESSES[dress](PLAIN), COMPETITION) == IDS


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "columns"),
        ("1,0.5\n2,0.5\n", "columns"),
        ("id;label\n1;0.5\n", "columns"),
        ("label,id\n0.5,1\n", "columns"),
        ("id,label\n", "no id"),
        ("id,label\n1,0.5\n1,0.5\n", "more than once, the first is 1"),
        ("id,label\n1000,0.5\n1e3,0.5\n", "more than once, the first is 1000"),
        ("id,label\n1.5,0.5\n", "no id and number"),
        ("id,label\n1e-1,0.5\n", "no id and number"),
        ("id,label\n-1,0.5\n", "no id and number"),
        ("id,label\ncat.1,0.5\n", "no id and number"),
        ("id,label\n../1,0.5\n", "no id and number"),
        ("id,label\nnan,0.5\n", "no id and number"),
        ("id,label\n1e99,0.5\n", "no id and number"),
        ("id,label\n\u0661,0.5\n", "no id and number"),
        ("id,label\n1\n", "no id and number"),
        ("id,label\n1,0.5,7\n", "no id and number"),
        ("id,label\n1,dog\n", "no id and number"),
        ("id,label\n1,inf\n", "no id and number"),
        ('id,label\n"1,0.5\n', "readable"),
        ("id,label\n1,0.5\n<html>", "no id and number"),
    ],
)
def test_nonsense_is_refused_in_one_line(text: str, told: str) -> None:
    with pytest.raises(ArchiveError, match=told) as caught:
        read_sample(text.encode(), COMPETITION)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [b"\xff\xfe\x00", b"id,label\n\xe9,1\n", bytes(100)])
def test_bytes_that_are_no_text_are_refused(data: bytes) -> None:
    with pytest.raises(ArchiveError):
        read_sample(data, COMPETITION)


@given(st.lists(st.integers(0, 10**17), min_size=1, unique=True))
def test_what_is_written_reads_back_in_its_order(numbers: list[int]) -> None:
    ids = [str(number) for number in numbers]
    assert read_sample(write_sample(ids, COMPETITION).encode(), COMPETITION) == ids


def test_the_columns_are_those_of_the_competition() -> None:
    other = replace(COMPETITION, columns=("image", "dog"))
    assert read_sample(b"image,dog\n7,0\n", other) == ["7"]
    with pytest.raises(ArchiveError):
        read_sample(b"id,label\n7,0\n", other)
