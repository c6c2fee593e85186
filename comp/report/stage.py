"""When pages are written: a run's after every command that changed it, others on request.

runs/<run>/report.html   the run, after train, predict, blend and submit, or by `make report`
submissions/index.html   the ledger, after submit and scores
runs/audit.html          the photos that `make audit` lists

Loads neither pandas nor matplotlib unless a page is written: a stage that is done has to say so
in under a second.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from comp.competition import Competition
from comp.data.origin import competition_of
from comp.errors import UserError
from comp.progress import Reporter
from comp.store import Workspace, write_text

if TYPE_CHECKING:
    import pandas as pd

RESULTS = ("oof.csv", "test.csv", "calibration.json")  # of a run; a report follows their change


@contextmanager
def pages_kept_current(
    workspace: Workspace, competition: Competition, reporter: Reporter
) -> Iterator[None]:
    """Writes the pages of the runs and submissions that the block changes, even if it then fails.

    A page that cannot be written is a warning: what it would show is safe.
    """
    before, problem = _results(workspace), None
    try:
        yield
    except UserError as error:
        problem = error
    changed = [x for x, state in _results(workspace).items() if state != before.get(x, [])]
    if changed:
        _write_pages(workspace, competition, changed, reporter)
    if problem:
        raise problem


def _write_pages(
    workspace: Workspace, competition: Competition, folders: Sequence[Path], reporter: Reporter
) -> None:
    with reporter.track("writing pages", len(folders), "pages") as advance:
        for folder in folders:
            try:
                now = competition_of(workspace, competition)
                if folder == workspace.submissions:
                    write_ledger_page(workspace, now)
                else:
                    write_report(workspace, now, folder)
            except (UserError, OSError) as error:
                reporter.warn(f"no page: {error}")
            advance()


def _results(workspace: Workspace) -> dict[Path, list[object]]:
    """By run, when its results changed and its lines in the ledger; and the lines of all."""
    ledger, found = workspace.ledger, dict[Path, list[object]]()
    lines = ledger.read_text("utf-8", "replace").splitlines() if ledger.exists() else []
    for oof in sorted(workspace.runs.glob("*/oof.csv")):
        results = [oof.with_name(name) for name in RESULTS]
        if ".before-" not in oof.parent.name:  # what was set aside changes no more
            times = [path.stat().st_mtime_ns for path in results if path.exists()]
            own = [line for line in lines if f"{oof.parent.name}.csv" in line]
            found[oof.parent] = [*times, *own]
    return {**found, workspace.submissions: [*lines]}


def write_report(
    workspace: Workspace, competition: Competition, folder: Path, against: Path | None = None
) -> Path:
    """The page of the run in `folder`, with its losses beside those of the run in `against`."""
    from comp.report.page import render
    from comp.report.run_page import RunFacts, run_page

    path = folder / "report.html"
    write_text(path, render(run_page(RunFacts(workspace, competition, folder), against)))
    return path


def write_ledger_page(workspace: Workspace, competition: Competition) -> Path:
    from comp.report.ledger_page import ledger_page
    from comp.report.page import render

    path = workspace.submissions / "index.html"
    write_text(path, render(ledger_page(workspace, competition)))
    return path


def write_audit_page(workspace: Workspace, competition: Competition, table: "pd.DataFrame") -> Path:
    """`table`: the rows of runs/audit.csv."""
    from comp.report.gallery import audit_page
    from comp.report.page import render

    path = workspace.runs / "audit.html"
    write_text(path, render(audit_page(workspace, competition, table)))
    return path
