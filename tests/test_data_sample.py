"""The sample submission in every form it comes in."""

import codecs
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comp.competition import COMPETITION
from comp.data.archive import read_sample, write_sample
from comp.errors import ArchiveError

PLAIN = "id,label\n1,0.5\n2,0.5\n10,0.5\n1000,0.5\n"

FORMS: dict[str, Callable[[str], str | bytes]] = {
    "plain": str,
    "byte order mark": lambda text: codecs.BOM_UTF8 + text.encode(),
    "UTF-16": lambda text: text.encode("utf-16"),
    "CRLF": lambda text: text.replace("\n", "\r\n"),
    "CR": lambda text: text.replace("\n", "\r"),
    "no last line end": lambda text: text.rstrip("\n"),
    "blank lines": lambda text: text.replace("\n", "\n\n") + "\n , \n",
    "quoted": lambda text: '"' + text.strip().replace(",", '","').replace("\n", '"\n"') + '"',
    "spaces": lambda text: text.replace(",", " , "),
    "floats": lambda text: text.replace("\n1,", "\n1.0,").replace("1000,", "1000.,"),
    "scientific": lambda text: text.replace("1000,", "1e3,").replace("10,", "1.0E+01,"),
    "scientific labels": lambda text: text.replace("0.5", "5e-1"),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_ids_are_the_same_in_every_form(form: str) -> None:
    data = FORMS[form](PLAIN)
    data = data if isinstance(data, bytes) else data.encode()
    assert read_sample(data, COMPETITION) == ["1", "2", "10", "1000"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "columns"),
        ("1,0.5\n2,0.5\n", "columns"),
        ("id;label\n1;0.5\n", "columns"),
        ("label,id\n0.5,1\n", "columns"),
        ("id,label\n", "no ids"),
        ("id,label\n1,0.5\n1,0.5\n", "ids more than once .1., the first is 1"),
        ("id,label\n1000,0.5\n1e3,0.5\n", "ids more than once .1., the first is 1000"),
        *(
            (f"id,label\n{line}\n", "without an id and a number")
            for line in (
                *("1.5,0.5", "1e-1,0.5", "-1,0.5", "cat.1,0.5", "../1,0.5", "nan,0.5", "1e99,0.5"),
                *("\u0661,0.5", "1", "1,0.5,7", "1,dog", "1,inf", "1,0.5\n<html>"),
            )
        ),
        ('id,label\n"1,0.5\n', "readable"),
    ],
)
def test_nonsense_is_refused_in_one_line(text: str, reason: str) -> None:
    with pytest.raises(ArchiveError, match=reason) as caught:
        read_sample(text.encode(), COMPETITION)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [b"\xff\xfe\x00", b"id,label\n\xe9,1\n", bytes(100)])
def test_bytes_that_are_not_text_are_refused(data: bytes) -> None:
    with pytest.raises(ArchiveError):
        read_sample(data, COMPETITION)


@given(st.lists(st.integers(0, 10**17), min_size=1, unique=True))
def test_what_is_written_reads_back_in_its_order(numbers: list[int]) -> None:
    ids = [str(number) for number in numbers]
    assert read_sample(write_sample(ids, COMPETITION).encode(), COMPETITION) == ids


def test_columns_and_the_form_of_ids_are_those_of_the_competition() -> None:
    other = replace(COMPETITION, columns=("image", "dog"), numeric_ids=False)
    assert read_sample(b"image,dog\n007,0\nimg_1.0,1\n", other) == ["007", "img_1.0"]
    for wrong in (b"id,label\n7,0\n", b"image,dog\n../7,0\n", b"image,dog\n,0\n"):
        with pytest.raises(ArchiveError):
            read_sample(wrong, other)
