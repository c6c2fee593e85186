"""The audit finds labels that were flipped, names near-duplicates that disagree, measures the leak, and changes nothing."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from comp.train.device import find_device
from heard import Heard

from comp.data.manifest import read_manifest, write_manifest
from comp.errors import DataError, RecipeError, StaleError
from comp.metric import sigmoid
from comp.options import override, restored
from comp.predict.audit import SUSPECTS, audit, conflicts, doubted, evidence, judge, twins_across
from comp.predict.gallery import Section, write_gallery
from comp.predict.leak import measure_leak, ungrouped
from comp.progress import Reporter
from comp.recipe import FineTune, Folds, Head, Model, Pixels, Recipe
from comp.recipes import RECIPES
from comp.store import Workspace, read_json, write_json
from comp.train.stage import train

CPU = find_device("cpu")
TINY = Recipe(
    name="tiny",
    model=Model(backbone="mobilenetv3_small_050", weights="random"),
    pixels=Pixels(size_px=32, canvas=1.0),
    training=Head(views="none", n_inner=2, penalties=(1e-2,)),
)


def rewritten(workspace: Workspace, split: str, **columns: object) -> pd.DataFrame:
    manifest = read_manifest(workspace.manifest(split)).assign(**columns)
    write_manifest(workspace.manifest(split), manifest)
    return manifest


def test_flipped_labels_are_doubted_and_few_others() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(2000) % 2
    logits = (2 * labels - 1) * rng.gamma(4, 1.5, 2000)
    flipped = rng.choice(2000, 20, replace=False)
    given = labels.copy()
    given[flipped] = 1 - given[flipped]
    found = set(np.flatnonzero(doubted(given, logits)))
    assert len(found & set(flipped)) >= 8
    assert len(found - set(flipped)) == 0
    assert not doubted(labels, logits).any()


def test_a_photo_is_doubted_where_the_other_class_is_as_probable_as_its_own_photos_are_on_average() -> (
    None
):
    labels, probs = np.array([1] * 10 + [0] * 10), np.array([0.9] * 10 + [0.3] * 10)
    below, above = labels.copy(), probs.copy()
    above[0] = 0.30  # its P(cat) 0.70 is the mean P(cat) of cats
    assert doubted(labels, np.log(above / (1 - above))).tolist() == [True] + [False] * 19
    above[0] = 0.31
    assert not doubted(below, np.log(above / (1 - above))).any()


def test_too_few_photos_for_an_average_are_refused() -> None:
    with pytest.raises(
        DataError, match="4 out-of-fold photos of one class are too few for an audit"
    ):
        doubted([0] * 20 + [1] * 4, np.zeros(24))


def photos(*rows: tuple[str, int, int]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["id", "label", "group"])


def test_near_duplicates_that_disagree_and_pairs_across_the_splits_are_named() -> None:
    train_photos = photos(
        ("cat.0", 0, 1), ("dog.0", 1, 1), ("cat.1", 0, 2), ("cat.2", 0, 2), ("dog.9", 1, 3)
    )
    assert conflicts(train_photos) == {"cat.0": "dog.0", "dog.0": "cat.0"}
    twins = twins_across(train_photos, pd.DataFrame({"id": ["7", "8"], "group": [2, 9]}))
    assert twins.to_numpy().tolist() == [["cat.1", "7"], ["cat.2", "7"]]


def test_a_row_for_whatever_speaks_against_a_photo_and_for_nothing_else() -> None:
    train_photos = photos(*((f"cat.{n}", 0, n) for n in range(4)), ("dog.0", 1, 3))
    votes = train_photos[["id", "label"]].assign(
        votes=[0, 2, 0, 0, 0], logit=[-9.0, 3.0, -9.0, -9.0, 9.0]
    )
    table = evidence(votes, train_photos, {"cat.2": "keep"}, {"cat.0": 3}).set_index("id")
    assert list(table.index[:1]) == ["cat.1"]
    assert set(table.index) == {"cat.0", "cat.1", "cat.2", "cat.3", "dog.0"}
    assert table["p_other"]["cat.1"] == pytest.approx(float(sigmoid(3.0)))
    assert table["p_other"]["dog.0"] == pytest.approx(float(sigmoid(-9.0)))
    assert table["conflict"]["cat.3"] == "dog.0"
    assert evidence(votes, photos(("cat.0", 0, 0)), {}, {}).shape[0] == 1


def test_the_published_list_names_138_photos_of_which_seven_are_in_all_five_lists() -> None:
    table = pd.read_csv(SUSPECTS)
    assert len(table) == table["id"].nunique() == 138
    assert table["id"].str.fullmatch(r"(cat|dog)\.\d+").all()
    assert set(table["id"][table["n_lists"] == 5]) == {
        f"dog.{n}" for n in (5604, 8736, 9517, 10161, 10190, 10237, 10747)
    }


def test_ungrouped_folds_split_every_group_and_move_nobody_else() -> None:
    rows = pd.DataFrame({"group": [0, 0, 0, 1, 2, 2, 3], "fold": [1, 1, 1, 0, 2, 2, 2]})
    split = ungrouped(rows)
    assert split["fold"].tolist() == [1, 2, 0, 0, 2, 0, 2]
    assert split["group"].is_unique


def test_an_audit_writes_a_table_and_a_gallery_and_leaves_runs_manifests_and_verdicts_alone(
    drawn_copy: Workspace,
) -> None:
    train(drawn_copy, TINY, CPU, Reporter())
    drawn_copy.verdicts.write_text("id,verdict,reason,by\ncat.3,keep,looked,me\n")
    before = {
        path: path.read_bytes()
        for path in drawn_copy.root.rglob("*")
        if path.is_file() and path.parent.name != "pixels"
    }
    heard = Heard()
    table = audit(drawn_copy, ["tiny"], CPU, heard)
    assert all(path.read_bytes() == data for path, data in before.items())
    written = pd.read_csv(drawn_copy.runs / "audit.csv", keep_default_na=False)
    assert list(written["id"]) == list(table["id"])
    assert "keep" in set(written["verdict"])
    assert "doubted by one or more of 1 runs" in str(heard)
    assert "leak" in str(heard)


def test_the_leak_is_seen_where_copies_of_a_photo_would_be_split(drawn_copy: Workspace) -> None:
    manifest = read_manifest(drawn_copy.manifest("train"))
    used = list(manifest.index[manifest["fold"].notna()])
    columns = {name: manifest[name].copy() for name in ("sha256", "group", "fold", "label")}
    for copy, original in zip(
        used[30:50], used[:10] * 2, strict=True
    ):  # ten photos, twice more each under other names
        path = drawn_copy.photos / "train" / f"{manifest['id'][copy]}.jpg"
        path.write_bytes((path.parent / f"{manifest['id'][original]}.jpg").read_bytes())
        for name in columns:
            columns[name][copy] = manifest[name][original]
    rewritten(drawn_copy, "train", **columns)
    heard = Heard()
    assert measure_leak(drawn_copy, TINY, CPU, heard).low > 0
    assert "an apparent gain of +0." in str(heard)


def test_without_near_duplicates_there_is_no_leak_and_nothing_is_computed(
    drawn_copy: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_rows = len(read_manifest(drawn_copy.manifest("train")))
    rewritten(drawn_copy, "train", group=np.arange(n_rows))
    monkeypatch.setattr(
        "comp.train.features.Embedder.embed", lambda *_: pytest.fail("a backbone was run")
    )
    assert measure_leak(drawn_copy, TINY, CPU, Reporter()).mean == 0


def test_a_verdict_is_tested_in_one_call_on_the_labels_that_were_there(
    drawn_copy: Workspace,
) -> None:
    drawn_copy.verdicts.write_text("id,verdict,reason,by\ncat.3,flip,looked,me\n")
    heard = Heard()
    gain = judge(drawn_copy, TINY, "cat.3", CPU, heard)
    assert gain.low <= gain.mean <= gain.high
    assert "verdicts applied to 1 of 79 training photos: 1 flip" in str(heard)
    with pytest.raises(DataError, match=r"folds.label_fixes=drop names none of the 1 verdicts"):
        judge(drawn_copy, TINY, "drop", CPU, heard)


def test_a_gallery_needs_no_other_file_and_escapes_what_it_shows(
    drawn: Workspace, tmp_path: Path
) -> None:
    evil = '<script>alert("1")</script>'
    section = Section(
        title="a < b", photos=[("train", "cat.0", evil), ("train", "cat.999", "gone")]
    )
    assert write_gallery(tmp_path / "g.html", "t & u", [section], drawn) == 2
    page = (tmp_path / "g.html").read_text()
    assert "<script" not in page
    assert "a &lt; b" in page
    assert "t &amp; u" in page
    assert page.count("data:image/jpeg;base64,") == 1
    assert "(no photo)" in page
    assert not re.search(r"(src|href)=\"(?!data:)", page)


def test_a_recipe_comes_back_from_what_a_run_keeps_of_it(tmp_path: Path) -> None:
    for make in RECIPES.values():
        recipe = override(make(), ["folds.n=7", "pixels.size_px=96"])
        write_json(tmp_path / "r.json", recipe.model_dump(mode="json"))
        assert restored(Recipe, read_json(tmp_path / "r.json")) == recipe
    with pytest.raises(RecipeError, match=r"no option 'folds\.n_left_out'"):
        restored(Recipe, make().model_dump(mode="json") | {"folds": {"n_left_out": 3}})


def test_runs_that_cannot_be_audited_end_in_one_line(drawn_copy: Workspace) -> None:
    with pytest.raises(StaleError, match=r"no run is in .*: run `make train` first"):
        audit(drawn_copy, [], CPU, Reporter())
    with pytest.raises(RecipeError, match="no run 'nobody' is here"):
        audit(drawn_copy, ["nobody"], CPU, Reporter())
    for recipe in (TINY, override(TINY, ["folds.n_photos=40"])):
        train(drawn_copy, recipe, CPU, Reporter())
    with pytest.raises(DataError, match="photos are in one of them only"):
        audit(drawn_copy, [], CPU, Reporter())
    manifest = read_manifest(drawn_copy.manifest("train"))
    rewritten(drawn_copy, "train", label=1 - manifest["label"])
    name = next(path.parent.name for path in drawn_copy.runs.glob("*/oof.csv"))
    with pytest.raises(StaleError, match=r"are not in data/train\.csv with the same label"):
        audit(drawn_copy, [name], CPU, Reporter())
    with pytest.raises(RecipeError, match="solves no head"):
        measure_leak(
            drawn_copy, Recipe(name="tune", training=FineTune(), folds=Folds()), CPU, Reporter()
        )
