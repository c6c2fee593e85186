"""Blends: the weights are the best there are, no label mixes its own logit, and the result is a run like any other."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from finished_run import edit_json, make_run, make_workspace
from heard import Heard

from comp.competition import COMPETITION
from comp.errors import DataError, RecipeError, StaleError, UserError
from comp.metric import Floats, Gain, logit_log_loss
from comp.options import override
from comp.predict.ablate import ablate
from comp.predict.blend import (
    WAYS,
    Weighing,
    blend,
    error_correlations,
    greedy,
    held_out,
    simplex,
    verdict,
    worths,
)
from comp.predict.finished import find_run, read_run
from comp.predict.members import read_members
from comp.recipes import named
from comp.store import Workspace, read_json
from comp.submit.forecast import print_forecast

METHODS: tuple[Weighing, ...] = ("simplex", "greedy")


def three_models(n: int = 900, seed: int = 0) -> tuple[Floats, Floats, Floats]:
    """Logits [n, 4] of two good models that err apart, a poor one and a useless one; labels and folds."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n).astype(np.float64)
    sides = 2 * labels[:, None] - 1
    return (
        sides * [2.0, 1.8, 0.8, 0.0] + rng.normal(0, [1.5, 1.5, 1.5, 3.0], (n, 4)),
        labels,
        (np.arange(n) % 5).astype(np.float64),
    )


def test_simplex_weights_are_the_best_of_a_grid_over_the_whole_simplex() -> None:
    logits, labels, _ = three_models()
    logits = logits[:, :3]
    found = simplex(logits, labels)
    assert found.min() >= 0
    assert found.sum() == pytest.approx(1, abs=1e-12)
    grid = [np.array([a, b, 100 - a - b]) / 100 for a in range(101) for b in range(101 - a)]
    losses = [logit_log_loss(labels, logits @ weights) for weights in grid]
    assert logit_log_loss(labels, logits @ found) <= min(losses)
    np.testing.assert_allclose(found, grid[int(np.argmin(losses))], atol=0.01)


@pytest.mark.parametrize("method", METHODS)
def test_weights_follow_the_runs_when_they_change_places_and_leave_out_a_useless_one(
    method: Weighing,
) -> None:
    logits, labels, _ = three_models()
    found = WAYS[method](logits, labels)
    order = [3, 1, 0, 2]
    np.testing.assert_allclose(WAYS[method](logits[:, order], labels), found[order], atol=1e-5)
    assert found.sum() == pytest.approx(1)
    assert found[3] < 0.05
    assert found[0] > 0.3
    assert found[1] > 0.2


def test_equal_weights_ask_no_label_and_mix_as_the_mean_does() -> None:
    logits, labels, folds = three_models()
    assert WAYS["equal"](logits, labels).tolist() == [0.25] * 4
    np.testing.assert_allclose(held_out(logits, labels, folds, WAYS["equal"]), logits.mean(1))


def test_greedy_selection_never_gets_worse_with_more_runs_to_pick_from_and_nears_the_optimum() -> (
    None
):
    logits, labels, _ = three_models()
    losses = [
        logit_log_loss(labels, logits[:, :m] @ greedy(logits[:, :m], labels)) for m in (1, 2, 3, 4)
    ]
    assert all(after <= before for before, after in pairwise(losses[:2]))
    best = logit_log_loss(labels, logits @ simplex(logits, labels))
    assert best <= losses[-1] < best + 1e-3


@pytest.mark.parametrize("method", METHODS)
def test_no_label_of_a_fold_has_a_say_in_the_mixed_logits_of_that_fold(method: Weighing) -> None:
    logits, labels, folds = three_models()
    honest = held_out(logits, labels, folds, WAYS[method])
    after = held_out(logits, np.where(folds == 3, 1 - labels, labels), folds, WAYS[method])
    assert np.array_equal(honest[folds == 3], after[folds == 3])
    assert all((honest[folds == fold] != after[folds == fold]).any() for fold in (0, 1, 2, 4))


def test_a_run_that_brings_something_helps_and_a_copy_adds_nothing() -> None:
    logits, labels, folds = three_models()
    groups = np.arange(labels.size)
    first, second, copy = worths(logits[:, [0, 1, 1]], labels, folds, groups, simplex)
    assert verdict(first) == "helps"
    assert verdict(second) == verdict(copy) == "adds nothing"
    assert verdict(worths(logits[:, :2], labels, folds, groups, simplex)[1]) == "helps"
    assert verdict(Gain(mean=-2.0, low=-3.0, high=-1.0)) == "harms"


def test_errors_of_a_run_and_its_copy_are_one_and_those_of_strangers_are_not() -> None:
    logits, labels, _ = three_models()
    alike = error_correlations(logits[:, [0, 0, 1]], labels)
    assert alike[0, 1] == pytest.approx(1)
    assert abs(alike[0, 2]) < 0.5


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    workspace = make_workspace(tmp_path)
    for name, fingerprint, seed in (
        ("a", "0000000000", 1),
        ("b", "1111111111", 2),
        ("c", "2222222222", 3),
    ):
        make_run(workspace, name, fingerprint, seed)
    return workspace


def blended(workspace: Workspace, *names: str, **options: Any) -> Path:
    asked: dict[str, Any] = {"method": "simplex", "settings": (), "reporter": Heard()} | options
    return blend(
        workspace, COMPETITION, names, asked["method"], asked["settings"], asked["reporter"]
    )


@pytest.mark.parametrize("method", METHODS)
def test_a_blend_is_a_run_like_any_other(workspace: Workspace, method: Weighing) -> None:
    heard = Heard()
    folder = blended(workspace, "a", "b", "c-2222222222", method=method, reporter=heard)
    run = read_run(folder)
    weights = read_json(folder / "run.json")["members"]
    assert list(weights) == ["a-0000000000", "b-1111111111", "c-2222222222"]
    members = [
        read_run(workspace.runs / name).predictions.set_index("id")["logit"] for name in weights
    ]
    mixed = sum(weight * member for weight, member in zip(weights.values(), members, strict=True))
    pd.testing.assert_series_equal(
        run.predictions.set_index("id")["logit"], mixed.loc[list(run.predictions["id"])], atol=1e-12
    )
    assert (run.settings.noise_rate, run.settings.clip) == (COMPETITION.noise_rate, 0.005)
    assert run.cv_raw == pytest.approx(logit_log_loss(run.oof["label"], run.oof["logit"]))
    assert run.cv_raw < min(read_run(workspace.runs / name).cv_raw for name in weights)
    assert print_forecast(workspace, COMPETITION, run, heard).n_pairs == 0
    ablate(workspace, COMPETITION, "blend", "a", heard)
    assert blended(workspace, folder.name, "a") != folder
    assert "of that of its best run" in str(heard)


def test_the_same_blend_is_the_same_run_byte_for_byte_whatever_the_order_of_its_members(
    workspace: Workspace,
) -> None:
    folder = blended(workspace, "a", "b")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert blended(workspace, "b", "a", "b") == folder
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert blended(workspace, "a", "b", settings=["prediction.clip=0.01"]) != folder


def test_a_test_photo_that_a_member_could_not_see_gets_the_prior(workspace: Workspace) -> None:
    path = workspace.runs / "a-0000000000" / "test.csv"
    table = pd.read_csv(path, dtype={"id": str})
    table.loc[table["id"] == "7", "logit"] = np.nan
    table.to_csv(path, index=False)
    run = read_run(blended(workspace, "a", "b"))
    assert run.predictions.set_index("id")["prob"]["7"] == pytest.approx(0.5)


def spoil(workspace: Workspace, column: str, value: Any) -> None:
    path = workspace.runs / "b-1111111111" / "oof.csv"
    table = pd.read_csv(path, dtype={"id": str})
    if column == "rows":
        table = table[: -int(value)]
    else:
        table.loc[:2, column] = value
    table.to_csv(path, index=False)
    (path.with_name("calibration.json")).write_text(
        (path.with_name("calibration.json")).read_text().replace('"of"', '"was of"')
    )


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("rows", 4, "differ: 4 photos are in one of them only"),
        ("fold", 4, "differ in the fold of 3 photos"),
        ("label", 1, "differ in the label of 2 photos"),
    ],
)
def test_runs_of_other_photos_folds_or_labels_are_refused_in_one_line(
    workspace: Workspace, column: str, value: Any, words: str
) -> None:
    spoil(workspace, column, value)
    for call in (
        lambda: blended(workspace, "a", "b"),
        lambda: ablate(workspace, COMPETITION, "a", "b", Heard()),
    ):
        with pytest.raises(DataError, match=words) as caught:
            call()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("names", "kind", "words"),
    [
        (
            ("a", "nothing"),
            RecipeError,
            "no run 'nothing' is here; there is a-0000000000, b-1111111111, c-2222222222",
        ),
        (("a", "a-0000000000"), RecipeError, "needs 2 or more runs, got 1"),
    ],
)
def test_runs_that_are_not_there_are_named(
    workspace: Workspace, names: tuple[str, ...], kind: type[UserError], words: str
) -> None:
    with pytest.raises(kind, match=words):
        blended(workspace, *names)


def test_a_name_with_two_runs_must_be_said_in_full(workspace: Workspace) -> None:
    make_run(workspace, "a", "3333333333", 4)
    with pytest.raises(
        RecipeError, match="a has 2 runs, say which one: a-0000000000, a-3333333333"
    ):
        find_run(workspace, "a")
    assert find_run(workspace, "a-3333333333").name == "a-3333333333"


def test_of_several_runs_of_a_recipe_its_name_means_the_one_without_changed_knobs(
    workspace: Workspace,
) -> None:
    plain, changed = named("lite0_head"), override(named("lite0_head"), ["pixels.fit=squash"])
    for fingerprint, recipe in (
        ("4444444444", changed),
        ("5555555555", plain),
        ("6666666666", changed),
    ):
        edit_json(
            make_run(workspace, "lite0_head", fingerprint) / "run.json",
            recipe=recipe.model_dump(mode="json"),
        )
    assert find_run(workspace, "lite0_head").name == "lite0_head-5555555555"
    edit_json(
        workspace.runs / "lite0_head-6666666666" / "run.json", recipe=plain.model_dump(mode="json")
    )
    with pytest.raises(
        RecipeError,
        match="lite0_head has 2 runs, say which one: lite0_head-5555555555, lite0_head-6666666666",
    ):
        find_run(workspace, "lite0_head")


def test_a_blend_maps_logits_as_its_runs_do_unless_told_otherwise_and_refuses_knobs_that_it_has_not(
    workspace: Workspace,
) -> None:
    assert read_run(blended(workspace, "a", "b")).settings.method == "temperature"
    for name in ("a-0000000000", "b-1111111111"):
        edit_json(workspace.runs / name / "calibration.json", method="none")
    assert read_run(blended(workspace, "a", "b")).settings.method == "none"
    assert read_run(blended(workspace, "a", "b", "c")).settings.method == "temperature"
    told = read_run(
        blended(
            workspace,
            "a",
            "b",
            settings=["prediction.calibration=platt", "prediction.noise_rate=0"],
        )
    )
    assert (told.settings.method, told.settings.noise_rate) == ("platt", 0)
    for setting in ("folds.n=3", "prediction.views=flip", "model.layer=x", "clip"):
        with pytest.raises(RecipeError, match=f"'{setting}' is no knob of a blend"):
            blended(workspace, "a", "b", settings=[setting])


def test_a_blend_says_what_share_of_the_best_runs_loss_is_left(workspace: Workspace) -> None:
    members = read_members(workspace, ["a", "b"])
    means = [losses.mean() for losses in members.losses()]
    best = int(np.argmin(means))
    assert (
        f"{means[best]:.5f}, 1.00 (1.00 to 1.00) of that of its best run, {members.names[best]}"
        in members.against_best(members.logits[:, best])
    )
    assert f"{np.log(2):.5f}, {np.log(2) / means[best]:.2f} (" in members.against_best(
        np.zeros(len(members.photos))
    )


def test_a_member_predicted_for_other_test_photos_is_stale(workspace: Workspace) -> None:
    manifest = workspace.manifest("test")
    manifest.write_text(manifest.read_text().replace("0" * 16, "1" * 16))
    with pytest.raises(StaleError, match="make predict"):
        blended(workspace, "a", "b")


def test_too_few_photos_are_refused(workspace: Workspace) -> None:
    for run in workspace.runs.iterdir():
        table = pd.read_csv(run / "oof.csv", dtype={"id": str})
        table[:10].to_csv(run / "oof.csv", index=False)
    with pytest.raises(DataError, match="10 out-of-fold photos are too few"):
        ablate(workspace, COMPETITION, "a", "b", Heard())


def test_an_ablation_is_paired_and_its_sign_turns_with_the_order(workspace: Workspace) -> None:
    heard = Heard()
    there, back = (
        ablate(workspace, COMPETITION, "a", "b", heard),
        ablate(workspace, COMPETITION, "b", "a", heard),
    )
    assert there.mean == pytest.approx(-back.mean, abs=1e-15)
    assert there.low == pytest.approx(-back.high, abs=1e-15)
    assert sum("- fold" in line for line in heard.lines) == 10
    with pytest.raises(RecipeError, match="are the same run"):
        ablate(workspace, COMPETITION, "a", "a-0000000000", heard)


def test_rows_are_joined_by_id_in_whatever_order_they_stand(workspace: Workspace) -> None:
    before = ablate(workspace, COMPETITION, "a", "b", Heard())
    path = workspace.runs / "b-1111111111" / "oof.csv"
    pd.read_csv(path, dtype={"id": str}).sample(frac=1, random_state=0).to_csv(path, index=False)
    after = ablate(workspace, COMPETITION, "a", "b", Heard())
    assert (after.mean, after.low, after.high) == pytest.approx(
        (before.mean, before.low, before.high), abs=1e-12
    )


def test_a_run_that_is_right_more_often_is_said_to_be_better(workspace: Workspace) -> None:
    path, heard = workspace.runs / "a-0000000000" / "oof.csv", Heard()
    table = pd.read_csv(path, dtype={"id": str})
    table.assign(logit=table["logit"] + 2 * (2 * table["label"] - 1)).to_csv(path, index=False)
    assert ablate(workspace, COMPETITION, "a", "b", heard).low > 0
    assert ablate(workspace, COMPETITION, "b", "a", heard).high < 0
    assert "a-0000000000 is better than b-1111111111" in str(heard)
    assert "b-1111111111 is worse than a-0000000000" in str(heard)
