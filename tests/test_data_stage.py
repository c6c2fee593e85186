"""The stage from an archive to photos, manifests, folds and pixels: once, whole, and the same whatever happens on the way."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from heard import Heard
from odd_photos import (
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

from comp.competition import COMPETITION
from comp.data import stage
from comp.data.geometry import Geometry
from comp.data.manifest import read_manifest
from comp.data.pixels import open_pixels
from comp.data.sample import read_sample
from comp.data.stage import prepare
from comp.errors import ArchiveError, DataError
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
ODD_TEST = {
    "13": b"",
    "14": encoded(ImageOps.mirror(scene(3)), quality=60),
    "15": jpeg(10_001),
}  # 14 is dog.1 mirrored, 15 is 1
SMALL = Geometry(size_px=24)


def verdicts(manifest: pd.DataFrame) -> dict[str, str]:
    return dict(zip(manifest["id"], manifest["verdict"], strict=True))


def both(workspace: Workspace) -> tuple[pd.DataFrame, pd.DataFrame]:
    return read_manifest(workspace.manifest("train")), read_manifest(workspace.manifest("test"))


def artefacts(workspace: Workspace) -> dict[str, tuple[int, bytes]]:
    paths = (
        path for path in workspace.data.rglob("*") if path.is_file() and path.suffix != ".lock"
    )
    return {
        str(path.relative_to(workspace.root)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in paths
        if path.name != ".lock"
    }


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("raw") / "kaggle.zip"
    sample = sample_csv([*reversed(TEST), *ODD_TEST]).replace(b"\n", b"\r\n")
    return write_archive(path, packed(TRAIN | ODD, TEST | ODD_TEST, sample=sample))


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


def test_every_photo_gets_its_row_with_verdict_size_group_and_fold(
    workspace: Workspace, archive: Path
) -> None:
    prepare(workspace, COMPETITION, archive, False, SMALL, Heard())
    train, test = both(workspace)
    assert set(train["id"]) == {*TRAIN, *ODD}
    assert test["id"].tolist() == [str(number) for number in range(1, 16)]
    odd = {
        "grey": "cat.20",
        "cmyk": "cat.21",
        "rotated": "cat.22",
        "converted": "dog.23",
        "empty": "dog.24",
        "truncated": "dog.25",
    }
    odd |= {"huge": "dog.26", "undecodable": "dog.27"}
    assert {verdict: id for id, verdict in verdicts(train).items() if verdict != "ok"} == odd
    assert verdicts(test)["13"] == "empty"
    assert (train["label"] == train["id"].str.startswith("dog")).all()
    assert test["label"].isna().all()
    assert test["fold"].isna().all()
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
    assert read_sample((workspace.data / COMPETITION.sample).read_bytes(), COMPETITION) == [
        *reversed(TEST),
        *ODD_TEST,
    ]


def test_the_pixels_are_there_after_the_one_pass(
    workspace: Workspace, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(workspace, COMPETITION, archive, False, SMALL, Heard())
    monkeypatch.setattr("comp.data.pixels.decode", None)
    pixels = open_pixels(workspace, list(both(workspace)), SMALL, Heard())
    assert len(pixels) == len(TRAIN) + len(ODD) - 4 + len(TEST) + len(ODD_TEST) - 1


def test_the_store_of_another_shape_is_the_one_that_later_stages_open(
    workspace: Workspace, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("comp.data.pixels.decode", None)
    shorter = Geometry(fit="shorter", size_px=24)
    for max_bytes in (
        10**9,
        75_000,
    ):  # raw; and less than 80,640 raw bytes, but more than squashed photos would take
        workspace.manifest("train").unlink(missing_ok=True)
        prepare(workspace, COMPETITION, archive, False, shorter, Heard(), max_bytes)
        open_pixels(workspace, list(both(workspace)), shorter, Heard(), max_bytes)
    assert {path.name.split("-")[3] for path in workspace.pixels.iterdir()} == {"raw", "jpeg"}


def test_the_summary_says_what_deserves_a_look(workspace: Workspace, archive: Path) -> None:
    heard = Heard()
    prepare(workspace, COMPETITION, archive, False, None, heard)
    text = str(heard)
    for line in (
        "photos 11 14 15",
        "grey 1 0 0",
        "empty 0 1 1",
        "with near-duplicates 1 3 4",
        "warning: 4 training photos cannot be decoded and are set aside: dog.24 (empty), dog.25 (truncated), dog.26 (huge)",
        "warning: 1 test photos cannot be decoded and will be given the prior probability: 13 (empty)",
        "warning: near-duplicates of different classes, so that a label must be wrong, in 1 groups: cat.0, dog.28",
    ):
        assert line in text, line


def test_a_second_run_does_nothing_and_says_so(workspace: Workspace, archive: Path) -> None:
    prepare(workspace, COMPETITION, archive, False, SMALL, Heard())
    before = artefacts(workspace)
    heard = Heard()
    prepare(workspace, COMPETITION, archive, False, SMALL, heard)
    assert heard.lines == [f"{workspace.data} is complete: nothing to do"]
    assert artefacts(workspace) == before


def test_the_archive_is_fetched_only_if_something_is_to_be_done(
    workspace: Workspace, archive: Path
) -> None:
    n_fetched = 0

    def fetch() -> Path:
        nonlocal n_fetched
        n_fetched += 1
        workspace.raw.mkdir(parents=True, exist_ok=True)
        path = workspace.raw / "kaggle.zip"
        path.write_bytes(archive.read_bytes())
        return path

    for _ in range(2):
        prepare(workspace, COMPETITION, fetch, False, None, Heard())
    assert n_fetched == 1
    (workspace.raw / "kaggle.zip").unlink()
    prepare(workspace, COMPETITION, fetch, False, None, Heard())
    assert n_fetched == 1
    workspace.manifest("test").unlink()
    prepare(workspace, COMPETITION, fetch, False, None, Heard())
    assert n_fetched == 2


def test_an_archive_that_was_only_touched_is_known_by_its_hash_and_not_read_a_third_time(
    workspace: Workspace, archive: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.zip"
    copy.write_bytes(archive.read_bytes())
    prepare(workspace, COMPETITION, copy, False, None, Heard())
    before = artefacts(workspace)
    os.utime(copy, (1, 1))
    for _ in range(2):
        heard = Heard()
        prepare(workspace, COMPETITION, copy, False, None, heard)
        assert "nothing to do" in str(heard)
    after = artefacts(workspace)
    assert {name for name in before if before[name] != after[name]} == {"data/origin.json"}


def test_another_archive_takes_the_place_of_the_first(
    workspace: Workspace, archive: Path, tmp_path: Path
) -> None:
    prepare(workspace, COMPETITION, archive, False, SMALL, Heard())
    train, test = some_photos(6, 4)
    train["cat.0"] = jpeg(777)
    other = write_archive(tmp_path / "other.zip", packed(train, test))
    prepare(workspace, COMPETITION, other, False, SMALL, Heard())
    assert set(both(workspace)[0]["id"]) == set(train)
    fresh = Workspace(tmp_path / "fresh")
    prepare(fresh, COMPETITION, other, False, SMALL, Heard())
    for split in ("train", "test"):
        assert workspace.manifest(split).read_bytes() == fresh.manifest(split).read_bytes()


def test_a_bad_archive_leaves_what_was_made_from_a_good_one(
    workspace: Workspace, archive: Path, tmp_path: Path
) -> None:
    prepare(workspace, COMPETITION, archive, False, None, Heard())
    before = artefacts(workspace)
    bad = tmp_path / "bad.zip"
    bad.write_bytes(archive.read_bytes()[:-100])
    with pytest.raises(ArchiveError):
        prepare(workspace, COMPETITION, bad, False, None, Heard())
    assert {
        name: data for name, data in artefacts(workspace).items() if name.startswith("data/")
    } == before


def test_what_was_made_from_the_first_archive_is_not_taken_for_the_second_ones(
    workspace: Workspace, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(workspace, COMPETITION, archive, False, None, Heard())
    monkeypatch.setattr(stage, "scan", None)
    with pytest.raises(TypeError):
        prepare(
            workspace,
            COMPETITION,
            write_archive(tmp_path / "other.zip", packed(*some_photos(6, 4))),
            False,
            None,
            Heard(),
        )
    for split in ("train", "test"):
        with pytest.raises(DataError, match="does not exist"):
            read_manifest(workspace.manifest(split))


STEPS = [
    "unpack",
    "scan",
    "near_pairs",
    "assign_folds",
    "write_text",
    "write_manifest",
    "write_json",
    "report",
]


@pytest.mark.parametrize("step", STEPS)
def test_a_run_killed_at_any_step_is_completed_by_the_next(
    workspace: Workspace, archive: Path, tmp_path: Path, step: str
) -> None:
    whole = Workspace(tmp_path / "whole")
    prepare(whole, COMPETITION, archive, False, SMALL, Heard())
    child = os.fork()
    if not child:
        setattr(stage, step, dying(getattr(stage, step)))
        prepare(workspace, COMPETITION, archive, False, SMALL, Heard())
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 9
    heard = Heard()
    prepare(workspace, COMPETITION, archive, False, SMALL, heard)
    assert ("nothing to do" in str(heard)) == (step in ("write_json", "report"))
    expected, found = artefacts(whole), artefacts(workspace)
    assert {name: data for name, (_, data) in found.items()} == {
        name.replace("whole/", ""): data for name, (_, data) in expected.items()
    }


def dying(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, killed when it has done its work but for what it returns."""

    def wrapped(*arguments: Any, **named: Any) -> Any:
        function(*arguments, **named)
        os.kill(os.getpid(), 9)

    return wrapped


def test_the_same_archive_gives_the_same_manifests_wherever_and_however_often(
    workspace: Workspace, archive: Path, tmp_path: Path
) -> None:
    prepare(workspace, COMPETITION, archive, False, None, Heard())
    other = Workspace(tmp_path / "other")
    prepare(other, COMPETITION, archive, False, SMALL, Heard())
    for split in ("train", "test"):
        assert workspace.manifest(split).read_bytes() == other.manifest(split).read_bytes()


def test_an_edited_manifest_is_kept_and_mentioned_and_a_broken_one_told(
    workspace: Workspace, archive: Path
) -> None:
    prepare(workspace, COMPETITION, archive, False, None, Heard())
    path = workspace.manifest("train")
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]))
    heard = Heard()
    prepare(workspace, COMPETITION, archive, False, None, heard)
    assert "edited" in str(heard)
    assert path.read_text() == "".join(lines[:-1])
    path.write_text("".join(lines).replace("truncated", "fine"))
    with pytest.raises(DataError, match="column verdict"):
        prepare(workspace, COMPETITION, archive, False, None, Heard())


def test_a_photo_that_somebody_deleted_is_named_with_the_remedy(
    workspace: Workspace, archive: Path
) -> None:
    prepare(workspace, COMPETITION, archive, False, None, Heard())
    (workspace.photos / "test" / "3.jpg").unlink()
    workspace.manifest("test").unlink()
    with pytest.raises(DataError, match=r"3.jpg is missing .* delete this folder"):
        prepare(workspace, COMPETITION, archive, False, None, Heard())


def test_a_class_of_which_no_photo_can_be_decoded_is_named(
    workspace: Workspace, tmp_path: Path
) -> None:
    train = {id: data if id.startswith("cat") else b"x" for id, data in TRAIN.items()}
    archive = write_archive(tmp_path / "kaggle.zip", packed(train, TEST))
    with pytest.raises(DataError, match="none of the 8 photos of a dog can be decoded"):
        prepare(workspace, COMPETITION, archive, False, None, Heard())


def test_too_few_photos_for_folds_are_told_in_one_line(
    workspace: Workspace, tmp_path: Path
) -> None:
    train, test = some_photos(4, 2)
    with pytest.raises(DataError, match=r"8 photos .* 5 folds"):
        prepare(
            workspace,
            COMPETITION,
            write_archive(tmp_path / "kaggle.zip", packed(train, test)),
            False,
            None,
            Heard(),
        )


def test_an_archive_that_is_not_there_is_told(workspace: Workspace, tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="is not there"):
        prepare(workspace, COMPETITION, tmp_path / "no.zip", False, None, Heard())


def test_the_full_edition_is_asked_for_by_its_numbers(workspace: Workspace, archive: Path) -> None:
    for prepared_before in (False, True):
        with pytest.raises(ArchiveError, match="not 25,000 training"):
            prepare(workspace, COMPETITION, archive, True, None, Heard())
        if not prepared_before:
            prepare(workspace, COMPETITION, archive, False, None, Heard())
    full = replace(COMPETITION, n_train=len(TRAIN | ODD), n_test=len(TEST | ODD_TEST))
    prepare(workspace, full, archive, True, None, Heard())


def test_the_origin_names_the_archive_and_the_rules(workspace: Workspace, archive: Path) -> None:
    prepare(workspace, COMPETITION, archive, False, None, Heard())
    origin = read_json(workspace.data / "origin.json")
    assert origin["archive"]["name"] == "kaggle.zip"
    assert origin["archive"]["n_bytes"] == archive.stat().st_size
    assert origin["rules"]["n_folds"] == 5


def test_rules_that_changed_make_manifests_again(
    workspace: Workspace, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(workspace, COMPETITION, archive, False, None, Heard())
    monkeypatch.setattr(stage, "RULES", stage.RULES | {"seed": 1})
    heard = Heard()
    prepare(workspace, COMPETITION, archive, False, None, heard)
    assert "photos are ready" in str(heard)


def test_the_real_photos_have_one_pair_of_duplicates_and_even_folds(
    workspace: Workspace, real_archive: Path
) -> None:
    prepare(workspace, COMPETITION, real_archive, False, None, Heard())
    train, test = both(workspace)
    assert (len(train), len(test)) == (1602, 400)
    assert set(verdicts(train).values()) | set(verdicts(test).values()) == {"ok"}
    everything = pd.concat([train, test])
    assert everything["id"][everything["group"].duplicated(keep=False)].tolist() == [
        "dog.74",
        "dog.180",
    ]
    assert train.groupby(["label", "fold"]).size().between(160, 161).all()
