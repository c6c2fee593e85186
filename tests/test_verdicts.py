"""Verdicts change what is learnt where a recipe asks for it, and never what is scored."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from comp.train.device import find_device
from comp.train.head import fit_head
from comp.train.selection import learners
from comp.train.verdicts import chosen_verdicts, read_verdicts, targets
from comp.train.workbench import open_workbench
from heard import Heard

from comp.errors import DataError
from comp.options import override
from comp.progress import Reporter
from comp.recipe import FineTune, Head, Model, Pixels, Recipe
from comp.store import Workspace
from comp.train.run import open_run
from comp.train.stage import begin_fold, solved_head, train

CPU = find_device("cpu")
TINY = Recipe(
    name="tiny",
    model=Model(backbone="mobilenetv3_small_050", weights="random"),
    pixels=Pixels(size_px=32, canvas=1.0),
    training=Head(views="none", n_inner=2, penalties=(1e-3, 1e-1)),
)
PHOTOS = pd.DataFrame(
    {"id": ["a", "b", "c", "d", "e"], "label": [0, 1, 0, 1, 1], "fold": [0, 1, 0, 1, 1]}
)


def written(path: Path, *rows: str) -> Path:
    path.write_text("id,verdict,reason,by\n" + "".join(f"{row},no reason,me\n" for row in rows))
    return path


def test_each_verdict_makes_the_target_that_it_names_and_a_photo_without_one_keeps_its_label(
    tmp_path: Path,
) -> None:
    verdicts = read_verdicts(
        written(tmp_path / "v.csv", "a,flip", "b,drop", "c,soft:0.3", "d,keep")
    )
    learnt = targets(PHOTOS, verdicts)
    assert learnt[[0, 2, 3, 4]].tolist() == [1.0, 0.3, 1.0, 1.0]
    assert np.isnan(learnt[1])
    assert learners(PHOTOS.assign(target=learnt), 0).tolist() == [False, False, False, True, True]


@pytest.mark.parametrize(
    ("wanted", "ids"), [("all", "abc"), ("flip", "a"), ("drop", "b"), ("soft", "c"), ("b", "b")]
)
def test_a_recipe_names_all_verdicts_one_kind_or_one_photo(
    tmp_path: Path, wanted: str, ids: str
) -> None:
    path = written(tmp_path / "v.csv", "a,flip", "b,drop", "c,soft:0.3", "d,keep")
    assert set(chosen_verdicts(path, wanted)) == set(ids)


def test_verdicts_that_cannot_be_meant_are_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "v.csv"
    for rows, says in (
        (["a,soft:1.5"], "soft:P with P from 0 to 1"),
        (["a,remove"], "'remove' of a"),
        (["a,drop", "a,flip"], "one verdict on a"),
    ):
        with pytest.raises(DataError, match=says):
            read_verdicts(written(path, *rows))
    path.write_text("photo,what\n")
    with pytest.raises(DataError, match="has the columns photo, what"):
        read_verdicts(path)
    with pytest.raises(DataError, match="true names none of the 1 verdicts"):
        chosen_verdicts(written(path, "a,keep"), "true")


def test_a_soft_label_moves_the_head_between_those_of_the_two_hard_ones() -> None:
    rng = np.random.default_rng(0)
    x, y = (
        torch.from_numpy(rng.normal(size=(60, 3))),
        torch.from_numpy((np.arange(60) % 2).astype(float)),
    )

    def said(label: float) -> float:
        labels = y.clone()
        labels[0] = label
        return float(
            fit_head(x, labels, list(range(60)), penalties=(1e-2,), n_inner=2, seed=0).logits(x)[0]
        )

    assert said(0.0) < said(0.3) < said(0.6) < said(1.0)


def test_a_solved_head_learns_the_targets_and_not_the_labels() -> None:
    x = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    label = (x[:, 0] > 0).astype(int)
    photos = pd.DataFrame(
        {"label": label, "target": 1.0 - label, "group": range(60), "fold": np.arange(60) % 2}
    )
    said = (
        solved_head(x, photos, 0, Head(n_inner=2, penalties=(1e-2,)), 0)
        .logits(torch.from_numpy(x))
        .numpy()
    )
    assert ((said > 0) == (label == 0)).mean() > 0.9


def test_a_run_scores_the_original_labels_of_all_photos_whatever_the_verdicts(
    drawn_copy: Workspace,
) -> None:
    manifest = pd.read_csv(drawn_copy.manifest("train"), dtype=str)
    ids = list(manifest["id"][manifest["fold"].notna()])
    written(
        drawn_copy.verdicts, *(f"{id},flip" for id in ids[:6]), *(f"{id},drop" for id in ids[40:46])
    )
    heard = Heard()
    torch.manual_seed(0)  # of the random weights, which must be the same twice
    plain = pd.read_csv(train(drawn_copy, TINY, CPU, Reporter()).oof)
    torch.manual_seed(0)
    judged = pd.read_csv(
        train(drawn_copy, override(TINY, ["folds.label_fixes=all"]), CPU, heard).oof
    )
    assert judged[["id", "label", "fold"]].equals(plain[["id", "label", "fold"]])
    assert not np.allclose(judged["logit"], plain["logit"])
    assert "verdicts applied to 12 of 79 training photos: 6 flip, 6 drop" in str(heard)


def test_without_the_knob_verdicts_change_nothing_and_with_it_another_verdict_is_another_run(
    drawn_copy: Workspace,
) -> None:
    asking = override(TINY, ["folds.label_fixes=all"])
    written(drawn_copy.verdicts, "cat.0,flip")
    plain, flipped = (
        open_run(drawn_copy, TINY).fit_fingerprint,
        open_run(drawn_copy, asking).fit_fingerprint,
    )
    written(drawn_copy.verdicts, "cat.0,drop")
    assert open_run(drawn_copy, TINY).fit_fingerprint == plain
    assert open_run(drawn_copy, asking).fit_fingerprint != flipped


def test_fine_tuning_is_fed_the_targets(drawn_copy: Workspace) -> None:
    manifest = pd.read_csv(drawn_copy.manifest("train"), dtype={"id": str})
    learnt = list(manifest["id"][manifest["fold"] > 0])
    written(drawn_copy.verdicts, f"{learnt[0]},soft:0.25", f"{learnt[1]},drop")
    training = FineTune(epochs=1, batch_size=2)
    recipe = override(
        Recipe(name="t", model=TINY.model, pixels=TINY.pixels, training=training),
        ["folds.label_fixes=all"],
    )
    bench = open_workbench(open_run(drawn_copy, recipe), CPU, Reporter(), with_test=False)
    _, batches = begin_fold(bench, 0, training, None)
    fed = torch.cat([labels for _, labels in batches])
    assert (fed == 0.25).sum() == 1
    assert len(fed) == (len(learnt) - 1) // 2 * 2


def test_a_verdict_on_a_photo_that_does_not_train_is_refused(drawn_copy: Workspace) -> None:
    written(drawn_copy.verdicts, "cat.0,drop", "17,flip")
    with pytest.raises(DataError, match="1 verdicts are on no training photo, 17 first"):
        train(drawn_copy, override(TINY, ["folds.label_fixes=all"]), CPU, Reporter())
