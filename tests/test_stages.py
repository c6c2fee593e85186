"""The four stages on drawn photos, through the real Kaggle client to a server on this machine."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from heard import Heard
from odd_photos import jpeg, packed, write_archive, zipped
from tiny import TINY, contents, random_network
from twin.server import Twin

from comp.__main__ import main
from comp.competition import COMPETITION
from comp.data.manifest import natural_key, read_manifest
from comp.data.stage import prepare
from comp.errors import DataError, RecipeError, StaleError, TrainingError, UserError
from comp.kaggle import Kaggle
from comp.network.embedder import Embedder
from comp.options import override
from comp.predict.stage import predict
from comp.progress import LOG, Reporter
from comp.recipe import Recipe
from comp.recipes import named
from comp.rehearsal.stage import check_learning
from comp.store import Workspace, read_json, write_json
from comp.submit.ledger import read_ledger
from comp.submit.stage import submit
from comp.train.files import RECORD
from comp.train.fits import HeadFit
from comp.train.lr_finder import find_lr
from comp.train.run import Run, open_run, trained_run
from comp.train.stage import train
from comp.train.tuning import NetworkFit

HEAD = override(named("lite0_head"), ["pixels.size_px=96"])
TUNE = override(TINY, ["training.epochs=2", "training.peak_lr=1e-3", "training.head_start=true"])
TAIL = override(TUNE, ["training.trainable=from:blocks.4", "training.cached_views=2"])


@pytest.fixture(scope="module")
def server(edition: tuple[Path, Path]) -> Iterator[Twin]:
    with Twin(*edition, daily_limit=100) as running:
        yield running


def refuse_to_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HeadFit, "fit", lambda *_: pytest.fail("a head was fitted"))


def column(path: Path, name: str) -> "pd.Series[float]":
    return pd.read_csv(path, dtype={"id": str}).set_index("id")[name]


def edit_manifest(
    workspace: Workspace, split: str, edited: pd.DataFrame | None = None
) -> pd.DataFrame:
    """The manifest as text, by id; written, if it is given."""
    if edited is not None:
        edited.to_csv(workspace.manifest(split), index=False)
    table = pd.read_csv(workspace.manifest(split), dtype=str, keep_default_na=False)
    return table.set_index("id", drop=False)


def test_from_the_archive_to_a_score_and_a_second_time_nothing_is_computed(
    server: Twin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = named("lite0_head")
    workspace, heard = Workspace(tmp_path / "w"), Heard()
    kaggle = Kaggle(COMPETITION, heard, env=server.environment(tmp_path / "home"))

    def all_four() -> float | None:
        def download() -> Path:
            return kaggle.download(workspace.raw)

        prepare(workspace, COMPETITION, download, kaggle.is_real, None, heard)
        run = train(workspace, recipe, "cpu", heard)
        predict(workspace, COMPETITION, recipe, "cpu", heard)
        return submit(workspace, COMPETITION, kaggle, run.folder, heard).public_score

    score = all_four()
    assert score is not None
    assert score < 0.65
    check_learning(trained_run(workspace, recipe))
    n_uploads, before = server.n_uploads, contents(workspace.root)
    monkeypatch.setattr(Embedder, "__call__", lambda *_: pytest.fail("a backbone was run"))
    refuse_to_fit(monkeypatch)
    assert all_four() == score
    assert server.n_uploads == n_uploads
    assert contents(workspace.root) == before
    assert str(heard).count("nothing to do") == 3
    (row,) = read_ledger(workspace.ledger)
    figures = read_json(open_run(workspace, recipe).folder / "calibration.json")
    assert row.public_score == score
    for name in ("cv_raw", "cv_clipped"):
        assert getattr(row, name) == pytest.approx(figures[name], abs=1e-6)


@pytest.mark.parametrize(("cv", "learned"), [(0.5, True), (0.8, False)])
def test_a_rehearsal_fails_unless_something_was_learned(
    tmp_path: Path, cv: float, learned: bool
) -> None:
    run = Run(workspace=Workspace(tmp_path), recipe=HEAD, data_key="x")
    run.folder.mkdir(parents=True)
    pd.DataFrame({"id": range(4), "label": [0, 1, 0, 1]}).to_csv(run.oof)
    write_json(run.folder / "calibration.json", {"cv_raw": cv})
    fails = pytest.raises(TrainingError, match="has learned nothing")
    with nullcontext() if learned else fails:
        check_learning(run)


def test_every_training_photo_has_one_logit_from_the_fold_that_did_not_train_on_it(
    drawn_copy: Workspace,
) -> None:
    manifest = read_manifest(drawn_copy.manifest("train"))
    trained = manifest[manifest["fold"].notna()]
    assert len(trained) < len(manifest)  # one photo is truncated
    before = pd.read_csv(train(drawn_copy, HEAD, "cpu", Reporter()).oof, dtype={"id": str})
    for name in ("id", "fold", "label"):
        assert list(before[name]) == list(trained[name])
    # with all labels of fold 0 flipped, its own logits stay and those of the others change
    table = edit_manifest(drawn_copy, "train")
    table.loc[table["fold"] == "0", "label"] = table["label"].map({"0": "1", "1": "0"})
    edit_manifest(drawn_copy, "train", table)
    after = pd.read_csv(train(drawn_copy, HEAD, "cpu", Reporter()).oof)
    held_out = before["fold"] == 0
    assert np.array_equal(before["logit"][held_out], after["logit"][held_out])
    assert not np.isclose(before["logit"][~held_out], after["logit"][~held_out]).any()


@pytest.mark.parametrize("recipe", [HEAD, TUNE, TAIL], ids=["head", "network", "tail"])
def test_the_order_of_rows_in_a_manifest_changes_no_result(
    drawn_copy: Workspace, recipe: Recipe
) -> None:
    recipe = override(recipe, ["folds.n=2", "training.epochs=1"][: 1 + (recipe is not HEAD)])
    made = []
    for order in (1, -1):
        for split in ("train", "test"):
            edit_manifest(drawn_copy, split, edit_manifest(drawn_copy, split)[::order])
        run = train(drawn_copy, recipe, "cpu", Reporter())
        predict(drawn_copy, COMPETITION, recipe, "cpu", Reporter())
        made.append([(run.folder / name).read_bytes() for name in ("oof.csv", "test.csv")])
    assert made[0] == made[1]


def test_a_photo_deleted_after_make_data_is_there_again_after_the_remedy(
    drawn_copy: Workspace, edition: tuple[Path, Path]
) -> None:
    before, other_canvas = contents(drawn_copy.photos), override(HEAD, ["pixels.size_px=48"])
    (drawn_copy.photos / "train" / "cat.3.jpg").unlink()
    with pytest.raises(
        DataError, match=r"cat\.3\.jpg cannot be read .*delete the folder"
    ) as caught:
        train(drawn_copy, other_canvas, "cpu", Reporter())
    shutil.rmtree(str(caught.value).partition("delete the folder ")[2].partition(" and run")[0])
    prepare(drawn_copy, COMPETITION, edition[0], False, None, Reporter())
    assert contents(drawn_copy.photos) == before
    train(drawn_copy, other_canvas, "cpu", Reporter())


@pytest.mark.parametrize("folder", ["train/cat/", "cats/", "train/Dog/"])
def test_photos_in_class_folders_get_a_remedy_that_helps(
    edition: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], folder: str
) -> None:
    inner_train = zipped({f"{folder}{index}.jpg": jpeg(index) for index in range(3)})
    members = packed({}, {"1": jpeg(9)}, inner_train=inner_train)
    archive = write_archive(tmp_path / "mine.zip", members)
    (tmp_path / "solution.csv").write_text("id,label\n1,1\n")
    given = ["--archive", str(archive), "--solution", str(tmp_path / "solution.csv")]
    assert main(["rehearsal", "--workspace", str(tmp_path), "--recipe", "lite0_head", *given]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "3 files whose name does not match train/((cat|dog)" in error
    assert f"the first is '{folder}0.jpg': pack them without folders of their classes" in error


def test_ids_are_keys_and_a_photo_that_cannot_be_decoded_gets_the_prior(
    drawn_copy: Workspace,
) -> None:
    """When photos of three test ids change places, their logits do too, and no others."""
    heard = Heard()
    run = train(drawn_copy, HEAD, "cpu", Reporter())
    predict(drawn_copy, COMPETITION, HEAD, "cpu", heard)
    before = column(run.folder / "test.csv", "logit")
    assert list(before.index) == sorted(before.index, key=natural_key)
    table = edit_manifest(drawn_copy, "test")
    (blind,) = table["id"][table["verdict"] == "truncated"]
    assert np.isnan(before[blind])
    assert column(run.folder / "test.csv", "prob")[blind] == pytest.approx(0.5, abs=0.02)
    assert f"1 test photo cannot be decoded, {blind} first" in str(heard)

    first, second, third = [id for id in before.index if id != blind][:3]
    swap = {first: second, second: third, third: first}
    moved, others = table.copy(), [name for name in table.columns if name != "id"]
    photos = {id: (drawn_copy.photos / "test" / f"{id}.jpg").read_bytes() for id in swap}
    for new, old in swap.items():
        moved.loc[new, others] = table.loc[old, others]
        (drawn_copy.photos / "test" / f"{new}.jpg").write_bytes(photos[old])
    edit_manifest(drawn_copy, "test", moved)
    predict(drawn_copy, COMPETITION, HEAD, "cpu", Reporter())
    after = column(run.folder / "test.csv", "logit")
    expected = before[[swap.get(id, id) for id in before.index]]
    assert np.array_equal(after.to_numpy(), expected.to_numpy(), equal_nan=True)


def test_a_killed_run_resumes_at_the_first_unfinished_fold_and_ends_the_same(
    drawn_copy: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train(drawn_copy, TUNE, "cpu", Reporter())
    reference = contents(run.folder)
    shutil.rmtree(run.folder)
    fitted, fit, limit = list[int](), NetworkFit.fit, 2

    def counted(self: NetworkFit, fold: int) -> dict[str, torch.Tensor]:
        if len(fitted) == limit:
            raise KeyboardInterrupt
        fitted.append(fold)
        return fit(self, fold)

    monkeypatch.setattr(NetworkFit, "fit", counted)
    with pytest.raises(KeyboardInterrupt):
        train(drawn_copy, TUNE, "cpu", Reporter())
    assert [fold for fold in run.folds if run.checkpoint(fold).exists()] == [0, 1]
    limit = 5
    train(drawn_copy, TUNE, "cpu", Reporter())
    assert fitted == [0, 1, 2, 3, 4]
    again = contents(run.folder)
    for with_times in (run.origin, run.folder / RECORD, run.folder / LOG):
        del reference[with_times], again[with_times]
    assert again == reference


def test_a_fine_tune_goes_through_train_predict_and_submit(
    drawn_copy: Workspace, server: Twin, tmp_path: Path
) -> None:
    settings = ["prediction.views=multi_scale", "training.trainable=last:2", "folds.n=2"]
    recipe, heard = override(TUNE, [*settings, "training.epochs=1"]), Heard()
    run = train(drawn_copy, recipe, "cpu", heard)
    predict(drawn_copy, COMPETITION, recipe, "cpu", heard)
    kaggle = Kaggle(COMPETITION, heard, env=server.environment(tmp_path / "home"))
    assert submit(drawn_copy, COMPETITION, kaggle, run.folder, heard).public_score is not None
    assert "no GPU: tiny will train for under a minute on this CPU" in str(heard)
    assert "parameters train on" in str(heard)
    lines = (drawn_copy.submissions / f"{run.name}.csv").read_bytes().split(b"\n")
    assert lines[0] == b"id,label"
    assert [int(line.split(b",")[0]) for line in lines[1:-1]] == list(range(1, 21))


@pytest.mark.parametrize("has_links", [True, False])
def test_a_changed_prediction_adopts_the_checkpoints_with_or_without_hard_links(
    has_links: bool, drawn_copy: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: object, **__: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "no hard links")

    first = train(drawn_copy, HEAD, "cpu", Reporter())
    refuse_to_fit(monkeypatch)
    if not has_links:
        monkeypatch.setattr(os, "link", no_links)
    for change in ("prediction.clip=0.01", "prediction.views=none"):
        heard = Heard()
        run = train(drawn_copy, override(HEAD, [change]), "cpu", heard)
        assert run.name != first.name
        assert "5 folds adopted" in str(heard)
        for fold in run.folds:
            assert run.checkpoint(fold).read_bytes() == first.checkpoint(fold).read_bytes()
            assert run.checkpoint(fold).samefile(first.checkpoint(fold)) == has_links
    assert not column(run.oof, "logit").equals(column(first.oof, "logit"))  # other views


def test_a_subset_keeps_the_classes_even_and_its_photos_in_their_folds(
    drawn_copy: Workspace,
) -> None:
    run = train(drawn_copy, override(HEAD, ["folds.n_photos=60"]), "cpu", Reporter())
    oof = pd.read_csv(run.oof, dtype={"id": str})
    assert 50 <= len(oof) <= 72
    assert 0.4 < oof["label"].mean() < 0.6
    fold_of = read_manifest(drawn_copy.manifest("train")).set_index("id")["fold"]
    assert list(oof["fold"]) == [int(fold_of[id]) for id in oof["id"]]


def test_bad_input_ends_in_one_line_before_any_work(drawn_copy: Workspace, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="run `make data` first"):
        train(Workspace(tmp_path / "empty"), HEAD, "cpu", Reporter())
    with pytest.raises(StaleError, match="run `make train`"):
        predict(drawn_copy, COMPETITION, HEAD, "cpu", Reporter())
    for settings in (
        ["pixels.fit=squash", "prediction.views=five_crop"],
        ["pixels.fit=shorter", "pixels.canvas=1.0", "prediction.views=multi_scale"],
    ):
        with pytest.raises(RecipeError, match=r"set pixels\.canvas above 1"):
            train(drawn_copy, override(HEAD, settings), "cpu", Reporter())
    assert not drawn_copy.runs.exists()


@pytest.mark.parametrize(
    ("setting", "device", "says"),
    [
        ("pixels.size_px=20", "cpu", r"vgg11 takes no images of 20 px .*pixels\.size_px=32"),
        ("training.trainable=from:nowhere", "cpu", "vgg11 has no module 'nowhere'"),
        ("model.weights=none.pth", "cpu", "no weights at none.pth"),
        ("pixels.size_px=32", "tpu", "no device 'tpu' on this machine"),
    ],
)
@pytest.mark.parametrize("command", [train, find_lr])
def test_what_cannot_be_computed_is_refused_before_photos_are_decoded(
    setting: str, device: str, says: str, command: Any, drawn_copy: Workspace
) -> None:
    settings = ["model.backbone=vgg11", "model.weights=random", "pixels.size_px=32", setting]
    before = contents(drawn_copy.root)
    with pytest.raises(UserError, match=says):
        command(drawn_copy, override(named("lite0_finetune"), settings), device, Reporter())
    assert contents(drawn_copy.root) == before


def test_a_run_neither_resumes_nor_predicts_with_other_weights_nor_is_adopted(
    drawn_copy: Workspace, tmp_path: Path
) -> None:
    weights, says = tmp_path / "weights.pth", r"began with other weights than .*weights\.pth"
    network = random_network(HEAD.model.backbone)
    torch.save(network.state_dict(), weights)
    recipe, heard = override(HEAD, [f"model.weights={weights}"]), Heard()
    run = train(drawn_copy, recipe, "cpu", heard)
    next(network.parameters()).data.add_(1)
    torch.save(network.state_dict(), weights)
    with pytest.raises(StaleError, match=f"{says}: delete it, or name the old file"):
        predict(drawn_copy, COMPETITION, recipe, "cpu", heard)
    run.oof.unlink()
    with pytest.raises(StaleError, match=says):
        train(drawn_copy, recipe, "cpu", heard)
    train(drawn_copy, override(recipe, ["prediction.views=none"]), "cpu", heard)
    assert "adopted" not in str(heard)


def test_a_fold_that_is_fitted_again_is_scored_and_predicted_again(drawn_copy: Workspace) -> None:
    run = train(drawn_copy, HEAD, "cpu", Reporter())
    predict(drawn_copy, COMPETITION, HEAD, "cpu", Reporter())
    (predicted,) = run.folder.glob("fold-1-test-*.csv")
    kept = {path: path.stat().st_mtime_ns for path in run.folder.glob("fold-0*")}
    right = pd.read_csv(run.scores(1))
    right.assign(logit=0.0).to_csv(run.scores(1), index=False)
    run.checkpoint(1).unlink()
    train(drawn_copy, HEAD, "cpu", Reporter())
    assert np.allclose(pd.read_csv(run.scores(1))["logit"], right["logit"])
    assert not predicted.exists()
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_the_command_line_ends_user_errors_in_one_line_and_status_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command, *words in (
        ["train", "--recipe", "nothing"],
        ["train", "--set", "a=1"],
        ["train", "--device", "tpu"],
        ["submit"],
    ):
        assert main([command, "--workspace", str(tmp_path), *words]) == 1
        err = capsys.readouterr().err
        assert err.startswith("error: ")
        assert err.count("\n") == 1


def test_the_command_line_lists_its_stages_and_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "rehearsal" in capsys.readouterr().out
    assert main(["recipes"]) == 0
    assert "lite0_head" in capsys.readouterr().out
