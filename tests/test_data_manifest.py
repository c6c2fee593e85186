"""The manifest: what is written reads back with its types, and damage is reported by its place."""

import random
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from heard import Heard
from hypothesis import given
from hypothesis import strategies as st

from comp.competition import COMPETITION
from comp.data.folds import SIDE, near_pairs
from comp.data.manifest import (
    MANIFEST_COLUMNS,
    natural_key,
    read_manifest,
    usable,
    write_manifest,
)
from comp.data.scan import manifests_of, print_summary
from comp.errors import DataError
from comp.progress import Reporter

MANIFEST = pd.DataFrame(
    {
        "id": ["cat.10", "cat.9", "dog.0", "dog.1"],
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


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_manifest(tmp_path / "train.csv", MANIFEST)
    return tmp_path / "train.csv"


def test_a_manifest_reads_back_with_its_types_in_natural_order(path: Path) -> None:
    before, found = path.read_bytes(), read_manifest(path)
    assert tuple(found.columns) == MANIFEST_COLUMNS
    assert found["id"].tolist() == ["cat.9", "cat.10", "dog.0", "dog.1"]
    assert found["phash"].tolist() == [MANIFEST["phash"][row] for row in (1, 0, 2, 3)]
    assert found["fold"].isna().tolist() == [False, False, True, False]
    types = ["str", "Int8", "Int64", "Int64", "str", "str", "Int64", "Int8", "str"]
    assert [str(kind) for kind in found.dtypes] == types
    write_manifest(path, found)
    assert path.read_bytes() == before


def test_numeric_ids_stay_text_and_the_order_of_rows_has_no_effect(tmp_path: Path) -> None:
    path, empty = tmp_path / "test.csv", pd.array([pd.NA] * 4, "Int8")
    write_manifest(path, MANIFEST.assign(id=["1", "10", "2", "100"], label=empty, fold=empty))
    found = read_manifest(path)
    assert found["id"].tolist() == ["1", "2", "10", "100"]
    assert found["label"].isna().all()
    header, *rows = path.read_text().splitlines(keepends=True)
    path.write_text("".join([header, *reversed(rows)]))
    assert read_manifest(path).equals(found)


def test_only_photos_that_can_be_decoded_are_usable() -> None:
    assert usable(MANIFEST)["id"].tolist() == ["cat.10", "cat.9", "dog.1"]


REPLACED = [  # what by what, and what is said of it
    ("verdict", "opinion", "columns"),
    (",ok", ",ok,ok,ok", "readable CSV"),
    ("cat.9,0", "cat.9,2", "column label, the first is '2' in line 2"),
    ("cat.10,0", "cat.10,0.0", "column label, the first is '0.0' in line 3"),
    ("rotated", "fine", "column verdict, the first is 'fine' in line 5"),
    ("1234567890123456", "1.23457E+15", "column phash"),
    ("cat.9,", "../cat.9,", "column id"),
    ("cat.9,", ",", "column id"),
    ("cat.9,", "cat.10,", "1 repeated values in column id, the first is 'cat.10' in line 3"),
    ("cat.10,0", "cat.10,", "1 missing values in column label, the first is '' in line 3"),
    ("cat.9,0", "cat.9,NaN", "column label, .* 'NaN'"),
    (",2,,", ",nan,,", "column group, .* in line 4"),
    (",500,", ",0,", "1 sizes of 0 in column width, the first is '0' in line 3"),
    (",374,", ",0,", "column height, .* in line 3"),
    (",500,", ",500.0,", "column width, .* line 3"),
    (",500,", ",-500,", "column width"),
]
WHOLE = MANIFEST.to_csv(index=False)
DAMAGED = [
    ("", "readable CSV"),
    (WHOLE.split("\n")[0] + "\n", "has no rows"),
    ("\n".join(line.rpartition(",")[0] for line in WHOLE.split("\n")), "columns"),
    (re.sub("ok|grey|rotated", "huge", WHOLE), "none of its 4 photos can be decoded"),
    (WHOLE[:-90], "unexpected values"),
    ("\0\1\2" + WHOLE, "columns"),
    ("id,label\n\udcff\udcfe\n", "readable CSV"),
]


@pytest.mark.parametrize(
    ("old", "new", "reason"), [*REPLACED, *((None, text, reason) for text, reason in DAMAGED)]
)
def test_a_damaged_manifest_is_an_error_of_one_line_with_a_remedy(
    path: Path, old: str | None, new: str, reason: str
) -> None:
    text = path.read_text().replace(old, new) if old else new
    path.write_text(text, errors="surrogateescape")
    with pytest.raises(DataError, match=reason) as caught:
        read_manifest(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert "correct it, or delete the file and run `make data`" in str(caught.value)


def test_labels_of_test_photos_are_refused(path: Path) -> None:
    with pytest.raises(DataError, match="4 values, which test photos do not have, in column label"):
        read_manifest(path.rename(path.with_name("test.csv")))


def scanned(n_lost: dict[str, int]) -> pd.DataFrame:
    """40 photos of each class and 40 to predict, of which the first few cannot be decoded."""
    rows = [
        (split, f"{name}.{index}", label, 9, 9, f"{name}{index}", status)
        for split, name, label in (("train", "cat", 0), ("train", "dog", 1), ("test", "x", pd.NA))
        for index in range(40)
        for status in ["truncated" if index < n_lost.get(name, 0) else "ok"]
    ]
    columns = ["split", "id", "label", "width", "height", "sha256", "verdict"]
    return pd.DataFrame(rows, columns=columns).astype({"label": "Int8"})


@pytest.mark.parametrize(
    ("n_lost", "says"),
    [
        ({"cat": 40}, "of class cat"),
        ({"dog": 40}, "of class dog"),
        ({"cat": 40, "dog": 40}, "of class cat"),
        ({"x": 40}, "to predict"),
        ({"x": 30, "cat": 4}, "75% OF ALL TEST PHOTOS CANNOT BE DECODED"),
        ({"x": 1, "cat": 4, "dog": 4}, "10% OF ALL TRAINING PHOTOS CANNOT BE DECODED"),
        ({"x": 1}, "1 test photo that cannot be decoded"),
    ],
)
def test_photos_that_cannot_be_decoded_are_an_error_if_they_are_all_and_loud_if_they_are_many(
    n_lost: dict[str, int], says: str
) -> None:
    table, heard = scanned(n_lost), Heard()
    n_usable = int((table["verdict"] == "ok").sum())
    thumbnails = np.random.default_rng(0).integers(0, 256, (n_usable, SIDE, SIDE), np.uint8)
    if 40 in n_lost.values():
        with pytest.raises(DataError, match=f"none of the 40 photos {says} can be decoded"):
            manifests_of(table, thumbnails, COMPETITION, Reporter())
        return
    table.loc[table["id"] == "cat.39", "verdict"] = "unclosed"
    made = manifests_of(table, thumbnails, COMPETITION, Reporter())
    print_summary(made["train"], made["test"], COMPETITION, heard)
    assert says in str(heard)
    assert "1 photo lacking only the end marker, and used: cat.39 (unclosed)" in str(heard)
    assert ("CANNOT" in str(heard)) == ("CANNOT" in says)


def test_equal_files_share_a_group_without_being_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    table, compared = scanned({}), list[int]()
    table.loc[table.index[:30], "sha256"] = table["sha256"][0]
    thumbnails = np.random.default_rng(0).integers(0, 256, (len(table), SIDE, SIDE), np.uint8)

    def counted(some: np.ndarray, reporter: Reporter) -> np.ndarray:
        compared.append(len(some))
        return near_pairs(some, reporter)

    monkeypatch.setattr("comp.data.scan.near_pairs", counted)
    made = pd.concat(manifests_of(table, thumbnails, COMPETITION, Reporter()).values())
    assert compared == [len(table) - 29]
    assert made["group"].nunique() == len(table) - 29
    assert made.set_index("id")["group"][table["id"][:30]].nunique() == 1


def test_an_editor_that_adds_a_byte_order_mark_and_crlf_does_no_harm(path: Path) -> None:
    before = read_manifest(path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert read_manifest(path).equals(before)


def test_nothing_is_written_that_could_not_be_read_back(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="column verdict"):
        write_manifest(tmp_path / "train.csv", MANIFEST.assign(verdict="fine"))
    assert not list(tmp_path.iterdir())
    with pytest.raises(DataError, match="does not exist: run `make data`"):
        read_manifest(tmp_path / "train.csv")


@given(st.lists(st.integers(0, 10**6), unique=True, max_size=20), st.randoms(use_true_random=False))
def test_ids_sort_by_their_numbers(numbers: list[int], order: random.Random) -> None:
    for prefix in ("", "cat."):
        ids = [f"{prefix}{number}" for number in sorted(numbers)]
        assert sorted(order.sample(ids, len(ids)), key=natural_key) == ids


@given(st.text(max_size=8), st.text(max_size=8))
def test_different_ids_always_have_an_order(one: str, other: str) -> None:
    assert (natural_key(one) == natural_key(other)) == (one == other)
    assert sorted([one, other], key=natural_key) == sorted([other, one], key=natural_key)
