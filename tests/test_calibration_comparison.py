"""The comparison of calibrations: formulas, held-out labels, and a model that is understood."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from finished_run import edit_json, edit_table, make_trained_run, make_workspace
from heard import Heard

from comp.competition import COMPETITION
from comp.errors import DataError
from comp.metric import Floats, log_loss, logit_log_loss, sigmoid
from comp.predict.calibrate import Settings, board_losses
from comp.predict.compare import (
    CandidateScore,
    candidates_of,
    compare_calibrations,
    nested_choice,
    score_candidates,
    view_means,
)
from comp.progress import Reporter
from comp.recipes import named

CHOICE = Settings(noise_rate=0.004, clip=0.005)


def overconfident(n: int) -> pd.DataFrame:
    """An out-of-fold table of two views; their mean is twice as certain as it should be."""
    rng = np.random.default_rng(0)
    z = rng.normal(0, 4, n)
    views = 2 * z[:, None] + rng.normal(0, 1, (n, 2))
    labels = (rng.random(n) < sigmoid(z)).astype(np.int64)
    table = pd.DataFrame(
        {"id": [str(i) for i in range(n)], "label": labels, "fold": np.arange(n) % 5}
    )
    return table.assign(logit=views.mean(1), centre=views[:, 0], mirrored=views[:, 1])


def scored(oof: pd.DataFrame) -> dict[str, CandidateScore]:
    candidates, labels = candidates_of(oof, "flip", CHOICE), oof["label"].to_numpy()
    return score_candidates(candidates, labels, oof["fold"], np.arange(len(oof)), 0.004)


@pytest.fixture(scope="module")
def scores() -> dict[str, CandidateScore]:
    return scored(overconfident(1500))


def test_the_first_row_is_the_plain_mean_with_the_losses_of_the_metric(
    scores: dict[str, CandidateScore],
) -> None:
    oof, first = overconfident(1500), next(iter(scores.values()))
    board = board_losses(oof["label"], sigmoid(oof["logit"]), 0.004).mean()
    assert first.clean == pytest.approx(logit_log_loss(oof["label"], oof["logit"]), rel=1e-9)
    assert first.board == pytest.approx(board, rel=1e-9)
    assert (first.gain.mean, first.gain.low, first.gain.high) == (0, 0, 0)


def test_the_table_shows_what_is_known_of_the_model(scores: dict[str, CandidateScore]) -> None:
    for method in ("temperature", "platt", "beta", "isotonic"):
        assert scores[f"{method} alone"].gain.low > 0
    best = scores["recipe's choice"]
    assert best.gain.low > 0
    for other in ("none", "noise rate 0", "clip 0.03", "views none"):
        assert best.board < scores[f"but {other}"].board
    assert scores["temperature alone"].clean < best.clean
    assert scores["best, chosen by inner folds"].board <= best.board + 0.002
    for score in scores.values():
        assert score.gain.low <= score.gain.mean <= score.gain.high


def test_the_labels_of_a_fold_do_not_affect_what_is_chosen_for_it() -> None:
    oof = overconfident(400)
    labels, folds = oof["label"].to_numpy(), oof["fold"].to_numpy(np.float64)
    candidates = list(candidates_of(oof, "flip", CHOICE).values())
    honest = nested_choice(candidates, labels, folds, 0.004)
    after = nested_choice(candidates, np.where(folds == 3, 1 - labels, labels), folds, 0.004)
    assert np.array_equal(honest[folds == 3], after[folds == 3])
    assert all((honest[folds == fold] != after[folds == fold]).any() for fold in (0, 1, 2, 4))


def test_inner_folds_choose_the_candidate_that_is_clearly_best() -> None:
    oof = overconfident(400)
    candidates = candidates_of(oof, "flip", CHOICE)
    pair = {name: candidates[name] for name in ("recipe's choice", "but clip 0.03")}
    labels = oof["label"].to_numpy()
    scores = score_candidates(pair, labels, oof["fold"], np.arange(400), 0.004)
    best, worse, choice = scores.values()
    assert choice.board == best.board < worse.board


def test_two_folds_are_enough_for_every_row_but_the_choice() -> None:
    oof = overconfident(200)
    assert list(scored(oof.assign(fold=oof["fold"] % 2))) == list(scored(oof))[:-1]


def test_view_means_are_of_the_views_that_they_name() -> None:
    views: Floats = np.random.default_rng(0).normal(0, 2, (6, 4))
    oof = pd.DataFrame({"id": list("abcdef"), "label": 0, "fold": 0, "logit": views.mean(1)})
    found = view_means(oof.assign(**{f"v{i}": views[:, i] for i in range(4)}), "multi_scale")
    none, flip, _, all_probs = found
    ways = ["views none", "views flip", "flip, mean probability", "mean probability"]
    assert list(found) == ways
    np.testing.assert_allclose(found[none], views[:, 0])
    np.testing.assert_allclose(found[flip], views[:, :2].mean(1))
    np.testing.assert_allclose(sigmoid(found[all_probs]), sigmoid(views).mean(1))
    assert view_means(oof, "none") == {}


def test_the_table_of_a_run_has_the_losses_of_its_photos_and_needs_enough_of_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace, heard = make_workspace(tmp_path), Heard()
    path = make_trained_run(workspace, named("lite0_head")) / "oof.csv"
    edit_json(path.with_name("run.json"), recipe=named("lite0_head").model_dump(mode="json"))
    arguments = workspace, COMPETITION, path.parent, heard
    oof = pd.read_csv(path, dtype={"id": str})
    plain = compare_calibrations(*arguments)["plain mean of logits"]
    assert plain.clean == pytest.approx(log_loss(oof["label"], sigmoid(oof["logit"])))
    compare_calibrations(*arguments[:3], Reporter())
    *table, _ = capsys.readouterr().out.splitlines()
    assert max(map(len, table)) <= 80
    assert "the recipe's choice (none, noise rate 0.004, clip 0.005) gains" in str(heard)
    edit_table(path, lambda table: table[:12])
    with pytest.raises(DataError, match="12 out-of-fold photos are too few"):
        compare_calibrations(*arguments)
