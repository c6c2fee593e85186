"""The submit stage against a Kaggle whose every answer is known: what is uploaded, how often, what the ledger says after accidents."""

import hashlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from finished_run import SAMPLE_IDS, edit_json, make_run, make_workspace

from comp.competition import COMPETITION
from comp.errors import (
    DataError,
    KaggleError,
    NotFoundError,
    RulesError,
    StaleError,
    SubmissionError,
    UnavailableError,
    UserError,
)
from comp.kaggle import Limits, Submission
from comp.progress import Reporter
from comp.store import Workspace
from comp.submit import stage, upload
from comp.submit.ledger import LedgerRow, read_ledger


class KnownKaggle:
    """Kaggle as the stage sees it: a list of submissions, scored at once unless told otherwise."""

    def __init__(self) -> None:
        self.listed: list[Submission] = []
        self.files: list[bytes] = []
        self.calls: list[str] = []
        self.n_allowed = 5
        self.verdict: dict[str, Any] = {"status": "complete", "public_score": 0.02417}
        self.after_upload: Callable[[], None] = lambda: None
        self.out_of_reach = False
        self.n_blind_lists = 0

    def limits(self) -> Limits:
        self.calls.append("limits")
        return Limits(n_today=len(self.files), n_allowed_now=self.n_allowed - len(self.files))

    def upload(self, csv: Path, message: str) -> int:
        self.calls.append("upload")
        self.files.append(csv.read_bytes())
        ref = 40_000_000 + len(self.files)
        date = datetime(2026, 11, 21, 20, 28, 37, tzinfo=UTC) + timedelta(minutes=len(self.files))
        fresh = {"status": "pending", "public_score": None, "private_score": None, "error": ""}
        self.listed.insert(
            0, Submission(ref=ref, date=date, file_name=csv.name, message=message, **fresh)
        )
        self.after_upload()
        return ref

    def submissions(self) -> list[Submission]:
        self.calls.append("submissions")
        self.n_blind_lists -= 1
        return list(self.listed) if self.n_blind_lists < 0 else []

    def submission(self, ref: int) -> Submission:
        for place, each in enumerate(self.listed):
            if each.ref == ref:
                self.listed[place] = replace(each, **self.verdict)
                return self.listed[place]
        raise NotFoundError(f"no submission {ref}: look at the list")

    def wait(self, ref: int, limit_s: float) -> Submission:
        self.calls.append("wait")
        if self.out_of_reach:
            raise UnavailableError("Kaggle is out of reach: try again later")
        return self.submission(ref)


@pytest.fixture
def kaggle() -> KnownKaggle:
    return KnownKaggle()


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return make_workspace(tmp_path)


@pytest.fixture
def run(workspace: Workspace) -> Path:
    return make_run(workspace)


def submit(workspace: Workspace, kaggle: KnownKaggle, run: Path, **options: Any) -> LedgerRow:
    return stage.submit(workspace, COMPETITION, kaggle, run, Reporter(), **options)


def scores(workspace: Workspace, kaggle: KnownKaggle) -> list[LedgerRow]:
    return stage.scores(workspace, COMPETITION, kaggle, Reporter())


def test_a_run_becomes_one_upload_one_row_and_a_score_beside_cv(
    workspace: Workspace, kaggle: KnownKaggle, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = submit(workspace, kaggle, run)
    (content,) = kaggle.files
    assert content == (workspace.submissions / "lite0_head-0123456789.csv").read_bytes()
    assert [line.split(",")[0] for line in content.decode().splitlines()] == ["id", *SAMPLE_IDS]
    probs = pd.read_csv(run / "test.csv", dtype=str).set_index("id")["prob"].map(float)
    assert all(
        float(line.split(",")[1]) == probs[line.split(",")[0]]
        for line in content.decode().splitlines()[1:]
    )
    assert read_ledger(workspace.ledger).rows == (row,)
    assert (row.status, row.public_score, row.ref) == ("complete", 0.02417, 40_000_001)
    assert row.sha256 == hashlib.sha256(content).hexdigest()
    assert (
        row.message
        == f"lite0_head 0123456789 cv {row.cv_raw:.5f} / {row.cv_clipped:.5f} sha {row.sha256[:12]}"
    )
    shown = capsys.readouterr().out
    assert "0.02417" in shown
    assert f"{row.cv_clipped:.5f}" in shown


def test_limits_are_asked_for_before_the_upload_and_none_left_means_no_upload(
    workspace: Workspace, kaggle: KnownKaggle, run: Path
) -> None:
    kaggle.n_allowed = 0
    with pytest.raises(SubmissionError, match="no submission is left today"):
        submit(workspace, kaggle, run)
    assert kaggle.files == []
    assert not workspace.ledger.exists()
    kaggle.n_allowed = 1
    submit(workspace, kaggle, run)
    assert kaggle.calls[-3:] == ["limits", "upload", "wait"]


def test_the_same_file_is_uploaded_once_and_a_second_run_says_when_and_what_it_scored(
    workspace: Workspace, kaggle: KnownKaggle, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = submit(workspace, kaggle, run)
    ledger = workspace.ledger.read_bytes()
    kaggle.calls.clear()
    capsys.readouterr()
    assert submit(workspace, kaggle, run) == first
    assert kaggle.calls == []
    assert workspace.ledger.read_bytes() == ledger
    assert (
        f"was submitted at {first.when} (ref 40000001) and scored 0.02417: not uploaded again"
        in capsys.readouterr().out
    )


def test_the_same_bytes_under_another_name_are_the_same_file(
    workspace: Workspace, kaggle: KnownKaggle, run: Path
) -> None:
    first = submit(workspace, kaggle, run)
    assert submit(workspace, kaggle, make_run(workspace, name="renamed")) == first
    assert len(kaggle.files) == 1


def test_a_changed_file_is_uploaded(workspace: Workspace, kaggle: KnownKaggle, run: Path) -> None:
    submit(workspace, kaggle, run)
    submit(workspace, kaggle, make_run(workspace, fingerprint="aaaaaaaaaa", seed=1))
    assert len(kaggle.files) == 2
    assert [row.ref for row in read_ledger(workspace.ledger).rows] == [40_000_001, 40_000_002]


def test_force_uploads_the_same_file_again_in_a_row_of_its_own(
    workspace: Workspace, kaggle: KnownKaggle, run: Path
) -> None:
    submit(workspace, kaggle, run)
    submit(workspace, kaggle, run, force=True)
    assert kaggle.files[0] == kaggle.files[1]
    assert [row.ref for row in read_ledger(workspace.ledger).rows] == [40_000_001, 40_000_002]


@pytest.mark.parametrize("force", [False, True])
def test_a_crash_between_upload_and_ledger_is_repaired_without_a_second_upload(
    workspace: Workspace,
    kaggle: KnownKaggle,
    run: Path,
    force: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    kaggle.after_upload = crash
    with pytest.raises(KeyboardInterrupt):
        submit(workspace, kaggle, run)
    assert not workspace.ledger.exists()
    kaggle.after_upload = lambda: None
    edit_json(
        run / "calibration.json", cv_raw=0.5
    )  # the hash in the message tells, not the figures beside it
    row = submit(workspace, kaggle, run, force=force)
    assert len(kaggle.files) == 1
    assert (row.ref, row.when, row.public_score) == (40_000_001, "2026-11-21T20:29:37Z", 0.02417)
    assert row.message == kaggle.listed[0].message
    assert read_ledger(workspace.ledger).rows == (row,)
    assert "not uploaded again" in capsys.readouterr().out


def test_an_upload_that_a_crash_cut_off_is_looked_for_until_kaggle_lists_it(
    workspace: Workspace, kaggle: KnownKaggle, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload, "LOOK_EVERY_S", 0.01)
    kaggle.after_upload = crash
    with pytest.raises(KeyboardInterrupt):
        submit(workspace, kaggle, run)
    kaggle.after_upload = lambda: None
    kaggle.n_blind_lists = 3
    assert submit(workspace, kaggle, run).ref == 40_000_001
    assert len(kaggle.files) == 1
    assert not list(workspace.submissions.glob(".*.uploading"))


def test_an_upload_that_was_cut_off_and_is_never_listed_is_made_again(
    workspace: Workspace, kaggle: KnownKaggle, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload, "LISTED_S", 0.05)
    kaggle.after_upload = crash
    with pytest.raises(KeyboardInterrupt):
        submit(workspace, kaggle, run)
    kaggle.listed.clear()
    kaggle.after_upload = lambda: None
    assert submit(workspace, kaggle, run).ref == 40_000_002


def test_two_submits_at_once_make_one_upload(
    workspace: Workspace, kaggle: KnownKaggle, run: Path
) -> None:
    at_once = kaggle.upload

    def slowly(csv: Path, message: str) -> int:
        time.sleep(0.2)
        return at_once(csv, message)

    kaggle.upload = slowly  # type: ignore[method-assign]
    with ThreadPoolExecutor(2) as both:
        first, second = both.map(lambda _: submit(workspace, kaggle, run), range(2))
    assert first.ref == second.ref
    assert len(kaggle.files) == len(read_ledger(workspace.ledger).rows) == 1


def test_somebody_elses_submission_is_not_taken_for_a_lost_one(
    workspace: Workspace, kaggle: KnownKaggle, run: Path
) -> None:
    kaggle.upload(run / "test.csv", "lite0_head 0123456789 cv 0.1 / 0.1 sha 000000000000")
    assert submit(workspace, kaggle, run).ref == 40_000_002


def test_a_pending_row_is_in_the_ledger_before_the_score_is_waited_for(
    workspace: Workspace, kaggle: KnownKaggle, run: Path
) -> None:
    kaggle.wait = crash  # type: ignore[assignment, method-assign]
    with pytest.raises(KeyboardInterrupt):
        submit(workspace, kaggle, run)
    (row,) = read_ledger(workspace.ledger).rows
    assert (row.status, row.ref, row.public_score) == ("pending", 40_000_001, None)


@pytest.mark.parametrize("accident", ["late", "out of reach"])
def test_a_score_that_does_not_come_leaves_a_pending_row_that_submit_and_scores_fill_later(
    workspace: Workspace,
    kaggle: KnownKaggle,
    run: Path,
    accident: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    good = kaggle.verdict
    kaggle.verdict, kaggle.out_of_reach = {}, accident == "out of reach"
    assert submit(workspace, kaggle, run, limit_s=1).status == "pending"
    assert "`make scores`" in capsys.readouterr().out
    assert scores(workspace, kaggle) == []
    kaggle.verdict = good
    (row,) = scores(workspace, kaggle)
    assert (row.status, row.public_score) == ("complete", 0.02417)
    assert read_ledger(workspace.ledger).rows == (row,)
    assert scores(workspace, kaggle) == []


def test_a_second_submit_of_a_pending_file_waits_again_and_uploads_nothing(
    workspace: Workspace, kaggle: KnownKaggle, run: Path
) -> None:
    good = kaggle.verdict
    kaggle.verdict = {}
    submit(workspace, kaggle, run)
    kaggle.verdict = good
    assert submit(workspace, kaggle, run).public_score == 0.02417
    assert len(kaggle.files) == 1
    assert len(read_ledger(workspace.ledger).rows) == 1


def test_a_submission_that_kaggle_cannot_score_shows_its_reason_and_is_not_repeated(
    workspace: Workspace, kaggle: KnownKaggle, run: Path
) -> None:
    kaggle.verdict = {
        "status": "error",
        "error": "Evaluation Exception:\n  Submission must have 12500 rows.",
    }
    with pytest.raises(
        SubmissionError,
        match=r"Evaluation Exception: Submission must have 12500 rows; it is in the ledger",
    ) as caught:
        submit(workspace, kaggle, run)
    assert "\n" not in str(caught.value)
    assert read_ledger(workspace.ledger).rows[0].status == "error"
    with pytest.raises(SubmissionError, match="could not be scored"):
        submit(workspace, kaggle, run)
    assert len(kaggle.files) == 1


def test_scores_goes_on_after_a_row_that_kaggle_does_not_know_and_shows_reasons(
    workspace: Workspace, kaggle: KnownKaggle, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = kaggle.verdict
    kaggle.verdict = {}
    for seed in range(3):
        submit(workspace, kaggle, make_run(workspace, fingerprint=f"{seed:010d}", seed=seed))
    kaggle.listed = [each for each in kaggle.listed if each.ref != 40_000_001]
    text = workspace.ledger.read_text()
    workspace.ledger.write_text(text.replace(",40000002,", ",,"))
    kaggle.verdict = good
    capsys.readouterr()
    assert [row.ref for row in scores(workspace, kaggle)] == [40_000_003]
    shown = capsys.readouterr().out
    assert "no submission 40000001" in shown
    assert "the ledger has no ref for lite0_head-0000000001.csv" in shown
    assert "3 submissions waited for a score, 1 have one or an error now" in shown


def test_a_damaged_ledger_is_remarked_on_and_still_prevents_a_second_upload(
    workspace: Workspace, kaggle: KnownKaggle, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = submit(workspace, kaggle, run)
    workspace.ledger.write_text(
        workspace.ledger.read_text().replace(f",{row.cv_raw},", ",fine,") + "a stray line\n"
    )
    capsys.readouterr()
    submit(workspace, kaggle, run)
    assert len(kaggle.files) == 1
    shown = capsys.readouterr().out
    assert "line 2: cv_raw 'fine' is not a number" in shown
    assert "line 3: names no sha256" in shown


def test_a_ledger_that_cannot_take_a_row_stops_the_stage_before_the_upload(
    workspace: Workspace, kaggle: KnownKaggle, run: Path
) -> None:
    workspace.submissions.mkdir()
    workspace.ledger.write_text("when,file\n")
    with pytest.raises(SubmissionError, match="has no column sha256"):
        submit(workspace, kaggle, run)
    assert kaggle.calls == []


def crash(*_: object) -> None:
    raise KeyboardInterrupt


def spoil_test(run: Path, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    path = run / "test.csv"
    change(pd.read_csv(path, dtype={"id": str})).to_csv(path, index=False)


@pytest.mark.parametrize(
    ("spoil", "kind", "words"),
    [
        (
            lambda run: spoil_test(run, lambda t: t[:-1]),
            SubmissionError,
            "39 predictions for 40 ids: 1 id",
        ),
        (
            lambda run: spoil_test(run, lambda t: pd.concat([t, t[:1]])),
            SubmissionError,
            "given more than once",
        ),
        (
            lambda run: spoil_test(run, lambda t: t.assign(prob=1 - t["prob"])),
            SubmissionError,
            "classes are swapped: over 12 test photos",
        ),
        (
            lambda run: spoil_test(run, lambda t: t.assign(prob="high")),
            SubmissionError,
            "40 of 40 probabilities are not finite",
        ),
        (
            lambda run: spoil_test(run, lambda t: t.drop(columns="prob")),
            SubmissionError,
            "test.csv is not the table it should be",
        ),
        (
            lambda run: (run / "test.csv").write_bytes(b""),
            SubmissionError,
            "test.csv is not the table it should be",
        ),
        (
            lambda run: (run / "test.csv").write_bytes(b"\xff\xfe\x00"),
            SubmissionError,
            "test.csv is not the table it should be",
        ),
        (
            lambda run: (run / "test.csv").unlink(),
            SubmissionError,
            r"has no test.csv: run `make predict` with the same RECIPE and SET first",
        ),
        (
            lambda run: (run / "oof.csv").unlink(),
            SubmissionError,
            r"has no oof.csv: run `make train` with the same RECIPE and SET first",
        ),
        (lambda run: (run / "run.json").write_text("{"), SubmissionError, "run.json is not JSON"),
        (
            lambda run: (run / "run.json").write_text("[]"),
            SubmissionError,
            "run.json holds no object",
        ),
        (
            lambda run: edit_json(run / "run.json", fingerprint="ffffffffff"),
            StaleError,
            "holds the run lite0_head-ffffffffff",
        ),
        (
            lambda run: edit_json(run / "calibration.json", clip=None),
            SubmissionError,
            "has no number clip",
        ),
        (
            lambda run: edit_json(run / "calibration.json", clip=0.2),
            SubmissionError,
            "outside the clip",
        ),
        (
            lambda run: (run.parents[1] / "data/sample_submission.csv").unlink(),
            DataError,
            "run `make data`",
        ),
        (
            lambda run: (run.parents[1] / "data/sample_submission.csv").write_text("x,y\n1,2\n"),
            DataError,
            "has the columns",
        ),
        (
            lambda run: edit_json(run / "calibration.json", of={"test": "0", "oof": "0"}),
            StaleError,
            "not of the photos and folds",
        ),
        (lambda run: (run.parents[1] / "data/train.csv").unlink(), DataError, "run `make data`"),
    ],
)
def test_whatever_is_off_stops_the_stage_in_one_line_before_anything_is_written_or_asked(
    workspace: Workspace,
    kaggle: KnownKaggle,
    run: Path,
    spoil: Callable[[Path], object],
    kind: type[UserError],
    words: str,
) -> None:
    spoil(run)
    with pytest.raises(kind, match=words) as caught:
        submit(workspace, kaggle, run)
    assert "\n" not in str(caught.value)
    assert kaggle.calls == []
    assert not workspace.submissions.exists()


def test_a_run_that_is_not_there_says_how_to_make_one(
    workspace: Workspace, kaggle: KnownKaggle
) -> None:
    with pytest.raises(
        SubmissionError, match="no run nothing-0000000000 in runs/: run `make train predict` first"
    ):
        submit(workspace, kaggle, workspace.runs / "nothing-0000000000")


def test_remarks_on_a_file_are_shown_and_do_not_stop_it(
    workspace: Workspace, kaggle: KnownKaggle, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil_test(run, lambda table: table.assign(prob=0.5))
    submit(workspace, kaggle, run)
    assert "all 40 predictions are 0.5" in capsys.readouterr().out


def test_the_score_is_foretold_before_anything_is_asked_or_uploaded(
    workspace: Workspace, kaggle: KnownKaggle, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kaggle.n_allowed = 0
    with pytest.raises(SubmissionError, match="no submission is left today"):
        submit(workspace, kaggle, run)
    assert "forecast of lite0_head-0123456789" in capsys.readouterr().out
    kaggle.n_allowed = 2
    submit(workspace, kaggle, run)
    capsys.readouterr()
    submit(workspace, kaggle, make_run(workspace, fingerprint="aaaaaaaaaa", seed=1))
    assert "the expected gain over the best submission so far (0.02417)" in " ".join(
        capsys.readouterr().out.split()
    )


def test_photos_too_few_to_foretell_from_are_enough_to_submit(
    workspace: Workspace, kaggle: KnownKaggle, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    oof = pd.read_csv(run / "oof.csv", dtype={"id": str})
    oof[:15].to_csv(run / "oof.csv", index=False)
    edit_json(run / "calibration.json", of=None)
    assert submit(workspace, kaggle, run).public_score == 0.02417
    assert "no forecast: 15 out-of-fold photos are too few" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "is_left"),
    [(RulesError("accept the rules"), False), (UnavailableError("no answer"), True)],
)
def test_only_an_upload_of_which_nothing_is_known_leaves_its_mark(
    workspace: Workspace,
    kaggle: KnownKaggle,
    run: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: KaggleError,
    is_left: bool,
) -> None:
    def refused(*_: object) -> int:
        raise error

    monkeypatch.setattr(kaggle, "upload", refused)
    with pytest.raises(type(error)):
        submit(workspace, kaggle, run)
    assert bool(list(workspace.submissions.glob(".*.uploading"))) == is_left
