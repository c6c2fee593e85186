"""The archive is here bit for bit, or what is here can be resumed, whatever the server does.

tests/test_faults.py plays every fault against whole runs; here is what only the files show.
"""

import json
import os
import resource
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from kaggle_stand import ARCHIVE, HASTE, Stand

from comp.errors import DataError, StoreError, UnavailableError
from comp.kaggle import download
from comp.kaggle.download import OVERLAP, zip_problem

WHOLE = [ARCHIVE, f"{ARCHIVE}.json"]
PARTIAL = [f"{ARCHIVE}.part", f"{ARCHIVE}.part.json"]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


def is_copy(path: Path, scene: Stand) -> bool:
    return path.read_bytes() == scene.archive.read_bytes()


@pytest.mark.parametrize("faults", ["", "no-length", "no-validator cut:1", "gzip cut:1"])
def test_a_complete_archive_is_recognised_and_not_downloaded_again(
    scene: Stand, tmp_path: Path, faults: str
) -> None:
    scene.arm(*faults.split())
    assert is_copy(scene.kaggle.download(tmp_path), scene)
    assert names(tmp_path) == WHOLE
    scene.arm()
    scene.kaggle.download(tmp_path)
    assert scene.asked("file") == [""]  # of which only the head is read
    assert [line.startswith(f"{ARCHIVE} is here") for line in scene.notebook.lines] == [True]


def test_a_resumed_download_asks_only_for_the_rest(scene: Stand, tmp_path: Path) -> None:
    scene.arm("cut:1:at=0.7")
    scene.kaggle.download(tmp_path)
    have = int(0.7 * scene.archive.stat().st_size)
    assert scene.asked("file") == ["", f"bytes={have - OVERLAP}-"]
    assert len(scene.asked("DownloadDataFiles")) == 2  # each try has a signed link of its own


def test_a_new_version_replaces_the_old_one_only_once_it_is_whole(
    scene: Stand, tmp_path: Path
) -> None:
    scene.arm()
    old = scene.kaggle.download(tmp_path).read_bytes()
    scene.arm("no-range", "cut", "changed-file:1")
    scene.kaggle.download(tmp_path)  # only looks, and finds nothing new yet
    with pytest.raises(UnavailableError):
        scene.kaggle.download(tmp_path)
    assert (tmp_path / ARCHIVE).read_bytes() == old
    assert names(tmp_path) == [*WHOLE, *PARTIAL]
    scene.arm("changed-file:1")
    scene.kaggle.download(tmp_path)
    new = scene.kaggle.download(tmp_path)
    assert new.read_bytes() != old
    assert zip_problem(new) == ""
    assert names(tmp_path) == WHOLE


def test_an_archive_put_there_by_hand_is_used_if_it_is_the_servers_and_intact(
    scene: Stand, tmp_path: Path
) -> None:
    content = scene.archive.read_bytes()
    (tmp_path / ARCHIVE).write_bytes(content)
    scene.arm()
    scene.kaggle.download(tmp_path)
    assert scene.notebook.lines == [
        f"{ARCHIVE} is here (3.0 MB), intact and of the same length as the server's"
    ]
    damaged = content[:1_000_000] + b"damage" + content[1_000_006:]
    for other in (damaged, content[:-1], bytes(len(content))):
        (tmp_path / ARCHIVE).write_bytes(other)
        scene.arm()
        assert is_copy(scene.kaggle.download(tmp_path), scene)
        assert "is not what the server has" in scene.notebook.lines[0]


@pytest.mark.parametrize("damage", ["another file", "a shorter note", "no JSON", "too long"])
def test_a_partial_file_that_does_not_fit_its_note_is_not_resumed(
    scene: Stand, tmp_path: Path, damage: str
) -> None:
    scene.arm("no-range", "cut")
    with pytest.raises(UnavailableError):
        scene.kaggle.download(tmp_path)
    part, note = (tmp_path / name for name in PARTIAL)
    match damage:
        case "another file":
            part.write_bytes(os.urandom(part.stat().st_size))
        case "a shorter note":
            note.write_text(json.dumps(json.loads(note.read_text()) | {"length": 1000}))
        case "no JSON":
            note.write_text("{")
        case "too long":
            part.write_bytes(scene.archive.read_bytes() + b"more")
    scene.arm()
    assert is_copy(scene.kaggle.download(tmp_path), scene)


def test_a_disk_that_fills_up_keeps_what_has_arrived(scene: Stand, tmp_path: Path) -> None:
    scene.arm()
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, unlimited[1]))
    try:
        with pytest.raises(DataError, match=r"cannot be written to .* make room"):
            scene.kaggle.download(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert (tmp_path / PARTIAL[0]).read_bytes() == scene.archive.read_bytes()[:1_500_000]
    scene.arm()
    assert is_copy(scene.kaggle.download(tmp_path), scene)
    assert scene.asked("file") == [f"bytes={1_500_000 - OVERLAP}-"]


@pytest.mark.parametrize("fault", ["stall:at=0.01", "cut:at=0.01", "slow:0.2"])
def test_a_download_ends_when_less_than_a_step_has_come_in_the_time_for_it(
    scene: Stand, tmp_path: Path, fault: str
) -> None:
    """Each try brings some bytes, or a single one brings them too slowly."""
    hasty, _ = scene.another(replace(HASTE, read_s=0.1, retry_s=0.4))
    scene.arm(fault)
    start = time.monotonic()
    with pytest.raises(UnavailableError, match=r" in \d s.*the next run goes on from there"):
        hasty.download(tmp_path)
    assert time.monotonic() - start < 1.5
    have = (tmp_path / PARTIAL[0]).stat().st_size
    scene.arm()
    assert is_copy(scene.kaggle.download(tmp_path), scene)
    assert scene.asked("file") == [f"bytes={have - OVERLAP}-"]


def test_a_download_that_goes_on_may_take_longer_than_the_time_for_a_step(
    scene: Stand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "STEP", 100_000)
    hasty, _ = scene.another(replace(HASTE, read_s=0.1, retry_s=0.3))
    scene.arm("stall:4:at=0.1", "slow:4")
    start = time.monotonic()
    assert is_copy(hasty.download(tmp_path), scene)
    assert time.monotonic() - start > 0.6


@contextmanager
def downloading(scene: Stand, folder: Path) -> Iterator[None]:
    """While another run downloads slowly."""
    scene.arm("slow:4")
    thread = threading.Thread(target=scene.another()[0].download, args=(folder,))
    thread.start()
    while not scene.asked("DownloadDataFiles"):
        assert thread.is_alive()
        time.sleep(0.01)
    yield
    thread.join()


def test_the_second_of_two_runs_waits_and_downloads_nothing(scene: Stand, tmp_path: Path) -> None:
    second, notebook = scene.another()
    with downloading(scene, tmp_path):
        assert is_copy(second.download(tmp_path), scene)
    assert "waiting for another run" in notebook.lines[0]
    assert "is what the server has" in notebook.lines[1]
    assert names(tmp_path) == WHOLE


def test_the_second_of_two_runs_does_not_wait_forever(scene: Stand, tmp_path: Path) -> None:
    second, _ = scene.another(replace(HASTE, other_run_s=0.1))
    with downloading(scene, tmp_path), pytest.raises(StoreError, match="another run has been"):
        second.download(tmp_path)
    assert is_copy(tmp_path / ARCHIVE, scene)
