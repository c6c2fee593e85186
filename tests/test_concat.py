"""Features side by side: one head sees those of all runs, out of fold and on the test photos, and the result is a run like any other."""

from pathlib import Path

import numpy as np
import pytest
import torch
from comp.train.device import find_device
from comp.train.workbench import open_workbench
from finished_run import edit_json
from heard import Heard

from comp.competition import COMPETITION
from comp.errors import DataError, RecipeError
from comp.predict.blend import blend
from comp.predict.concat import concat
from comp.predict.finished import read_run
from comp.predict.stage import predict
from comp.progress import Reporter
from comp.recipe import Folds, Head, Model, Pixels, Prediction, Recipe, Svm
from comp.store import Workspace, read_json
from comp.submit.forecast import print_forecast
from comp.train.run import Run
from comp.train.stage import solved_head, train

CPU = find_device("cpu")
FIRST = Recipe(
    name="first",
    model=Model(backbone="mobilenetv3_small_050", weights="random"),
    pixels=Pixels(size_px=32, canvas=1.0),
    folds=Folds(n=2),
    training=Head(views="none", n_inner=2, penalties=(1e-2,)),
    prediction=Prediction(calibration="none"),
)
SECOND = FIRST.replace(name="second", model=Model(backbone="resnet10t", weights="random"))


@pytest.fixture
def quick_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("comp.predict.concat.HEAD", FIRST.training)


def made(workspace: Workspace, recipe: Recipe) -> Run:
    run = train(workspace, recipe, CPU, Reporter())
    predict(workspace, COMPETITION, recipe, CPU, Reporter())
    return run


def joined(workspace: Workspace, *names: str, heard: Heard | None = None) -> Path:
    return concat(workspace, COMPETITION, names, (), CPU, heard or Heard())


@pytest.mark.usefixtures("quick_heads")
def test_heads_see_the_features_of_all_runs_and_no_label_of_their_own_fold(
    drawn_copy: Workspace,
) -> None:
    heard = Heard()
    benches = [
        open_workbench(made(drawn_copy, recipe), CPU, Reporter()) for recipe in (FIRST, SECOND)
    ]
    folder = joined(drawn_copy, "first", "second", heard=heard)
    run, photos = read_run(folder), benches[0].photos
    both = []
    for ids in (list(photos["id"]), benches[0].test_ids):
        parts = [
            bench.mean_features(bench.frozen(bench.backbone())[0], ids, bench.views())
            for bench in benches
        ]
        learnt = [
            bench.mean_features(bench.frozen(bench.backbone())[0], ids, bench.views("none"))
            for bench in benches
        ]
        both.append((np.hstack(parts), np.hstack(learnt)))
    (scored, learnt), (test, _) = both
    assert isinstance(FIRST.training, Head)
    heads = [solved_head(learnt, photos, fold, FIRST.training, 0) for fold in (0, 1)]
    expected = np.where(
        photos["fold"] == 0, *(head.logits(torch.from_numpy(scored)).numpy() for head in heads)
    )
    np.testing.assert_allclose(
        run.oof.set_index("id")["logit"].loc[photos["id"]], expected, atol=1e-9
    )
    mean = np.mean([head.logits(torch.from_numpy(test)).numpy() for head in heads], axis=0)
    np.testing.assert_allclose(
        run.predictions.set_index("id")["logit"].loc[benches[0].test_ids], mean, atol=1e-9
    )
    assert read_json(folder / "run.json")["members"] == sorted(bench.run.name for bench in benches)
    assert run.settings.method == "none"
    assert "the log loss of one head on all these features, out of fold, is" in str(heard)
    assert joined(drawn_copy, "second", "first") == folder
    assert print_forecast(drawn_copy, COMPETITION, run, heard).n_pairs == 0
    blend(drawn_copy, COMPETITION, ["concat", "first"], "simplex", (), heard)


@pytest.mark.usefixtures("quick_heads")
def test_runs_that_have_no_features_of_their_own_or_other_targets_are_refused(
    drawn_copy: Workspace,
) -> None:
    for recipe in (FIRST, SECOND):
        made(drawn_copy, recipe)
    mixed = blend(drawn_copy, COMPETITION, ["first", "second"], "simplex", (), Reporter()).name
    with pytest.raises(RecipeError, match=f"{mixed} has no features and solved heads of its own"):
        joined(drawn_copy, mixed, "first")
    origin = next(drawn_copy.runs.glob("second-*/run.json"))
    edit_json(origin, recipe=SECOND.replace(training=Svm()).model_dump(mode="json"))
    with pytest.raises(RecipeError, match=r"second-\w+ has no features and solved heads"):
        joined(drawn_copy, "second", "first")
    drawn_copy.verdicts.write_text("id,verdict,reason,by\ncat.1,flip,a test,me\n")
    made(drawn_copy, FIRST.replace(name="judged", folds=Folds(n=2, label_fixes="all")))
    with pytest.raises(DataError, match="first and judged learn other labels or in other folds"):
        joined(drawn_copy, "judged", "first")
    with pytest.raises(RecipeError, match="needs 2 or more runs"):
        joined(drawn_copy, "first")
