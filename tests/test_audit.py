"""The audit finds flipped labels and near-duplicates that disagree, and changes nothing."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from finished_run import TINY_HEAD, make_run, make_workspace
from heard import Heard

from comp.__main__ import main
from comp.competition import COMPETITION
from comp.data.manifest import read_manifest, write_manifest
from comp.errors import DataError, StaleError
from comp.metric import sigmoid
from comp.options import override
from comp.predict.audit import (
    audit_labels,
    by_recipe,
    conflicts,
    doubted,
    evidence,
    pairs_across,
    read_suspects,
)
from comp.predict.runs import read_oof
from comp.progress import Reporter
from comp.report.stage import write_audit_page
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


def test_an_audit_writes_a_table_and_a_gallery_and_changes_no_other_file(
    drawn_copy: Workspace,
) -> None:
    train(drawn_copy, TINY_HEAD, "cpu", Reporter())
    drawn_copy.verdicts.write_text("id,verdict,reason,by\ncat.3,keep,looked,me\n")
    files = [path for path in drawn_copy.root.rglob("*") if path.is_file()]
    before = {path: path.read_bytes() for path in files if path.parent.name != "pixels"}
    heard = Heard()
    table = audit_labels(drawn_copy, COMPETITION, [], heard)
    assert all(path.read_bytes() == data for path, data in before.items())
    written = pd.read_csv(drawn_copy.runs / "audit.csv", keep_default_na=False)
    assert list(written["id"]) == list(table["id"])
    assert "keep" in set(written["verdict"])
    assert "doubted by 1 recipe" in str(heard)
    page = write_audit_page(drawn_copy, COMPETITION, table).read_text()
    first = page.index('<li class="card"')
    assert f'data-id="{table["id"][0]}"' in page[first : page.index(">", first)]
    assert "runs that doubt it: 1" in page


def test_runs_of_one_recipe_share_a_vote_and_a_blend_has_none_beside_its_members(
    tmp_path: Path,
) -> None:
    workspace = make_workspace(tmp_path)
    runs = [make_run(workspace, name, f"{seed:010d}", seed) for seed, name in enumerate("aaab")]
    blend = make_run(workspace, "blend", "0" * 10, 9)
    (blend / "run.json").write_text("{")  # is not read
    grouped = {"a": runs[:3], "b": runs[3:]}
    assert by_recipe([*runs, blend]) == grouped
    assert by_recipe([blend]) == {"blend": [blend]}
    oof = read_oof(blend)
    means = [np.mean([read_oof(run)["logit"] for run in each], axis=0) for each in grouped.values()]
    votes = sum(doubted(oof["label"], mean).astype(int) for mean in means)
    heard = Heard()
    table = audit_labels(workspace, COMPETITION, [], heard).set_index("id")
    found = dict(zip(oof["id"], votes, strict=True))
    assert {id: n for id, n in found.items() if n} == dict(table["votes"][table["votes"] > 0])
    assert "5 runs, 2 votes: runs of one recipe share a vote" in str(heard)


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


def test_runs_that_cannot_be_audited_end_in_one_line(drawn_copy: Workspace) -> None:
    arguments = drawn_copy, COMPETITION
    with pytest.raises(StaleError, match=r"no run is in .*: run `make train` first"):
        audit_labels(*arguments, [], Reporter())
    for recipe in (TINY_HEAD, override(TINY_HEAD, ["folds.n_photos=40"])):
        folder = train(drawn_copy, recipe, "cpu", Reporter()).folder
    with pytest.raises(DataError, match="photos are in only one of them"):
        audit_labels(*arguments, [], Reporter())
    labels = read_manifest(drawn_copy.manifest("train"))["label"]
    change_manifest(drawn_copy, label=1 - labels)
    with pytest.raises(StaleError, match="lacks or labels otherwise"):
        audit_labels(*arguments, [folder], Reporter())
