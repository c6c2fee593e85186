"""Which photos train, in which parts; and label fixes, which change what is learnt, not scored."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from heard import Heard
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import TINY

from comp.competition import COMPETITION
from comp.data.folds import assign_folds
from comp.errors import DataError, RecipeError
from comp.options import override
from comp.predict.stage import predict
from comp.progress import Reporter
from comp.recipe import Folds, Head
from comp.recipes import named
from comp.store import Workspace
from comp.train import tuning
from comp.train.labels import (
    chosen_label_fixes,
    read_label_fixes,
    select,
    targets,
    training_rows,
)
from comp.train.run import open_run
from comp.train.solver import fit_head, solve_fold
from comp.train.stage import train

HEAD = TINY.replace(training=Head(views="none", n_inner=2, penalties=(1e-3, 1e-1)))
FIXED = HEAD.replace(folds=Folds(label_fixes="all"))
PHOTOS = pd.DataFrame(
    {"id": ["a", "b", "c", "d", "e"], "label": [0, 1, 0, 1, 1], "fold": [0, 1, 0, 1, 1]}
)


def manifest(n: int, group_size: int) -> pd.DataFrame:
    rows = range(n)
    table = {"id": [f"p.{row}" for row in rows], "label": [row % 2 for row in rows]}
    table |= {"group": [row // group_size for row in rows], "verdict": ["ok"] * n}
    return pd.DataFrame(table | {"fold": [row // group_size % 5 for row in rows]})


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(200, 600),
    group_size=st.integers(1, 4),
    shares=st.tuples(st.floats(0.05, 0.4), st.floats(0.05, 0.4)),
)
def test_parts_have_their_shares_of_both_classes_and_no_group_is_in_two(
    n: int, group_size: int, shares: tuple[float, float]
) -> None:
    photos = select(manifest(n, group_size), Folds(split=shares))
    assert (photos.groupby("group")["part"].nunique() == 1).all()
    for label in (0, 1):
        here = photos[photos["label"] == label]
        for part, share in enumerate((*shares, 1 - sum(shares))):
            assert abs((here["part"] == part).sum() - share * len(here)) <= 2 * group_size
    assert (photos["fold"] == (photos["part"] == 2)).all()
    assert np.array_equal(training_rows(photos.assign(target=1.0), 0), photos["part"] == 2)


def test_equal_shares_give_the_folds_that_no_shares_give() -> None:
    rows = range(100)
    columns = [f"p.{row}" for row in rows], [row % 2 for row in rows], [row // 3 for row in rows]
    plain = assign_folds(*columns, n_folds=4, seed=0)
    assert np.array_equal(plain, assign_folds(*columns, n_folds=4, seed=0, shares=[1, 1, 1, 1]))


def test_a_split_is_fitted_once_reported_by_part_and_predicts(drawn_copy: Workspace) -> None:
    recipe = override(named("lite0_head"), ["pixels.size_px=64", "folds.split=[0.2,0.3]"])
    heard = Heard()
    run = train(drawn_copy, recipe, "cpu", heard)
    assert [path.name for path in run.folder.glob("*.safetensors")] == ["fold-0.safetensors"]
    counts = pd.read_csv(run.oof)["fold"].value_counts()
    assert sorted(counts.index) == [0, 1]
    assert [counts[0], counts[1]] == pytest.approx([16, 24], abs=3)
    assert "validation" in str(heard)
    assert "test" in str(heard)
    predict(drawn_copy, COMPETITION, recipe, "cpu", heard)
    assert np.isfinite(pd.read_csv(run.folder / "test.csv")["prob"]).all()


def test_shares_that_leave_nothing_to_train_on_are_refused() -> None:
    for split in ("[0.5,0.5]", "[0.1]", "[0.1,0]", "0.1"):
        with pytest.raises(RecipeError):
            override(named("lite0_head"), [f"folds.split={split}"])
    with pytest.raises(ValueError, match=r"folds\.fit must be none where folds\.split"):
        Folds(split=(0.1, 0.1), fit=1)


def written(path: Path, *rows: str) -> Path:
    path.write_text("id,verdict,reason,by\n" + "".join(f"{row},no reason,me\n" for row in rows))
    return path


def test_each_fix_sets_its_target_and_a_photo_without_one_keeps_its_label(tmp_path: Path) -> None:
    path = written(tmp_path / "v.csv", "a,flip", "b,drop", "c,soft:0.3", "d,keep")
    learnt = targets(PHOTOS, read_label_fixes(path))
    assert learnt.tolist() == pytest.approx([1.0, np.nan, 0.3, 1.0, 1.0], nan_ok=True)
    rows = training_rows(PHOTOS.assign(target=learnt), 0)
    assert rows.tolist() == [False, False, False, True, True]
    for wanted, ids in {"all": "abc", "flip": "a", "drop": "b", "soft": "c", "b": "b"}.items():
        assert set(chosen_label_fixes(path, wanted)) == set(ids)


def test_fixes_that_make_no_sense_are_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "v.csv"
    for rows, says in (
        (["a,soft:1.5"], "soft:P with P from 0 to 1"),
        (["a,remove"], "'remove' of a"),
        (["a,drop", "a,flip"], "one verdict on a"),
    ):
        with pytest.raises(DataError, match=says):
            read_label_fixes(written(path, *rows))
    path.write_text("photo,what\n")
    with pytest.raises(DataError, match="has the columns photo, what"):
        read_label_fixes(path)
    with pytest.raises(DataError, match="true names none of the 1 lines"):
        chosen_label_fixes(written(path, "a,keep"), "true")


def test_a_soft_label_moves_the_head_between_those_of_the_two_hard_ones() -> None:
    x = np.random.default_rng(0).normal(size=(60, 3))
    training = Head(penalties=(1e-2,), n_inner=2)

    def logit(label: float) -> float:
        labels = np.arange(60) % 2.0
        labels[0] = label
        return float(fit_head(x, labels, list(range(60)), training, seed=0).logits(x)[0])

    assert logit(0.0) < logit(0.3) < logit(0.6) < logit(1.0)


def test_a_solved_head_learns_the_targets_and_not_the_labels() -> None:
    x = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    label = (x[:, 0] > 0).astype(int)
    photos = pd.DataFrame({"label": label, "target": 1.0 - label, "group": range(60)})
    photos["fold"] = np.arange(60) % 2
    head = solve_fold(x, photos, 0, Head(n_inner=2, penalties=(1e-2,)), 0)
    logits = head.logits(x)
    assert ((logits > 0) == (label == 0)).mean() > 0.9


def test_a_run_is_scored_on_the_original_labels_of_all_photos(drawn_copy: Workspace) -> None:
    table = pd.read_csv(drawn_copy.manifest("train"), dtype=str)
    ids = list(table["id"][table["fold"].notna()])
    flips, drops = [f"{id},flip" for id in ids[:6]], [f"{id},drop" for id in ids[40:46]]
    written(drawn_copy.verdicts, *flips, *drops)
    heard = Heard()
    plain = pd.read_csv(train(drawn_copy, HEAD, "cpu", Reporter()).oof)
    fixed = pd.read_csv(train(drawn_copy, FIXED, "cpu", heard).oof)
    assert fixed[["id", "label", "fold"]].equals(plain[["id", "label", "fold"]])
    assert not np.allclose(fixed["logit"], plain["logit"])
    assert "label fixes applied to 12 of 79 training photos: 6 flip, 6 drop" in str(heard)


def test_a_changed_fix_makes_another_run_only_of_recipes_that_apply_it(
    drawn_copy: Workspace,
) -> None:
    keys = []
    for verdict in ("flip", "drop"):
        written(drawn_copy.verdicts, f"cat.0,{verdict}")
        keys += [open_run(drawn_copy, recipe).fit_fingerprint for recipe in (HEAD, FIXED)]
    assert keys[0] == keys[2]
    assert len(set(keys)) == 3


def test_fine_tuning_learns_the_targets(
    drawn_copy: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = pd.read_csv(drawn_copy.manifest("train"), dtype={"id": str})
    ids = list(table["id"][table["fold"] > 0])
    written(drawn_copy.verdicts, f"{ids[0]},soft:0.25", f"{ids[1]},drop")
    learnt: list[torch.Tensor] = []

    def spied(
        network: object, batches: list[tuple[torch.Tensor, torch.Tensor]], *_: object, **__: object
    ) -> None:
        learnt.extend(labels for _, labels in batches)
        raise KeyboardInterrupt

    monkeypatch.setattr(tuning, "fine_tune", spied)
    settings = ["folds.label_fixes=all", "training.batch_size=2"]
    with pytest.raises(KeyboardInterrupt):
        train(drawn_copy, override(TINY, settings), "cpu", Reporter())
    labels = torch.cat(learnt)
    assert (labels == 0.25).sum() == 1
    assert len(labels) == (len(ids) - 1) // 2 * 2


def test_a_fix_of_a_photo_that_does_not_train_is_refused(drawn_copy: Workspace) -> None:
    written(drawn_copy.verdicts, "cat.0,drop", "17,flip")
    with pytest.raises(DataError, match="1 verdict on no training photo, 17 first"):
        train(drawn_copy, FIXED, "cpu", Reporter())
