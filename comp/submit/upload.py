"""One upload of one file, whatever crashes: the ledger is asked first, then Kaggle's list, then the limits."""

import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from comp.errors import CredentialsError, NotFoundError, RulesError, SubmissionError
from comp.kaggle import Kaggle, Submission
from comp.predict.runs import FinishedRun
from comp.progress import Reporter
from comp.store import Workspace, code_commit, file_sha256
from comp.submit.ledger import LedgerRow, read_ledger, write_row

CODE = Path(__file__).resolve().parents[1]
LISTED_S = 60.0  # from the begin of an upload that was cut off until it is in Kaggle's list, or never will be
LOOK_EVERY_S = 5.0
REFUSALS = (
    CredentialsError,
    RulesError,
    NotFoundError,
)  # answers after which nothing was submitted


def upload_once(
    workspace: Workspace,
    kaggle: Kaggle,
    finished: FinishedRun,
    path: Path,
    reporter: Reporter,
    *,
    force: bool,
) -> LedgerRow:
    """The ledger's row of the file `path`: an earlier one, or one that a crash kept from being written, or that of an upload made now.

    A row made now is pending and in the ledger. `force` uploads a file that the ledger knows once more.
    """
    rows = known_rows(workspace, reporter)
    draft = _draft(finished, path)
    earlier = [row for row in rows if row.sha256 == draft.sha256]
    if earlier and not force:
        return _again(earlier[-1], reporter)
    begun = path.with_name(f".{draft.sha256[:12]}.uploading")  # left behind by a crash
    lost = _lost(kaggle, draft, rows, begun, reporter)
    if lost:
        row = replace(draft, when=_utc(lost.date), ref=lost.ref, message=lost.message)
        reporter.say(
            f"{row.file} is on Kaggle since {row.when} (ref {row.ref}) but not in the ledger: entered there, not uploaded again"
        )
    else:
        _ask_limits(kaggle, reporter)
        begun.touch()
        try:
            ref = kaggle.upload(path, draft.message)
        except REFUSALS:
            begun.unlink(missing_ok=True)  # nothing to look for
            raise
        row = replace(draft, when=_utc(datetime.now(UTC)), ref=ref)
    write_row(workspace.ledger, row)
    begun.unlink(missing_ok=True)
    return row


def known_rows(workspace: Workspace, reporter: Reporter) -> tuple[LedgerRow, ...]:
    """The ledger's rows, with a warning for each line of it that is damaged."""
    ledger = read_ledger(workspace.ledger)
    for remark in ledger.remarks:
        reporter.warn(remark)
    return ledger.rows


def _draft(finished: FinishedRun, path: Path) -> LedgerRow:
    """What is known of a submission before it is one. The digits of the hash in its message tell it apart in Kaggle's list."""
    sha256 = file_sha256(path)
    cv = f"cv {finished.cv_raw:.5f} / {finished.cv_clipped:.5f}"
    return LedgerRow(
        when="",
        file=path.name,
        sha256=sha256,
        recipe=finished.recipe,
        fingerprint=finished.fingerprint,
        commit=code_commit(CODE),
        cv_raw=round(finished.cv_raw, 6),
        cv_calibrated=round(finished.cv_calibrated, 6),
        cv_clipped=round(finished.cv_clipped, 6),
        public_score=None,
        status="pending",
        ref=None,
        message=f"{finished.recipe} {finished.fingerprint} {cv} {_mark(sha256)}",
    )


def _mark(sha256: str) -> str:
    return f"sha {sha256[:12]}"


def _again(row: LedgerRow, reporter: Reporter) -> LedgerRow:
    """The row of a file that was submitted before, and why it is not uploaded now."""
    before = f"{row.file}, byte for byte, was submitted at {row.when} (ref {row.ref})"
    if row.status == "error":
        raise SubmissionError(
            f"{before} and could not be scored: change the run, or upload it again all the same with FORCE=1"
        )
    result = (
        "still waits for its score"
        if row.public_score is None
        else f"scored {row.public_score:.5f}"
    )
    reporter.say(f"{before} and {result}: not uploaded again (FORCE=1 does)")
    return row


def _lost(
    kaggle: Kaggle, draft: LedgerRow, rows: Sequence[LedgerRow], begun: Path, reporter: Reporter
) -> Submission | None:
    """A submission of this very file that Kaggle lists and the ledger lacks: a crash came between upload and ledger.

    Where `begun` says that an upload was cut off just now, the list is given time to show it.
    """
    refs = {row.ref for row in rows}
    is_said = False
    while True:
        listed = (
            each
            for each in kaggle.submissions()
            if each.message.endswith(_mark(draft.sha256)) and each.ref not in refs
        )
        found = next(listed, None)
        left_s = begun.stat().st_mtime + LISTED_S - time.time() if begun.exists() else 0.0
        if found or left_s <= 0:
            return found
        if not is_said:
            reporter.say(
                f"an upload of {draft.file} was cut off: looking for it in Kaggle's list for at most {min(left_s, LISTED_S):.0f} s"
            )
            is_said = True
        time.sleep(min(left_s, LOOK_EVERY_S))


def _ask_limits(kaggle: Kaggle, reporter: Reporter) -> None:
    limits = kaggle.limits()
    if limits.n_allowed_now < 1:
        raise SubmissionError(
            f"no submission is left today ({limits.n_today:,} made): nothing was uploaded, try again after midnight UTC"
        )
    reporter.say(
        f"uploading; {limits.n_allowed_now:,} submissions were left today, this one included"
    )


def _utc(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
