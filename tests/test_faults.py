"""Every fault of the rehearsal server against a whole run: how it ends, what it says, and that nothing on disk is broken.

A run here is download, submit, scores and leaderboard, by the stages themselves, through the real client. Whatever happened, the same run
without faults must then end well, with the archive equal bit for bit and one submission. `pytest tests/test_faults.py -k breaks_nothing -s`
prints the figures of the README: faults tried, survived, bytes lost.
"""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from finished_run import SAMPLE_IDS, make_run, make_workspace
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kaggle_stand import ARCHIVE, HASTE, Notebook, make_competition
from twin.faults import FAULTS
from twin.server import Twin

from comp.competition import COMPETITION
from comp.doctor import account_probes, run_probes
from comp.errors import (
    ArchiveError,
    CredentialsError,
    KaggleError,
    NotFoundError,
    RulesError,
    SubmissionError,
    UnavailableError,
    UserError,
)
from comp.kaggle import Kaggle
from comp.kaggle.archive import zip_problem
from comp.kaggle.download import OVERLAP
from comp.rehearsal.server import RehearsalServer, refuse
from comp.store import Workspace, file_sha256
from comp.submit import stage
from comp.submit.leaderboard import print_standings
from comp.submit.ledger import read_ledger, write_row

TOKEN = "KGAT_canary0123456789abcdef"
RAW = {ARCHIVE, f"{ARCHIVE}.json", f"{ARCHIVE}.part", f"{ARCHIVE}.part.json"}
WAIT_S = 0.3  # for a score


@dataclass(frozen=True)
class Figure:
    """What came of one row of the table."""

    faults: str
    completed: bool  # by the run that met the faults; otherwise it ended in one line, and the next one completed it
    n_again: int  # bytes of the archive that were sent more than once until it was here


class Bench:
    """One server and one client for all tests of this file, and a workspace with a finished run for each."""

    def __init__(self, folder: Path) -> None:
        self.archive, solution = make_competition(folder, n_bytes=600_000)
        solution.write_text(
            "id,label\n" + "".join(f"{name},{place % 2}\n" for place, name in enumerate(SAMPLE_IDS))
        )
        self.server = Twin(self.archive, solution, token=TOKEN, daily_limit=100_000)
        self.notebook = Notebook()
        self.home = folder / "home"
        self.figures: list[Figure] = []
        self.n_sent = 0  # bytes of archives that were not here yet

    def __enter__(self) -> "Bench":
        self.server.__enter__()
        self.env = self.server.environment(self.home)
        self.kaggle = Kaggle(COMPETITION, self.notebook, self.env, HASTE)
        assert not self.kaggle.is_real
        assert self.kaggle.endpoint() == "http://localhost"
        return self

    def __exit__(self, *error: object) -> None:
        self.show_figures()
        self.kaggle.close()
        self.server.__exit__(None, None, None)

    def arm(self, faults: str) -> None:
        self.server.arm(faults.split())
        self.notebook.lines.clear()

    def struck(self) -> list[str]:
        return self.server.struck

    def download(self, workspace: Workspace) -> Path:
        was_here, n_before = (workspace.raw / ARCHIVE).exists(), len(self.server.requests)
        try:
            return self.kaggle.download(workspace.raw)
        finally:
            new = [
                request
                for request in self.server.requests[n_before:]
                if request.target == "file" and request.status in (200, 206)
            ]
            self.n_sent += (
                0 if was_here else sum(request.n_sent for request in new)
            )  # else its head was looked at, no more

    def show_figures(self) -> None:
        """The table for the README. A fault that spoils what arrives costs it all again; so does a server that cannot send the rest."""
        n, n_completed = len(self.figures), sum(figure.completed for figure in self.figures)
        print(
            f"\n{n} cases of {len(FAULTS) - 1} faults: {n_completed} completed by the run that met them, {n - n_completed} ended"
        )
        print(
            "in one line and left what the next run went on from; no byte on disk wrong, no submission made twice or lost"
        )
        for figure in self.figures:
            if figure.n_again:
                print(
                    f"{figure.faults:28} {figure.n_again:9,} of {self.archive.stat().st_size:,} bytes sent again"
                )

    def run(self, workspace: Workspace, run: Path) -> None:
        self.download(workspace)
        stage.submit(workspace, COMPETITION, self.kaggle, run, self.notebook, limit_s=WAIT_S)
        stage.fetch_scores(workspace, COMPETITION, self.kaggle, self.notebook)
        print_standings(workspace, COMPETITION, self.kaggle, self.notebook, refresh=True)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with Bench(tmp_path_factory.mktemp("bench")) as made:
        yield made


PASSING = [  # faults, and what the run has said of them
    ("cut:3", "broke off"),
    ("cut:1:at=0.999999", "broke off"),
    ("reset:2", "reset"),
    ("stall:1", "does not answer"),
    ("slow:10", ""),
    ("hang:1:on=file", "does not answer"),
    ("hang:1:on=ListSubmissions", "does not answer"),
    ("api-reset:2", "reset"),
    ("429:1:retry-after=0.1", "trying again in 0.1 s"),
    ("429:1:on=CreateSubmission", "fewer requests"),
    ("500:2", "500"),
    ("503:2", "503"),
    ("503:2:on=file", "503"),
    ("404:2:on=file", "404"),
    ("503:2:on=GetSubmission", ""),
    ("html:1:on=file", "something else"),
    ("html:1:on=GetSubmissionLimits", "something else"),
    ("no-redirect", ""),
    ("outdated-client", ""),
    ("no-range cut:1", "broke off"),
    ("no-length cut:1", "broke"),
    ("no-validator cut:1", "broke off"),
    ("gzip", ""),
    ("short-length:1", "downloading it once more"),
    ("long-length:1", "broke off"),
    ("flipped-bytes:1", "CRC"),
    ("bad-zip:1", "downloading it once more"),
    ("wrong-206 cut:1", "starting over"),
    ("error-on-resume:2 cut:1", "503"),
    ("expired-url cut:2", "broke off"),
    ("upload-503:2", "503"),
    ("upload-400:1", "400"),
    ("upload-reset:1", "broke"),
    ("upload-expired:2", "404"),
    ("submit-lost", "looking whether the submission has arrived"),
    ("list-delayed:2", ""),
    ("score-delayed:2", ""),
    ("score-delayed", "run `make scores` later"),
]
FAILING = [  # faults, how the run ends, cause and remedy in its one line
    ("401:1", CredentialsError, "401", "renew it at"),
    ("403-rules", RulesError, "403", COMPETITION.rules_url),
    ("404", NotFoundError, "404", "check the competition's name"),
    ("429", UnavailableError, "429", "4 tries in"),
    ("429:1:retry-after=3600", UnavailableError, "429", "asks to wait 3,600 s"),
    ("500", UnavailableError, "500", "try again later"),
    ("503", UnavailableError, "503", "try again later"),
    ("hang", UnavailableError, "does not answer", "try again later"),
    ("api-reset", UnavailableError, "reset", "try again later"),
    ("404:on=file", UnavailableError, "404", "3 tries in"),
    ("html", UnavailableError, "text/html", "try again later"),
    ("cut", UnavailableError, "broke", "the next run goes on from there"),
    ("reset no-range", UnavailableError, "reset", "the next run goes on from there"),
    ("stall no-range", UnavailableError, "does not answer", "the next run goes on from there"),
    ("long-length", UnavailableError, "broke", "the next run goes on from there"),
    ("error-on-resume cut:1", UnavailableError, "503", "the next run goes on from there"),
    ("short-length", ArchiveError, "corrupt", "nothing of it is kept: try again later"),
    ("flipped-bytes", ArchiveError, "CRC", "nothing of it is kept: try again later"),
    ("bad-zip", ArchiveError, "corrupt", "nothing of it is kept: try again later"),
    ("upload-503", UnavailableError, "503", "try again later"),
    ("upload-400", UnavailableError, "400", "try again later"),
    ("upload-reset", UnavailableError, "broke", "try again later"),
    ("upload-expired", UnavailableError, "404", "try again later"),
    ("503:on=CreateSubmission", UnavailableError, "503", "before submitting again"),
    ("submit-lost list-delayed", UnavailableError, "is not in the list", "before submitting again"),
    ("submit-silent", KaggleError, "Successfully submitted", "before submitting again"),
    ("list-delayed", KaggleError, "is not in the list", "before submitting again"),
    ("daily-limit", SubmissionError, "no submission is left today", "after midnight UTC"),
    (
        "score-error",
        SubmissionError,
        "The scoring of this submission failed",
        "in the ledger as an error",
    ),
]
NEVER = "expired-url"  # strikes a link that is used again, and each of our tries gets its own
# changed-file, whose result is another archive, has a test of its own; its name and all those above are all there are.


def test_every_fault_of_the_catalogue_is_in_the_table() -> None:
    words = " ".join(["changed-file", *(row[0] for row in PASSING), *(row[0] for row in FAILING)])
    assert {word.partition(":")[0] for word in words.split()} == set(FAULTS)


@pytest.mark.parametrize(
    ("faults", "ends", "cause", "remedy"),
    [*((faults, None, said, "") for faults, said in PASSING), *FAILING],
    ids=lambda value: str(value),
)
def test_a_run_ends_well_or_in_one_line_and_breaks_nothing(
    bench: Bench,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    faults: str,
    ends: type[UserError] | None,
    cause: str,
    remedy: str,
) -> None:
    monkeypatch.setattr(stage, "LISTED_S", 0.3)
    monkeypatch.setattr(stage, "LOOK_EVERY_S", 0.05)
    monkeypatch.setattr(
        stage, "code_commit", lambda _: "none"
    )  # this and the forecast take longer than all the rest, and ask nobody
    monkeypatch.setattr(stage, "print_forecast", lambda *_: None)
    workspace = make_workspace(tmp_path / "home")
    run = make_run(
        workspace, seed=1000 + len(bench.server.requests)
    )  # a file that no test before has submitted
    n_before, n_sent = len(bench.server.submissions), bench.n_sent

    bench.arm(faults)
    line = failure(bench, workspace, run, ends)
    said = "\n".join(bench.notebook.lines)
    assert bench.struck() == [
        name for word in faults.split() if (name := word.partition(":")[0]) != NEVER
    ]
    assert "\n" not in line
    assert cause in (line if ends else said)
    assert remedy in line
    check_disk(bench, workspace, n_before)

    bench.arm("")
    after = failure(bench, workspace, run, SubmissionError if faults == "score-error" else None)
    assert bench.download(workspace).read_bytes() == bench.archive.read_bytes()
    (known,) = bench.server.submissions[n_before:]
    (row,) = read_ledger(workspace.ledger).rows
    assert (row.ref, row.sha256, row.status) == (
        known.ref,
        known.sha256,
        "error" if known.score is None else "complete",
    )
    check_disk(bench, workspace, n_before)

    bench.figures.append(
        Figure(faults, ends is None, max(0, bench.n_sent - n_sent - bench.archive.stat().st_size))
    )
    shown = "\n".join([line, said, after, *bench.notebook.lines, *capfd.readouterr()])
    assert TOKEN not in shown
    assert [
        path
        for path in tmp_path.rglob("*")
        if path.is_file() and TOKEN.encode() in path.read_bytes()
    ] == []


def failure(bench: Bench, workspace: Workspace, run: Path, ends: type[UserError] | None) -> str:
    """The message that a run ends with; "" for one that must end well."""
    if ends is None:
        bench.run(workspace, run)
        return ""
    with pytest.raises(ends) as caught:
        bench.run(workspace, run)
    return str(caught.value)


def check_disk(bench: Bench, workspace: Workspace, n_before: int) -> None:
    """No archive but the server's, nothing that is neither whole nor known to be partial, and a ledger that says what the server knows."""
    archive = workspace.raw / ARCHIVE
    assert not archive.exists() or archive.read_bytes() == bench.archive.read_bytes()
    assert {path.name for path in workspace.raw.iterdir()} <= RAW
    files = (
        [path for path in workspace.submissions.rglob("*") if path.is_file()]
        if workspace.submissions.exists()
        else []
    )
    assert [path.name for path in files if path.suffix not in (".csv", ".lock", ".uploading")] == []
    known = {made.ref: made for made in bench.server.submissions[n_before:]}
    for row in read_ledger(workspace.ledger).rows:
        made = known[row.ref or 0]
        assert row.sha256 == made.sha256 == file_sha256(workspace.submissions / row.file)
        assert row.public_score is None or row.public_score == pytest.approx(
            made.score, abs=6e-6
        )  # the wire has five digits
        assert row.status in ("pending", "error" if made.score is None else "complete")


def test_no_stage_shows_a_token_that_the_service_throws_back(
    bench: Bench, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = make_workspace(tmp_path)
    run = make_run(workspace, seed=1000 + len(bench.server.requests))
    bench.arm("")
    stage.submit(workspace, COMPETITION, bench.kaggle, run, bench.notebook, limit_s=0)
    write_row(
        workspace.ledger,
        replace(read_ledger(workspace.ledger).rows[0], status="pending"),
        bench.notebook,
    )
    monkeypatch.setattr(
        RehearsalServer,
        "answer",
        lambda _, request: refuse(400, f"no: {request.headers} {request.body!r}"),
    )
    stages = (
        lambda: bench.download(workspace),
        lambda: stage.submit(workspace, COMPETITION, bench.kaggle, run, bench.notebook, force=True),
        lambda: stage.fetch_scores(workspace, COMPETITION, bench.kaggle, bench.notebook),
        lambda: print_standings(workspace, COMPETITION, bench.kaggle, bench.notebook),
        lambda: bench.notebook.say(
            "".join(check.text for check in run_probes(account_probes(bench.kaggle, COMPETITION)))
        ),
    )
    lines = [problem(each) for each in stages]
    assert [bool(line) for line in lines] == [
        True,
        True,
        True,
        False,
        False,
    ]  # the last two go on without
    shown = "\n".join([*lines, *bench.notebook.lines, *capfd.readouterr()])
    assert shown.count("Bearer ***") >= 5  # it was shown, and scrubbed
    assert TOKEN not in shown
    assert [
        path
        for path in tmp_path.rglob("*")
        if path.is_file() and TOKEN.encode() in path.read_bytes()
    ] == []


def test_a_file_that_changes_in_the_middle_of_a_run_is_not_spliced(
    bench: Bench, tmp_path: Path
) -> None:
    workspace = Workspace(tmp_path)
    bench.arm("changed-file:1 cut:1")
    changed = bench.download(workspace)
    assert bench.struck() == ["changed-file", "cut"]
    assert zip_problem(changed) == ""
    assert changed.read_bytes() != bench.archive.read_bytes()
    bench.arm("")
    assert bench.download(workspace).read_bytes() == bench.archive.read_bytes()


PIECES = "cut reset no-range no-length no-validator short-length long-length gzip flipped-bytes bad-zip changed-file wrong-206 error-on-resume"
PIECES += " expired-url no-redirect"
CALLS = (
    "503:{}:on=file",
    "429:{}:on=DownloadDataFiles",
    "api-reset:{}:on=file",
    "html:{}",
    "500:{}:on=DownloadDataFiles",
)
AT = st.floats(0.01, 0.99).map(lambda at: f":at={at:.2f}")
WORDS = st.one_of(
    st.tuples(
        st.sampled_from(("cut:1", "cut:2", "cut:3", "reset:1", "reset:2", "cut", "reset")), AT
    ).map("".join),
    st.sampled_from(PIECES.split()),
    st.tuples(st.sampled_from(PIECES.split()), st.integers(1, 3)).map(
        lambda drawn: f"{drawn[0]}:{drawn[1]}"
    ),
    st.tuples(st.sampled_from(CALLS), st.integers(1, 5)).map(
        lambda drawn: drawn[0].format(drawn[1])
    ),
    st.just("stall:1"),
)


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
@given(runs=st.lists(st.lists(WORDS, min_size=1, max_size=3), min_size=1, max_size=3))
def test_after_any_sequence_of_faults_a_download_is_equal_bit_for_bit_or_can_be_continued(
    bench: Bench, tmp_path_factory: pytest.TempPathFactory, runs: list[list[str]]
) -> None:
    workspace = Workspace(tmp_path_factory.mktemp("drawn"))
    archive = workspace.raw / ARCHIVE
    for faults in runs:
        bench.arm(" ".join(faults))
        line = problem(lambda: bench.download(workspace))
        assert "\n" not in line
        assert line or archive.exists()
        changed = bench.archive.with_name("changed.zip")
        good = [bench.archive.read_bytes(), *([changed.read_bytes()] if changed.exists() else [])]
        assert not archive.exists() or archive.read_bytes() in good
        assert {path.name for path in workspace.raw.iterdir()} <= RAW
    bench.arm("")
    assert bench.download(workspace).read_bytes() == bench.archive.read_bytes()


def problem(call: Callable[[], object]) -> str:
    """The message of the failure that `call` ends in, "" if it ends well."""
    try:
        call()
    except UserError as error:
        return str(error)
    return ""


def test_ctrl_c_in_a_download_ends_in_one_line_and_status_130_and_the_next_run_goes_on(
    bench: Bench, tmp_path: Path
) -> None:
    bench.arm("slow:0.2")
    workspace = Workspace(tmp_path)
    command = [
        sys.executable,
        "-m",
        "comp",
        "data",
        "--recipe",
        "lite0_head",
        "--home",
        str(tmp_path),
    ]
    run = subprocess.Popen(
        command,
        cwd=Path(__file__).parents[1],
        env=bench.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    part = workspace.raw / f"{ARCHIVE}.part"
    start = time.monotonic()
    while not part.exists() or part.stat().st_size < 100_000:
        assert run.poll() is None
        assert time.monotonic() - start < 120
        time.sleep(0.02)
    run.send_signal(signal.SIGINT)
    shown = run.communicate(timeout=60)
    assert (run.returncode, shown) == (
        130,
        ("", "error: stopped; the same command goes on from here\n"),
    )
    have = part.read_bytes()
    assert bench.archive.read_bytes().startswith(have)
    bench.arm("")
    n_before = len(bench.server.requests)
    assert bench.download(workspace).read_bytes() == bench.archive.read_bytes()
    asked = [
        request.range for request in bench.server.requests[n_before:] if request.target == "file"
    ]
    assert asked == [f"bytes={len(have) - OVERLAP}-"]
