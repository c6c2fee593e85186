"""Drawn photos and the edition made of them: the same each time, honest about the class, packed as Kaggle packs."""

import io
import itertools
import subprocess
import sys
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image, ImageOps
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from comp.competition import COMPETITION
from comp.errors import DataError
from comp.progress import Reporter
from comp.rehearsal.drawing import draw, edition, picture, write_edition
from comp.rehearsal.drawing.anatomy import anatomy, coat, pick, pose
from comp.rehearsal.drawing.edition import ODDITIES, SMALLEST, Photo, encode_photo, plan_edition
from comp.rehearsal.drawing.picture import SIDES_PX, lot

N_TRAIN, N_TEST = 240, 40


class Edition(NamedTuple):
    archive: Path
    solution: Path
    photos: dict[str, bytes]  # by member name, of both halves
    plan: list[Photo]


def photos_of(archive: Path) -> dict[str, bytes]:
    photos = {}
    with zipfile.ZipFile(archive) as outer:
        for half in COMPETITION.archives:
            with zipfile.ZipFile(io.BytesIO(outer.read(half))) as inner:
                photos |= {name: inner.read(name) for name in inner.namelist()}
    return photos


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Edition:
    archive, solution = write_edition(
        tmp_path_factory.mktemp("edition"), seed=3, n_train=N_TRAIN, n_test=N_TEST
    )
    return Edition(
        archive,
        solution,
        photos_of(archive),
        list(itertools.chain(*plan_edition(3, N_TRAIN, N_TEST, COMPETITION))),
    )


def held_out_loss(features: np.ndarray, labels: np.ndarray) -> float:
    """Log loss of a logistic regression on photos that it has not seen."""
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
    return float(
        log_loss(
            labels, cross_val_predict(model, features, labels, cv=5, method="predict_proba")[:, 1]
        )
    )


def difference(one: Image.Image, other: Image.Image) -> float:
    """Mean absolute difference of two pictures, 0..255, seen small."""
    small = [
        np.asarray(image.convert("L").resize((32, 32), Image.Resampling.BOX), float)
        for image in (one, other)
    ]
    return float(np.abs(small[0] - small[1]).mean())


def test_a_picture_is_the_same_each_time_and_another_for_each_seed() -> None:
    pictures = [draw(seed, seed % 2).tobytes() for seed in range(8)]
    assert [draw(seed, seed % 2).tobytes() for seed in reversed(range(8))] == pictures[::-1]
    assert len(set(pictures)) == 8


def test_the_class_reaches_a_picture_through_the_anatomy_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert all(draw(seed, 0).tobytes() != draw(seed, 1).tobytes() for seed in range(10))
    monkeypatch.setattr(picture, "anatomy", lambda label, luck: anatomy(1, luck))
    assert all(draw(seed, 0).tobytes() == draw(seed, 1).tobytes() for seed in range(10))


def test_the_anatomy_tells_the_class_but_no_single_trait_does() -> None:
    labels = np.arange(400) % 2
    builds = [
        asdict(anatomy(label, lot(seed, "anatomy"))) for seed, label in enumerate(labels.tolist())
    ]
    numbers = np.array(
        [
            [float(value) for value in build.values() if isinstance(value, (int, float))]
            for build in builds
        ]
    )
    assert held_out_loss(numbers, labels) < 0.15
    assert min(held_out_loss(column[:, None], labels) for column in numbers.T) > 0.2
    for trait in ("ear", "iris"):
        of_cats, of_dogs = (
            {build[trait] for build, mine in zip(builds, labels, strict=True) if mine == label}
            for label in (0, 1)
        )
        assert of_cats & of_dogs, trait


def test_equal_luck_takes_as_many_numbers_for_a_cat_as_for_a_dog() -> None:
    for seed in range(30):
        cat, dog = lot(seed, "anatomy"), lot(seed, "anatomy")
        anatomy(0, cat)
        anatomy(1, dog)
        assert cat.random() == dog.random()


def test_coat_and_pose_take_every_form() -> None:
    coats, poses = (
        [coat(lot(seed, "coat")) for seed in range(150)],
        [pose(lot(seed, "pose")) for seed in range(150)],
    )
    assert {len({one.pattern for one in coats}), len({one.posture for one in poses})} == {6, 5}
    assert {one.white_chest for one in coats} == {one.flip for one in poses} == {False, True}


def test_a_lot_falls_as_its_weights_say() -> None:
    draws = [
        pick(lot(seed, "weights"), {"never": 0.0, "once": 1.0, "thrice": 3.0})
        for seed in range(400)
    ]
    assert set(draws) == {"once", "thrice"}
    assert 0.68 < draws.count("thrice") / 400 < 0.82


def test_sides_keep_to_their_range_and_vary() -> None:
    sizes = np.array([picture.picture_size(lot(seed, "size")) for seed in range(500)])
    assert sizes.min() == SIDES_PX[0]
    assert 300 < sizes.max() <= SIDES_PX[1]
    assert len(np.unique(sizes, axis=0)) > 250


def test_colours_sizes_and_file_sizes_do_not_betray_the_class(drawn: Edition) -> None:
    plain = [photo for photo in drawn.plan if photo.oddity == "none"]
    features = []
    for photo in plain:
        data = drawn.photos[photo.name]
        pixels = np.asarray(Image.open(io.BytesIO(data)), float)
        colours = np.concatenate(
            [
                np.histogram(pixels[..., channel], 8, (0, 256), density=True)[0]
                for channel in range(3)
            ]
        )
        height, width = pixels.shape[:2]
        features.append(
            [
                *colours,
                width,
                height,
                width / height,
                len(data),
                len(data) / (width * height),
                pixels.mean(),
                pixels.std(),
            ]
        )
    labels = np.array([photo.label for photo in plain])
    assert held_out_loss(np.array(features), labels) > 0.66
    features_that_tell = np.array(features) + labels[:, None] * np.std(features, axis=0)
    assert held_out_loss(features_that_tell, labels) < 0.5


def test_an_edition_has_kaggles_members_and_every_id_once(drawn: Edition) -> None:
    with zipfile.ZipFile(drawn.archive) as archive:
        assert archive.testzip() is None
        assert sorted(archive.namelist()) == ["sample_submission.csv", "test.zip", "train.zip"]
        sample = archive.read(COMPETITION.sample).decode()
    assert sample == "id,label\n" + "".join(f"{index},0.5\n" for index in range(1, N_TEST + 1))
    expected = {
        f"train/{name}.{index}.jpg" for name in ("cat", "dog") for index in range(N_TRAIN // 2)
    }
    assert set(drawn.photos) == expected | {f"test/{index}.jpg" for index in range(1, N_TEST + 1)}
    assert drawn.archive.name == "dogs-vs-cats-redux-kernels-edition.zip"


def test_the_solution_names_what_was_drawn(drawn: Edition) -> None:
    header, *rows = drawn.solution.read_text().splitlines()
    labels = dict(row.split(",") for row in rows)
    assert header == "id,label"
    assert list(labels) == [str(index) for index in range(1, N_TEST + 1)]
    assert list(labels.values()).count("1") == N_TEST // 2
    assert all(
        labels[photo.name[5:-4]] == str(photo.label)
        for photo in drawn.plan
        if photo.name.startswith("test/")
    )
    assert all(
        photo.name[6:9] == ("cat", "dog")[photo.label]
        for photo in drawn.plan
        if photo.name.startswith("train/")
    )


def test_a_member_holds_the_picture_that_was_planned(drawn: Edition) -> None:
    for photo in [photo for photo in drawn.plan if photo.oddity == "none"][::40]:
        assert (
            difference(
                Image.open(io.BytesIO(drawn.photos[photo.name])), draw(photo.seed, photo.label)
            )
            < 2
        )


def test_the_zips_are_packed_like_kaggles(drawn: Edition, real_archive: Path) -> None:
    def form(path: Path | io.BytesIO) -> set[tuple[object, ...]]:
        with zipfile.ZipFile(path) as archive:
            return {
                (info.compress_type, info.date_time, info.external_attr, info.create_system)
                for info in archive.infolist()
            }

    def inner(path: Path, name: str) -> io.BytesIO:
        with zipfile.ZipFile(path) as archive:
            return io.BytesIO(archive.read(name))

    assert form(drawn.archive) == form(real_archive)
    for name in COMPETITION.archives:
        assert form(inner(drawn.archive, name)) == form(inner(real_archive, name))


def test_every_oddity_is_there_and_is_what_it_says(drawn: Edition) -> None:
    for half in ("train/", "test/"):
        odd = {
            name: [
                photo
                for photo in drawn.plan
                if photo.oddity == name and photo.name.startswith(half)
            ]
            for name in ODDITIES
        }
        assert all(odd.values())
        assert len(odd["truncated"]) == 1
        assert sum(map(len, odd.values())) < 0.25 * sum(
            photo.name.startswith(half) for photo in drawn.plan
        )
    forms = {"grey": ("JPEG", "L"), "cmyk": ("JPEG", "CMYK"), "png": ("PNG", "RGB")}
    for photo in drawn.plan:
        with Image.open(io.BytesIO(drawn.photos[photo.name])) as image:
            assert (image.format, image.mode) == forms.get(photo.oddity, ("JPEG", "RGB")), photo
            assert (image.getexif().get(0x0112, 1) != 1) == (photo.oddity == "rotated")


def test_a_rotated_photo_stands_upright_once_its_exif_is_heeded() -> None:
    found = set()
    for seed in range(12):
        image = Image.open(
            io.BytesIO(encode_photo(Photo(name="a", label=1, seed=seed, oddity="rotated")))
        )
        found.add(image.getexif()[0x0112])
        assert difference(ImageOps.exif_transpose(image), draw(seed, 1)) < 2
    assert found == {3, 6, 8}


def test_only_the_truncated_photos_cannot_be_decoded(drawn: Edition) -> None:
    broken = []
    for photo in drawn.plan:
        try:
            Image.open(io.BytesIO(drawn.photos[photo.name])).load()
        except OSError:
            broken.append(photo.oddity)
    assert broken == ["truncated", "truncated"]


def test_copies_and_crops_look_like_a_training_photo_of_their_class_and_have_other_bytes(
    drawn: Edition,
) -> None:
    originals = {
        photo.seed: photo
        for photo in drawn.plan
        if photo.oddity == "none" and photo.name.startswith("train/")
    }
    again = [photo for photo in drawn.plan if photo.oddity in ("copy", "crop")]
    assert {photo.name.split("/")[0] for photo in again} == {"train", "test"}
    for photo in again:
        original = originals[photo.seed]
        assert original.label == photo.label
        assert drawn.photos[original.name] != drawn.photos[photo.name]
        both = [Image.open(io.BytesIO(drawn.photos[name])) for name in (original.name, photo.name)]
        assert difference(*both) < (2 if photo.oddity == "copy" else 12)
        assert (both[0].size == both[1].size) == (photo.oddity == "copy")


def test_equal_arguments_give_equal_bytes_and_other_seeds_do_not(tmp_path: Path) -> None:
    n_train, n_test = SMALLEST
    editions = [
        write_edition(tmp_path / str(k), seed=seed, n_train=n_train, n_test=n_test)
        for k, seed in enumerate((1, 1, 2))
    ]
    archives, solutions = ([files[which].read_bytes() for files in editions] for which in (0, 1))
    assert archives[0] == archives[1] != archives[2]
    assert solutions[0] == solutions[1] != solutions[2]


def test_a_second_call_draws_nothing_unless_something_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Photo] = []

    def quick(photo: Photo) -> bytes:
        calls.append(photo)
        return repr(photo).encode()

    def n_drawn(seed: int = 1) -> int:
        calls.clear()
        write_edition(tmp_path, seed=seed, n_train=SMALLEST[0], n_test=SMALLEST[1])
        return len(calls)

    monkeypatch.setattr(edition, "encode_photo", quick)
    archive, solution = tmp_path / f"{COMPETITION.slug}.zip", tmp_path / "solution.csv"
    assert [n_drawn(), n_drawn()] == [sum(SMALLEST), 0]
    assert [n_drawn(seed=2), n_drawn(seed=2), n_drawn()] == [sum(SMALLEST), 0, sum(SMALLEST)]
    whole = archive.read_bytes()
    archive.write_bytes(whole[:-9])
    assert [n_drawn(), n_drawn()] == [sum(SMALLEST), 0]
    solution.unlink()
    assert [n_drawn(), n_drawn()] == [sum(SMALLEST), 0]
    assert archive.read_bytes() == whole
    monkeypatch.setattr(edition, "_code", lambda: ["another generator"])
    assert [n_drawn(), n_drawn()] == [sum(SMALLEST), 0]


def test_an_interrupted_edition_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = iter(range(30))

    def interrupted(photo: Photo) -> bytes:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return b"photo"

    monkeypatch.setattr(edition, "encode_photo", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_edition(tmp_path, seed=1, n_train=SMALLEST[0], n_test=SMALLEST[1])
    assert list(tmp_path.iterdir()) == []


def test_too_few_photos_are_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        DataError,
        match=r"^39 training and 20 test photos are too few to draw: ask for 40 and 20 at least$",
    ):
        write_edition(tmp_path, seed=1, n_train=39, n_test=20)
    assert list(tmp_path.iterdir()) == []


def test_progress_counts_every_photo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(edition, "encode_photo", lambda photo: b"photo")
    write_edition(tmp_path, seed=1, n_train=41, n_test=20, reporter=Reporter())
    assert "drawing: 61 photos in" in capsys.readouterr().err


def test_drawing_needs_no_torch() -> None:
    code = "import sys, comp.rehearsal.drawing; assert not {'torch', 'cv2', 'timm', 'sklearn'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
