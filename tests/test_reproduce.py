"""A submission is made again from the photos, or it is said what differs."""

import json
from pathlib import Path
from typing import Any

import pytest
from finished_run import TINY_HEAD
from heard import Heard
from test_submit_stage import FakeKaggle

from comp.competition import COMPETITION
from comp.errors import DataError, StaleError, SubmissionError
from comp.predict.blend import blend_runs
from comp.predict.stage import predict
from comp.progress import Reporter
from comp.store import Workspace, file_sha256
from comp.submit import reproduce as module
from comp.submit.csvfile import write_submission
from comp.submit.reproduce import reproduce
from comp.submit.stage import submit
from comp.train.stage import train

OTHER = TINY_HEAD.replace(name="other", seed=1)


def submitted(workspace: Workspace, *, as_blend: bool = False) -> Path:
    """The CSV of a head that was submitted, or of a blend of two heads."""
    folders = []
    for recipe in (TINY_HEAD, OTHER)[: 1 + as_blend]:
        train(workspace, recipe, "cpu", Reporter())
        folders.append(predict(workspace, COMPETITION, recipe, "cpu", Reporter()).folder)
    folder = folders[0]
    if as_blend:
        folder = blend_runs(workspace, COMPETITION, folders, "greedy", [], "cpu", Reporter())
    kaggle: Any = FakeKaggle()
    row = submit(workspace, COMPETITION, kaggle, folder, Reporter())
    return workspace.submissions / row.file


def remade(workspace: Workspace, csv: Path) -> str:
    heard = Heard()
    reproduce(workspace, COMPETITION, csv.name, "cpu", heard)
    return str(heard)


def edit_capsule(workspace: Workspace, **changes: object) -> None:
    (path,) = (workspace.submissions / "capsules").iterdir()
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("as_blend", [False, True])
def test_a_submission_is_computed_again_from_the_photos_byte_for_byte(
    drawn_copy: Workspace, as_blend: bool
) -> None:
    csv = submitted(drawn_copy, as_blend=as_blend)
    before = set(drawn_copy.root.rglob("*"))
    text = remade(drawn_copy, csv)
    assert "is reproduced, byte for byte" in text
    assert "has changed" not in text
    assert set(drawn_copy.root.rglob("*")) - before == {drawn_copy.root / ".reproduce"}


def test_photos_that_are_not_those_of_the_manifest_are_refused(drawn_copy: Workspace) -> None:
    csv = submitted(drawn_copy)
    photos = sorted((drawn_copy.photos / "test").iterdir())
    photos[0].write_bytes(photos[1].read_bytes())
    with pytest.raises(StaleError, match=f"the first is {photos[0]}: .* run `make data`"):
        remade(drawn_copy, csv)


def test_what_has_changed_is_named_and_then_small_differences_are_tolerated(
    drawn_copy: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    csv = submitted(drawn_copy)
    edit_capsule(drawn_copy, lock="0" * 64)
    text = remade(drawn_copy, csv)
    assert f"lock {'0' * 64} {file_sha256(module.LOCK)}" in text
    assert "byte for byte" in text

    def nudged(path: Path, ids: list[str], probs: list[float], competition: Any) -> None:
        write_submission(path, ids, [prob + by for prob in probs], competition)

    monkeypatch.setattr(module, "write_submission", nudged)
    by = module.TOLERANCE / 2
    assert "within the tolerance" in remade(drawn_copy, csv)
    by = module.TOLERANCE * 2
    with pytest.raises(SubmissionError, match="is not reproduced: a probability differs by"):
        remade(drawn_copy, csv)


def test_without_the_data_the_row_or_the_capsule_nothing_is_begun(drawn_copy: Workspace) -> None:
    csv = submitted(drawn_copy)
    manifest = drawn_copy.manifest("test")
    text = manifest.read_text()
    manifest.write_text(text.replace("\n", "\n\n", 1))
    with pytest.raises(DataError, match=r"data/test\.csv differs"):
        remade(drawn_copy, csv)
    manifest.write_text(text)
    with pytest.raises(SubmissionError, match=f"no submission other.csv .* there is {csv.name}"):
        remade(drawn_copy, Path("other.csv"))
    for path in (drawn_copy.submissions / "capsules").iterdir():
        path.unlink()
    with pytest.raises(SubmissionError, match="is missing or damaged: restore it from git"):
        remade(drawn_copy, csv)
    assert not (drawn_copy.root / ".reproduce").exists()
