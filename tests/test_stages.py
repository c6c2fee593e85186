"""The four stages together, on drawn photos, through the real Kaggle client to a server on this machine."""

import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from comp.train.workbench import Workbench
from twin.server import Twin

from comp.__main__ import main
from comp.competition import COMPETITION
from comp.data.manifest import natural_order, read_manifest
from comp.data.stage import prepare
from comp.errors import DataError, RecipeError, StaleError, TrainingError
from comp.kaggle import Kaggle
from comp.network.device import find_device
from comp.options import override
from comp.predict.stage import predict
from comp.progress import Reporter
from comp.recipe import FineTune, Model, Pixels, Recipe
from comp.recipes import named
from comp.rehearsal.drawing import write_edition
from comp.rehearsal.stage import check_learning
from comp.store import Workspace, read_json, write_json
from comp.submit.ledger import read_ledger
from comp.submit.stage import submit
from comp.train import features, stage
from comp.train.run import Run, open_run, trained_run
from comp.train.stage import train

CPU = find_device("cpu")
HEAD = override(named("lite0_head"), ["pixels.size_px=96"])
TUNE = Recipe(
    name="tiny_tune",
    model=Model(backbone="mobilenetv3_small_050", weights="random"),
    pixels=Pixels(size_px=32, canvas=1.25),
    training=FineTune(epochs=2, batch_size=8, peak_lr=1e-3),
)


class Heard(Reporter):
    """Keeps what was said."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)

    def warn(self, line: str) -> None:
        self.lines.append(f"warning: {line}")

    def __str__(self) -> str:
        return "\n".join(self.lines)


@pytest.fixture(scope="module")
def edition(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_edition(tmp_path_factory.mktemp("edition"), seed=1, n_train=120, n_test=30)


@pytest.fixture(scope="module")
def prepared(edition: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    workspace = Workspace(tmp_path_factory.mktemp("prepared"))
    prepare(workspace, COMPETITION, edition[0], False, None, Reporter())
    return workspace


@pytest.fixture
def workspace(prepared: Workspace, tmp_path: Path) -> Workspace:
    """A copy, so that tests do not see each other's runs."""
    shutil.copytree(prepared.root, tmp_path, dirs_exist_ok=True)
    return Workspace(tmp_path)


@pytest.fixture(scope="module")
def server(edition: tuple[Path, Path]) -> Iterator[Twin]:
    with Twin(*edition, daily_limit=100) as running:
        yield running


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_from_the_archive_to_a_score_and_a_second_time_nothing_is_computed(
    server: Twin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, heard = Workspace(tmp_path / "w"), Heard()
    kaggle = Kaggle(COMPETITION, heard, env=server.environment(tmp_path / "home"))

    def all_four() -> float | None:
        prepare(
            workspace,
            COMPETITION,
            lambda: kaggle.download(workspace.raw),
            kaggle.is_real,
            None,
            heard,
        )
        run = train(workspace, HEAD, "cpu", heard)
        predict(workspace, COMPETITION, HEAD, "cpu", heard)
        return submit(workspace, COMPETITION, kaggle, run.folder, heard).public_score

    score = all_four()
    assert score is not None
    assert score < 0.65
    check_learning(trained_run(workspace, HEAD))
    n_uploads, before = server.n_uploads, contents(workspace.root)
    monkeypatch.setattr(features.Embedder, "embed", lambda *_: pytest.fail("a backbone was run"))
    monkeypatch.setattr(stage, "fit_head", lambda *_, **__: pytest.fail("a head was fitted"))
    assert all_four() == score
    assert server.n_uploads == n_uploads
    assert contents(workspace.root) == before
    assert str(heard).count("nothing to do") == 3
    (row,) = read_ledger(workspace.ledger)
    figures = read_json(open_run(workspace, HEAD).folder / "calibration.json")
    assert row.public_score == score
    assert (row.cv_raw, row.cv_clipped) == pytest.approx(
        (figures["cv_raw"], figures["cv_clipped"]), abs=1e-6
    )


@pytest.mark.parametrize(
    ("head_start", "cv", "losses", "says"),
    [
        (False, 0.5, (0.7, 0.3), None),
        (False, 0.5, (0.3, 0.4), "the training loss of fold 0 went from 0.3000 to 0.4000"),
        (True, 0.5, (0.004, 0.0056), None),
        (True, 0.8, (0.7, 0.3), "has learned nothing"),
    ],
)
def test_a_rehearsal_fails_unless_something_was_learnt(
    tmp_path: Path, head_start: bool, cv: float, losses: tuple[float, float], says: str | None
) -> None:
    recipe = override(TUNE, [f"training.head_start={head_start}", "folds.fit=1"])
    run = Run(workspace=Workspace(tmp_path), recipe=recipe, data_key="x")
    run.folder.mkdir(parents=True)
    pd.DataFrame({"id": range(4), "label": [0, 1, 0, 1]}).to_csv(run.oof)
    pd.DataFrame({"loss": losses}).to_csv(run.folder / "fold-0-history.csv")
    write_json(run.folder / "calibration.json", {"cv_raw": cv})
    with nullcontext() if says is None else pytest.raises(TrainingError, match=says):
        check_learning(run)


def test_every_photo_that_trains_has_one_logit_from_the_fold_that_did_not_see_it(
    workspace: Workspace,
) -> None:
    run = train(workspace, HEAD, "cpu", Reporter())
    manifest = read_manifest(workspace.manifest("train"))
    trained = manifest[manifest["fold"].notna()]
    oof = pd.read_csv(run.oof, dtype={"id": str})
    assert list(oof["id"]) == list(trained["id"])
    assert list(oof["fold"]) == list(trained["fold"])
    assert list(oof["label"]) == list(trained["label"])
    assert np.isfinite(oof["logit"]).all()
    assert len(trained) < len(manifest)  # the truncated one


def test_labels_of_a_held_out_fold_do_not_change_its_own_logits(
    workspace: Workspace, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Poison: flip all labels of fold 0; its logits come from the other folds and stay, those of the others move."""
    before = pd.read_csv(train(workspace, HEAD, "cpu", Reporter()).oof)
    table = pd.read_csv(workspace.manifest("train"), dtype=str, keep_default_na=False)
    table.loc[table["fold"] == "0", "label"] = table["label"].map({"0": "1", "1": "0"})
    table.to_csv(workspace.manifest("train"), index=False)
    after = pd.read_csv(train(workspace, HEAD, "cpu", Reporter()).oof)
    held = before["fold"] == 0
    assert np.array_equal(before["logit"][held], after["logit"][held])
    assert not np.isclose(before["logit"][~held], after["logit"][~held]).any()


def test_ids_go_through_the_whole_pipeline_as_keys(workspace: Workspace) -> None:
    """The photos of test ids 1, 2 and 10 change places on disk; so must their logits, and no others."""
    run = train(workspace, HEAD, "cpu", Reporter())
    predict(workspace, COMPETITION, HEAD, "cpu", Reporter())
    before = pd.read_csv(run.folder / "test.csv", dtype={"id": str}).set_index("id")["logit"]
    assert list(before.index) == natural_order(before.index)
    table = pd.read_csv(workspace.manifest("test"), dtype=str, keep_default_na=False).set_index(
        "id", drop=False
    )
    swap = {"1": "2", "2": "10", "10": "1"}
    moved = table.copy()
    for new, old in swap.items():
        moved.loc[new, ["width", "height", "sha256", "phash", "group", "verdict"]] = table.loc[
            old, ["width", "height", "sha256", "phash", "group", "verdict"]
        ]
    moved.to_csv(workspace.manifest("test"), index=False)
    photos = {id: (workspace.photos / "test" / f"{id}.jpg").read_bytes() for id in swap}
    for new, old in swap.items():
        (workspace.photos / "test" / f"{new}.jpg").write_bytes(photos[old])
    predict(workspace, COMPETITION, HEAD, "cpu", Reporter())
    after = pd.read_csv(run.folder / "test.csv", dtype={"id": str}).set_index("id")["logit"]
    for id in before.index:
        pd.testing.assert_series_equal(
            after.loc[[id]].reset_index(drop=True),
            before.loc[[swap.get(id, id)]].reset_index(drop=True),
        )


def test_a_test_photo_that_cannot_be_decoded_gets_the_prior_and_a_warning(
    workspace: Workspace,
) -> None:
    heard = Heard()
    train(workspace, HEAD, "cpu", Reporter())
    run = predict(workspace, COMPETITION, HEAD, "cpu", heard)
    manifest = read_manifest(workspace.manifest("test"))
    (blind,) = manifest["id"][manifest["verdict"] == "truncated"]
    table = pd.read_csv(run.folder / "test.csv", dtype={"id": str}).set_index("id")
    assert list(table.index) == list(manifest["id"])
    assert np.isnan(table["logit"][blind])
    assert table["prob"][blind] == pytest.approx(0.5, abs=0.02)
    assert f"1 test photos cannot be decoded, {blind} first" in str(heard)


def test_a_killed_run_goes_on_at_the_next_unfinished_fold_and_ends_the_same(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = contents(train(workspace, TUNE, "cpu", Reporter()).folder)
    run = open_run(workspace, TUNE)
    shutil.rmtree(run.folder)
    fitted = []
    real = stage._fit_fold

    def counted(bench: Workbench, fold: int, *rest: object) -> None:
        if len(fitted) == 2:
            raise KeyboardInterrupt
        fitted.append(fold)
        real(bench, fold, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(stage, "_fit_fold", counted)
    with pytest.raises(KeyboardInterrupt):
        train(workspace, TUNE, "cpu", Reporter())
    assert [run.checkpoint(fold).exists() for fold in run.folds] == [
        True,
        True,
        False,
        False,
        False,
    ]
    monkeypatch.setattr(
        stage,
        "_fit_fold",
        lambda bench, fold, *rest: (fitted.append(fold), real(bench, fold, *rest)),
    )
    train(workspace, TUNE, "cpu", Reporter())
    assert fitted == [0, 1, 2, 3, 4]
    again = contents(run.folder)
    assert {path: data for path, data in again.items() if path.name != "run.json"} == {
        path: data for path, data in reference.items() if path.name != "run.json"
    }


def test_a_fine_tune_goes_through_train_predict_and_submit(
    workspace: Workspace, server: Twin, tmp_path: Path
) -> None:
    recipe = override(
        TUNE,
        [
            "prediction.views=multi_scale",
            "training.trainable=last:2",
            "folds.n=2",
            "training.epochs=1",
        ],
    )
    heard = Heard()
    run = train(workspace, recipe, "cpu", heard)
    predict(workspace, COMPETITION, recipe, "cpu", heard)
    kaggle = Kaggle(COMPETITION, heard, env=server.environment(tmp_path / "home"))
    row = submit(workspace, COMPETITION, kaggle, run.folder, heard)
    assert row.public_score is not None
    assert "no GPU: tiny_tune will train for about" in str(heard)
    assert "parameters train on" in str(heard)
    lines = (workspace.submissions / f"{run.name}.csv").read_bytes().split(b"\n")
    assert lines[0] == b"id,label"
    assert [int(line.split(b",")[0]) for line in lines[1:-1]] == list(range(1, 31))


def test_another_clip_or_other_views_need_no_other_fit(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = train(workspace, HEAD, "cpu", Reporter())
    monkeypatch.setattr(stage, "fit_head", lambda *_, **__: pytest.fail("a head was fitted"))
    for change in ("prediction.clip=0.01", "prediction.views=none"):
        recipe, heard = override(HEAD, [change]), Heard()
        run = train(workspace, recipe, "cpu", heard)
        assert run.name != first.name
        assert "5 folds taken over" in str(heard)
    none = pd.read_csv(open_run(workspace, override(HEAD, ["prediction.views=none"])).oof)
    assert not np.array_equal(none["logit"], pd.read_csv(first.oof)["logit"])


def test_a_subset_keeps_the_classes_even_and_its_photos_in_their_folds(
    workspace: Workspace,
) -> None:
    run = train(workspace, override(HEAD, ["folds.n_photos=60"]), "cpu", Reporter())
    oof = pd.read_csv(run.oof, dtype={"id": str})
    assert 50 <= len(oof) <= 72
    assert 0.4 < oof["label"].mean() < 0.6
    fold_of = read_manifest(workspace.manifest("train")).set_index("id")["fold"]
    assert list(oof["fold"]) == [int(fold_of[id]) for id in oof["id"]]


def test_bad_input_ends_in_one_line_before_any_work(workspace: Workspace, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="run `make data` first"):
        train(Workspace(tmp_path / "empty"), HEAD, "cpu", Reporter())
    with pytest.raises(StaleError, match="run `make train`"):
        predict(workspace, COMPETITION, HEAD, "cpu", Reporter())
    with pytest.raises(RecipeError, match=r"set pixels\.canvas above 1"):
        train(
            workspace,
            override(HEAD, ["pixels.fit=squash", "prediction.views=five_crop"]),
            "cpu",
            Reporter(),
        )
    assert not workspace.runs.exists()


def test_a_run_does_not_go_on_with_other_weights(workspace: Workspace) -> None:
    recipe = TUNE.replace(training=FineTune(epochs=1, batch_size=32), folds=TUNE.folds.replace(n=2))
    run = train(workspace, recipe, "cpu", Reporter())
    run.oof.unlink()
    began = read_json(run.folder / "run.json")
    write_json(run.folder / "run.json", began | {"weights": "0" * 10})
    with pytest.raises(StaleError, match="began with other weights"):
        train(workspace, recipe, "cpu", Reporter())


@pytest.fixture
def weights_file(tmp_path: Path) -> Path:
    path = tmp_path / "weights.pth"
    torch.save(timm.create_model(HEAD.model.backbone).state_dict(), path)
    return path


def test_heads_of_weights_that_have_since_been_replaced_are_neither_taken_over_nor_asked(
    workspace: Workspace, weights_file: Path
) -> None:
    recipe, heard = override(HEAD, [f"model.weights={weights_file}"]), Heard()
    train(workspace, recipe, "cpu", heard)
    torch.save(timm.create_model(HEAD.model.backbone).state_dict(), weights_file)
    with pytest.raises(
        StaleError,
        match=r"began with other weights than .*weights\.pth: delete it, or name the old file",
    ):
        predict(workspace, COMPETITION, recipe, "cpu", heard)
    train(workspace, override(recipe, ["prediction.views=none"]), "cpu", heard)
    assert "taken over" not in str(heard)


def test_a_fold_that_is_fitted_anew_is_scored_and_predicted_anew(workspace: Workspace) -> None:
    run = train(workspace, HEAD, "cpu", Reporter())
    predict(workspace, COMPETITION, HEAD, "cpu", Reporter())
    (said,) = run.folder.glob("fold-1-test-*.csv")
    kept = {path: path.stat().st_mtime_ns for path in run.folder.glob("fold-0*")}
    right, wrong = pd.read_csv(run.scores(1)), pd.read_csv(run.scores(1)).assign(logit=0.0)
    wrong.to_csv(run.scores(1), index=False)
    run.checkpoint(1).unlink()
    train(workspace, HEAD, "cpu", Reporter())
    assert np.allclose(pd.read_csv(run.scores(1))["logit"], right["logit"])
    assert not said.exists()
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_views_that_would_see_the_same_are_refused_where_a_photo_fills_its_canvas_in_one_direction(
    workspace: Workspace,
) -> None:
    with pytest.raises(RecipeError, match=r"set pixels\.canvas above 1"):
        train(
            workspace,
            override(
                HEAD, ["pixels.fit=shorter", "pixels.canvas=1.0", "prediction.views=multi_scale"]
            ),
            "cpu",
            Reporter(),
        )


def test_the_command_line_ends_user_errors_in_one_line_and_status_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (
        ["train", "--recipe", "nothing"],
        ["train", "--set", "a=1"],
        ["train", "--device", "tpu"],
        ["submit"],
    ):
        assert main([words[0], "--workspace", str(tmp_path), *words[1:]]) == 1
        err = capsys.readouterr().err
        assert err.startswith("error: ")
        assert err.count("\n") == 1


def test_the_command_line_lists_its_stages_and_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "rehearsal" in capsys.readouterr().out
    assert main(["recipes"]) == 0
    assert "lite0_head" in capsys.readouterr().out
