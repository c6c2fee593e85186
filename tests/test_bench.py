"""The calibration bench: formulas, what must not leak, and that its table tells the truth about a known model."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from comp.train.device import find_device
from finished_run import make_run, make_workspace
from heard import Heard

from comp.competition import COMPETITION
from comp.data.manifest import read_manifest, write_manifest
from comp.errors import DataError, StaleError
from comp.metric import Floats, log_loss, logit_log_loss, sigmoid
from comp.predict.bench import (
    Line,
    averages,
    chosen,
    compare,
    means_over_folds,
    show_bench,
    ways_of,
)
from comp.predict.calibrate import Settings, board_losses
from comp.predict.fold_means import fold_logits
from comp.progress import Reporter
from comp.recipe import Folds, Head, Model, Pixels, Recipe
from comp.recipes import named
from comp.store import Workspace
from comp.train.run import open_run
from comp.train.stage import train

CPU = find_device("cpu")

RECIPE = Settings(noise_rate=0.004, clip=0.005)


@pytest.fixture
def no_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs without photos have no features to solve heads on."""
    monkeypatch.setattr("comp.predict.bench.fold_logits", lambda *_: None)


def overconfident(n: int = 1500, seed: int = 0) -> pd.DataFrame:
    """An out-of-fold table of two views; their mean is twice too sure of itself."""
    rng = np.random.default_rng(seed)
    z = rng.normal(0, 4, n)
    views = 2 * z[:, None] + rng.normal(0, 1, (n, 2))
    table = pd.DataFrame(
        {
            "id": [str(i) for i in range(n)],
            "label": (rng.random(n) < sigmoid(z)).astype(np.int64),
            "fold": np.arange(n) % 5,
        }
    )
    return table.assign(logit=views.mean(1), centre=views[:, 0], mirrored=views[:, 1])


def table_of(oof: pd.DataFrame) -> dict[str, Line]:
    lines = compare(
        ways_of(oof, "flip", RECIPE),
        oof["label"].to_numpy(),
        oof["fold"],
        np.arange(len(oof)),
        0.004,
    )
    return {line.name: line for line in lines}


@pytest.fixture(scope="module")
def lines() -> dict[str, Line]:
    return table_of(overconfident())


def test_the_first_line_is_the_plain_mean_and_both_its_losses_are_the_metrics(
    lines: dict[str, Line],
) -> None:
    oof = overconfident()
    first = next(iter(lines.values()))
    assert first.clean == pytest.approx(logit_log_loss(oof["label"], oof["logit"]), rel=1e-9)
    assert first.board == pytest.approx(
        board_losses(oof["label"], sigmoid(oof["logit"]), 0.004).mean(), rel=1e-9
    )
    assert (first.clean_gain.mean, first.board_gain.low, first.board_gain.high) == (0, 0, 0)


def test_what_is_known_of_the_model_stands_in_the_table(lines: dict[str, Line]) -> None:
    assert all(
        lines[f"{method} alone"].clean_gain.low > 0
        for method in ("temperature", "platt", "beta", "isotonic")
    )
    assert lines["recipe's choice"].board_gain.low > 0
    assert lines["recipe's choice"].board < lines["recipe's, but none"].board
    assert lines["recipe's choice"].board < lines["recipe's, but noise rate 0"].board
    assert lines["recipe's choice"].board < lines["recipe's, but clip 0.03"].board
    assert lines["recipe's choice"].board < lines["recipe's, but views none"].board
    assert lines["temperature alone"].clean < lines["recipe's choice"].clean
    assert (
        lines["the best of these, chosen by inner folds"].board
        <= lines["recipe's choice"].board + 0.002
    )
    for line in lines.values():
        assert line.board_gain.low <= line.board_gain.mean <= line.board_gain.high


def test_no_label_of_a_fold_has_a_say_in_what_is_chosen_for_it() -> None:
    oof = overconfident(400)
    ways, labels, folds = (
        ways_of(oof, "flip", RECIPE),
        oof["label"].to_numpy(),
        oof["fold"].to_numpy(np.float64),
    )
    honest = chosen(ways, labels, folds, 0.004)
    after = chosen(ways, np.where(folds == 3, 1 - labels, labels), folds, 0.004)
    assert np.array_equal(honest[folds == 3], after[folds == 3])
    assert all((honest[folds == fold] != after[folds == fold]).any() for fold in (0, 1, 2, 4))


def test_the_inner_folds_choose_the_way_that_is_best_where_it_is_plain_which_one_is() -> None:
    oof = overconfident(400)
    labels, folds = oof["label"].to_numpy(), oof["fold"].to_numpy(np.float64)
    ways = [
        way
        for way in ways_of(oof, "flip", RECIPE)
        if way.name in ("recipe's choice", "recipe's, but clip 0.03")
    ]
    best = compare(ways, labels, folds, np.arange(400), 0.004)
    assert best[0].board < best[1].board
    assert best[2].board == best[0].board


def test_two_folds_are_enough_for_every_line_but_the_choice() -> None:
    oof = overconfident(200)
    oof["fold"] = oof["fold"] % 2
    assert list(table_of(oof)) == list(table_of(overconfident(200)))[:-1]


def test_means_over_folds_are_of_logits_and_of_probabilities_and_are_not_chosen_from() -> None:
    oof = overconfident(400)
    ways, labels = ways_of(oof, "flip", RECIPE), oof["label"].to_numpy()
    perfect = np.where(labels == 1, 9.0, -9.0)[:, None] + np.array([-1.0, 1.0])
    others = means_over_folds(perfect, RECIPE)
    np.testing.assert_allclose(others[0].logits, perfect.mean(1))
    np.testing.assert_allclose(sigmoid(others[1].logits), sigmoid(perfect).mean(1))
    lines = compare(ways, labels, oof["fold"], np.arange(400), 0.004, others)
    assert lines[:-3] + lines[-1:] == compare(ways, labels, oof["fold"], np.arange(400), 0.004)
    assert [line.name for line in lines[-3:-1]] == [way.name for way in others]
    assert lines[-2].board < lines[1].board - 0.05


def test_averages_are_of_the_views_that_they_name() -> None:
    rng = np.random.default_rng(0)
    views: Floats = rng.normal(0, 2, (6, 4))
    oof = pd.DataFrame({"id": list("abcdef"), "label": 0, "fold": 0, "logit": views.mean(1)})
    four = averages(oof.assign(**{f"v{i}": views[:, i] for i in range(4)}), "multi_scale")
    assert list(four) == [
        "views none",
        "views flip",
        "views flip, mean of probabilities",
        "views multi_scale, mean of probabilities",
    ]
    np.testing.assert_allclose(four["views none"], views[:, 0])
    np.testing.assert_allclose(four["views flip"], views[:, :2].mean(1))
    np.testing.assert_allclose(
        sigmoid(four["views multi_scale, mean of probabilities"]), sigmoid(views).mean(1)
    )
    assert averages(oof, "none") == {}


@pytest.mark.usefixtures("no_heads")
def test_the_table_of_a_run_has_the_losses_that_its_calibration_reports(tmp_path: Path) -> None:
    workspace, recipe, heard = make_workspace(tmp_path), named("lite0_head"), Heard()
    with pytest.raises(StaleError, match="make train"):
        show_bench(workspace, COMPETITION, recipe, CPU, heard)
    folder = _trained(workspace)
    lines = {line.name: line for line in show_bench(workspace, COMPETITION, recipe, CPU, heard)}
    oof = pd.read_csv(folder / "oof.csv")
    assert lines["plain mean of logits"].clean == pytest.approx(
        log_loss(oof["label"], sigmoid(oof["logit"]))
    )
    assert "the recipe's choice (none, noise rate 0.004, clip 0.005) gains" in str(heard)


@pytest.mark.usefixtures("no_heads")
def test_too_few_photos_are_refused(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path)
    path = _trained(workspace) / "oof.csv"
    pd.read_csv(path, dtype={"id": str})[:12].to_csv(path, index=False)
    with pytest.raises(DataError, match="12 out-of-fold photos are too few"):
        show_bench(workspace, COMPETITION, named("lite0_head"), CPU, Heard())


TINY = Recipe(
    name="tiny",
    model=Model(backbone="mobilenetv3_small_050", weights="random"),
    pixels=Pixels(size_px=32, canvas=1.0),
    training=Head(views="none", n_inner=2, penalties=(1e-2,)),
)


def fold_logits_of(workspace: Workspace) -> pd.DataFrame:
    run = train(workspace, TINY, CPU, Reporter())
    logits = fold_logits(workspace, TINY, CPU, Reporter())
    assert logits is not None
    assert logits.shape == (79, 4)
    return pd.read_csv(run.oof)[["id", "fold"]].join(pd.DataFrame(logits))


def test_no_label_of_a_fold_has_a_say_in_the_logits_that_other_heads_give_it(
    drawn_copy: Workspace,
) -> None:
    before = fold_logits_of(drawn_copy)
    manifest = read_manifest(drawn_copy.manifest("train"))
    turned = manifest["id"].isin(before["id"][before["fold"] == 1])
    write_manifest(
        drawn_copy.manifest("train"),
        manifest.assign(label=manifest["label"].where(~turned, 1 - manifest["label"])),
    )
    after, here = fold_logits_of(drawn_copy), before["fold"] == 1
    assert before[here].equals(after[here])
    assert ((before[~here] != after[~here]).sum()[list(range(4))] > 0).all()
    assert before[list(range(4))].nunique(axis=1).eq(4).all()


def test_runs_whose_heads_cannot_leave_out_two_folds_have_no_means_over_folds(
    drawn_copy: Workspace,
) -> None:
    others = [
        TINY.replace(folds=folds)
        for folds in (Folds(n=2), Folds(n=5, fit=2), Folds(split=(0.2, 0.2)))
    ]
    for recipe in (*others, named("lite0_finetune")):
        assert fold_logits(drawn_copy, recipe, CPU, Reporter()) is None


def _trained(workspace: Workspace) -> Path:
    run = open_run(workspace, named("lite0_head"))
    folder = make_run(workspace, "lite0_head", run.fingerprint)
    for fold in run.folds:
        run.checkpoint(fold).touch()
    return folder
