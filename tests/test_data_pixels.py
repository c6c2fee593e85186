"""The store of pixels: each photo once, whole or not at all, never another one's, never black."""

import hashlib
import os
import pickle
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from heard import Heard
from odd_photos import DyingReporter, assert_killed, encoded, jpeg, scene

from comp.data import pixels as module
from comp.data.canvas import Geometry, store_folder
from comp.data.photos import decode
from comp.data.pixels import PixelStore, PixelWriter, open_pixels, read_index
from comp.data.scan import to_canvas
from comp.errors import DataError, StaleError
from comp.store import Workspace

SQUASH = Geometry(size_px=24)
SHORTER = Geometry(fit="shorter", size_px=24)
N_BYTES = 24 * 24 * 3  # of a squashed canvas


def write(workspace: Workspace, photos: dict[str, bytes], split: str = "train") -> pd.DataFrame:
    """Photos on disk and their manifest."""
    rows = []
    for id, data in photos.items():
        path = workspace.photos / split / f"{id}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        photo, label = decode(data), 0 if split == "train" else pd.NA
        sha256 = hashlib.sha256(data).hexdigest()
        rows.append((id, label, photo.width, photo.height, sha256, photo.decode_status))
    table = pd.DataFrame(rows, columns=["id", "label", "width", "height", "sha256", "verdict"])
    return table.astype({"label": "Int8"})


def some(n: int, first: int = 0) -> dict[str, bytes]:
    seeds = range(first, first + n)
    return {f"cat.{seed}": jpeg(seed, width=40 + 7 * seed, height=60) for seed in seeds}


def canvas_of(data: bytes, geometry: Geometry) -> np.ndarray:
    pixels = decode(data).pixels
    assert pixels is not None
    return to_canvas(pixels, geometry)


def assert_holds(pixels: PixelStore, photos: dict[str, bytes]) -> None:
    """Each photo's canvas, and nothing else."""
    assert pixels.ids == tuple(photos)
    for id, data in photos.items():
        row = pixels.rows([id])[0]
        canvas = pixels.canvas(row)
        assert np.array_equal(canvas, canvas_of(data, pixels.geometry))
        assert pixels.sha256s[row] == hashlib.sha256(data).hexdigest()
        assert (pixels.heights[row], pixels.widths[row]) == canvas.shape[:2]


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
    monkeypatch.setattr(module, "CHUNK_BYTES", 3 * N_BYTES)


@pytest.mark.parametrize("geometry", [SQUASH, SHORTER], ids=lambda geometry: geometry.fit)
def test_each_canvas_is_what_its_photo_makes(workspace: Workspace, geometry: Geometry) -> None:
    train, test = some(5), {"10": jpeg(50), "2": encoded(scene(51, 30, 90))}
    manifests = [write(workspace, train), write(workspace, test, "test")]
    assert_holds(open_pixels(workspace, manifests, geometry, Heard()), train | test)


def test_a_canvas_is_a_read_only_view_of_the_file(workspace: Workspace) -> None:
    pixels = open_pixels(workspace, [write(workspace, some(3))], SQUASH, Heard())
    one, again = pixels.canvas(1), pixels.canvas(1)
    assert np.shares_memory(one, again)
    assert not one.flags.writeable
    with data_path(workspace).open("r+b") as file:
        file.seek(N_BYTES)
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
    unusable = write(workspace, {"cat.9": b""})
    assert len(open_pixels(workspace, [unusable], SHORTER, Heard())) == 0


def test_the_second_run_decodes_nothing_and_says_nothing(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = write(workspace, some(4))
    open_pixels(workspace, [manifest], SQUASH, Heard())
    before = {path: path.stat().st_mtime_ns for path in workspace.pixels.rglob("*")}
    monkeypatch.setattr("comp.data.photos.decode", None)
    heard = Heard()
    open_pixels(workspace, [manifest], SQUASH, heard)
    assert str(heard) == ""
    assert {path: path.stat().st_mtime_ns for path in workspace.pixels.rglob("*")} == before


def test_a_geometry_has_one_store_to_which_later_photos_only_add(workspace: Workspace) -> None:
    one, other = write(workspace, some(3)), write(workspace, some(3, first=3))
    first = open_pixels(workspace, [one], SQUASH, Heard())
    before = files(workspace)
    heard = Heard()
    both = open_pixels(workspace, [other, one], SQUASH, heard)
    after = files(workspace)
    assert "of 3 photos" in str(heard)
    assert both.store == first.store == data_path(workspace).parent.name
    assert after["pixels.bin"][: 3 * N_BYTES] == before["pixels.bin"]
    assert {name: after[name] for name in before} == before | {"pixels.bin": after["pixels.bin"]}
    assert_holds(both, some(3, first=3) | some(3))
    assert len(open_pixels(workspace, [one.iloc[:2]], SQUASH, Heard())) == 2
    assert files(workspace) == after


def test_every_option_of_a_geometry_has_a_store_of_its_own(workspace: Workspace) -> None:
    manifest = write(workspace, some(1))
    ways = [SQUASH, SHORTER, Geometry(size_px=25), Geometry(size_px=24, interpolation="bilinear")]
    assert len({open_pixels(workspace, [manifest], way, Heard()).store for way in ways}) == 4


def test_equal_photos_are_stored_once_and_have_a_row_each(workspace: Workspace) -> None:
    photos = {"cat.0": jpeg(0), "cat.1": jpeg(1), "cat.2": jpeg(0)}
    assert_holds(open_pixels(workspace, [write(workspace, photos)], SQUASH, Heard()), photos)
    assert data_path(workspace).stat().st_size == 2 * N_BYTES


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("n_done", [0, 2, 4, 7, 9])
def test_a_killed_run_goes_on_where_it_was_and_ends_with_the_same_pixels(
    workspace: Workspace, n_done: int
) -> None:
    photos = some(10)
    manifest = write(workspace, photos)
    assert_killed(lambda: open_pixels(workspace, [manifest], SQUASH, DyingReporter(n_done)))
    n_kept = len(read_index(data_path(workspace).parent))
    assert n_kept <= n_done + 1
    heard = Heard()
    assert_holds(open_pixels(workspace, [manifest], SQUASH, heard), photos)
    assert f"of {10 - n_kept} photos" in str(heard)
    assert data_path(workspace).stat().st_size == 10 * N_BYTES


def test_a_key_is_written_once_and_bytes_behind_the_last_chunk_are_cut_off(tmp_path: Path) -> None:
    with closing(PixelWriter(tmp_path)) as writer:
        for _ in range(2):
            writer.add("a", np.full((1, 3, 3), 1, np.uint8))
    with (tmp_path / "pixels.bin").open("ab") as file:
        file.write(bytes(1000))
    with closing(PixelWriter(tmp_path)) as writer:
        writer.add("b", np.full((1, 1, 3), 2, np.uint8))
    assert (tmp_path / "pixels.bin").read_bytes() == bytes([1] * 9 + [2] * 3)
    assert read_index(tmp_path)[["key", "offset"]].to_numpy().tolist() == [["a", 0], ["b", 9]]


@pytest.mark.usefixtures("small_chunks")
def test_what_was_decoded_before_an_error_is_kept(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("comp.data.scan.N_SAMPLED", 1)
    photos = some(10)
    manifest = write(workspace, photos)
    (workspace.photos / "train" / "cat.8.jpg").unlink()
    with pytest.raises(DataError, match=r"cat.8.jpg cannot be read .* `make data`"):
        open_pixels(workspace, [manifest], SQUASH, Heard())
    assert len(read_index(data_path(workspace).parent)) == 8
    write(workspace, photos)
    assert_holds(open_pixels(workspace, [manifest], SQUASH, Heard()), photos)


def test_processes_that_build_one_store_at_once_do_not_hurt_it(workspace: Workspace) -> None:
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
    assert_holds(open_pixels(workspace, [manifest], SQUASH, heard), photos)
    assert str(heard) == ""
    assert data_path(workspace).stat().st_size == 12 * N_BYTES


def edit(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


FLIP = {"a wrong byte": lambda data: data[: N_BYTES + 5] + b"\0\1" + data[N_BYTES + 7 :]}
CUT = {f"{n} bytes less": lambda data, n=n: data[:-n] for n in (1, 2, 9, 90)} | {
    "empty": lambda data: b""
}
DAMAGE = {  # of a file that the pattern finds
    **{f"pixels, {name}": ("pixels.bin", change) for name, change in (FLIP | CUT).items()},
    **{f"index, {name}": ("index-00000.csv", change) for name, change in CUT.items()},
    "no pixels": ("pixels.bin", None),
    "no first index": ("index-00000.csv", None),
    "a row less": ("index-00000.csv", lambda data: data[: data.rindex(b"\n", 0, -1) + 1]),
    "a row twice": ("index-00000.csv", lambda data: data + data.splitlines(True)[-1]),
    "other columns": ("index-00000.csv", lambda data: data.replace(b"height", b"width")),
    "no number": ("index-00000.csv", lambda data: data.replace(b",24,", b",x,")),
    "not text": ("index-00001.csv", lambda data: data.replace(b",24,", b"\xff\0")),
    "another photo's": ("index-00000.csv", lambda data: data.replace(b"a", b"b")),
    "other sizes": ("index-00000.csv", lambda data: data.replace(b",24,24,", b",36,16,")),
}


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_store_is_reported_and_made_again(workspace: Workspace, name: str) -> None:
    manifest = write(workspace, some(4))
    open_pixels(workspace, [manifest], SQUASH, Heard())
    before, (file, change) = files(workspace), DAMAGE[name]
    path = data_path(workspace).with_name(file)
    edit(path, change) if change else path.unlink()
    heard = Heard()
    assert_holds(open_pixels(workspace, [manifest], SQUASH, heard), some(4))
    assert f"{path.parent} is damaged (" in str(heard)
    assert "decoding again" in str(heard)
    assert files(workspace) == before


def test_another_store_s_files_are_not_taken_for_this_one_s(workspace: Workspace) -> None:
    manifest, other = write(workspace, some(4)), Geometry(size_px=24, interpolation="bilinear")
    open_pixels(workspace, [manifest], SQUASH, Heard())
    folder = data_path(workspace).parent
    folder.rename(store_folder(workspace, other))
    heard = Heard()
    assert_holds(open_pixels(workspace, [manifest], other, heard), some(4))
    assert "decoding again" in str(heard)


def test_files_that_a_mac_leaves_beside_others_do_no_harm(workspace: Workspace) -> None:
    manifest = write(workspace, some(3))
    pixels = open_pixels(workspace, [manifest], SQUASH, Heard())
    for path in list(workspace.data.rglob("*")):
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7")
    again = open_pixels(workspace, [manifest, write(workspace, some(1, 3))], SQUASH, Heard())
    assert again.ids == (*pixels.ids, "cat.3")


def test_photos_that_libjpeg_remarks_on_are_named_once_and_its_own_lines_are_not_seen(
    workspace: Workspace, capfd: pytest.CaptureFixture[str]
) -> None:
    photos, heard = some(12), Heard()
    for id in ("cat.3", "cat.7"):
        photos[id] = photos[id][:-2] + b"x" * 300 + photos[id][-2:]
    manifest = write(workspace, photos)
    assert capfd.readouterr().err.count("Corrupt JPEG data") == 2  # by a plain call
    open_pixels(workspace, [manifest], SQUASH, heard)
    (line,) = (line for line in heard.lines if "damaged" in line)
    assert line.startswith("warning: 2 damaged photos used: cat.3 (Corrupt JPEG data")
    assert "cat.7 (" in line
    assert "Corrupt" not in capfd.readouterr().err
    decode(photos["cat.3"])
    assert "Corrupt" in capfd.readouterr().err  # the terminal is as it was


def test_a_photo_that_changed_since_the_manifest_is_not_taken_for_it(workspace: Workspace) -> None:
    manifest = write(workspace, some(3))
    (workspace.photos / "train" / "cat.1.jpg").write_bytes(jpeg(99))
    with pytest.raises(StaleError, match=r"1 photo other than in .*cat.1.jpg: delete the folder"):
        open_pixels(workspace, [manifest], SQUASH, Heard())


def test_the_disk_it_takes_is_announced_and_too_little_refused_before_anything_is_written(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, heard = write(workspace, some(3)), Heard()
    free = 3 * N_BYTES - 1
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": free}))
    with pytest.raises(DataError, match=r"of 3 photos take .* make room, or choose fewer pixels"):
        open_pixels(workspace, [manifest], SQUASH, heard)
    assert all(not data for data in files(workspace).values())
    free = 10**8
    open_pixels(workspace, [manifest], Geometry(size_px=1024), heard)
    assert "pixels squash-1024-bicubic of 3 photos take about 0.01 GB, 0.10 GB are free" in str(
        heard
    )


def test_canvases_stay_the_same_when_mapped_memory_is_given_back(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "N_MAPPED", 3)
    photos = some(4)
    pixels = open_pixels(workspace, [write(workspace, photos)], SQUASH, Heard())
    first = pixels.canvas(0)
    for _ in range(3):
        assert_holds(pixels, photos)
    assert np.array_equal(first, canvas_of(photos["cat.0"], SQUASH))


def test_it_is_small_to_pickle_and_the_copy_has_the_same_pixels(workspace: Workspace) -> None:
    pixels = open_pixels(workspace, [write(workspace, some(4))], Geometry(size_px=200), Heard())
    data = pickle.dumps(pixels)
    assert len(data) < 5000
    copy: PixelStore = pickle.loads(data)  # noqa: S301  # made two lines above
    assert_holds(copy, some(4))
    assert copy.store == pixels.store


def test_an_id_in_two_manifests_is_refused(workspace: Workspace) -> None:
    manifest = write(workspace, some(2))
    with pytest.raises(DataError, match=r"cat\.0 is in both manifests: delete them"):
        open_pixels(workspace, [manifest, manifest], SQUASH, Heard())
