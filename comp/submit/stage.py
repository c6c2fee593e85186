"""The submit stage: a finished run -> a checked CSV, one upload, a score, a row in the ledger.

1. Run, sample submission and manifests are read and checked; on a problem nothing is written.
2. The forecast is printed; `submissions/<run>.csv` is written, and what it was made from beside it.
3. A file that is in the ledger is not uploaded again; nor is one that Kaggle lists and that a
   crash kept out of the ledger: it is added there.
4. Otherwise the file is uploaded, if Kaggle's limits allow it, and added to the ledger, pending.
5. The score is awaited up to a time limit; `fetch_scores` gets it later.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from comp.competition import Competition
from comp.data.archive import read_sample
from comp.data.manifest import read_manifest
from comp.data.origin import check_server, origin_path, read_origin
from comp.errors import DataError, SubmissionError, UnavailableError, UserError
from comp.kaggle import Kaggle, Submission
from comp.predict.runs import FinishedRun, check_current, read_run
from comp.progress import Reporter, counted
from comp.store import Workspace, code_commit, file_sha256, locked
from comp.submit.csvfile import check_submission, write_submission
from comp.submit.forecast import print_forecast
from comp.submit.ledger import LedgerRow, read_ledger, score_text, write_row
from comp.submit.reproduce import keep_capsule

CODE = Path(__file__).resolve().parents[1]
SCORE_WAIT_S = 900.0  # for a score; Kaggle takes seconds, or minutes on a busy day
LISTED_S = 60.0  # from the start of an upload until Kaggle lists it, or never will
LOOK_EVERY_S = 5.0


def submit(
    workspace: Workspace,
    competition: Competition,
    kaggle: Kaggle,
    run: Path,
    reporter: Reporter,
    *,
    force: bool = False,
) -> LedgerRow:
    """The ledger's row of this run's submission, with its score if that came in time.

    A file that was submitted before is uploaded again only by `force`.
    """
    check_server(workspace, kaggle)
    finished = read_run(run)
    ids = _check_run(workspace, competition, finished, reporter)
    try:
        print_forecast(workspace, competition, finished, reporter)
    except DataError as error:  # too few photos for a forecast are enough for a submission
        reporter.warn(f"no forecast: {error}")
    # Two runs of this stage at the same time must not both upload the file.
    with locked(workspace.submissions / ".submit.lock", reporter):
        path = workspace.submissions / f"{finished.folder}.csv"
        probs = finished.predictions.set_index("id")["prob"].loc[ids].tolist()
        write_submission(path, ids, probs, competition)
        keep_capsule(workspace, competition, run, path)
        row = _upload_once(workspace, kaggle, _draft_row(finished, path), reporter, force)
    if row.status == "pending":
        row = _await_score(workspace, kaggle, row, reporter)
    _print_rows(competition, [row], reporter)
    return row


def fetch_scores(
    workspace: Workspace, competition: Competition, kaggle: Kaggle, reporter: Reporter
) -> None:
    """Ask Kaggle for the scores that the ledger lacks, and print the ledger."""
    check_server(workspace, kaggle)
    rows = read_ledger(workspace.ledger, reporter)
    pending = [row for row in rows if row.status == "pending"]
    lacking = [row for row in rows if row.status != "error" and row.private_score is None]
    listed = {each.ref: each for each in kaggle.submissions()} if lacking else {}
    for row in lacking:
        try:
            answer, is_pending = listed.get(_ref(row)), row.status == "pending"
            if answer and (is_pending or answer.private_score is not None):
                _settle(workspace, row, answer, reporter)
            elif is_pending:
                reporter.warn(f"Kaggle lists no submission {row.ref} of {row.file}")
        except SubmissionError as error:
            reporter.warn(str(error))
    rows = read_ledger(workspace.ledger)
    n_left = sum(row.status == "pending" for row in rows)
    n_settled = f"{len(pending) - n_left:,} of {counted(len(pending), 'pending score')} arrived"
    left = f", {n_left:,} still pending: run `make scores` again later" if n_left else ""
    reporter.say(f"{n_settled}{left}" if pending else "no pending scores")
    _print_rows(competition, rows, reporter)


def _print_rows(competition: Competition, rows: Sequence[LedgerRow], reporter: Reporter) -> None:
    cells = []
    for row in rows:
        scores = (row.cv_clipped, row.public_score, row.private_score)
        cells.append((row.file, *("-" if each is None else each for each in scores), row.status))
    columns = ("submission", "CV clipped", "public", "private", "status")
    reporter.table(f"{competition.title}: log loss", columns, cells)


def _check_run(
    workspace: Workspace, competition: Competition, finished: FinishedRun, reporter: Reporter
) -> list[str]:
    """The ids in the order of the sample submission, once the run has passed all checks."""
    sample, origin = workspace.data / competition.sample, read_origin(workspace)
    if origin is None:
        what = "is missing or damaged, so that it is not known whose photos these are"
        raise DataError(f"{origin_path(workspace)} {what}: run `make data`")
    if not sample.exists() or file_sha256(sample) != origin.sample:
        raise DataError(f"{sample} is missing or not as it was written: run `make data`")
    ids = read_sample(sample.read_bytes(), competition)
    train, test = (read_manifest(workspace.manifest(split)) for split in ("train", "test"))
    check_current(workspace, finished)
    for warning in check_submission(finished, ids, train, test, competition):
        reporter.warn(warning)
    return ids


def _draft_row(run: FinishedRun, path: Path) -> LedgerRow:
    """The row before the upload. Its message ends with a hash that identifies it on Kaggle."""
    figures, sha256 = run.figures, file_sha256(path)
    cv = f"cv {figures.cv_raw:.5f} / {figures.cv_clipped:.5f}"
    return LedgerRow(
        file=path.name,
        sha256=sha256,
        recipe=run.recipe,
        fingerprint=run.fingerprint,
        commit=code_commit(CODE),
        cv_raw=round(figures.cv_raw, 6),
        cv_calibrated=round(figures.cv_calibrated, 6),
        cv_clipped=round(figures.cv_clipped, 6),
        message=f"{run.recipe} {run.fingerprint} {cv} sha {sha256[:12]}",
    )


def _upload_once(
    workspace: Workspace, kaggle: Kaggle, draft: LedgerRow, reporter: Reporter, force: bool
) -> LedgerRow:
    """The row of the file in `draft`: that of an earlier upload, or that of an upload made now.

    A file `mark` exists while Kaggle is asked to submit, and tells the next run of a crash.
    """
    rows = read_ledger(workspace.ledger, reporter)
    earlier = [row for row in rows if row.sha256 == draft.sha256]
    if earlier and not force:
        _explain_skip(earlier[-1], reporter)
        return earlier[-1]
    mark = workspace.submissions / f".{draft.sha256[:12]}.uploading"
    lost = _find_lost(kaggle, draft, {row.ref for row in rows}, mark, reporter)
    if lost:
        row = replace(draft, when=_utc(lost.date), ref=lost.ref, message=lost.message)
        reporter.say(
            f"{row.file} has been on Kaggle since {row.when} (ref {row.ref}) but was not in the"
            " ledger: added to it, not uploaded again"
        )
    else:
        ref = _upload(kaggle, workspace.submissions / draft.file, draft.message, mark, reporter)
        row = replace(draft, when=_utc(datetime.now(UTC)), ref=ref)
        reporter.say(f"{row.file} is on Kaggle (ref {ref})")
    write_row(workspace.ledger, row, reporter)
    mark.unlink(missing_ok=True)
    return row


def _explain_skip(row: LedgerRow, reporter: Reporter) -> None:
    """Say that the file of `row` was uploaded before. SubmissionError if it cannot be scored."""
    known = f"{row.file}, byte for byte, was submitted at {row.when} (ref {row.ref}) and"
    if row.status == "error":
        raise SubmissionError(f"{known} could not be scored: not uploaded again (FORCE=1 does)")
    result = "is waiting for its score" if row.status == "pending" else f"scored {score_text(row)}"
    reporter.say(f"{known} {result}: not uploaded again (FORCE=1 does)")


def _find_lost(
    kaggle: Kaggle, draft: LedgerRow, known: set[int | None], mark: Path, reporter: Reporter
) -> Submission | None:
    """A submission of this file that Kaggle lists and whose ref is not among the `known` ones.

    While `mark` shows an upload that was just interrupted, Kaggle gets time to list it.
    """
    wait_s = LISTED_S - max(0.0, time.time() - mark.stat().st_mtime) if mark.exists() else 0.0
    deadline = time.monotonic() + wait_s
    if wait_s > 0:
        reporter.say(
            f"an upload of {draft.file} was interrupted:"
            f" looking for it in Kaggle's list for at most {wait_s:.0f} s"
        )
    while True:
        for each in kaggle.submissions():
            if each.message.endswith(f"sha {draft.sha256[:12]}") and each.ref not in known:
                return each
        if time.monotonic() >= deadline:
            return None
        time.sleep(LOOK_EVERY_S)


def _upload(kaggle: Kaggle, path: Path, message: str, mark: Path, reporter: Reporter) -> int:
    """Kaggle's reference of the submission, made now if the limits allow it."""
    limits = kaggle.limits()
    if limits.n_allowed_now < 1:
        raise SubmissionError(
            f"no submission is left today ({limits.n_today:,} made): nothing was uploaded,"
            " try again after midnight UTC"
        )
    left = counted(limits.n_allowed_now, "submission")
    reporter.say(f"uploading; {left} left today, including this one")
    try:
        return kaggle.upload(path, message, mark.touch)
    except UserError:
        # Kaggle has refused, and there is nothing to find; or the answer was lost, and `upload`
        # has already waited for the list to show the submission.
        mark.unlink(missing_ok=True)
        raise


def _await_score(
    workspace: Workspace, kaggle: Kaggle, row: LedgerRow, reporter: Reporter
) -> LedgerRow:
    try:
        answer = kaggle.wait(_ref(row), SCORE_WAIT_S)
    except UnavailableError as error:
        problem = f"Kaggle did not answer about its score ({error})"
    else:
        if answer.status != "pending":
            return _settle(workspace, row, answer, reporter)
        problem = f"has no score after {SCORE_WAIT_S:.0f} s"
    reporter.warn(f"{row.file} is uploaded (ref {row.ref}), but {problem}: run `make scores` later")
    return row


def _settle(
    workspace: Workspace, row: LedgerRow, answer: Submission, reporter: Reporter
) -> LedgerRow:
    """`row` with Kaggle's `answer`, in the ledger too. SubmissionError if it cannot be scored."""
    row = replace(row, status=answer.status, public_score=answer.public_score)
    row = replace(row, private_score=answer.private_score)
    write_row(workspace.ledger, row, reporter)
    if answer.status == "error":
        reason = " ".join(answer.error.split()).rstrip(".") or "no reason given"
        raise SubmissionError(
            f"Kaggle could not score {row.file} (ref {row.ref}): {reason};"
            " recorded in the ledger as an error"
        )
    return row


def _ref(row: LedgerRow) -> int:
    if row.ref is None:
        raise SubmissionError(
            f"the ledger has no ref for {row.file} of {row.when}: take it from Kaggle's list of"
            " submissions, or delete the line"
        )
    return row.ref


def _utc(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
