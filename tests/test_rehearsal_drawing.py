"""Drawn photos and their edition: the same each time, no easy cue, packed as Kaggle packs."""

import io
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import cross_val_predict

from comp import progress
from comp.competition import COMPETITION
from comp.progress import Reporter
from comp.rehearsal import drawing
from comp.rehearsal.drawing import ODDITIES, TRAITS, draw, plan_edition, write_edition

N_TRAIN, N_TEST = 240, 40
PLAN = plan_edition(3, N_TRAIN, N_TEST, COMPETITION)


@pytest.fixture(scope="module")
def edition(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("edition")
    return write_edition(folder, seed=3, n_train=N_TRAIN, n_test=N_TEST)


def inner_zip(archive: Path, name: str) -> zipfile.ZipFile:
    with zipfile.ZipFile(archive) as outer:
        return zipfile.ZipFile(io.BytesIO(outer.read(name)))


@pytest.fixture(scope="module")
def photos(edition: tuple[Path, Path]) -> dict[str, bytes]:
    halves = [inner_zip(edition[0], name) for name in COMPETITION.archives]
    return {name: half.read(name) for half in halves for name in half.namelist()}


def test_a_picture_is_the_same_each_time_and_different_for_each_seed() -> None:
    pictures = [draw(seed, seed % 2).tobytes() for seed in range(8)]
    assert [draw(seed, seed % 2).tobytes() for seed in reversed(range(8))] == pictures[::-1]
    assert len(set(pictures)) == 8


def test_the_class_changes_the_traits_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(draw(seed, 0).tobytes() != draw(seed, 1).tobytes() for seed in range(10))
    for name, (_, dogs, spread) in TRAITS.items():
        monkeypatch.setitem(TRAITS, name, (dogs, dogs, spread))
    assert all(draw(seed, 0).tobytes() == draw(seed, 1).tobytes() for seed in range(10))


def test_all_traits_together_separate_the_classes_but_no_single_one_does() -> None:
    distances = np.array([abs(cats - dogs) / spread for cats, dogs, spread in TRAITS.values()])
    assert distances.max() < 2.1  # at best 85 % right
    assert np.linalg.norm(distances) > 4  # 98 % right


def test_colours_and_sizes_do_not_betray_the_class(photos: dict[str, bytes]) -> None:
    rows, labels = [], np.array([label for _, label, _, oddity in PLAN if not oddity])
    for name in (name for name, _, _, oddity in PLAN if not oddity):
        image = Image.open(io.BytesIO(photos[name]))
        colours = np.reshape(image.histogram(), (24, 32)).sum(axis=1) / np.prod(image.size)
        n_bytes = len(photos[name])
        rows.append([*colours, *image.size, n_bytes, n_bytes / np.prod(image.size)])
    features = (np.array(rows) - np.mean(rows, axis=0)) / np.std(rows, axis=0)

    def held_out_loss(features: np.ndarray) -> float:
        model = LogisticRegression(C=0.01)
        probs = cross_val_predict(model, features, labels, cv=5, method="predict_proba")
        return float(log_loss(labels, probs[:, 1]))

    assert held_out_loss(features) > 0.66
    assert held_out_loss(features + labels[:, None]) < 0.5  # a cue would be found


def test_an_edition_has_kaggles_members_and_the_solution_has_the_labels(
    edition: tuple[Path, Path], photos: dict[str, bytes]
) -> None:
    archive, solution = edition
    with zipfile.ZipFile(archive) as outer:
        assert outer.testzip() is None
        assert sorted(outer.namelist()) == ["sample_submission.csv", "test.zip", "train.zip"]
        sample = outer.read(COMPETITION.sample).decode()
    test_ids = range(1, N_TEST + 1)
    assert sample == "id,label\n" + "".join(f"{index},0.5\n" for index in test_ids)
    train = {f"train/{name}.{i}.jpg" for name in ("cat", "dog") for i in range(N_TRAIN // 2)}
    assert set(inner_zip(archive, "train.zip").namelist()) == train
    assert set(photos) == train | {f"test/{index}.jpg" for index in test_ids}
    assert archive.name == "dogs-vs-cats-redux-kernels-edition.zip"
    labels = {name: label for name, label, _, _ in PLAN}
    assert all(labels[name] == (name[6:9] == "dog") for name in train)
    rows = [f"{index},{labels[f'test/{index}.jpg']}" for index in test_ids]
    assert solution.read_text() == "\n".join(["id,label", *rows, ""])
    assert sum(row.endswith(",1") for row in rows) == N_TEST // 2


def test_the_zips_are_packed_like_kaggles(edition: tuple[Path, Path], real_archive: Path) -> None:
    def form(zipped: zipfile.ZipFile) -> set[tuple[object, ...]]:
        return {
            (info.compress_type, info.date_time, info.external_attr, info.create_system)
            for info in zipped.infolist()
        }

    with zipfile.ZipFile(edition[0]) as drawn, zipfile.ZipFile(real_archive) as real:
        assert form(drawn) == form(real)
    for name in COMPETITION.archives:
        assert form(inner_zip(edition[0], name)) == form(inner_zip(real_archive, name))


def test_train_and_test_have_every_oddity_and_every_photo_shows_its_picture(
    photos: dict[str, bytes],
) -> None:
    forms = {"grey": ("JPEG", "L"), "cmyk": ("JPEG", "CMYK"), "png": ("PNG", "RGB")}
    for half in (PLAN[:N_TRAIN], PLAN[N_TRAIN:]):
        odd = [oddity for _, _, _, oddity in half if oddity]
        assert set(odd) == set(ODDITIES)
        assert odd.count("truncated") == 1
        assert len(odd) < len(half) / 4
    for name, label, seed, oddity in PLAN:
        image = Image.open(io.BytesIO(photos[name]))
        assert (image.format, image.mode) == forms.get(oddity, ("JPEG", "RGB")), name
        assert (image.getexif().get(0x0112, 1) != 1) == (oddity == "rotated")
        if oddity == "truncated":
            with pytest.raises(OSError, match="truncated"):
                image.load()
            continue
        both = [ImageOps.exif_transpose(image), draw(seed, label)]
        assert (both[0].size == both[1].size) == (oddity != "crop")
        small = [np.asarray(each.convert("L").resize((32, 32)), float) for each in both]
        assert np.abs(small[0] - small[1]).mean() < (12 if oddity == "crop" else 3), name


def test_a_copy_or_crop_has_its_original_in_train_under_the_same_label_with_other_bytes(
    photos: dict[str, bytes],
) -> None:
    originals = {seed: (name, label) for name, label, seed, oddity in PLAN[:N_TRAIN] if not oddity}
    again = [photo for photo in PLAN if photo[3] in ("copy", "crop")]
    assert len(again) >= 4
    for name, label, seed, _ in again:
        original, label_of_original = originals[seed]
        assert label == label_of_original
        assert photos[name] != photos[original]


def test_equal_arguments_give_equal_bytes_in_another_process(tmp_path: Path) -> None:
    files = [write_edition(tmp_path / f"{i}", seed=i, n_train=40, n_test=20) for i in (1, 2)]
    code = (
        "import sys, pathlib; from comp.rehearsal.drawing import write_edition; "
        "write_edition(pathlib.Path(sys.argv[1]), seed=1, n_train=40, n_test=20); "
        "assert not {'torch', 'cv2', 'timm', 'sklearn'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "again"], check=True)
    for path, other in zip(*files, strict=True):
        (again,) = (tmp_path / "again").rglob(path.name)
        assert again.read_bytes() == path.read_bytes()
        assert other.read_bytes() != path.read_bytes()


def test_an_edition_is_kept_until_something_changes_and_is_never_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn: list[str] = []

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    def quick(*photo: object) -> bytes:
        drawn.append(repr(photo))
        return drawn[-1].encode()

    def n_drawn(seed: int = 1) -> int:
        drawn.clear()
        write_edition(tmp_path, seed=seed, n_train=41, n_test=20, reporter=Reporter())
        return len(drawn)

    monkeypatch.setattr(drawing, "encode_photo", quick)
    monkeypatch.setattr(progress, "QUIET_S", 0.0)
    assert [n_drawn(), n_drawn()] == [61, 0]
    assert "drawing: 61 photos in" in capsys.readouterr().err
    assert [n_drawn(seed=2), n_drawn(seed=2), n_drawn()] == [61, 0, 0]
    for path in list(tmp_path.rglob("*.*")):
        path.unlink()
        assert [n_drawn(seed=1) + n_drawn(seed=2), n_drawn()] == [61, 0], path
    monkeypatch.setattr(drawing, "__file__", __file__)  # other code
    monkeypatch.setattr(progress, "QUIET_S", 0.0)
    assert [n_drawn(), n_drawn()] == [61, 0]
    for seed, interrupted_in in ((3, "encode_photo"), (4, "write_text")):
        with monkeypatch.context() as patch:
            patch.setattr(drawing, interrupted_in, interrupt)
            with pytest.raises(KeyboardInterrupt):
                n_drawn(seed)
        assert [n_drawn(seed), n_drawn(seed)] == [61, 0]
