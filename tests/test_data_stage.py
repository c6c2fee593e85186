"""The stage from an archive to photos, manifests, folds and pixels: once, whole, and the same
whatever happens on the way."""

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pandas as pd
import pytest
from heard import Heard
from odd_photos import (
    assert_killed,
    encoded,
    jpeg,
    packed,
    sample_csv,
    scene,
    some_photos,
    with_orientation,
    with_size,
    write_archive,
)
from PIL import ImageOps

from comp.competition import COMPETITION, Competition
from comp.data import archive as archives
from comp.data import manifest, origin, scan, stage
from comp.data.archive import read_sample
from comp.data.canvas import Geometry
from comp.data.manifest import SPLITS, read_manifest
from comp.data.origin import origin_path
from comp.data.pixels import open_pixels
from comp.data.stage import prepare
from comp.errors import ArchiveError, CredentialsError, DataError
from comp.store import Workspace, read_json

TRAIN, TEST = some_photos(8, 12)
ODD = {
    "cat.20": encoded(scene(120).convert("L")),
    "cat.21": encoded(scene(121).convert("CMYK")),
    "cat.22": with_orientation(scene(122), 6),
    "dog.23": encoded(scene(123), "PNG"),
    "dog.24": b"",
    "dog.25": jpeg(125)[:700],
    "dog.26": with_size(jpeg(126), 60_000, 60_000),
    "dog.27": b"<html></html>",
    "dog.28": jpeg(0),  # cat.0 again, under the other class
}
ODD_STATUS = {
    "cat.20": "grey",
    "cat.21": "cmyk",
    "cat.22": "rotated",
    "dog.23": "converted",
    "dog.24": "empty",
    "dog.25": "truncated",
    "dog.26": "huge",
    "dog.27": "undecodable",
}
ODD_TEST = {
    "13": b"",
    "14": encoded(ImageOps.mirror(scene(3)), quality=60),  # dog.1 mirrored
    "15": jpeg(10_001),  # 1 again
}
SUMMARY = [
    "photos 11 14 15",
    "grey 1 0 0",
    "empty 0 1 1",
    "with near-duplicates 1 3 4",
    "4 training photos that cannot be decoded, set aside: dog.24 (empty), dog.25 (truncated)",
    "1 test photo that cannot be decoded, predicted by the prior probability: 13 (empty)",
    "1 group of near-duplicates of different classes, so that a label must be wrong: cat.0, dog",
]
SMALL = Geometry(size_px=24)
FULL = replace(COMPETITION, n_train=len(TRAIN | ODD), n_test=len(TEST | ODD_TEST))


def run(
    workspace: Workspace,
    archive: Path | Callable[[], Path],
    geometry: Geometry | None = None,
    competition: Competition = COMPETITION,
    is_real: bool = False,
) -> Heard:
    heard = Heard()
    prepare(workspace, competition, archive, is_real, geometry, heard)
    return heard


def manifests(workspace: Workspace) -> list[pd.DataFrame]:
    return [read_manifest(workspace.manifest(split)) for split in SPLITS]


def manifest_bytes(workspace: Workspace) -> list[bytes]:
    return [workspace.manifest(split).read_bytes() for split in SPLITS]


def artefacts(workspace: Workspace, with_time: bool = True) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(workspace.data)): (
            path.stat().st_mtime_ns if with_time else 0,
            path.read_bytes(),
        )
        for path in workspace.data.rglob("*")
        if path.is_file() and not path.name.endswith(".lock")
    }


@contextmanager
def limited_files(n_bytes: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("raw") / "kaggle.zip"
    sample = sample_csv([*reversed(TEST), *ODD_TEST]).replace(b"\n", b"\r\n")
    return write_archive(path, packed(TRAIN | ODD, TEST | ODD_TEST, sample=sample))


@pytest.fixture
def other_archive(tmp_path: Path) -> Path:
    train, test = some_photos(6, 4)
    return write_archive(tmp_path / "other.zip", packed(train | {"cat.0": jpeg(777)}, test))


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "w")


def test_every_photo_gets_its_row_and_the_summary_says_what_to_look_at(
    workspace: Workspace, archive: Path
) -> None:
    text = str(run(workspace, archive))
    for line in SUMMARY:
        assert line in text
    train, test = manifests(workspace)
    assert set(train["id"]) == {*TRAIN, *ODD}
    assert test["id"].tolist() == [str(number) for number in range(1, 16)]
    odd = train[train["verdict"] != "ok"]
    assert dict(zip(odd["id"], odd["verdict"], strict=True)) == ODD_STATUS
    assert test.set_index("id")["verdict"]["13"] == "empty"
    assert (train["label"] == train["id"].str.startswith("dog")).all()
    assert test[["label", "fold"]].isna().all(axis=None)
    assert set(train["id"][train["fold"].isna()]) == {"dog.24", "dog.25", "dog.26", "dog.27"}
    sizes = train.set_index("id")[["width", "height"]]
    assert sizes.loc["cat.0"].tolist() == [96, 72]
    assert sizes.loc["cat.22"].tolist() == [72, 96]
    assert sizes.loc["dog.24"].tolist() == [0, 0]
    group = pd.concat([train, test]).set_index("id")["group"]
    assert group["dog.28"] == group["cat.0"]
    assert group["14"] == group["dog.1"]
    assert group["15"] == group["1"]
    assert group.nunique() == len(group) - 4  # with the two empty files
    fold = train.set_index("id")["fold"]
    assert fold["dog.28"] == fold["cat.0"]
    sample = (workspace.data / COMPETITION.sample).read_bytes()
    assert read_sample(sample, COMPETITION) == [*reversed(TEST), *ODD_TEST]


@pytest.mark.parametrize("fit", ["squash", "shorter"])
def test_the_pixels_that_later_stages_open_exist_after_the_one_pass(
    workspace: Workspace, archive: Path, monkeypatch: pytest.MonkeyPatch, fit: Any
) -> None:
    geometry = Geometry(fit=fit, size_px=24)
    heard = run(workspace, archive, geometry)
    monkeypatch.setattr("comp.data.photos.decode", None)
    pixels = open_pixels(workspace, manifests(workspace), geometry, Heard())
    assert len(pixels) == len(TRAIN) + len(ODD) - 4 + len(TEST) + len(ODD_TEST) - 1
    assert len(list(workspace.pixels.rglob("pixels.bin"))) == 1
    assert f"pixels {geometry.name} of" in str(heard)


def test_a_second_run_does_nothing_and_says_so(workspace: Workspace, archive: Path) -> None:
    run(workspace, archive, SMALL)
    before = artefacts(workspace)
    assert run(workspace, archive, SMALL).lines == [f"{workspace.data} is complete: nothing to do"]
    assert artefacts(workspace) == before


@pytest.mark.parametrize("n_bytes", [None, 100])
def test_pixels_that_were_deleted_or_cut_are_made_again(
    workspace: Workspace, archive: Path, n_bytes: int | None
) -> None:
    run(workspace, archive, SMALL)
    (path,) = workspace.pixels.rglob("pixels.bin")
    n_before = path.stat().st_size
    if n_bytes is None:
        shutil.rmtree(workspace.pixels)
    else:
        os.truncate(path, n_bytes)
    run(workspace, archive, SMALL)
    assert path.stat().st_size == n_before


def test_what_is_stored_already_needs_no_room(
    workspace: Workspace, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    geometry = Geometry(size_px=128)
    run(workspace, archive, geometry)
    workspace.manifest("train").unlink()
    free = archive.stat().st_size  # for copies of the inner archives; the pixels take more
    assert free < geometry.n_bytes([(1, 1)] * 36)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": free}))
    assert "pixels squash-128-bicubic of 40 photos take about 0.00 GB" in str(
        run(workspace, archive, geometry)
    )


def test_a_second_run_loads_no_heavy_library(workspace: Workspace, archive: Path) -> None:
    run(workspace, archive, SMALL)
    code = f"""
import sys
from pathlib import Path
from comp.competition import COMPETITION
from comp.data.canvas import Geometry
from comp.data.stage import prepare
from comp.progress import Reporter
from comp.store import Workspace
workspace = Workspace(Path({str(workspace.root)!r}))
prepare(workspace, COMPETITION, Path({str(archive)!r}), False, Geometry(size_px=24), Reporter())
sys.exit(bool({{"pandas", "torch", "scipy", "sklearn", "timm"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "nothing to do" in done.stdout


def refuse() -> Path:
    raise CredentialsError("no account")


def test_the_archive_is_fetched_only_if_there_is_work_to_do_and_none_here(
    workspace: Workspace, archive: Path
) -> None:
    path = workspace.raw / f"{COMPETITION.slug}.zip"

    def fetch() -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(archive, path)
        return path

    with pytest.raises(CredentialsError):
        run(workspace, refuse)
    run(workspace, fetch)
    path.unlink()
    assert "nothing to do" in str(run(workspace, refuse))
    workspace.manifest("test").unlink()
    with pytest.raises(CredentialsError):
        run(workspace, refuse)
    fetch()
    assert "are ready" in str(run(workspace, refuse))


@pytest.mark.parametrize("is_zip", [True, False])
def test_an_archive_in_data_raw_needs_no_account_and_a_bad_one_is_downloaded(
    workspace: Workspace, archive: Path, is_zip: bool
) -> None:
    workspace.raw.mkdir(parents=True)
    if is_zip:
        path = shutil.copyfile(archive, workspace.raw / f"{COMPETITION.slug}.zip")
    else:
        path = workspace.raw / "train.zip"
        with ZipFile(archive) as packed:
            packed.extractall(workspace.raw)
    data = path.read_bytes()
    path.write_bytes(data[:-100])
    with pytest.raises(CredentialsError):
        run(workspace, refuse)
    assert "cut or corrupt" in str(run(workspace, lambda: archive))
    shutil.rmtree(workspace.data / "photos")
    workspace.manifest("train").unlink()
    origin_path(workspace).unlink()
    path.write_bytes(data)
    assert "are ready" in str(run(workspace, refuse))


def test_an_archive_that_was_named_once_is_found_again(
    workspace: Workspace, archive: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "input"
    with ZipFile(archive) as packed:
        packed.extractall(folder)
    run(workspace, folder)
    before = artefacts(workspace)
    for named in (folder, refuse):
        assert "nothing to do" in str(run(workspace, named))
        assert artefacts(workspace) == before
    shutil.rmtree(workspace.photos)
    run(workspace, refuse)
    os.utime(folder / "train.zip", (1, 1))
    assert "are ready" in str(run(workspace, refuse))
    assert "nothing to do" in str(run(workspace, refuse))
    after = artefacts(workspace, with_time=False)
    (name,) = (name for name, (_, data) in after.items() if before[name][1] != data)
    assert name == "origin.json"


DAMAGE: dict[str, Callable[[Path], object]] = {
    "deleted": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "a list": lambda path: path.write_text("[]"),
    "an object": lambda path: path.write_text("{}"),
    "binary": lambda path: path.write_bytes(bytes(range(256))),
    "deep": lambda path: path.write_text("[" * 100_000),
    "another type": lambda path: path.write_text(path.read_text().replace("true", "[]")),
    "renamed": lambda path: path.rename(path.with_name(f"{path.name}.moved")),
}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(("origin.json", kind) for kind in list(DAMAGE)[:-1]),
        *((COMPETITION.sample, kind) for kind in ("deleted", "empty", "cut", "a list")),
        *(("photos/train/cat.0.jpg", kind) for kind in ("deleted", "renamed")),
        ("photos/test/13.jpg", "deleted"),
        ("train.csv", "deleted"),
    ],
)
def test_what_is_damaged_is_noticed_and_made_again(
    workspace: Workspace, archive: Path, name: str, kind: str
) -> None:
    run(workspace, archive, is_real=True, competition=FULL)
    before = artefacts(workspace, with_time=False)
    DAMAGE[kind](workspace.data / name)
    assert "are ready" in str(run(workspace, archive, is_real=True, competition=FULL))
    assert artefacts(workspace, with_time=False) == before
    assert "nothing to do" in str(run(workspace, refuse))


def test_a_repair_keeps_edited_manifests(workspace: Workspace, archive: Path) -> None:
    run(workspace, archive)
    edit = edited(workspace)
    (workspace.photos / "train" / "cat.0.jpg").unlink()
    assert "was edited" in str(run(workspace, archive))
    assert (workspace.photos / "train" / "cat.0.jpg").exists()
    assert workspace.manifest("train").read_bytes() == edit
    origin_path(workspace).write_text("{")
    assert "your version is kept as train.csv.edited-1" in str(run(workspace, archive))
    assert [path.name for path in workspace.data.glob("*.edited-*")] == ["train.csv.edited-1"]
    assert (workspace.data / "train.csv.edited-1").read_bytes() == edit


def test_what_is_complete_need_not_be_writable(
    workspace: Workspace, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(workspace, archive, SMALL)
    for path in (workspace.data, workspace.data / "photos", workspace.pixels):
        (path / "._junk").write_bytes(b"AppleDouble")
    before = artefacts(workspace)
    monkeypatch.setattr(stage, "locked", None)
    for name in ("mkdir", "touch", "write_bytes", "write_text", "rename", "unlink"):
        monkeypatch.setattr(Path, name, None)
    assert "nothing to do" in str(run(workspace, archive, SMALL))
    monkeypatch.undo()
    assert artefacts(workspace) == before


@pytest.mark.parametrize("n_bytes", [100, 3_000, 30_000])
def test_a_disk_that_fills_up_leaves_nothing_half_written(
    workspace: Workspace, archive: Path, n_bytes: int
) -> None:
    """By a limit on the size of files, of which the kernel says as little as of a full disk."""
    with limited_files(n_bytes), pytest.raises(OSError, match=r"photos"):
        run(workspace, archive)
    assert os.listdir(workspace.photos) == []
    run(workspace, archive, SMALL)


def test_another_archive_replaces_the_first(
    workspace: Workspace, archive: Path, other_archive: Path, tmp_path: Path
) -> None:
    run(workspace, archive, SMALL)
    assert ".edited" not in str(run(workspace, other_archive, SMALL))
    fresh = Workspace(tmp_path / "fresh")
    run(fresh, other_archive)
    assert manifest_bytes(workspace) == manifest_bytes(fresh)


def test_a_bad_archive_leaves_what_was_made_from_a_good_one(
    workspace: Workspace, archive: Path, tmp_path: Path
) -> None:
    run(workspace, archive)
    before = artefacts(workspace)
    bad = tmp_path / "bad.zip"
    with pytest.raises(ArchiveError, match="does not exist"):
        run(workspace, bad)
    bad.write_bytes(archive.read_bytes()[:-100])
    with pytest.raises(ArchiveError, match="cut or corrupt"):
        run(workspace, bad)
    assert artefacts(workspace) == before


def test_a_killed_second_run_leaves_no_manifest_of_the_first_archive(
    workspace: Workspace, archive: Path, other_archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(workspace, archive)
    monkeypatch.setattr(scan, "scan", None)
    with pytest.raises(TypeError):
        run(workspace, other_archive)
    assert not any(workspace.manifest(split).exists() for split in SPLITS)


@pytest.mark.parametrize(
    ("owner", "step"),
    [
        (archives, "unpack"),
        (scan, "scan"),
        (scan, "near_pairs"),
        (scan, "assign_folds"),
        (stage, "write_text"),
        (manifest, "write_manifest"),
        (scan, "print_summary"),
        (stage, "write_json"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_run_killed_at_any_step_is_completed_by_the_next(
    workspace: Workspace, archive: Path, tmp_path: Path, owner: Any, step: str
) -> None:
    whole = Workspace(tmp_path / "whole")
    run(whole, archive, SMALL)

    function = getattr(owner, step)

    def die_after(*given: Any, **named: Any) -> None:
        function(*given, **named)
        os.kill(os.getpid(), 9)

    def dying() -> None:
        setattr(owner, step, die_after)
        run(workspace, archive, SMALL)

    assert_killed(dying)
    heard = run(workspace, archive, SMALL)
    assert ("are ready" in str(heard)) == (step != "write_json")
    assert artefacts(workspace, with_time=False) == artefacts(whole, with_time=False)


def edited(workspace: Workspace) -> bytes:
    """The training manifest after somebody deleted its last row."""
    path = workspace.manifest("train")
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    return path.read_bytes()


def test_an_edited_manifest_is_used_and_mentioned_and_a_broken_one_is_an_error(
    workspace: Workspace, archive: Path
) -> None:
    run(workspace, archive)
    edit = edited(workspace)
    assert "edited" in str(run(workspace, archive))
    path = workspace.manifest("train")
    assert path.read_bytes() == edit
    path.write_bytes(edit.replace(b"truncated", b"fine"))
    with pytest.raises(DataError, match="column verdict"):
        run(workspace, archive)


def test_an_edited_manifest_is_kept_when_it_has_to_be_made_again(
    workspace: Workspace, archive: Path, other_archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(workspace, archive)
    first = edited(workspace)
    heard = run(workspace, other_archive)
    assert "train.csv was edited and has to be made again" in str(heard)
    assert "your version is kept as train.csv.edited-1" in str(heard)
    second = edited(workspace)
    for module in (origin, stage):
        monkeypatch.setattr(module, "RULES", origin.RULES | {"seed": 1})
    run(workspace, other_archive)
    kept = {path.name: path.read_bytes() for path in workspace.data.glob("*.edited-*")}
    assert kept == {"train.csv.edited-1": first, "train.csv.edited-2": second}
    assert "nothing to do" in str(run(workspace, other_archive))


NO_DOGS = {id: data if id.startswith("cat") else b"x" for id, data in TRAIN.items()}


@pytest.mark.parametrize(
    ("train", "reason"),
    [
        (NO_DOGS, "none of the 8 photos of class dog can be decoded"),
        (some_photos(4, 2)[0], "8 photos .* 5 folds"),
    ],
)
def test_photos_too_few_to_learn_from_are_an_error_of_one_line(
    workspace: Workspace, tmp_path: Path, train: dict[str, bytes], reason: str
) -> None:
    archive = write_archive(tmp_path / "kaggle.zip", packed(train, TEST))
    with pytest.raises(DataError, match=reason):
        run(workspace, archive)


def test_only_the_full_edition_of_kaggle_itself_is_called_real(
    workspace: Workspace, archive: Path
) -> None:
    for competition, is_asked, is_real in (
        (COMPETITION, True, False),
        (FULL, False, False),
        (FULL, True, True),
    ):
        text = str(run(workspace, archive, competition=competition, is_real=is_asked))
        assert ("cannot be submitted to Kaggle" in text) == (is_asked and not is_real)
        assert read_json(origin_path(workspace))["is_real"] == is_real
        assert "nothing to do" in str(run(workspace, refuse, is_real=True))
        shutil.rmtree(workspace.root)


def test_the_origin_names_the_archive_and_other_rules_make_manifests_again(
    workspace: Workspace, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(workspace, archive)
    written = read_json(origin_path(workspace))
    assert written["archive"]["path"] == str(archive)
    assert written["archive"]["n_bytes"] == archive.stat().st_size
    assert written["rules"]["n_folds"] == 5
    for module in (origin, stage):
        monkeypatch.setattr(module, "RULES", origin.RULES | {"seed": 1})
    assert "are ready" in str(run(workspace, archive))


def test_the_real_photos_have_one_pair_of_duplicates_and_even_folds(
    workspace: Workspace, real_archive: Path
) -> None:
    run(workspace, real_archive)
    train, test = manifests(workspace)
    assert (len(train), len(test)) == (1602, 400)
    everything = pd.concat([train, test])
    assert set(everything["verdict"]) == {"ok"}
    copies = everything["id"][everything["group"].duplicated(keep=False)]
    assert copies.tolist() == ["dog.74", "dog.180"]
    assert train.groupby(["label", "fold"]).size().between(160, 161).all()
