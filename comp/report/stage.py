"""When pages are written: a run's after every command that changed it, others on request.

runs/<run>/report.html   the run, after train, predict, blend and submit, or by `make report`
submissions/index.html   the ledger, after submit and scores
runs/audit.html          the photos that `make audit` lists

Loads neither pandas nor matplotlib unless a page is written: a stage that is done has to say so
in under a second.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
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
    runs, lines = _results(workspace), _ledger_lines(workspace)
    try:
        yield
    except UserError:
        _write_changed(workspace, competition, reporter, runs, lines)
        raise
    _write_changed(workspace, competition, reporter, runs, lines)


def _results(workspace: Workspace) -> dict[Path, int]:
    """When each result changed. Runs that were set aside have their pages, and change no more."""
    paths = [path for name in RESULTS for path in workspace.runs.glob(f"*/{name}")]
    return {path: path.stat().st_mtime_ns for path in paths if ".before-" not in path.parent.name}


def _ledger_lines(workspace: Workspace) -> set[str]:
    path = workspace.ledger
    return set(path.read_text("utf-8", "replace").splitlines()) if path.exists() else set()


def _write_changed(
    workspace: Workspace,
    competition: Competition,
    reporter: Reporter,
    runs: dict[Path, int],
    lines: set[str],
) -> None:
    changed = {path.parent for path, _ in _results(workspace).items() - runs.items()}
    new_lines = _ledger_lines(workspace) - lines
    submitted = {
        path.parent
        for path in workspace.runs.glob("*/oof.csv")
        if any(f"{path.parent.name}.csv" in line for line in new_lines)
    }
    pages: list[Callable[[Workspace, Competition], Path]] = [
        partial(write_report, folder=folder)
        for folder in sorted(changed | submitted)
        if (folder / "oof.csv").exists()
    ]
    for write in [*pages, *([write_ledger_page] if new_lines else [])]:
        try:
            write(workspace, competition_of(workspace, competition))
        except (UserError, OSError) as error:
            reporter.warn(f"no page: {error}")


def report_run(
    workspace: Workspace,
    competition: Competition,
    folder: Path,
    device: str | None,
    reporter: Reporter,
) -> None:
    """Measure what takes the run's networks, and write its report."""
    from comp.report.activation import measure

    measure(workspace, folder, device, reporter)
    reporter.say(f"report in {write_report(workspace, competition, folder)}")


def write_report(
    workspace: Workspace, competition: Competition, folder: Path, against: Path | None = None
) -> Path:
    """The page of the run in `folder`, with its losses beside those of the run in `against`."""
    from comp.predict.runs import read_oof
    from comp.report.charts import loss_pairs
    from comp.report.page import Section, render
    from comp.report.run_page import read_facts, run_page

    path = folder / "report.html"
    facts = read_facts(workspace, competition, folder)
    page = run_page(facts)
    if against:
        beside = loss_pairs(facts.oof, read_oof(against), against.name)
        section = Section(title=f"Against {against.name}", charts=[beside])
        page = replace(page, sections=[*page.sections[:1], section, *page.sections[1:]])
    write_text(path, render(page))
    return path


def write_ledger_page(workspace: Workspace, competition: Competition) -> Path:
    from comp.report.ledger_page import ledger_page
    from comp.report.page import render

    path = workspace.submissions / "index.html"
    write_text(path, render(ledger_page(workspace, competition)))
    return path


def write_audit_page(workspace: Workspace, competition: Competition, table: "pd.DataFrame") -> Path:
    """`table`: the rows of runs/audit.csv."""
    from comp.report.gallery import Photos, audit_page
    from comp.report.page import render

    path = workspace.runs / "audit.html"
    write_text(path, render(audit_page(Photos(workspace, competition), competition, table)))
    return path
