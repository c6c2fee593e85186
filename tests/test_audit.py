"""The audit finds flipped labels and near-duplicates that disagree, and changes nothing."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from finished_run import TINY_HEAD
from heard import Heard

from comp.__main__ import main
from comp.competition import COMPETITION
from comp.data.manifest import read_manifest, write_manifest
from comp.errors import DataError, RecipeError, StaleError
from comp.metric import sigmoid
from comp.options import override
from comp.predict.audit import (
    audit_labels,
    conflicts,
    doubted,
    evidence,
    measure_leak,
    pairs_across,
    read_suspects,
    ungrouped,
)
from comp.predict.gallery import write_gallery
from comp.progress import Reporter
from comp.recipe import FineTune
from comp.store import Workspace
from comp.train.stage import train


def change_manifest(workspace: Workspace, **columns: object) -> None:
    path = workspace.manifest("train")
    write_manifest(path, read_manifest(path).assign(**columns))


def test_flipped_labels_are_doubted_and_no_others() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(2000) % 2
    logits = (2 * labels - 1) * rng.gamma(4, 1.5, 2000)
    flipped = rng.choice(2000, 20, replace=False)
    given = labels.copy()
    given[flipped] = 1 - given[flipped]
    found = set(np.flatnonzero(doubted(given, logits)))
    assert len(found) >= 8
    assert found <= set(flipped)
    assert not doubted(labels, logits).any()


@pytest.mark.parametrize(("p", "is_doubted"), [(0.30, True), (0.31, False)])
def test_a_photo_is_doubted_if_the_other_class_is_as_probable_as_for_its_own_photos_on_average(
    p: float, is_doubted: bool
) -> None:
    labels, probs = np.repeat([1, 0], 10), np.repeat([0.9, 0.3], 10)
    probs[0] = p  # cats have P(cat) .70 on average
    expected = [is_doubted] + [False] * 19
    assert doubted(labels, np.log(probs / (1 - probs))).tolist() == expected


def test_too_few_photos_for_an_average_are_refused() -> None:
    with pytest.raises(DataError, match="4 out-of-fold photos of one class are too few"):
        doubted([0] * 20 + [1] * 4, np.zeros(24))


def photos(*rows: tuple[str, int, int]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["id", "label", "group"])


def test_near_duplicates_that_disagree_and_pairs_across_the_splits_are_named() -> None:
    cats = [("cat.0", 0, 1), ("cat.1", 0, 2), ("cat.2", 0, 2)]
    train_photos = photos(*cats, ("dog.0", 1, 1), ("dog.9", 1, 3))
    assert conflicts(train_photos) == {"cat.0": "dog.0", "dog.0": "cat.0"}
    pairs = pairs_across(train_photos, pd.DataFrame({"id": ["7", "8"], "group": [2, 9]}))
    assert pairs.to_numpy().tolist() == [["cat.1", "7"], ["cat.2", "7"]]


def test_there_is_a_row_for_each_photo_with_evidence_against_it_and_for_no_other() -> None:
    train_photos = photos(*((f"cat.{n}", 0, n) for n in range(5)), ("dog.0", 1, 3))
    votes = train_photos[["id", "label"]].assign(
        votes=[0, 2, 0, 0, 0, 0], logit=[-9.0, 3.0, -9.0, -9.0, -9.0, 9.0]
    )
    table = evidence(votes, train_photos, {"cat.2": "keep"}, {"cat.0": 3}).set_index("id")
    assert table.index[0] == "cat.1"
    assert set(table.index) == {"cat.0", "cat.1", "cat.2", "cat.3", "dog.0"}
    assert table["p_other"]["cat.1"] == pytest.approx(float(sigmoid(3.0)))
    assert table["p_other"]["dog.0"] == pytest.approx(float(sigmoid(-9.0)))
    assert table["conflict"]["cat.3"] == "dog.0"


def test_the_published_lists_name_138_photos_of_which_seven_are_on_all_five() -> None:
    n_lists = read_suspects(COMPETITION)
    assert len(n_lists) == 138
    assert all(re.fullmatch(r"(cat|dog)\.\d+", id) for id in n_lists)
    on_all = {f"dog.{n}" for n in (5604, 8736, 9517, 10161, 10190, 10237, 10747)}
    assert {id for id, n in n_lists.items() if n == 5} == on_all


def test_ungrouped_folds_split_every_group_and_move_no_other_photo() -> None:
    rows = pd.DataFrame({"group": [0, 0, 0, 1, 2, 2, 3], "fold": [1, 1, 1, 0, 2, 2, 2]})
    split = ungrouped(rows)
    assert split["fold"].tolist() == [1, 2, 0, 0, 2, 0, 2]
    assert split["group"].is_unique


def test_an_audit_writes_a_table_and_a_gallery_and_changes_no_other_file(
    drawn_copy: Workspace,
) -> None:
    train(drawn_copy, TINY_HEAD, "cpu", Reporter())
    drawn_copy.verdicts.write_text("id,verdict,reason,by\ncat.3,keep,looked,me\n")
    files = [path for path in drawn_copy.root.rglob("*") if path.is_file()]
    before = {path: path.read_bytes() for path in files if path.parent.name != "pixels"}
    heard = Heard()
    table = audit_labels(drawn_copy, COMPETITION, ["tiny"], "cpu", heard)
    assert all(path.read_bytes() == data for path, data in before.items())
    written = pd.read_csv(drawn_copy.runs / "audit.csv", keep_default_na=False)
    assert list(written["id"]) == list(table["id"])
    assert "keep" in set(written["verdict"])
    assert "doubted by one or more of 1 runs" in str(heard)
    assert "leak" in str(heard)
    most_doubted = f"{table['id'][0]}, votes 1, p_other 0."
    assert most_doubted in (drawn_copy.runs / "audit.html").read_text()


def test_the_leak_shows_if_copies_of_a_photo_would_be_split(drawn_copy: Workspace) -> None:
    manifest = read_manifest(drawn_copy.manifest("train"))
    used = list(manifest.index[manifest["fold"].notna()])
    columns = {name: manifest[name].copy() for name in ("sha256", "group", "fold", "label")}
    for copy, original in zip(used[30:50], used[:10] * 2, strict=True):  # two copies of each
        path = drawn_copy.photos / "train" / f"{manifest['id'][copy]}.jpg"
        path.write_bytes((path.parent / f"{manifest['id'][original]}.jpg").read_bytes())
        for name in columns:
            columns[name][copy] = manifest[name][original]
    change_manifest(drawn_copy, **columns)
    heard = Heard()
    assert measure_leak(drawn_copy, TINY_HEAD, "cpu", heard).low > 0
    assert "an apparent gain of +0." in str(heard)


def test_without_near_duplicates_there_is_no_leak_and_nothing_is_computed(
    drawn_copy: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_manifest(drawn_copy, group=np.arange(len(read_manifest(drawn_copy.manifest("train")))))
    monkeypatch.setattr("comp.network.backbone.build", lambda *_, **__: pytest.fail("a backbone"))
    assert measure_leak(drawn_copy, TINY_HEAD, "cpu", Reporter()).mean == 0


def test_one_command_compares_a_recipe_with_and_without_label_fixes(
    drawn_copy: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn_copy.verdicts.write_text("id,verdict,reason,by\ncat.3,flip,looked,me\n")
    small = ["--recipe", "lite0_head", "--set", "model.weights=random", "pixels.size_px=32"]
    options = ["--workspace", str(drawn_copy.root), "--device", "cpu", *small]
    assert main(["judge", "cat.3", *options]) == 0
    said = capsys.readouterr().out
    assert "label fixes applied to 1 of 79 training photos: 1 flip" in said
    assert re.search(r"lite0_head-\w+ (and|is better than|is worse than) lite0_head-\w+", said)
    assert main(["judge", "drop", *options]) == 1
    assert "folds.label_fixes=drop names none of the 1 lines" in capsys.readouterr().err


def test_a_gallery_needs_no_other_file_and_escapes_its_captions(
    drawn: Workspace, tmp_path: Path
) -> None:
    sections = {
        "a < b": [("train", "cat.0", '<script>alert("1")</script>'), ("train", "x", "gone")]
    }
    assert write_gallery(tmp_path / "g.html", "t & u", sections, drawn) == 2
    page = (tmp_path / "g.html").read_text()
    assert "<script" not in page
    assert "a &lt; b" in page
    assert "t &amp; u" in page
    assert page.count("data:image/jpeg;base64,") == 1
    assert "(no photo)" in page
    assert not re.search(r"(src|href)=\"(?!data:)", page)


def test_runs_that_cannot_be_audited_end_in_one_line(drawn_copy: Workspace) -> None:
    arguments = drawn_copy, COMPETITION
    with pytest.raises(StaleError, match=r"no run is in .*: run `make train` first"):
        audit_labels(*arguments, [], "cpu", Reporter())
    with pytest.raises(RecipeError, match="no run 'nobody'"):
        audit_labels(*arguments, ["nobody"], "cpu", Reporter())
    for recipe in (TINY_HEAD, override(TINY_HEAD, ["folds.n_photos=40"])):
        name = train(drawn_copy, recipe, "cpu", Reporter()).name
    with pytest.raises(DataError, match="photos are in only one of them"):
        audit_labels(*arguments, [], "cpu", Reporter())
    labels = read_manifest(drawn_copy.manifest("train"))["label"]
    change_manifest(drawn_copy, label=1 - labels)
    with pytest.raises(StaleError, match=r"are not in data/train\.csv with the same label"):
        audit_labels(*arguments, [name], "cpu", Reporter())
    fine_tune = TINY_HEAD.replace(training=FineTune())
    with pytest.raises(RecipeError, match="solves no head"):
        measure_leak(drawn_copy, fine_tune, "cpu", Reporter())
