"""The walk: machine, account, archive, line by line. Nothing stops it; at its end it tells whether a run would work."""

from collections.abc import Iterator

from comp.competition import Competition
from comp.doctor.account import account, archive_state
from comp.doctor.check import Check
from comp.doctor.machine import machine
from comp.errors import UserError
from comp.kaggle import Kaggle, Patience
from comp.progress import Reporter
from comp.store import Workspace

PATIENCE = Patience(
    connect_s=5.0, read_s=20.0, n_tries=2, retry_s=20.0
)  # whoever asks for the doctor waits for the answer
MARKS = {"ok": "ok  ", "warn": "look", "bad": "BAD "}


class Quiet(Reporter):
    """Says nothing: the doctor's own lines tell what the calls to Kaggle would say."""

    def say(self, line: str) -> None: ...

    def warn(self, line: str) -> None: ...


def examine(
    workspace: Workspace, competition: Competition, kaggle: Kaggle, reporter: Reporter
) -> list[Check]:
    """All checks, each said as soon as it is known. UserError if one says that a run would not work."""
    checks = []
    for check in _walk(workspace, competition, kaggle):
        reporter.say(f"{MARKS[check.level]}  {check.name:14}  {check.text}")
        checks.append(check)
    bad = [check.name for check in checks if check.level == "bad"]
    if bad:
        raise UserError(
            f"a run would not work: {len(bad)} of {len(checks)} checks are bad ({', '.join(bad)}); each says above what to do"
        )
    return checks


def _walk(workspace: Workspace, competition: Competition, kaggle: Kaggle) -> Iterator[Check]:
    yield from machine(workspace)
    yield from account(kaggle, competition)
    yield archive_state(workspace.raw, competition)
