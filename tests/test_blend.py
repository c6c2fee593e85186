"""Blends: the best weights, held-out labels, and a result that is a run like any other."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from finished_run import TINY_HEAD, edit_json, edit_table, make_run, make_workspace
from heard import Heard

from comp.competition import COMPETITION
from comp.errors import DataError, RecipeError, StaleError
from comp.metric import Floats, Gain, logit_log_loss
from comp.predict.blend import (
    WEIGHERS,
    blend_runs,
    gains_by_run,
    greedy,
    mix,
    read_members,
    shared_head,
    simplex,
)
from comp.predict.compare import compare_runs
from comp.predict.runs import read_run, recipe_of
from comp.predict.stage import find_run, predict
from comp.progress import Reporter
from comp.recipe import Folds, Head, Model, Prediction, Svm, ViewsName
from comp.recipes import named
from comp.store import Workspace, read_json
from comp.submit.forecast import print_forecast
from comp.train.files import RECORD
from comp.train.fits import open_fit
from comp.train.run import Run
from comp.train.solver import solve_fold
from comp.train.stage import train

FITTED = ("simplex", "greedy")


def four_models(n: int = 900) -> tuple[Floats, Floats, Floats]:
    """Logits [n, 4] of two good models with different errors, a poor and a useless one.

    Also labels and folds.
    """
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, n).astype(np.float64)
    noise = rng.normal(0, [1.5, 1.5, 1.5, 3.0], (n, 4))
    logits = (2 * labels[:, None] - 1) * [2.0, 1.8, 0.8, 0.0] + noise
    return logits, labels, (np.arange(n) % 5).astype(np.float64)


def test_simplex_weights_are_the_best_of_a_grid_over_the_whole_simplex() -> None:
    logits, labels, _ = four_models()
    logits = logits[:, :3]
    found = simplex(logits, labels)
    assert found.min() >= 0
    assert found.sum() == pytest.approx(1, abs=1e-12)
    grid = [np.array([a, b, 100 - a - b]) / 100 for a in range(101) for b in range(101 - a)]
    losses = [logit_log_loss(labels, logits @ weights) for weights in grid]
    assert logit_log_loss(labels, logits @ found) <= min(losses)
    np.testing.assert_allclose(found, grid[int(np.argmin(losses))], atol=0.01)


@pytest.mark.parametrize("method", FITTED)
def test_weights_move_with_their_runs_and_leave_out_a_useless_one(method: str) -> None:
    logits, labels, _ = four_models()
    found, order = WEIGHERS[method](logits, labels), [3, 1, 0, 2]
    np.testing.assert_allclose(WEIGHERS[method](logits[:, order], labels), found[order], atol=1e-5)
    assert found.sum() == pytest.approx(1)
    assert found[3] < 0.05
    assert found[0] > 0.3
    assert found[1] > 0.2


def test_equal_weights_ignore_labels_and_mix_as_the_mean_does() -> None:
    logits, labels, folds = four_models()
    assert WEIGHERS["equal"](logits, labels).tolist() == [0.25] * 4
    np.testing.assert_allclose(mix(logits, labels, folds, WEIGHERS["equal"]), logits.mean(1))


def test_greedy_selection_gets_no_worse_with_more_runs_and_nears_the_optimum() -> None:
    logits, labels, _ = four_models()
    losses = [
        logit_log_loss(labels, logits[:, :m] @ greedy(logits[:, :m], labels)) for m in (1, 2, 3, 4)
    ]
    assert all(after <= before for before, after in pairwise(losses[:2]))
    best = logit_log_loss(labels, logits @ simplex(logits, labels))
    assert best <= losses[-1] < best + 1e-3


@pytest.mark.parametrize("method", FITTED)
def test_the_labels_of_a_fold_do_not_affect_the_mixed_logits_of_that_fold(method: str) -> None:
    logits, labels, folds = four_models()
    honest = mix(logits, labels, folds, WEIGHERS[method])
    after = mix(logits, np.where(folds == 3, 1 - labels, labels), folds, WEIGHERS[method])
    assert np.array_equal(honest[folds == 3], after[folds == 3])
    assert all((honest[folds == fold] != after[folds == fold]).any() for fold in (0, 1, 2, 4))


def test_a_run_with_errors_of_its_own_helps_and_a_copy_adds_nothing() -> None:
    logits, labels, folds = four_models()
    three = gains_by_run(logits[:, [0, 1, 1]], labels, folds, np.arange(labels.size), simplex)
    two = gains_by_run(logits[:, :2], labels, folds, np.arange(labels.size), simplex)
    assert [found.low > 0 for found in (*three, two[1])] == [True, False, False, True]


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    workspace = make_workspace(tmp_path)
    for seed, name in enumerate("abc"):
        make_run(workspace, name, str(seed) * 10, seed + 1)
    return workspace


def blended(workspace: Workspace, *names: str, **options: Any) -> Path:
    asked = {"method": "simplex", "settings": (), "device": "cpu", "reporter": Heard()} | options
    folders = [find_run(workspace, COMPETITION, name) for name in names]
    return blend_runs(workspace, COMPETITION, folders, **asked)  # type: ignore[arg-type]


def compared(workspace: Workspace, a: str, b: str, heard: Heard | None = None) -> Gain:
    folders = [find_run(workspace, COMPETITION, name) for name in (a, b)]
    return compare_runs(workspace, COMPETITION, *folders, heard or Heard())


@pytest.mark.parametrize("method", FITTED)
def test_a_blend_is_a_run_like_any_other(workspace: Workspace, method: str) -> None:
    heard = Heard()
    folder = blended(workspace, "a", "b", "c-2222222222", method=method, reporter=heard)
    run, weights = read_run(folder), read_json(folder / "run.json")["members"]
    assert list(weights) == ["a-0000000000", "b-1111111111", "c-2222222222"]
    members = [read_run(workspace.runs / name) for name in weights]
    tests = [member.predictions.set_index("id")["logit"] for member in members]
    mixed = sum(weight * test for weight, test in zip(weights.values(), tests, strict=True))
    logits = run.predictions.set_index("id")["logit"]
    pd.testing.assert_series_equal(logits, mixed.loc[logits.index], atol=1e-12)
    assert (run.figures.noise_rate, run.figures.clip) == (COMPETITION.noise_rate, 0.005)
    assert run.figures.cv_raw == pytest.approx(logit_log_loss(run.oof["label"], run.oof["logit"]))
    assert run.figures.cv_raw < min(member.figures.cv_raw for member in members)
    assert print_forecast(workspace, COMPETITION, run, heard).n_pairs == 0
    compared(workspace, "blend", "a", heard)
    assert blended(workspace, folder.name, "a") != folder
    assert "times that of its best run" in str(heard)


def test_the_same_blend_of_the_same_runs_is_the_same_run_byte_for_byte(
    workspace: Workspace,
) -> None:
    folder = blended(workspace, "a", "b")
    before = {path: path.read_bytes() for path in folder.iterdir() if path.name != RECORD}
    assert blended(workspace, "b", "a", "b") == folder
    assert {path: path.read_bytes() for path in before} == before
    assert blended(workspace, "a", "b", settings=["prediction.clip=0.01"]) != folder
    edit_table(workspace.runs / "a-0000000000" / "test.csv", lambda t: t.assign(logit=1.0))
    assert blended(workspace, "a", "b") != folder


def test_a_test_photo_that_one_run_has_no_logit_of_gets_the_prior(workspace: Workspace) -> None:
    path = workspace.runs / "a-0000000000" / "test.csv"
    edit_table(path, lambda t: t.assign(logit=t["logit"].where(t["id"] != "7")))
    run = read_run(blended(workspace, "a", "b"))
    assert run.predictions.set_index("id")["prob"]["7"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t[:-4], "differ: 4 photos are in only one of them"),
        (
            lambda t: t.assign(fold=t["fold"].where(t.index > 2, 4)),
            "3 photos are in another fold of another run",
        ),
        (lambda t: t.assign(label=t["label"].where(t.index > 2, 1)), "in the label of 2 photos"),
    ],
)
def test_runs_of_other_photos_folds_or_labels_are_not_blended(
    workspace: Workspace, change: Any, words: str
) -> None:
    run = workspace.runs / "b-1111111111"
    edit_table(run / "oof.csv", change)
    edit_json(run / "calibration.json", of=None)
    with pytest.raises(DataError, match=words) as caught:
        blended(workspace, "a", "b")
    assert "\n" not in str(caught.value)


def test_runs_in_other_folds_are_averaged_and_the_first_ones_folds_count(
    workspace: Workspace,
) -> None:
    run = workspace.runs / "a-0000000000"
    edit_table(run / "oof.csv", lambda t: t.assign(fold=(t["fold"] + 1) % 3))
    edit_json(run / "calibration.json", of=None)
    b, a = (read_run(blended(workspace, *names, method="equal")).oof for names in ("ba", "ab"))
    assert b["fold"].equals(read_run(workspace.runs / "b-1111111111").oof["fold"])
    assert a["fold"].equals(read_run(run).oof["fold"])
    assert np.allclose(a["logit"], b["logit"])


def test_runs_that_do_not_exist_are_named_and_one_run_is_not_a_blend(workspace: Workspace) -> None:
    names = "a-0000000000, b-1111111111, c-2222222222"
    with pytest.raises(RecipeError, match=f"no run 'nothing'; there are: {names}"):
        blended(workspace, "a", "nothing")
    with pytest.raises(RecipeError, match="needs 2 or more runs, got 1"):
        blended(workspace, "a", "a-0000000000")


def test_a_run_with_options_that_no_longer_exist_has_no_recipe(workspace: Workspace) -> None:
    values, run = named("lite0_head").model_dump(mode="json"), workspace.runs / "a-0000000000"
    edit_json(run / "run.json", recipe=values)
    assert recipe_of(run) == named("lite0_head")
    edit_json(run / "run.json", recipe=values | {"folds": {"n_left_out": 3}})
    assert recipe_of(run) is None


def test_a_blend_calibrates_as_its_runs_do_or_by_its_own_options_and_has_no_others(
    workspace: Workspace,
) -> None:
    assert read_run(blended(workspace, "a", "b")).figures.method == "temperature"
    for name in ("a-0000000000", "b-1111111111"):
        edit_json(workspace.runs / name / "calibration.json", method="none")
    assert read_run(blended(workspace, "a", "b")).figures.method == "none"
    assert read_run(blended(workspace, "a", "b", "c")).figures.method == "temperature"
    settings = ["prediction.calibration=platt", "prediction.noise_rate=0"]
    chosen = read_run(blended(workspace, "a", "b", settings=settings)).figures
    assert (chosen.method, chosen.noise_rate) == ("platt", 0)
    for setting in ("folds.n=3", "prediction.views=flip", "model.layer=x", "clip"):
        with pytest.raises(RecipeError, match=f"'{setting}' is not an option of a blend"):
            blended(workspace, "a", "b", settings=[setting])


def test_a_blend_is_compared_with_its_best_run(workspace: Workspace) -> None:
    members = read_members(workspace, sorted(workspace.runs.iterdir())[:2], "simplex")
    means = [logit_log_loss(members.labels, each) for each in members.logits.T]
    best = int(np.argmin(means))
    as_good = members.compare_with_best(members.logits[:, best])
    assert f"{means[best]:.5f}, 1.00 (1.00 to 1.00) times that of its best run" in as_good
    assert members.names[best] in as_good
    unsure = members.compare_with_best(np.zeros(len(members.photos)))
    assert f"{np.log(2):.5f}, {np.log(2) / means[best]:.2f} (" in unsure


def test_a_run_predicted_for_other_test_photos_is_stale(workspace: Workspace) -> None:
    manifest = workspace.manifest("test")
    manifest.write_text(manifest.read_text().replace("0" * 16, "1" * 16))
    with pytest.raises(StaleError, match="make predict"):
        blended(workspace, "a", "b")


def test_too_few_photos_are_refused(workspace: Workspace) -> None:
    for run in workspace.runs.iterdir():
        edit_table(run / "oof.csv", lambda t: t[:10])
    with pytest.raises(DataError, match="10 out-of-fold photos are too few"):
        compared(workspace, "a", "b")


def test_a_comparison_is_paired_by_id_and_its_sign_turns_with_the_order(
    workspace: Workspace,
) -> None:
    heard = Heard()
    there, back = compared(workspace, "a", "b", heard), compared(workspace, "b", "a", heard)
    assert there.mean == pytest.approx(-back.mean, abs=1e-15)
    assert there.low == pytest.approx(-back.high, abs=1e-15)
    assert sum("- fold" in line for line in heard.lines) == 10
    edit_table(workspace.runs / "b-1111111111" / "oof.csv", lambda t: t.sample(frac=1))
    after = compared(workspace, "a", "b")
    assert (after.mean, after.low) == pytest.approx((there.mean, there.low), abs=1e-12)
    with pytest.raises(RecipeError, match="both names mean the same run"):
        compared(workspace, "a", "a-0000000000", heard)


def test_a_comparison_says_which_run_is_better_if_the_difference_is_significant(
    workspace: Workspace,
) -> None:
    heard = Heard()
    compared(workspace, "a", "b", heard)
    edit_table(
        workspace.runs / "a-0000000000" / "oof.csv",
        lambda t: t.assign(logit=t["logit"] + 2 * (2 * t["label"] - 1)),
    )
    assert compared(workspace, "a", "b", heard).low > 0
    assert compared(workspace, "b", "a", heard).high < 0
    a, b = "a-0000000000", "b-1111111111"
    assert f"no significant difference between {a} and {b} (95 % interval includes 0)" in str(heard)
    assert f"{a} is better than {b}" in str(heard)
    assert f"{b} is worse than {a}" in str(heard)


PENALTIES = (1e-2, 1e-1)
FIRST = TINY_HEAD.replace(name="first", folds=Folds(n=2), prediction=Prediction(calibration="none"))
SECOND = FIRST.replace(
    name="second",
    model=Model(backbone="resnet10t", weights="random"),
    training=Head(views="none", n_inner=3, penalties=(1e-1,)),
)


def made(workspace: Workspace, recipe: object) -> Run:
    train(workspace, recipe, "cpu", Reporter())  # type: ignore[arg-type]
    return predict(workspace, COMPETITION, recipe, "cpu", Reporter())  # type: ignore[arg-type]


def test_a_shared_head_chooses_among_the_penalties_of_all_runs_and_uses_the_most_inner_folds() -> (
    None
):
    one, other = Head(penalties=(1e-3, 1e-5), n_inner=2), Head(penalties=(1e-3, 1e-1), n_inner=6)
    assert shared_head([one, other]) == Head(penalties=(1e-5, 1e-3, 1e-1), n_inner=6)
    assert shared_head([Head(), Head()]) == Head()


def test_heads_see_the_features_of_all_runs_and_no_photo_of_their_own_fold(
    drawn_copy: Workspace,
) -> None:
    runs = [made(drawn_copy, recipe) for recipe in (FIRST, SECOND)]
    folder = blended(drawn_copy, "first", "second", method="features")
    fits = [open_fit(run, "cpu", Reporter()) for run in runs]
    inputs = fits[0].inputs

    def stacked(ids: list[str], views: ViewsName | None = None) -> np.ndarray:
        return np.hstack([fit.mean_features(ids, views) for fit in fits])  # type: ignore[union-attr]

    learnt, scored = stacked(inputs.ids, "none"), stacked(inputs.ids)
    test = stacked(inputs.test_ids)
    options = Head(penalties=PENALTIES, n_inner=3)
    heads = [solve_fold(learnt, inputs.photos, fold, options, 0) for fold in (0, 1)]
    by_head = [head.logits(scored) for head in heads]
    expected = np.where(inputs.photos["fold"] == 0, *by_head)
    run = read_run(folder)
    logits = run.oof.set_index("id")["logit"].loc[inputs.ids]
    np.testing.assert_allclose(logits, expected, atol=1e-9)
    mean = np.mean([head.logits(test) for head in heads], axis=0)
    logits = run.predictions.set_index("id")["logit"].loc[inputs.test_ids]
    np.testing.assert_allclose(logits, mean, atol=1e-9)
    assert read_json(folder / "run.json")["members"] == sorted(run.name for run in runs)
    assert run.figures.method == "none"
    assert blended(drawn_copy, "second", "first", method="features") == folder
    blended(drawn_copy, "concat", "first", method="simplex")


def test_runs_without_solved_heads_of_their_own_or_with_other_labels_are_refused(
    drawn_copy: Workspace,
) -> None:
    for recipe in (FIRST, SECOND):
        made(drawn_copy, recipe)
    mixed = blended(drawn_copy, "first", "second", method="simplex").name
    with pytest.raises(RecipeError, match=f"{mixed} has no solved head on features of its own"):
        blended(drawn_copy, mixed, "first", method="features")
    origin = next(drawn_copy.runs.glob("second-*/run.json"))
    edit_json(origin, recipe=SECOND.replace(training=Svm()).model_dump(mode="json"))
    with pytest.raises(RecipeError, match=r"second-\w+ has no solved head on features"):
        blended(drawn_copy, "second", "first", method="features")
    drawn_copy.verdicts.write_text("id,verdict,reason,by\ncat.1,flip,a test,me\n")
    made(drawn_copy, FIRST.replace(name="judged", folds=Folds(n=2, label_fixes="all")))
    with pytest.raises(DataError, match="first and judged learn from other labels"):
        blended(drawn_copy, "judged", "first", method="features")
