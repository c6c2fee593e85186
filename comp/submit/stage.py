"""The submit stage: a finished run -> a checked CSV, one upload, a score, a row in the ledger.

1. The run, the sample submission and the manifests are read and checked; nothing is written if anything is off.
2. What it should score is foretold, from its out-of-fold photos and the scores that the ledger has.
3. `submissions/<run>.csv` is written, whole.
4. A file that the ledger knows is not uploaded again, nor one that Kaggle's list knows and the ledger has lost to a crash.
5. Otherwise Kaggle's limits are asked for, the file is uploaded, and a pending row is in the ledger at once.
6. The score is waited for, for a bounded time, and fills the row; `scores` does that later for what is still pending.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from comp.competition import Competition
from comp.data.manifest import read_manifest
from comp.data.sample import read_sample
from comp.errors import DataError, NotFoundError, SubmissionError, UnavailableError
from comp.kaggle import Kaggle, Submission
from comp.predict.runs import FinishedRun, check_current, read_run
from comp.progress import Reporter
from comp.store import Workspace
from comp.submit.csvfile import check_submission, write_submission
from comp.submit.forecast import show_forecast
from comp.submit.ledger import LedgerRow, locked, read_ledger, write_row
from comp.submit.upload import known_rows, upload_once

WAIT_S = 900.0  # for a score, unless told otherwise; Kaggle takes seconds, or minutes on a busy day


def submit(
    workspace: Workspace,
    competition: Competition,
    kaggle: Kaggle,
    run: Path,
    reporter: Reporter,
    *,
    force: bool = False,
    limit_s: float = WAIT_S,
) -> LedgerRow:
    """The ledger's row of this run's submission, with its score if that came within `limit_s`.

    A file that was submitted before is not uploaded again, and its row is returned, unless `force`. SubmissionError if
    anything is off with the file, no submission is left today, or Kaggle could not score it.
    """
    finished = read_run(run)
    sample_ids = _sample_ids(workspace, competition)
    for remark in _checked(workspace, competition, finished, sample_ids):
        reporter.warn(remark)
    try:
        show_forecast(workspace, competition, finished, reporter)
    except DataError as error:  # too few photos to foretell from are enough to submit
        reporter.warn(f"no forecast: {error}")
    with locked(
        workspace.submissions / ".submit.lock"
    ):  # two runs of this stage at once must not upload one file twice
        path = workspace.submissions / f"{finished.folder}.csv"
        probs = finished.predictions.set_index("id")["prob"].loc[sample_ids].to_numpy(np.float64)
        write_submission(path, sample_ids, probs, competition)
        row = upload_once(workspace, kaggle, finished, path, reporter, force=force)
    if row.status == "pending":
        row = _awaited(workspace, kaggle, row, reporter, limit_s)
    _show_score(row, reporter)
    return row


def scores(
    workspace: Workspace, competition: Competition, kaggle: Kaggle, reporter: Reporter
) -> list[LedgerRow]:
    """The rows of the ledger that were pending and are not any more; the whole ledger is shown."""
    waiting = [row for row in known_rows(workspace, reporter) if row.status == "pending"]
    settled = []
    for row in waiting:
        try:
            answer = kaggle.submission(_ref(row))
        except (NotFoundError, SubmissionError) as error:
            reporter.warn(str(error))
            continue
        if answer.status == "error":
            reporter.warn(_refusal(row, answer))
        if answer.status != "pending":
            settled.append(_recorded(workspace, row, answer))
    n, n_left = len(waiting), len(waiting) - len(settled)
    later = (
        f"; {n_left:,} {'is' if n_left == 1 else 'are'} left for the next `make scores`"
        if n_left
        else ""
    )
    reporter.say(
        f"{n:,} submission{'' if n == 1 else 's'} waited for a score, {len(settled):,} have one or an error now{later}"
    )
    _show_ledger(competition, read_ledger(workspace.ledger).rows, reporter)
    return settled


def _sample_ids(workspace: Workspace, competition: Competition) -> list[str]:
    path = workspace.data / competition.sample
    if not path.exists():
        raise DataError(
            f"{path} does not exist, and it says in which order the ids go: run `make data`"
        )
    return read_sample(path.read_bytes(), competition)


def _checked(
    workspace: Workspace, competition: Competition, finished: FinishedRun, sample_ids: Sequence[str]
) -> list[str]:
    train, test = (read_manifest(workspace.manifest(split)) for split in ("train", "test"))
    check_current(workspace, finished)
    clip = finished.settings.clip
    return check_submission(
        finished.predictions,
        sample_ids,
        competition,
        clip=clip,
        oof=finished.oof,
        train=train,
        test=test,
    )


def _awaited(
    workspace: Workspace, kaggle: Kaggle, row: LedgerRow, reporter: Reporter, limit_s: float
) -> LedgerRow:
    try:
        answer = kaggle.wait(_ref(row), limit_s)
    except UnavailableError as error:
        reporter.warn(
            f"{row.file} is uploaded (ref {row.ref}), its score could not be asked for ({error}): `make scores` does later"
        )
        return row
    if answer.status == "pending":
        reporter.warn(
            f"{row.file} is uploaded (ref {row.ref}) and has no score after {limit_s:.0f} s: `make scores` asks again later"
        )
        return row
    row = _recorded(workspace, row, answer)
    if answer.status == "error":
        raise SubmissionError(_refusal(row, answer))
    return row


def _recorded(workspace: Workspace, row: LedgerRow, answer: Submission) -> LedgerRow:
    row = replace(row, status=answer.status, public_score=answer.public_score)
    write_row(workspace.ledger, row)
    return row


def _refusal(row: LedgerRow, answer: Submission) -> str:
    reason = " ".join(answer.error.split()).rstrip(".") or "it gives no reason"
    return f"Kaggle could not score {row.file} (ref {row.ref}): {reason}; it is in the ledger as an error"


def _ref(row: LedgerRow) -> int:
    if row.ref is None:
        raise SubmissionError(
            f"the ledger has no ref for {row.file} of {row.when}: take it from Kaggle's list of submissions, or delete the line"
        )
    return row.ref


def _show_score(row: LedgerRow, reporter: Reporter) -> None:
    """Cross-validation and the board's score, one above the other."""
    values = {
        "CV raw": row.cv_raw,
        "CV calibrated": row.cv_calibrated,
        "CV clipped": row.cv_clipped,
        "public score": row.public_score,
    }
    reporter.table(
        row.file,
        ("log loss", row.status),
        [(name, _shown(value)) for name, value in values.items()],
    )


def _show_ledger(competition: Competition, rows: Sequence[LedgerRow], reporter: Reporter) -> None:
    columns = ("submission", "CV clipped", "public score", "status")
    lines = [
        (row.file, _shown(row.cv_clipped), _shown(row.public_score), row.status) for row in rows
    ]
    reporter.table(f"{competition.title}: log loss", columns, lines)


def _shown(value: float | None) -> float | str:
    return "-" if value is None else value
