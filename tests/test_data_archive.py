"""Archives, honest and hostile: a good one is unpacked bit for bit, a bad one leaves one line and
nothing on disk."""

import os
import random
import re
import shutil
import stat
import struct
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from heard import Heard
from hypothesis import given, settings
from hypothesis import strategies as st
from odd_photos import (
    DyingReporter,
    assert_killed,
    packed,
    sample_csv,
    some_photos,
    write_archive,
    zipped,
)

from comp.competition import COMPETITION
from comp.data.archive import checked_archive, unpack
from comp.data.zips import list_members, open_zip
from comp.errors import ArchiveError, DataError

TRAIN, TEST = some_photos(3, 12)
HONEST = packed(TRAIN, TEST)
HONEST_TRAIN = {f"train/{id}.jpg": data for id, data in TRAIN.items()}
RANDOM = random.Random(0).randbytes(5000)
Member = tuple[str | zipfile.ZipInfo, bytes]


def run(path: Path, root: Path, reporter: Heard | None = None) -> list[str]:
    folder, reporter = root / "photos", reporter or Heard()
    folder.mkdir(parents=True, exist_ok=True)
    with checked_archive(path, COMPETITION, folder, reporter) as (splits, sample):
        unpack(splits, folder, reporter)
    return sample


def tree(folder: Path) -> dict[str, bytes]:
    """All photos below `folder`, except those in the .part folders of a killed run."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and ".part" not in str(path)
    }


def refused(members: dict[str, bytes] | bytes, tmp_path: Path) -> str:
    """The one line with which an archive is refused; nothing may have been written."""
    path = tmp_path / "in" / "kaggle.zip"
    path.parent.mkdir()
    path.write_bytes(members if isinstance(members, bytes) else zipped(members))
    with pytest.raises(ArchiveError) as caught:
        run(path, tmp_path / "out")
    assert tree(tmp_path / "out") == {}
    assert set(os.listdir(tmp_path)) == {"in", "out"}
    assert "\n" not in str(caught.value)
    return str(caught.value)


def with_inner_train(data: bytes) -> dict[str, bytes]:
    return packed(TRAIN, TEST, inner_train=data)


def with_extra(*extra: Member) -> dict[str, bytes]:
    """Kaggle's archive with more members in its train.zip."""
    return with_inner_train(zipped([*HONEST_TRAIN.items(), *extra]))


def named(name: str, kind: int = 0) -> zipfile.ZipInfo:
    """A member with a `name` that zipfile would correct, of a `kind` such as a link."""
    info = zipfile.ZipInfo("x")
    info.filename = name
    info.external_attr = (kind | 0o777) << 16 if kind else 0
    return info


def lay_out(root: Path, form: str) -> Path:
    """Kaggle's archive as people have it."""
    methods = [getattr(zipfile, f"ZIP_{word}") for word in form.split() if word.isupper()]
    if methods:
        return write_archive(root / "any name.zip", packed(TRAIN, TEST, methods[0]), methods[1])
    root = root / "a folder"
    root.mkdir()
    if form == "zip in a folder":
        write_archive(root / f"{COMPETITION.slug}.zip", HONEST)
    elif form == "its members":
        for name, data in HONEST.items():
            (root / name).write_bytes(data)
    else:
        (root / COMPETITION.sample).write_bytes(HONEST[COMPETITION.sample])
        for split, photos in (("train", TRAIN), ("test", TEST)):
            folder = root / split / (split if form == "folders in folders" else "")
            folder.mkdir(parents=True)
            for id, data in photos.items():
                (folder / f"{id}.jpg").write_bytes(data)
            (folder / "._1.jpg").write_bytes(b"AppleDouble")
            os.utime(folder / "1.jpg" if split == "test" else folder / "cat.1.jpg", (0, 0))
    return root


FORMS = [f"{one} {two}" for one in ("STORED", "DEFLATED") for two in ("STORED", "DEFLATED")]
FORMS += ["zip in a folder", "its members", "folders", "folders in folders"]


@pytest.mark.parametrize("form", FORMS)
def test_photos_are_unpacked_bit_for_bit_from_every_form_of_the_archive(
    tmp_path: Path, form: str
) -> None:
    path = lay_out(tmp_path, form)
    before = tree(path.parent)
    assert run(path, tmp_path / "w") == list(TEST)
    assert tree(tmp_path / "w" / "photos") == {
        f"{split}/{id}.jpg": data
        for split, photos in (("train", TRAIN), ("test", TEST))
        for id, data in photos.items()
    }
    assert sorted(os.listdir(tmp_path / "w" / "photos")) == ["test", "train"]
    shutil.rmtree(tmp_path / "w")
    assert tree(path.parent) == before


@pytest.mark.parametrize("name", [*HONEST, ""])
def test_a_folder_that_is_not_the_whole_archive_is_refused(tmp_path: Path, name: str) -> None:
    path = lay_out(tmp_path, "its members")
    (path / name).unlink() if name else shutil.rmtree(path)
    with pytest.raises(ArchiveError, match="does not exist or is not the archive"):
        run(path, tmp_path)


def test_photos_that_are_there_already_are_replaced_by_the_archives(tmp_path: Path) -> None:
    path, folder = write_archive(tmp_path / "kaggle.zip", HONEST), tmp_path / "photos" / "train"
    run(path, tmp_path)
    whole, photo = tree(folder), folder / "cat.0.jpg"
    for data in (None, b"", bytes(photo.stat().st_size)):
        photo.unlink()
        if data is not None:
            photo.write_bytes(data)
        (folder.parent / "._.train.part").write_bytes(b"AppleDouble")
        run(path, tmp_path)
        assert tree(folder) == whole
    fewer = {id: TRAIN[id] for id in ("cat.1", "dog.2")}
    write_archive(path, packed(fewer, TEST))
    run(path, tmp_path)
    assert set(tree(folder)) == {"cat.1.jpg", "dog.2.jpg"}


@pytest.mark.parametrize("n_written", [0, 1, 5, 6, 9])
def test_an_interrupted_unpack_leaves_nothing_that_looks_finished_and_the_next_completes_it(
    tmp_path: Path, n_written: int
) -> None:
    path, photos = write_archive(tmp_path / "kaggle.zip", HONEST), tmp_path / "photos"
    assert_killed(lambda: run(path, tmp_path, DyingReporter(n_written)))
    assert len(tree(photos)) == (6 if n_written >= 6 else 0)
    run(path, tmp_path)
    assert sorted(os.listdir(photos)) == ["test", "train"]
    assert len(tree(photos)) == len(TRAIN) + len(TEST)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    "name",
    [
        *("/tmp/evil.jpg", "../evil.jpg", "train/../../evil.jpg", "..\\evil.jpg", "C:/evil.jpg"),
        *("train/./cat.9.jpg", "train//cat.9.jpg", "train\\cat.9.jpg", "train/deep/cat.9.jpg"),
        *("cat.9.jpg", "test/1.jpg", "train/cow.0.jpg", "train/cat.00.jpg", "train/cat.\u0663.jpg"),
        *("train/cat.0.jpg", "TRAIN/cat.0.jpg", "train/CAT.0.JPG", "train/cat.0.jpg.exe"),
        *("train/cat.9.jpg\n", "train/cat.9.jpg\0.png", "train/\x1b[2J.jpg"),
    ],
)
def test_a_name_that_is_not_that_of_a_photo_is_refused(tmp_path: Path, name: str) -> None:
    assert "train.zip" in refused(with_extra((named(name), b"evil")), tmp_path)


def encrypted() -> bytes:
    data = bytearray(zipped(HONEST_TRAIN))
    data[data.index(b"PK\x01\x02") + 8] |= 1
    return bytes(data)


def with_shared_bytes() -> bytes:
    """Two directory entries for one member's data: how small archives unpack to petabytes."""
    data = zipped([("train/cat.7.jpg", RANDOM), ("train/cat.8.jpg", b"")])
    first = data.index(b"PK\x01\x02")
    second = data.index(b"PK\x01\x02", first + 1)
    return data[:second] + data[first : first + 46] + b"train/cat.8.jpg" + data[second + 61 :]


def without(name: str) -> dict[str, bytes]:
    return {other: data for other, data in HONEST.items() if other != name}


BOMB = HONEST_TRAIN | {"train/cat.9.jpg": bytes(8 * 2**20)}
BOMBS = {f"train/cat.{number}.jpg": bytes(2**20) for number in range(8)}
EMPTY = {f"train/cat.{number}.jpg": b"" for number in range(2000)}
OTHER_SAMPLE = sample_csv([*list(TEST)[2:], "77"])
CATS = {id: photo for id, photo in TRAIN.items() if id.startswith("cat")}
REFUSED: list[tuple[dict[str, bytes] | bytes, str]] = [
    (b"", "cut or corrupt"),
    (b"<html>429 Too Many Requests</html>", "cut or corrupt"),
    (zipped(HONEST)[:-30], "cut or corrupt"),
    (zipped(HONEST)[:2000], "cut or corrupt"),
    (HONEST | {"test.zip": HONEST["test.zip"][:-50]}, "cut or corrupt"),
    *((without(name), f"lacks {name}") for name in HONEST),
    (zipped([*HONEST.items(), (named("readme", stat.S_IFLNK), b"/etc/passwd")]), "a link"),
    *(
        (with_extra((named("train/cat.9.jpg", kind), b"")), "neither a file nor a folder")
        for kind in (stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK)
    ),
    (with_inner_train(zipped(HONEST_TRAIN, zipfile.ZIP_BZIP2)), "compression method"),
    (with_inner_train(zipped(HONEST_TRAIN, zipfile.ZIP_LZMA)), "compression method"),
    (with_inner_train(zipped(BOMB, zipfile.ZIP_DEFLATED)), "no photo compresses to"),
    (with_inner_train(zipped(BOMBS, zipfile.ZIP_DEFLATED)), "no photo compresses to"),
    (zipped(HONEST | {"train.zip": bytes(8 * 2**20)}, zipfile.ZIP_DEFLATED), "compresses to"),
    (with_inner_train(zipped(EMPTY)), "2,000 members, more than 1,4"),
    (with_inner_train(encrypted()), "encrypted"),
    (with_inner_train(with_shared_bytes()), "share their bytes"),
    (packed(CATS, TEST), "none of class dog"),
    (packed(TRAIN, TEST, sample=OTHER_SAMPLE), r"1 id without a photo .* lacks 2 .* first is 1:"),
]
# archives hold the time, so that their bytes would name the tests anew in each process
CASES = [f"{number}-{reason}" for number, (_, reason) in enumerate(REFUSED)]


@pytest.mark.parametrize(("members", "reason"), REFUSED, ids=CASES)
def test_a_bad_archive_is_refused_with_the_reason(
    tmp_path: Path, members: dict[str, bytes] | bytes, reason: str
) -> None:
    message = refused(members, tmp_path)
    assert re.search(reason, message)


@pytest.mark.parametrize("limits", [(0, 9000), (9, 4999)])
def test_members_beyond_the_limits_are_refused(tmp_path: Path, limits: tuple[int, int]) -> None:
    path = write_archive(tmp_path / "a.zip", {"a": RANDOM})
    with open_zip(path, "a.zip") as archive, pytest.raises(ArchiveError, match="more than"):
        list_members(archive, "a.zip", *limits)


def test_a_sample_submission_that_is_too_large_is_refused_unread(tmp_path: Path) -> None:
    small = replace(COMPETITION, max_member_bytes=50)
    path = write_archive(tmp_path / "kaggle.zip", HONEST)
    with (
        pytest.raises(ArchiveError, match="larger than 50 bytes"),
        checked_archive(path, small, tmp_path, Heard()),
    ):
        pass


def test_a_wrong_declared_size_is_found_without_inflating_beyond_it(tmp_path: Path) -> None:
    photos = {"train/cat.0.jpg": bytes(500_000), "train/dog.0.jpg": b"x"}
    data = bytearray(zipped(photos, zipfile.ZIP_DEFLATED))
    for size in (10, 600_000):
        at = data.index(b"PK\x01\x02") + 24
        data[at : at + 4] = struct.pack("<I", size)
        path = write_archive(tmp_path / "kaggle.zip", with_inner_train(bytes(data)))
        with pytest.raises(ArchiveError, match="corrupt"):
            run(path, tmp_path)
        assert tree(tmp_path / "photos") == {}


@settings(max_examples=60, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_a_flipped_byte_anywhere_is_either_harmless_or_refused(
    tmp_path_factory: pytest.TempPathFactory, place: float, flip: int
) -> None:
    data = bytearray(zipped(HONEST))
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
def test_nothing_is_ever_written_outside_the_folder_of_photos(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], is_outer: bool
) -> None:
    root = tmp_path_factory.mktemp("names")
    evil: list[Member] = [(named(name), b"evil") for name in names]
    data = zipped([*HONEST.items(), *evil]) if is_outer else zipped(with_extra(*evil))
    (root / "kaggle.zip").write_bytes(data)
    try:
        run(root / "kaggle.zip", root / "deep" / "er")
    except ArchiveError:
        assert tree(root / "deep") == {}
    assert set(os.listdir(root)) == {"kaggle.zip", "deep"}
    assert os.listdir(root / "deep") == ["er"]
    assert os.listdir(root / "deep" / "er") == ["photos"]
    assert b"evil" not in tree(root / "deep").values()


JUNK = ["__MACOSX/train/._cat.0.jpg", "train/.DS_Store", "train/Thumbs.db", "__MACOSX/"]


@pytest.mark.parametrize("junk", [*JUNK, "train/"])
def test_junk_of_desktops_and_other_files_of_the_competition_are_ignored_and_mentioned(
    tmp_path: Path, junk: str
) -> None:
    heard = Heard()
    members = with_extra((junk, b"")) | {"readme.txt": b"hello"}
    run(write_archive(tmp_path / "kaggle.zip", members), tmp_path, reporter=heard)
    assert len(tree(tmp_path / "photos" / "train")) == len(TRAIN)
    assert "kaggle.zip: ignored 1 file" in str(heard)
    assert "readme.txt" in str(heard)
    assert (junk in str(heard)) == (junk in JUNK)


def test_a_disk_that_is_too_small_is_reported_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_archive(tmp_path / "kaggle.zip", HONEST)
    free = len(HONEST["train.zip"]) + len(HONEST["test.zip"]) - 1
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": free}))
    with pytest.raises(DataError, match="make room"):
        run(path, tmp_path)
    assert tree(tmp_path / "photos") == {}
