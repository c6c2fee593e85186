"""One head on the features of all runs, out of fold and for test photos: a run like any other."""

from pathlib import Path

import numpy as np
import pytest
from finished_run import TINY_HEAD, edit_json
from heard import Heard

from comp.competition import COMPETITION
from comp.errors import DataError, RecipeError
from comp.predict.blend import blend_runs, shared_head
from comp.predict.runs import read_run
from comp.predict.stage import find_run, predict
from comp.progress import Reporter
from comp.recipe import Folds, Head, Model, Prediction, Svm, ViewsName
from comp.store import Workspace, read_json
from comp.train.fits import open_fit
from comp.train.run import Run
from comp.train.solver import solve_fold
from comp.train.stage import train

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


def joined(workspace: Workspace, *names: str, method: str = "features") -> Path:
    folders = [find_run(workspace, COMPETITION, name) for name in names]
    return blend_runs(workspace, COMPETITION, folders, method, (), "cpu", Heard())


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
    folder = joined(drawn_copy, "first", "second")
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
    assert joined(drawn_copy, "second", "first") == folder
    joined(drawn_copy, "concat", "first", method="simplex")


def test_runs_without_solved_heads_of_their_own_or_with_other_labels_are_refused(
    drawn_copy: Workspace,
) -> None:
    for recipe in (FIRST, SECOND):
        made(drawn_copy, recipe)
    mixed = joined(drawn_copy, "first", "second", method="simplex").name
    with pytest.raises(RecipeError, match=f"{mixed} has no solved head on features of its own"):
        joined(drawn_copy, mixed, "first")
    origin = next(drawn_copy.runs.glob("second-*/run.json"))
    edit_json(origin, recipe=SECOND.replace(training=Svm()).model_dump(mode="json"))
    with pytest.raises(RecipeError, match=r"second-\w+ has no solved head on features"):
        joined(drawn_copy, "second", "first")
    drawn_copy.verdicts.write_text("id,verdict,reason,by\ncat.1,flip,a test,me\n")
    made(drawn_copy, FIRST.replace(name="judged", folds=Folds(n=2, label_fixes="all")))
    with pytest.raises(DataError, match="first and judged learn from other labels"):
        joined(drawn_copy, "judged", "first")
