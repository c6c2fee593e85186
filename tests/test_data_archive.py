"""Archives, honest and hostile: what is accepted is unpacked bit for bit, what is not leaves one line and nothing on disk."""

import os
import random
import stat
import struct
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from heard import Heard
from hypothesis import given, settings
from hypothesis import strategies as st
from odd_photos import packed, sample_csv, some_photos, write_archive, zipped

from comp.competition import COMPETITION
from comp.data.archive import RECEIPT, checked, is_unpacked, unpack
from comp.data.zips import Limits, members, opened
from comp.errors import ArchiveError, DataError

TRAIN, TEST = some_photos(3, 12)
OUTER = COMPETITION.archives
Members = dict[str, bytes]


def run(
    path: Path, root: Path, is_real: bool = False, reporter: Heard | None = None, origin: str = "a"
) -> list[str]:
    folder = root / "photos"
    folder.mkdir(parents=True, exist_ok=True)
    with checked(path, COMPETITION, is_real, folder, reporter or Heard()) as (parts, sample):
        unpack(parts, origin, folder, reporter or Heard())
    return sample


def tree(folder: Path) -> dict[str, bytes]:
    """All files below `folder`, but not what is in .part folders of a killed run."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and ".part" not in str(path)
    }


def refused(members: Members | bytes, tmp_path: Path, is_real: bool = False) -> str:
    """The one line with which an archive is refused, after a look that nothing was written."""
    path = tmp_path / "in" / "kaggle.zip"
    path.parent.mkdir()
    path.write_bytes(members if isinstance(members, bytes) else zipped(members))
    with pytest.raises(ArchiveError) as caught:
        run(path, tmp_path / "out", is_real)
    assert tree(tmp_path / "out") == {}
    assert set(os.listdir(tmp_path)) == {"in", "out"}
    message = str(caught.value)
    assert "\n" not in message
    return message


def inner(extra: list[tuple[str | zipfile.ZipInfo, bytes]]) -> Members:
    """Kaggle's archive, whose train.zip has some more members."""
    honest: list[tuple[str | zipfile.ZipInfo, bytes]] = [
        (f"train/{id}.jpg", data) for id, data in TRAIN.items()
    ]
    return packed(TRAIN, TEST, inner_train=zipped(honest + extra))


@pytest.mark.parametrize("inner_method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("outer_method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_photos_are_unpacked_bit_for_bit_however_they_are_packed(
    tmp_path: Path, inner_method: int, outer_method: int
) -> None:
    path = write_archive(tmp_path / "kaggle.zip", packed(TRAIN, TEST, inner_method), outer_method)
    assert run(path, tmp_path) == list(TEST)
    for split, photos in (("train", TRAIN), ("test", TEST)):
        found = {
            name: data
            for name, data in tree(tmp_path / "photos" / split).items()
            if name != RECEIPT
        }
        assert found == {f"{id}.jpg": data for id, data in photos.items()}
    assert sorted(os.listdir(tmp_path / "photos")) == ["test", "train"]


def test_photos_that_are_there_already_are_left_alone_and_those_of_another_archive_replaced(
    tmp_path: Path,
) -> None:
    path = write_archive(tmp_path / "kaggle.zip", packed(TRAIN, TEST))
    run(path, tmp_path)
    photo = tmp_path / "photos" / "train" / "cat.0.jpg"
    before = photo.stat().st_ino
    run(path, tmp_path)
    assert photo.stat().st_ino == before
    fewer = {id: TRAIN[id] for id in ("cat.1", "dog.2")}
    run(write_archive(path, packed(fewer, TEST)), tmp_path, origin="b")
    assert {name for name in tree(tmp_path / "photos" / "train") if name != RECEIPT} == {
        "cat.1.jpg",
        "dog.2.jpg",
    }
    assert sorted(os.listdir(tmp_path / "photos")) == ["test", "train"]


@pytest.mark.parametrize("n_written", [0, 1, 5, 6, 9])
def test_an_interrupted_unpack_leaves_nothing_that_looks_finished_and_the_next_completes_it(
    tmp_path: Path, n_written: int
) -> None:
    path = write_archive(tmp_path / "kaggle.zip", packed(TRAIN, TEST))
    child = os.fork()
    if not child:
        dying = Heard()
        dying.track = lambda *_: DyingTrack(n_written)  # type: ignore[method-assign, assignment]
        run(path, tmp_path, reporter=dying)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 9
    photos = tmp_path / "photos"
    for split, all_photos in (("train", TRAIN), ("test", TEST)):
        if (photos / split).exists():
            assert len(tree(photos / split)) == len(all_photos) + 1
    assert not is_unpacked(photos / "test", "a")
    run(path, tmp_path)
    assert sorted(os.listdir(photos)) == ["test", "train"]
    assert len(tree(photos)) == len(TRAIN) + len(TEST) + 2


class DyingTrack:
    """Progress that kills the process after some photos, as `kill -9` does."""

    def __init__(self, n_left: int) -> None:
        self.n_left = n_left

    def __enter__(self) -> Callable[[], None]:
        return self.advance

    def __exit__(self, *_: object) -> None: ...

    def advance(self) -> None:
        self.n_left -= 1
        if self.n_left < 0:
            os.kill(os.getpid(), 9)


HOSTILE_NAMES = [
    "/tmp/evil.jpg",
    "../evil.jpg",
    "train/../../evil.jpg",
    "train/./cat.9.jpg",
    "train//cat.9.jpg",
    "..\\evil.jpg",
    "train\\cat.9.jpg",
    "C:/evil.jpg",
    "train/cat.9.jpg\0.png",
    "train/\x1b[2J.jpg",
    "train/CAT.0.JPG",
    "train/cat.0.jpg",
    "TRAIN/cat.0.jpg",
    "train/cat.00.jpg",
    "train/cow.0.jpg",
    "train/cat.0.jpg.exe",
    "train/deep/cat.9.jpg",
    "cat.9.jpg",
    "test/1.jpg",
    "train/cat.9.jpg\n",
    "train/cat.\u0663.jpg",
]


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_a_name_that_is_not_a_photos_is_refused(tmp_path: Path, name: str) -> None:
    info = zipfile.ZipInfo("x")
    info.filename = name
    assert (
        "kaggle.zip" in (message := refused(inner([(info, b"evil")]), tmp_path))
        or "train.zip" in message
    )


@pytest.mark.parametrize(
    "kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK]
)
def test_links_and_special_files_are_refused(tmp_path: Path, kind: int) -> None:
    info = zipfile.ZipInfo("train/cat.9.jpg")
    info.external_attr = (kind | 0o777) << 16
    assert ("a link" if kind == stat.S_IFLNK else "neither") in refused(
        inner([(info, b"/etc/passwd")]), tmp_path
    )


def test_a_link_in_the_outer_archive_is_refused(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("readme")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    data = zipped([*packed(TRAIN, TEST).items(), (info, b"/etc/passwd")])
    assert "a link" in refused(data, tmp_path)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_packing_that_zipfile_inflates_without_a_limit_is_refused(
    tmp_path: Path, method: int
) -> None:
    members = packed(
        TRAIN,
        TEST,
        inner_train=zipped({f"train/{id}.jpg": data for id, data in TRAIN.items()}, method),
    )
    assert "packing method" in refused(members, tmp_path)


def test_a_bomb_is_refused_before_it_is_inflated(tmp_path: Path) -> None:
    photos = {f"train/{id}.jpg": data for id, data in TRAIN.items()} | {
        "train/cat.9.jpg": bytes(8 * 2**20)
    }
    assert "as no photo can be" in refused(
        packed(TRAIN, TEST, inner_train=zipped(photos, zipfile.ZIP_DEFLATED)), tmp_path
    )


def test_a_member_that_is_larger_than_any_photo_is_refused(tmp_path: Path) -> None:
    data = zipped({"a": random.Random(0).randbytes(3000)})
    path = tmp_path / "a.zip"
    path.write_bytes(data)
    for limits in (
        Limits(n_members=9, member_bytes=2999, total_bytes=9000),
        Limits(n_members=9, member_bytes=9000, total_bytes=2999),
        Limits(n_members=0, member_bytes=9000, total_bytes=9000),
    ):
        with opened(path, "a.zip") as archive, pytest.raises(ArchiveError, match="more than"):
            members(archive, "a.zip", len(data), limits)


def test_a_sample_submission_too_large_to_be_one_is_refused_unread(tmp_path: Path) -> None:
    small = replace(COMPETITION, max_member_bytes=50)
    path = write_archive(tmp_path / "kaggle.zip", packed(TRAIN, TEST))
    with (
        pytest.raises(ArchiveError, match="larger than 50 bytes"),
        checked(path, small, False, tmp_path, Heard()),
    ):
        pass


def test_members_that_share_their_bytes_are_refused(tmp_path: Path) -> None:
    """Many entries of the directory that point to one kernel of data: how a small archive unpacks to petabytes."""
    data = zipped([("train/cat.7.jpg", random.Random(0).randbytes(5000)), ("train/cat.8.jpg", b"")])
    at = data.index(b"PK\x01\x02", data.index(b"PK\x01\x02") + 1)
    first = data.index(b"PK\x01\x02")
    entry = data[first : first + 42 + 4]
    forged = data[:at] + entry[:46] + b"train/cat.8.jpg" + data[at + 46 + 15 :]
    assert "share their bytes" in refused(packed(TRAIN, TEST, inner_train=forged), tmp_path)


def test_a_declared_size_that_is_a_lie_is_found_without_inflating_beyond_it(tmp_path: Path) -> None:
    photos = {"train/cat.0.jpg": bytes(500_000), "train/dog.0.jpg": b"x"}
    data = bytearray(zipped(photos, zipfile.ZIP_DEFLATED))
    for size in (10, 600_000):
        at = data.index(b"PK\x01\x02") + 24
        data[at : at + 4] = struct.pack("<I", size)
        path = write_archive(tmp_path / "kaggle.zip", packed(TRAIN, TEST, inner_train=bytes(data)))
        with pytest.raises(ArchiveError, match="corrupt"):
            run(path, tmp_path)
        assert tree(tmp_path / "photos") == {}


def test_an_encrypted_member_is_refused(tmp_path: Path) -> None:
    data = bytearray(zipped({f"train/{id}.jpg": photo for id, photo in TRAIN.items()}))
    data[data.index(b"PK\x01\x02") + 8] |= 1
    assert "encrypted" in refused(packed(TRAIN, TEST, inner_train=bytes(data)), tmp_path)


@pytest.mark.parametrize("absent", [*OUTER, COMPETITION.sample])
def test_a_missing_member_is_named(tmp_path: Path, absent: str) -> None:
    members = packed(TRAIN, TEST)
    del members[absent]
    assert f"lacks {absent}" in refused(members, tmp_path)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<html>429 Too Many Requests</html>",
        zipped(packed(TRAIN, TEST))[:-30],
        zipped(packed(TRAIN, TEST))[:2000],
    ],
)
def test_what_is_no_whole_zip_is_refused(tmp_path: Path, data: bytes) -> None:
    assert "cut or corrupt" in refused(data, tmp_path)


def test_an_inner_archive_that_is_cut_is_refused(tmp_path: Path) -> None:
    members = packed(TRAIN, TEST)
    assert "cut or corrupt" in refused(members | {OUTER[1]: members[OUTER[1]][:-50]}, tmp_path)


@settings(max_examples=60, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_a_flipped_byte_anywhere_is_either_harmless_or_refused(
    tmp_path_factory: pytest.TempPathFactory, place: float, flip: int
) -> None:
    data = bytearray(zipped(packed(TRAIN, TEST)))
    data[int(place * len(data))] ^= flip
    root = tmp_path_factory.mktemp("flip")
    (root / "kaggle.zip").write_bytes(data)
    try:
        run(root / "kaggle.zip", root)
    except ArchiveError:
        assert not (root / "photos" / "test").exists()
    else:  # in a date, a comment, an attribute
        for id, photo in TRAIN.items():
            assert (root / "photos" / "train" / f"{id}.jpg").read_bytes() == photo


@pytest.mark.filterwarnings("ignore:Duplicate name")
@settings(max_examples=60, deadline=None)
@given(
    names=st.lists(
        st.text(st.sampled_from("acdgot.019/\\:~\0 \n"), max_size=20), min_size=1, max_size=4
    ),
    is_outer=st.booleans(),
)
def test_nothing_is_ever_written_outside(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], is_outer: bool
) -> None:
    root = tmp_path_factory.mktemp("names")
    evil: list[tuple[str | zipfile.ZipInfo, bytes]] = []
    for name in names:
        info = zipfile.ZipInfo("x")
        info.filename = name
        evil.append((info, b"evil"))
    data = zipped([*packed(TRAIN, TEST).items(), *evil]) if is_outer else zipped(inner(evil))
    (root / "kaggle.zip").write_bytes(data)
    try:
        run(root / "kaggle.zip", root / "deep" / "er")
    except ArchiveError:
        assert tree(root / "deep") == {}
    assert set(os.listdir(root)) == {"kaggle.zip", "deep"}
    assert os.listdir(root / "deep") == ["er"]
    assert os.listdir(root / "deep" / "er") == ["photos"]
    assert b"evil" not in tree(root / "deep").values()


@pytest.mark.parametrize(
    "junk",
    ["__MACOSX/train/._cat.0.jpg", "train/.DS_Store", "train/Thumbs.db", "__MACOSX/", "train/"],
)
def test_junk_of_desktops_is_ignored_and_mentioned(tmp_path: Path, junk: str) -> None:
    heard = Heard()
    run(
        write_archive(tmp_path / "kaggle.zip", inner([(junk, b"")]) | {".DS_Store": b"x"}),
        tmp_path,
        reporter=heard,
    )
    assert len(tree(tmp_path / "photos" / "train")) == len(TRAIN) + 1
    assert ".DS_Store" in str(heard)
    assert junk == "train/" or junk in str(heard)


def test_other_files_of_the_competition_are_ignored_and_mentioned(tmp_path: Path) -> None:
    heard = Heard()
    run(
        write_archive(tmp_path / "kaggle.zip", packed(TRAIN, TEST) | {"readme.txt": b"hello"}),
        tmp_path,
        reporter=heard,
    )
    assert "readme.txt" in str(heard)


def test_a_class_without_photos_is_named(tmp_path: Path) -> None:
    cats = {id: photo for id, photo in TRAIN.items() if id.startswith("cat")}
    assert "no photo of a dog" in refused(packed(cats, TEST), tmp_path)


def test_the_sample_submission_must_name_each_test_photo_and_no_other(tmp_path: Path) -> None:
    message = refused(packed(TRAIN, TEST, sample=sample_csv([*list(TEST)[2:], "77"])), tmp_path)
    assert "1 ids without a photo" in message
    assert "leaves out 2" in message
    assert "first is 1:" in message


def test_the_real_edition_must_have_all_its_photos(tmp_path: Path) -> None:
    message = refused(packed(TRAIN, TEST), tmp_path, is_real=True)
    assert "6 training and 12 test photos, not 25,000 training and 12,500" in message


def test_a_disk_that_is_too_small_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_archive(tmp_path / "kaggle.zip", packed(TRAIN, TEST))
    monkeypatch.setattr(
        "shutil.disk_usage",
        lambda _: os.terminal_size((0, 0)) and type("Usage", (), {"free": 1000}),
    )
    with pytest.raises(DataError, match="make room"):
        run(path, tmp_path)
    assert tree(tmp_path / "photos") == {}
