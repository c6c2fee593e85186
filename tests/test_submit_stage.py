"""The submit stage against a fake Kaggle: what is uploaded, how often, and the ledger after it."""

import errno
import hashlib
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from finished_run import SAMPLE_IDS, edit_json, edit_table, make_run, make_workspace
from heard import Heard

from comp.competition import COMPETITION
from comp.errors import (
    DataError,
    KaggleError,
    RulesError,
    StaleError,
    SubmissionError,
    UnavailableError,
    UserError,
)
from comp.kaggle import Limits, Submission
from comp.submit import stage
from comp.submit.ledger import LedgerRow, read_ledger

FIRST = 40_000_001  # the fake's first reference
SCORED = {"status": "complete", "public_score": 0.02417, "private_score": 0.025}
PENDING = {"status": "pending", "public_score": None}


def do_nothing(*_: object) -> None:
    """No accident."""


def crash(*_: object) -> None:
    raise KeyboardInterrupt


class FakeKaggle:
    """A list of submissions, settled with `outcome` when it is asked for."""

    is_real = False

    def __init__(self) -> None:
        self.listed: list[Submission] = []
        self.files: list[bytes] = []
        self.calls: list[str] = []
        self.n_allowed = 5
        self.outcome: dict[str, Any] = SCORED
        self.after_upload: Callable[[], None] = do_nothing
        self.is_out_of_reach = False
        self.n_blind_lists = 0  # lists that do not show anything yet

    def limits(self) -> Limits:
        self.calls.append("limits")
        return Limits(n_today=len(self.files), n_allowed_now=self.n_allowed - len(self.files))

    def upload(
        self, csv: Path, message: str, before_submitting: Callable[[], object] = lambda: None
    ) -> int:
        self.calls.append("upload")
        before_submitting()
        self.files.append(csv.read_bytes())
        made = Submission(
            ref=FIRST - 1 + len(self.files),
            date=datetime(2026, 11, 21, 20, 28, 37, tzinfo=UTC) + timedelta(minutes=1),
            file_name=csv.name,
            message=message,
            error="",
            **PENDING,  # type: ignore[arg-type]
        )
        self.listed.insert(0, made)
        self.after_upload()
        return made.ref

    def submissions(self) -> list[Submission]:
        self.calls.append("submissions")
        self.n_blind_lists -= 1
        return self.settled() if self.n_blind_lists < 0 else []

    def wait(self, ref: int, limit_s: float) -> Submission:
        self.calls.append("wait")
        if self.is_out_of_reach:
            raise UnavailableError("Kaggle is out of reach: try again later")
        return next(each for each in self.settled() if each.ref == ref)

    def settled(self) -> list[Submission]:
        self.listed = [replace(each, **self.outcome) for each in self.listed]
        return self.listed


class Scene:
    """A workspace with a finished run, a fake Kaggle, and what was said."""

    def __init__(self, root: Path) -> None:
        self.workspace = make_workspace(root)
        self.run = make_run(self.workspace)
        self.kaggle = FakeKaggle()
        self.heard = Heard()

    def submit(self, run: Path | None = None, **options: Any) -> LedgerRow:
        kaggle: Any = self.kaggle
        run = run or self.run
        return stage.submit(self.workspace, COMPETITION, kaggle, run, self.heard, **options)

    def fetch_scores(self) -> None:
        kaggle: Any = self.kaggle
        stage.fetch_scores(self.workspace, COMPETITION, kaggle, self.heard)

    def crash_after_upload(self) -> None:
        self.kaggle.after_upload = crash
        with pytest.raises(KeyboardInterrupt):
            self.submit()
        self.kaggle.after_upload = do_nothing

    @property
    def rows(self) -> list[LedgerRow]:
        return read_ledger(self.workspace.ledger)

    @property
    def marks(self) -> list[Path]:
        return list(self.workspace.submissions.glob(".*.uploading"))


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_a_run_becomes_one_upload_one_row_and_a_score_beside_cross_validation(scene: Scene) -> None:
    row = scene.submit()
    (content,) = scene.kaggle.files
    assert content == (scene.workspace.submissions / "lite0_head-0123456789.csv").read_bytes()
    cells = [line.split(",") for line in content.decode().splitlines()]
    assert [id for id, _ in cells] == ["id", *SAMPLE_IDS]
    probs = pd.read_csv(scene.run / "test.csv", dtype=str).set_index("id")["prob"].map(float)
    assert all(float(prob) == probs[id] for id, prob in cells[1:])
    assert scene.rows == [row]
    assert (row.status, row.public_score, row.private_score) == ("complete", 0.02417, 0.025)
    assert row.sha256 == hashlib.sha256(content).hexdigest()
    cv = f"cv {row.cv_raw:.5f} / {row.cv_clipped:.5f}"
    assert row.message == f"lite0_head 0123456789 {cv} sha {row.sha256[:12]}"
    assert f"{row.cv_clipped} 0.02417 0.025 complete" in str(scene.heard)


def test_the_limits_are_checked_before_the_upload_and_none_left_means_no_upload(
    scene: Scene,
) -> None:
    scene.kaggle.n_allowed = 0
    with pytest.raises(SubmissionError, match="no submission is left today"):
        scene.submit()
    assert "forecast of lite0_head-0123456789" in str(scene.heard)  # it comes first
    assert scene.kaggle.files == []
    assert not scene.workspace.ledger.exists()
    scene.kaggle.n_allowed = 1
    scene.submit()
    assert scene.kaggle.calls[-3:] == ["limits", "upload", "wait"]


def test_the_same_bytes_are_uploaded_once_under_any_name_unless_forced(scene: Scene) -> None:
    first = scene.submit()
    ledger = scene.workspace.ledger.read_bytes()
    scene.kaggle.calls.clear()
    assert scene.submit() == first
    assert scene.submit(make_run(scene.workspace, name="renamed")) == first
    assert scene.kaggle.calls == []
    assert scene.workspace.ledger.read_bytes() == ledger
    known = f"was submitted at {first.when} (ref {FIRST}) and scored 0.02417, private 0.02500: not"
    assert str(scene.heard).count(known) == 2
    scene.submit(force=True)
    assert scene.kaggle.files[0] == scene.kaggle.files[1]
    scene.submit(make_run(scene.workspace, fingerprint="aaaaaaaaaa", seed=1))  # other bytes
    assert [row.ref for row in scene.rows] == [FIRST, FIRST + 1, FIRST + 2]
    assert "expected to be worse than your best (0.02417, private 0.02500)" in str(scene.heard)


@pytest.mark.parametrize("force", [False, True])
def test_a_crash_between_upload_and_ledger_is_repaired_without_a_second_upload(
    scene: Scene, force: bool
) -> None:
    scene.crash_after_upload()
    assert not scene.workspace.ledger.exists()
    edit_json(scene.run / "calibration.json", cv_raw=0.5)  # the hash in the message decides
    row = scene.submit(force=force)
    assert len(scene.kaggle.files) == 1
    assert (row.ref, row.when, row.public_score) == (FIRST, "2026-11-21T20:29:37Z", 0.02417)
    assert row.message == scene.kaggle.listed[0].message
    assert scene.rows == [row]
    assert "added to it, not uploaded again" in str(scene.heard)


def test_an_interrupted_upload_is_looked_for_until_kaggle_lists_it(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "LOOK_EVERY_S", 0.01)
    scene.crash_after_upload()
    scene.kaggle.n_blind_lists = 3
    assert scene.submit().ref == FIRST
    assert len(scene.kaggle.files) == 1
    assert scene.marks == []


@pytest.mark.parametrize("age_s", [-3600.0, 0.0, stage.LISTED_S + 1])
def test_an_interrupted_upload_that_is_never_listed_is_made_again_after_a_bounded_wait(
    scene: Scene, age_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    now = time.monotonic()
    clock = SimpleNamespace(time=time.time, sleep=waits.append, monotonic=lambda: now + sum(waits))
    monkeypatch.setattr(stage, "time", clock)
    scene.crash_after_upload()
    scene.kaggle.listed.clear()
    (mark,) = scene.marks
    os.utime(mark, (time.time() - age_s,) * 2)
    assert scene.submit().ref == FIRST + 1
    assert sum(waits) == pytest.approx(stage.LISTED_S if age_s <= 0 else 0, abs=1)


@pytest.mark.parametrize(
    "error",
    [
        KaggleError('Kaggle refuses the request (400, "no")'),
        RulesError("accept the rules"),
        SubmissionError("the file is empty"),
        UnavailableError("no answer, and it is not in the list after 60 s"),
    ],
)
def test_an_upload_that_ends_with_an_error_leaves_nothing_to_wait_for(
    scene: Scene, error: UserError, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        assert len(scene.marks) == 1
        raise error

    scene.kaggle.after_upload = refuse
    with pytest.raises(type(error)):
        scene.submit()
    assert scene.marks == []


def test_two_submits_at_the_same_time_make_one_upload(scene: Scene) -> None:
    scene.kaggle.after_upload = lambda: time.sleep(0.2)
    with ThreadPoolExecutor(2) as both:
        first, second = both.map(lambda _: scene.submit(), range(2))
    assert first.ref == second.ref
    assert len(scene.kaggle.files) == len(scene.rows) == 1


def test_a_submission_of_another_file_is_not_taken_for_a_lost_one(scene: Scene) -> None:
    message = "lite0_head 0123456789 cv 0.1 / 0.1 sha 000000000000"
    scene.kaggle.upload(scene.run / "test.csv", message)
    assert scene.submit().ref == FIRST + 1


def test_a_pending_row_is_in_the_ledger_before_the_score_is_awaited(scene: Scene) -> None:
    scene.kaggle.wait = crash  # type: ignore[assignment, method-assign]
    with pytest.raises(KeyboardInterrupt):
        scene.submit()
    (row,) = scene.rows
    assert (row.status, row.ref, row.public_score) == ("pending", FIRST, None)


@pytest.mark.parametrize("is_out_of_reach", [False, True])
@pytest.mark.parametrize("again", ["fetch_scores", "submit"])
def test_a_score_that_comes_late_fills_the_pending_row_on_the_next_call(
    scene: Scene, is_out_of_reach: bool, again: str
) -> None:
    scene.kaggle.outcome, scene.kaggle.is_out_of_reach = PENDING, is_out_of_reach
    assert scene.submit().status == "pending"
    assert "run `make scores` later" in str(scene.heard)
    scene.fetch_scores()
    assert scene.rows[0].status == "pending"
    scene.kaggle.outcome, scene.kaggle.is_out_of_reach = SCORED, False
    getattr(scene, again)()
    (row,) = scene.rows
    assert (row.status, row.public_score) == ("complete", 0.02417)
    assert len(scene.kaggle.files) == 1


def test_a_submission_that_kaggle_cannot_score_says_why_and_is_not_repeated(scene: Scene) -> None:
    reason = "Evaluation Exception:\n  Submission must have 12500 rows."
    scene.kaggle.outcome = {"status": "error", "error": reason}
    words = "Evaluation Exception: Submission must have 12500 rows; recorded in the ledger"
    with pytest.raises(SubmissionError, match=words) as caught:
        scene.submit()
    assert "\n" not in str(caught.value)
    assert scene.rows[0].status == "error"
    with pytest.raises(SubmissionError, match="could not be scored"):
        scene.submit()
    assert len(scene.kaggle.files) == 1


def test_fetching_scores_goes_on_after_a_row_that_kaggle_does_not_know(scene: Scene) -> None:
    scene.kaggle.outcome = PENDING
    for seed in range(4):
        scene.submit(make_run(scene.workspace, fingerprint=f"{seed:010d}", seed=seed))
    del scene.kaggle.listed[-1]  # the first
    text = scene.workspace.ledger.read_text()
    scene.workspace.ledger.write_text(text.replace(f",{FIRST + 1},", ",,"))
    scene.kaggle.outcome = SCORED
    scene.fetch_scores()
    assert [row.ref for row in scene.rows if row.status == "complete"] == [FIRST + 2, FIRST + 3]
    said = str(scene.heard)
    assert f"no submission {FIRST}" in said
    assert "the ledger has no ref for lite0_head-0000000001.csv" in said
    assert "2 of 4 pending scores arrived, 2 still pending: run `make scores` again later" in said


def test_private_scores_that_kaggle_shows_later_are_filled_in(scene: Scene) -> None:
    scene.kaggle.outcome = SCORED | {"private_score": None}
    scene.submit()
    scene.fetch_scores()
    assert scene.rows[0].private_score is None
    scene.kaggle.outcome = SCORED
    scene.fetch_scores()
    assert (scene.rows[0].public_score, scene.rows[0].private_score) == (0.02417, 0.025)
    assert str(scene.heard).count("no pending scores") == 2


@pytest.mark.parametrize("n_writes", [0, 1])  # of the ledger before the disk is full
def test_a_disk_that_is_full_after_the_upload_ends_in_one_line_and_the_next_run_repairs_it(
    scene: Scene, n_writes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_row, n_written = stage.write_row, 0

    def write_or_fail(*arguments: Any) -> None:
        nonlocal n_written
        if n_written == n_writes:
            raise OSError(errno.ENOSPC, "No space left on device")
        n_written += 1
        write_row(*arguments)

    monkeypatch.setattr(stage, "write_row", write_or_fail)
    with pytest.raises(OSError, match="No space left"):  # which main explains in one line
        scene.submit()
    assert f"is on Kaggle (ref {FIRST})" in str(scene.heard)
    monkeypatch.setattr(stage, "write_row", write_row)
    row = scene.submit()
    assert (row.ref, row.public_score, len(scene.kaggle.files)) == (FIRST, 0.02417, 1)
    assert (scene.rows, scene.marks) == ([row], [])


def test_a_damaged_ledger_gets_warnings_and_still_prevents_a_second_upload(scene: Scene) -> None:
    row = scene.submit()
    text = scene.workspace.ledger.read_text()
    scene.workspace.ledger.write_text(text.replace(f",{row.cv_raw},", ",fine,") + "a stray line\n")
    scene.submit()
    assert len(scene.kaggle.files) == 1
    assert "line 2: cv_raw 'fine' is not a number" in str(scene.heard)
    assert "line 3 has no sha256" in str(scene.heard)


def test_a_ledger_that_cannot_take_a_row_stops_the_stage_before_the_upload(scene: Scene) -> None:
    scene.workspace.submissions.mkdir()
    scene.workspace.ledger.write_text("when,file\n")
    with pytest.raises(SubmissionError, match="has no column sha256"):
        scene.submit()
    assert scene.kaggle.calls == []


def change_test(change: Callable[[pd.DataFrame], pd.DataFrame]) -> Callable[[Path], None]:
    return lambda run: edit_table(run / "test.csv", change)


def change_json(name: str, **values: object) -> Callable[[Path], None]:
    return lambda run: edit_json(run / name, **values)


def write(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda run: (run / name).write_bytes(content)


def delete(name: str) -> Callable[[Path], None]:
    return lambda run: (run / name).unlink()


def cut_test_manifest(run: Path) -> None:
    """A test photo less in the manifest, and in the predictions that are made again from it."""
    path = run / "../../data/test.csv"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    edit_table(run / "test.csv", lambda table: table[table["id"] != "39"])
    edit_json(run / "calibration.json", of=None)


NO_TABLE = "test.csv is damaged"
SAMPLE = "../../data/sample_submission.csv"
ORIGIN = "../../data/origin.json"


@pytest.mark.parametrize(
    ("spoil", "kind", "words"),
    [
        (change_test(lambda t: t[:-1]), SubmissionError, "1 is .* delete the run.s test.csv"),
        (change_test(lambda t: pd.concat([t, t[:1]])), StaleError, NO_TABLE),
        (
            change_test(lambda t: t.assign(prob=1 - t["prob"])),
            SubmissionError,
            "classes are swapped: predictions of 12 test photos",
        ),
        (change_test(lambda t: t.assign(prob="high")), StaleError, NO_TABLE),
        (change_test(lambda t: t.drop(columns="prob")), StaleError, NO_TABLE),
        (write("test.csv", b""), StaleError, NO_TABLE),
        (write("test.csv", b"\xff\xfe\x00"), StaleError, NO_TABLE),
        (delete("test.csv"), StaleError, r"no test.csv: run `make predict` with the same"),
        (delete("oof.csv"), StaleError, r"no oof.csv: run `make train` with the same"),
        (write("run.json", b"{"), StaleError, "run.json is damaged"),
        (write("run.json", b"[]"), StaleError, "run.json is damaged"),
        (change_json("run.json", fingerprint="ff"), StaleError, "contains the run lite0_head-ff"),
        (
            change_json("calibration.json", clip=None),
            StaleError,
            "clip must be a valid number, got None",
        ),
        (change_json("calibration.json", clip=0.2), SubmissionError, "the range of the clip"),
        (
            change_json("calibration.json", of={"test": "0", "oof": "0"}),
            StaleError,
            "made from other photos or other out-of-fold",
        ),
        (delete(ORIGIN), DataError, "not known whose photos these are: run `make data`"),
        (write(ORIGIN, b"["), DataError, "not known whose photos these are: run `make data`"),
        (delete(SAMPLE), DataError, "run `make data`"),
        (write(SAMPLE, b"id,label\n1,0.5\n"), DataError, "not as it was written: run `make data`"),
        (delete("../../data/train.csv"), DataError, "run `make data`"),
        (cut_test_manifest, SubmissionError, "1 is .* delete data/test.csv and run `make data"),
    ],
)
def test_any_problem_stops_the_stage_in_one_line_before_anything_is_written_or_asked(
    scene: Scene, spoil: Callable[[Path], object], kind: type[UserError], words: str
) -> None:
    spoil(scene.run)
    with pytest.raises(kind, match=words) as caught:
        scene.submit()
    assert "\n" not in str(caught.value)
    assert scene.kaggle.calls == []
    assert not scene.workspace.submissions.exists()


def test_a_run_that_does_not_exist_says_how_to_make_one(scene: Scene) -> None:
    words = "nothing-0000000000 has no run.json: run `make train` with the same RECIPE"
    with pytest.raises(StaleError, match=words):
        scene.submit(scene.workspace.runs / "nothing-0000000000")


def test_warnings_about_a_file_are_printed_and_do_not_stop_it(scene: Scene) -> None:
    change_test(lambda table: table.assign(prob=0.5))(scene.run)
    scene.submit()
    assert "warning: all 40 predictions are the same, 0.5" in str(scene.heard)


def test_photos_too_few_for_a_forecast_are_enough_for_a_submission(scene: Scene) -> None:
    edit_table(scene.run / "oof.csv", lambda table: table[:15])
    edit_json(scene.run / "calibration.json", of=None)
    assert scene.submit().public_score == 0.02417
    assert "no forecast: 15 out-of-fold photos are too few" in str(scene.heard)
