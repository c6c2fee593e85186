"""The store of pixels: each photo once, whole or not at all, never another one's, and never black."""

import hashlib
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from heard import Heard
from odd_photos import encoded, jpeg, scene

from comp.data import pack
from comp.data.geometry import Geometry
from comp.data.photos import decode, to_canvas
from comp.data.pixels import Pixels, open_pixels
from comp.errors import DataError, StaleError
from comp.store import Workspace

SQUASH = Geometry(size_px=24)
SHORTER = Geometry(fit="shorter", size_px=24)
RAW_BYTES = 24 * 24 * 3


def write(workspace: Workspace, photos: dict[str, bytes], split: str = "train") -> pd.DataFrame:
    """Photos on disk and their manifest."""
    rows = []
    for id, data in photos.items():
        path = workspace.photos / split / f"{id}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        photo = decode(data)
        rows.append(
            (
                id,
                0 if split == "train" else pd.NA,
                photo.width,
                photo.height,
                hashlib.sha256(data).hexdigest(),
                photo.verdict,
            )
        )
    table = pd.DataFrame(rows, columns=["id", "label", "width", "height", "sha256", "verdict"])
    return table.astype({"label": "Int8"})


def some(n: int, first: int = 0) -> dict[str, bytes]:
    return {
        f"cat.{seed}": jpeg(seed, width=40 + 7 * seed, height=60)
        for seed in range(first, first + n)
    }


def canvas_of(data: bytes, geometry: Geometry) -> np.ndarray:
    pixels = decode(data).pixels
    assert pixels is not None
    return to_canvas(pixels, geometry)


def files(workspace: Workspace) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in workspace.pixels.rglob("*") if path.is_file()}


def data_path(workspace: Workspace) -> Path:
    (path,) = workspace.pixels.rglob("pixels.bin")
    return path


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack, "CHUNK_BYTES", 3 * RAW_BYTES)


@pytest.mark.parametrize("geometry", [SQUASH, SHORTER], ids=lambda geometry: geometry.fit)
def test_each_canvas_is_what_its_photo_makes(workspace: Workspace, geometry: Geometry) -> None:
    train, test = some(5), {"10": jpeg(50), "2": encoded(scene(51, 30, 90))}
    manifests = [write(workspace, train), write(workspace, test, "test")]
    pixels = open_pixels(workspace, manifests, geometry, Heard())
    assert pixels.ids == (*train, *test)
    for id, data in (train | test).items():
        row = pixels.rows([id])[0]
        canvas = pixels.canvas(row)
        assert np.array_equal(canvas, canvas_of(data, geometry))
        assert pixels.sha256s[row] == hashlib.sha256(data).hexdigest()
        assert (pixels.heights[row], pixels.widths[row]) == canvas.shape[:2]


def test_a_canvas_is_a_read_only_view_of_the_file(workspace: Workspace) -> None:
    pixels = open_pixels(workspace, [write(workspace, some(3))], SQUASH, Heard())
    one, again = pixels.canvas(1), pixels.canvas(1)
    assert np.shares_memory(one, again)
    assert not one.flags.writeable
    with data_path(workspace).open("r+b") as file:
        file.seek(RAW_BYTES)
        file.write(bytes([one[0, 0, 0] ^ 255]))
    assert one[0, 0, 0] == again[0, 0, 0] != canvas_of(some(3)["cat.1"], SQUASH)[0, 0, 0]


def test_a_photo_that_cannot_be_decoded_has_no_pixels_and_asking_for_it_is_an_error(
    workspace: Workspace,
) -> None:
    photos = some(2) | {"cat.7": b"", "cat.8": jpeg(8)[:300]}
    pixels = open_pixels(workspace, [write(workspace, photos)], SQUASH, Heard())
    assert pixels.ids == ("cat.0", "cat.1")
    with pytest.raises(DataError, match=r"2 ids have no pixels, the first is cat.8"):
        pixels.rows(["cat.0", "cat.8", "cat.7"])


def test_the_second_run_decodes_nothing_and_says_nothing(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = write(workspace, some(4))
    first = open_pixels(workspace, [manifest], SQUASH, Heard())
    before = {path: path.stat().st_mtime_ns for path in workspace.pixels.rglob("*")}
    monkeypatch.setattr("comp.data.pixels.decode", None)
    heard = Heard()
    second = open_pixels(workspace, [manifest], SQUASH, heard)
    assert str(heard) == ""
    assert second.store == first.store
    assert {path: path.stat().st_mtime_ns for path in workspace.pixels.rglob("*")} == before


def test_photos_that_come_later_only_add(workspace: Workspace) -> None:
    one = write(workspace, some(3))
    first = open_pixels(workspace, [one], SQUASH, Heard())
    before = files(workspace)
    other = write(workspace, some(3, first=3))
    heard = Heard()
    both = open_pixels(workspace, [other, one], SQUASH, heard)
    after = files(workspace)
    assert "of 3 photos" in str(heard)
    assert after["pixels.bin"][: 3 * RAW_BYTES] == before["pixels.bin"]
    assert {name: after[name] for name in before if name != "pixels.bin"} == {
        name: before[name] for name in before if name != "pixels.bin"
    }
    for id in first.ids:
        assert np.array_equal(both.canvas(both.rows([id])[0]), first.canvas(first.rows([id])[0]))
    subset = open_pixels(workspace, [one.iloc[:2]], SQUASH, Heard())
    assert files(workspace) == after
    assert len(subset) == 2


def test_equal_photos_are_stored_once_and_have_a_row_each(workspace: Workspace) -> None:
    photos = {"cat.0": jpeg(0), "cat.1": jpeg(1), "cat.2": jpeg(0)}
    pixels = open_pixels(workspace, [write(workspace, photos)], SQUASH, Heard())
    assert len(pixels) == 3
    assert data_path(workspace).stat().st_size == 2 * RAW_BYTES
    assert np.array_equal(pixels.canvas(0), pixels.canvas(2))


def test_the_stores_name_tells_what_decides_the_bytes_and_not_which_photos_are_asked_for(
    workspace: Workspace,
) -> None:
    one, two = write(workspace, some(3)), write(workspace, {"cat.9": jpeg(9)})
    ways = [SQUASH, SHORTER, Geometry(size_px=25), Geometry(size_px=24, interpolation="bilinear")]
    names = [open_pixels(workspace, [one], way, Heard()).store for way in ways]
    assert len(set(names)) == len(names)
    assert open_pixels(workspace, [two, one], SQUASH, Heard()).store == names[0]


class KillingTrack:
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


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("n_done", [0, 2, 4, 7, 9])
def test_a_killed_run_goes_on_where_it_was_and_ends_with_the_same_pixels(
    workspace: Workspace, n_done: int
) -> None:
    photos = some(10)
    manifest = write(workspace, photos)
    child = os.fork()
    if not child:
        dying = Heard()
        dying.track = lambda *_: KillingTrack(n_done)  # type: ignore[method-assign, assignment]
        open_pixels(workspace, [manifest], SQUASH, dying)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 9
    kept = len(pack.read_index(data_path(workspace).parent))
    assert kept <= n_done + 1
    heard = Heard()
    pixels = open_pixels(workspace, [manifest], SQUASH, heard)
    assert f"of {10 - kept} photos" in str(heard)
    for id, data in photos.items():
        assert np.array_equal(pixels.canvas(pixels.rows([id])[0]), canvas_of(data, SQUASH))
    assert data_path(workspace).stat().st_size == 10 * RAW_BYTES


def test_what_a_killed_run_left_behind_the_last_chunk_is_cut_off(tmp_path: Path) -> None:
    with pack.Writer(tmp_path) as writer:
        writer.add("a", "cat.0", np.full(9, 1, np.uint8), 1, 3)
    with (tmp_path / "pixels.bin").open("ab") as file:
        file.write(bytes(1000))
    with pack.Writer(tmp_path) as writer:
        writer.add("b", "cat.1", np.full(3, 2, np.uint8), 1, 1)
    assert (tmp_path / "pixels.bin").read_bytes() == bytes([1] * 9 + [2] * 3)
    assert pack.read_index(tmp_path)["offset"].tolist() == [0, 9]


def test_a_key_is_written_once(tmp_path: Path) -> None:
    with pack.Writer(tmp_path) as writer:
        for id in ("cat.0", "cat.1"):
            writer.add("a", id, np.full(9, 1, np.uint8), 1, 3)
    assert pack.read_index(tmp_path)["id"].tolist() == ["cat.0"]
    assert (tmp_path / "pixels.bin").stat().st_size == 9


@pytest.mark.usefixtures("small_chunks")
def test_what_was_decoded_before_an_error_is_kept(workspace: Workspace) -> None:
    photos = some(10)
    manifest = write(workspace, photos)
    (workspace.photos / "train" / "cat.8.jpg").unlink()
    with pytest.raises(DataError, match=r"cat.8.jpg is missing: run `make data`"):
        open_pixels(workspace, [manifest], SQUASH, Heard())
    assert len(pack.read_index(data_path(workspace).parent)) == 8
    write(workspace, photos)
    assert len(open_pixels(workspace, [manifest], SQUASH, Heard())) == 10


def test_two_processes_that_build_one_store_at_once_do_not_hurt_it(workspace: Workspace) -> None:
    photos = some(12)
    manifest = write(workspace, photos)
    children = []
    for part in (manifest.iloc[:8], manifest.iloc[4:], manifest):
        child = os.fork()
        if not child:
            open_pixels(workspace, [part], SQUASH, Heard())
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    heard = Heard()
    pixels = open_pixels(workspace, [manifest], SQUASH, heard)
    assert str(heard) == ""
    assert data_path(workspace).stat().st_size == 12 * RAW_BYTES
    for id, data in photos.items():
        assert np.array_equal(pixels.canvas(pixels.rows([id])[0]), canvas_of(data, SQUASH))


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[RAW_BYTES + 5] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [cut, flip, Path.unlink])
def test_a_damaged_store_is_told_and_built_anew(
    workspace: Workspace, damage: Callable[[Path], None]
) -> None:
    photos = some(4)
    manifest = write(workspace, photos)
    open_pixels(workspace, [manifest], SQUASH, Heard())
    damage(data_path(workspace))
    heard = Heard()
    pixels = open_pixels(workspace, [manifest], SQUASH, heard)
    assert "decoding again" in str(heard)
    for id, data in photos.items():
        assert np.array_equal(pixels.canvas(pixels.rows([id])[0]), canvas_of(data, SQUASH))


def test_the_whole_store_can_be_verified(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("comp.data.stores.N_CHECKED", 1)
    open_pixels(workspace, [write(workspace, some(4))], SQUASH, Heard())
    path = data_path(workspace)
    pack.verify(path.parent, pack.read_index(path.parent))
    flip(path)
    pack.verify(
        path.parent, pack.read_index(path.parent), n_photos=1
    )  # a sample does not see everything
    with pytest.raises(pack.DamagedError, match=r"cat\.1"):
        pack.verify(path.parent, pack.read_index(path.parent))


def test_a_photo_that_changed_since_the_manifest_is_not_taken_for_it(workspace: Workspace) -> None:
    manifest = write(workspace, some(3))
    (workspace.photos / "train" / "cat.1.jpg").write_bytes(jpeg(99))
    with pytest.raises(StaleError, match=r"cat.1.jpg is not the photo"):
        open_pixels(workspace, [manifest], SQUASH, Heard())


@pytest.mark.parametrize("geometry", [SQUASH, SHORTER], ids=lambda geometry: geometry.fit)
def test_what_does_not_fit_raw_is_kept_as_jpeg_behind_the_same_interface(
    workspace: Workspace, geometry: Geometry
) -> None:
    manifest = write(workspace, some(8))
    raw = open_pixels(workspace, [manifest], geometry, Heard())
    n_raw = data_path(workspace).stat().st_size
    heard = Heard()
    jpegs = open_pixels(workspace, [manifest], geometry, heard, max_bytes=n_raw - 1)
    assert "jpeg" in str(heard)
    assert jpegs.ids == raw.ids
    assert jpegs.store != raw.store
    for row in range(8):
        assert jpegs.canvas(row).shape == raw.canvas(row).shape
        assert np.abs(jpegs.canvas(row).astype(int) - raw.canvas(row)).mean() < 3


def test_what_does_not_fit_at_all_is_refused_before_anything_is_written(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = write(workspace, some(3))
    with pytest.raises(DataError, match="bound") as caught:
        open_pixels(workspace, [manifest], SQUASH, Heard(), max_bytes=100)
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(
        "shutil.disk_usage", lambda _: type("Usage", (), {"free": 3 * RAW_BYTES - 1})
    )
    with pytest.raises(DataError, match="make room"):
        open_pixels(workspace, [manifest], SQUASH, Heard())
    assert all(not data for data in files(workspace).values())


def test_the_disk_it_takes_is_announced(workspace: Workspace) -> None:
    heard = Heard()
    open_pixels(workspace, [write(workspace, some(3))], Geometry(size_px=1024), heard)
    assert "of 3 photos take about 0.01 GB" in str(heard)


def test_canvases_stay_what_they_were_when_the_memory_that_they_are_mapped_into_is_given_back(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("comp.data.pixels.N_MAPPED", 3)
    photos = some(4)
    pixels = open_pixels(workspace, [write(workspace, photos)], SQUASH, Heard())
    held = pixels.canvas(0)
    for _ in range(3):
        assert all(
            np.array_equal(pixels.canvas(row), canvas_of(photos[id], SQUASH))
            for row, id in enumerate(pixels.ids)
        )
    assert np.array_equal(held, canvas_of(photos[pixels.ids[0]], SQUASH))


def test_it_is_small_to_pickle_and_the_copy_sees_the_same_pixels(workspace: Workspace) -> None:
    pixels = open_pixels(workspace, [write(workspace, some(4))], Geometry(size_px=200), Heard())
    data = pickle.dumps(pixels)
    assert len(data) < 5000
    copy: Pixels = pickle.loads(data)  # noqa: S301  # made two lines above
    assert all(np.array_equal(copy.canvas(row), pixels.canvas(row)) for row in range(4))
    assert copy.store == pixels.store


def test_an_id_in_two_manifests_is_refused(workspace: Workspace) -> None:
    manifest = write(workspace, some(2))
    with pytest.raises(DataError, match=r"cat\.0 stands in the manifests more than once"):
        open_pixels(workspace, [manifest, manifest], SQUASH, Heard())


def test_no_usable_photo_is_no_pixels(workspace: Workspace) -> None:
    assert len(open_pixels(workspace, [write(workspace, {"cat.0": b""})], SQUASH, Heard())) == 0
