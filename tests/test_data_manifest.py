"""The manifest: what is written reads back with its types, and what somebody broke is told by line and column."""

import random
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from comp.data.manifest import (
    COLUMNS,
    natural_key,
    natural_order,
    read_manifest,
    usable,
    write_manifest,
)
from comp.errors import DataError


def manifest() -> pd.DataFrame:
    ids = ["cat.10", "cat.9", "dog.0", "dog.1"]
    return pd.DataFrame(
        {
            "id": ids,
            "label": pd.array([0, 0, 1, 1], "Int8"),
            "width": [500, 40, 0, 7],
            "height": [374, 32, 0, 9],
            "sha256": [f"{index:064x}" for index in range(4)],
            "phash": ["00000000000000e1", "1234567890123456", "", "ffffffffffffffff"],
            "group": [3, 1, 2, 0],
            "fold": pd.array([0, 4, pd.NA, 1], "Int8"),
            "verdict": ["ok", "grey", "truncated", "rotated"],
        }
    )


def test_a_manifest_reads_back_with_its_types_in_natural_order(tmp_path: Path) -> None:
    write_manifest(tmp_path / "train.csv", manifest())
    found = read_manifest(tmp_path / "train.csv")
    assert list(found.columns) == list(COLUMNS)
    assert found["id"].tolist() == ["cat.9", "cat.10", "dog.0", "dog.1"]
    assert found["phash"].tolist() == [
        "1234567890123456",
        "00000000000000e1",
        "",
        "ffffffffffffffff",
    ]
    assert found["fold"].isna().tolist() == [False, False, True, False]
    types = {name: str(found[name].dtype) for name in COLUMNS}
    assert types == {
        "id": "str",
        "label": "Int8",
        "width": "Int64",
        "height": "Int64",
        "sha256": "str",
        "phash": "str",
        "group": "Int64",
        "fold": "Int8",
        "verdict": "str",
    }
    before = (tmp_path / "train.csv").read_bytes()
    write_manifest(tmp_path / "train.csv", found)
    assert (tmp_path / "train.csv").read_bytes() == before


def test_numbers_as_ids_stay_text(tmp_path: Path) -> None:
    test = manifest().assign(
        id=["1", "10", "2", "100"],
        label=pd.array([pd.NA] * 4, "Int8"),
        fold=pd.array([pd.NA] * 4, "Int8"),
    )
    write_manifest(tmp_path / "test.csv", test)
    found = read_manifest(tmp_path / "test.csv")
    assert found["id"].tolist() == ["1", "2", "10", "100"]
    assert found["label"].isna().all()


def test_only_photos_that_can_be_decoded_are_usable() -> None:
    assert usable(manifest())["id"].tolist() == ["cat.10", "cat.9", "dog.1"]


BREAKAGES: dict[str, tuple[Callable[[str], str], str]] = {
    "empty": (lambda text: "", "readable CSV"),
    "header only": (lambda text: text.split("\n")[0] + "\n", "names no photo"),
    "other columns": (lambda text: text.replace("verdict", "opinion"), "columns"),
    "a column gone": (
        lambda text: "\n".join(line.rpartition(",")[0] for line in text.split("\n")),
        "columns",
    ),
    "a row too long": (lambda text: text.replace(",ok", ",ok,ok,ok"), "readable CSV"),
    "label 2": (
        lambda text: text.replace("cat.9,0", "cat.9,2"),
        "column label, the first is '2' in line 2",
    ),
    "label as float": (
        lambda text: text.replace("cat.10,0", "cat.10,0.0"),
        "column label, the first is '0.0' in line 3",
    ),
    "an unknown verdict": (
        lambda text: text.replace("rotated", "fine"),
        "column verdict, the first is 'fine' in line 5",
    ),
    "a spreadsheet's phash": (
        lambda text: text.replace("1234567890123456", "1.23457E+15"),
        "column phash",
    ),
    "a path for an id": (lambda text: text.replace("cat.9,", "../cat.9,"), "column id"),
    "no id": (lambda text: text.replace("cat.9,", ","), "column id"),
    "an id twice": (
        lambda text: text.replace("cat.9,", "cat.10,"),
        "more than once, the first is cat.10",
    ),
    "cut": (lambda text: text[:-90], "unexpected values"),
    "negative width": (lambda text: text.replace(",500,", ",-500,"), "column width"),
    "binary": (lambda text: "\0\1\2" + text, "columns"),
}


@pytest.mark.parametrize("name", BREAKAGES)
def test_a_broken_manifest_is_told_in_one_line_with_a_remedy(tmp_path: Path, name: str) -> None:
    path = tmp_path / "train.csv"
    write_manifest(path, manifest())
    broken, told = BREAKAGES[name]
    path.write_text(broken(path.read_text()))
    with pytest.raises(DataError, match=told) as caught:
        read_manifest(path)
    assert "\n" not in str(caught.value)
    assert "make data" in str(caught.value)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_bytes(b"id,label\n\xff\xfe\n")
    with pytest.raises(DataError, match="readable CSV"):
        read_manifest(tmp_path / "train.csv")


def test_a_manifest_that_is_not_there_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="make data"):
        read_manifest(tmp_path / "train.csv")


def test_an_editor_that_adds_a_byte_order_mark_and_crlf_does_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    write_manifest(path, manifest())
    before = read_manifest(path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert read_manifest(path).equals(before)


def test_nothing_that_could_not_be_read_back_is_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="column verdict"):
        write_manifest(tmp_path / "train.csv", manifest().assign(verdict="fine"))
    assert not list(tmp_path.iterdir())


@given(st.lists(st.integers(0, 10**6), unique=True, max_size=20), st.randoms(use_true_random=False))
def test_ids_sort_by_their_numbers(numbers: list[int], order: random.Random) -> None:
    for prefix in ("", "cat."):
        ids = [f"{prefix}{number}" for number in sorted(numbers)]
        shuffled = list(ids)
        order.shuffle(shuffled)
        assert natural_order(shuffled) == ids


@given(st.text(max_size=8), st.text(max_size=8))
def test_different_ids_always_have_an_order(one: str, other: str) -> None:
    assert (natural_key(one) == natural_key(other)) == (one == other)
    assert natural_order([one, other]) == natural_order([other, one])
