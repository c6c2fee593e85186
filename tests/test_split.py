"""A fixed split keeps the classes even and groups whole; one fit is scored on its validation part and on its test part."""

import numpy as np
import pandas as pd
import pytest
from heard import Heard
from hypothesis import given, settings
from hypothesis import strategies as st

from comp.competition import COMPETITION
from comp.data.folds import assign_folds
from comp.errors import RecipeError
from comp.options import override
from comp.predict.stage import predict
from comp.recipe import Folds
from comp.recipes import named
from comp.store import Workspace
from comp.train.labels import select, training_rows
from comp.train.stage import train


def manifest(n: int, group_size: int) -> pd.DataFrame:
    table = pd.DataFrame(
        {
            "id": [f"p.{row}" for row in range(n)],
            "label": [row % 2 for row in range(n)],
            "verdict": "ok",
        }
    )
    return table.assign(
        group=[row // group_size for row in range(n)],
        fold=[row // group_size % 5 for row in range(n)],
        sha256=table["id"],
    )


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(200, 600),
    group_size=st.integers(1, 4),
    shares=st.tuples(st.floats(0.05, 0.4), st.floats(0.05, 0.4)),
)
def test_parts_have_their_shares_of_both_classes_and_no_group_is_in_two(
    n: int, group_size: int, shares: tuple[float, float]
) -> None:
    photos = select(manifest(n, group_size), Folds(split=shares), seed=0)
    assert (photos.groupby("group")["part"].nunique() == 1).all()
    for label in (0, 1):
        here = photos[photos["label"] == label]
        for part, share in enumerate((*shares, 1 - sum(shares))):
            assert abs((here["part"] == part).sum() - share * len(here)) <= 2 * group_size
    assert (photos["fold"] == (photos["part"] == 2)).all()
    assert training_rows(photos.assign(target=1.0), 0).equals(photos["part"] == 2)


def test_equal_shares_deal_the_folds_that_no_shares_deal() -> None:
    keys = (
        [f"p.{row}" for row in range(100)],
        [row % 2 for row in range(100)],
        [row // 3 for row in range(100)],
    )
    plain = assign_folds(*keys, n_folds=4, seed=0)
    assert np.array_equal(plain, assign_folds(*keys, n_folds=4, seed=0, shares=[1, 1, 1, 1]))


def test_a_split_is_fitted_once_and_reported_by_part_and_predicts(drawn_copy: Workspace) -> None:
    recipe = override(named("lite0_head"), ["pixels.size_px=64", "folds.split=[0.2,0.3]"])
    heard = Heard()
    run = train(drawn_copy, recipe, "cpu", heard)
    assert [path.name for path in sorted(run.folder.glob("fold-*.safetensors"))] == [
        "fold-0.safetensors"
    ]
    oof = pd.read_csv(run.oof)
    counts = oof["fold"].value_counts()
    assert sorted(counts.index) == [0, 1]
    assert counts[0] == pytest.approx(16, abs=3)
    assert counts[1] == pytest.approx(24, abs=3)
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
