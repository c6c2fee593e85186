"""Photos of one's own: what the run says of the same photos in the test set, and no more."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from finished_run import TINY_HEAD
from heard import Heard
from tiny import IMAGENET, TINY, contents

from comp.__main__ import main
from comp.competition import COMPETITION
from comp.errors import DataError, RecipeError, StaleError
from comp.options import override
from comp.predict.blend import blend_runs
from comp.predict.classify import classified, curve_of
from comp.predict.stage import predict
from comp.progress import Reporter
from comp.recipe import FineTune, Recipe
from comp.store import Workspace
from comp.train.inputs import measure_colours, read_inputs
from comp.train.stage import train

TWO_FOLDS = ["folds.n=2", "prediction.noise_rate=0", "prediction.clip=1e-9"]
TAIL = FineTune(epochs=1, batch_size=8, trainable="last:1", cached_views=1, head_start=False)
FAST = FineTune(epochs=2, batch_size=8, head_start=False, peak_lr=1e-2)
MEASURED = TINY.pixels.replace(normalise="measured")
RECIPES = {
    "head": TINY_HEAD,
    "tail": TINY.replace(training=TAIL),
    "network": TINY.replace(
        training=FAST, pixels=MEASURED, prediction=TINY.prediction.replace(views="flip")
    ),
}


def finish(workspace: Workspace, recipe: Recipe) -> Path:
    train(workspace, recipe, "cpu", Reporter())
    return predict(workspace, COMPETITION, recipe, "cpu", Reporter()).folder


def expected(folder: Path) -> "pd.Series[float]":
    """What the run says of its test photos that can be decoded."""
    table = pd.read_csv(folder / "test.csv", dtype={"id": str}).dropna()
    return table.set_index("id")["prob"]


def classify_tests(workspace: Workspace, folder: Path) -> "pd.Series[float]":
    """The probabilities of the test photos, as photos of one's own."""
    photos = workspace.photos / "test"
    table = classified(workspace, photos, folder, "cpu", Heard())
    return table.set_index(table["id"].str.removesuffix(".jpg"))["label"]


@pytest.mark.parametrize("kind", RECIPES)
def test_test_photos_as_photos_of_ones_own_get_the_probabilities_of_the_run(
    drawn_copy: Workspace, kind: str
) -> None:
    folder = finish(drawn_copy, override(RECIPES[kind], TWO_FOLDS))
    wanted = expected(folder)
    for name in ("train.csv", "pixels", "features"):  # a run and its weights are enough
        if (drawn_copy.data / name).exists():
            (drawn_copy.data / name).rename(drawn_copy.data / f"{name}.gone")
    found = classify_tests(drawn_copy, folder)
    assert list(found.index) == list(wanted.index)
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert wanted.std() > 1e-4


def test_colours_measured_for_a_fold_are_read_back_from_its_checkpoint(
    drawn_copy: Workspace,
) -> None:
    run = train(drawn_copy, override(RECIPES["network"], TWO_FOLDS), "cpu", Reporter())
    inputs = read_inputs(run, Reporter())
    ids = list(inputs.photos["id"][inputs.training_rows(1)])
    measured = measure_colours(inputs.pixels, inputs.pixels.rows(ids).tolist())
    fitted = inputs.preprocessing_for(1)
    assert (fitted.mean, fitted.std) == measured != (IMAGENET.mean, IMAGENET.std)


def test_noise_rate_and_clip_are_for_the_leaderboard_alone(drawn_copy: Workspace) -> None:
    settings = ["folds.n=2", "prediction.noise_rate=0.1", "prediction.clip=0.3"]
    folder = finish(drawn_copy, override(TINY_HEAD, settings))
    logits = pd.read_csv(folder / "test.csv")["logit"].dropna()
    found = classify_tests(drawn_copy, folder)
    np.testing.assert_allclose(found, curve_of(folder).probs(logits), atol=1e-6)


def test_a_blend_mixes_its_runs_by_their_weights_and_refuses_runs_that_changed(
    drawn_copy: Workspace,
) -> None:
    recipes = [
        TINY_HEAD,
        TINY_HEAD.replace(name="other", training=TINY_HEAD.training.replace(penalties=(1.0,))),
    ]
    runs = [finish(drawn_copy, override(recipe, TWO_FOLDS)) for recipe in recipes]
    how = (["prediction.noise_rate=0", "prediction.clip=1e-9"], "cpu", Reporter())
    blend = blend_runs(drawn_copy, COMPETITION, runs, "equal", *how)
    np.testing.assert_allclose(classify_tests(drawn_copy, blend), expected(blend), atol=1e-6)
    concat = blend_runs(drawn_copy, COMPETITION, runs, "features", *how)
    with pytest.raises(RecipeError, match="one head on the features of 2 runs"):
        classify_tests(drawn_copy, concat)
    (runs[0] / "oof.csv").write_text((runs[0] / "oof.csv").read_text() + "\n")
    with pytest.raises(StaleError, match="have changed since: blend them again"):
        classify_tests(drawn_copy, blend)


def test_files_of_any_name_are_classified_and_those_that_are_no_photos_are_named(
    drawn_copy: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = finish(drawn_copy, override(TINY_HEAD, TWO_FOLDS))
    given = drawn_copy.root / "my pets"
    (given / "a, b").mkdir(parents=True)
    photo, ids = drawn_copy.photos / "test", list(expected(folder).index)
    names = ["10.png", "9", "a, b/twice.jpg", "a, b/twice"]
    for name, id in zip(names, (ids[0], ids[1], ids[2], ids[2]), strict=True):
        shutil.copyfile(photo / f"{id}.jpg", given / name)
    (given / "notes.txt").write_text("no photo")
    (given / ".hidden.jpg").write_text("no photo")
    before = contents(given)
    words = ["--photos", str(given), "--run", folder.name, "--workspace", str(drawn_copy.root)]
    for _ in range(2):
        assert main(["classify", *words, "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert out.count("1 file that cannot be decoded, left out: notes.txt") == 2
    found = pd.read_csv(folder / "classified-my pets.csv").set_index("id")["label"]
    assert list(found.index) == ["9", "10.png", "a, b/twice", "a, b/twice.jpg"]
    wanted = expected(folder)[[ids[1], ids[0], ids[2], ids[2]]]
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert contents(given) == before


def test_a_folder_without_photos_is_one_line(drawn_copy: Workspace, tmp_path: Path) -> None:
    folder = finish(drawn_copy, override(TINY_HEAD, TWO_FOLDS))
    for photos, says in ((tmp_path / "none", "no folder"), (tmp_path / "empty", "no file is in")):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(DataError, match=says):
            classified(drawn_copy, photos, folder, "cpu", Heard())
    (tmp_path / "empty" / "a.jpg").write_text("no photo")
    with pytest.raises(DataError, match="none of 1 file can be decoded"):
        classified(drawn_copy, tmp_path / "empty", folder, "cpu", Heard())
