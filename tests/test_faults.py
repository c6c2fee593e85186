"""Every fault of the server's twin against a whole run: how it ends, what it says, what it leaves.

A run is download, submit, scores and leaderboard, by the stages themselves through the real SDK.
Whatever happened in it, the next run without faults must end well, with the archive equal bit for
bit and with one submission; and nothing shown or written may contain the token.
"""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from finished_run import make_run, make_workspace
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kaggle_stand import ARCHIVE, Stand
from twin.faults import FAULTS

from comp.competition import COMPETITION
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
from comp.kaggle.download import OVERLAP, zip_problem
from comp.store import Workspace, file_sha256
from comp.submit import stage
from comp.submit.leaderboard import print_standings
from comp.submit.ledger import read_ledger

RAW = {".lock", ARCHIVE, f"{ARCHIVE}.json", f"{ARCHIVE}.part", f"{ARCHIVE}.part.json"}


@pytest.fixture(autouse=True)
def _in_haste(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "SCORE_WAIT_S", 0.3)
    monkeypatch.setattr(stage, "LISTED_S", 0.3)
    monkeypatch.setattr(stage, "LOOK_EVERY_S", 0.05)
    # These two take longer than all the rest, and ask nobody.
    monkeypatch.setattr(stage, "code_commit", lambda _: "none")
    monkeypatch.setattr(stage, "print_forecast", lambda *_: None)


PASSING = [  # faults, and what the run says about them
    ("cut:3", "broke off"),
    ("cut:1:at=0.999999", "broke off"),
    ("cut:6", "going on from there"),  # more than the tries of one call: progress does not count
    ("503:2:on=file cut:1", "503"),
    ("no-length cut:2", "broke"),
    ("gzip cut:1", "broke"),
    ("cut:1 gzip:1:skip=1", "broke off"),
    ("api-reset:1:on=file", "reset"),
    ("hang:1:on=upload", "does not answer"),
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
    ("submit-lost", "checking if the submission arrived"),
    ("list-delayed:2", ""),
    ("score-delayed:2", ""),
    ("score-delayed", "run `make scores` later"),
]
LATER, RESUMED, AGAIN = "try again later", "the next run goes on from there", "before submitting"
DISCARDED = "nothing of it is kept: try again later"
FAILING = [  # faults, how the run ends, and the cause and the remedy in its one line
    ("401:1", CredentialsError, "401", "renew it at"),
    ("403-rules", RulesError, "403", COMPETITION.rules_url),
    ("404", NotFoundError, "404", "check the competition's name"),
    ("429", UnavailableError, "429", "4 tries in"),
    ("429:1:retry-after=3600", UnavailableError, "429", "asks to wait 3,600 s"),
    ("500", UnavailableError, "500", LATER),
    ("503", UnavailableError, "503", LATER),
    ("hang", UnavailableError, "does not answer", LATER),
    ("api-reset", UnavailableError, "reset", LATER),
    ("hang:on=file", UnavailableError, "does not answer", "nothing arrived"),
    ("500:on=file", UnavailableError, "500", "nothing arrived"),
    ("404:on=file", UnavailableError, "404", "3 tries in"),
    ("html", UnavailableError, "text/html", LATER),
    ("cut", UnavailableError, "broke", RESUMED),
    ("no-range cut", UnavailableError, "4 tries", RESUMED),
    ("no-validator cut", UnavailableError, "4 tries", RESUMED),
    ("reset no-range", UnavailableError, "reset", RESUMED),
    ("stall no-range", UnavailableError, "does not answer", RESUMED),
    ("long-length", UnavailableError, "broke", RESUMED),
    ("error-on-resume cut:1", UnavailableError, "503", RESUMED),
    ("short-length", ArchiveError, "corrupt", DISCARDED),
    ("flipped-bytes", ArchiveError, "CRC", DISCARDED),
    ("bad-zip", ArchiveError, "corrupt", DISCARDED),
    ("upload-503", UnavailableError, "503", LATER),
    ("upload-400", UnavailableError, "400", LATER),
    ("upload-reset", UnavailableError, "broke", LATER),
    ("upload-expired", UnavailableError, "404", LATER),
    ("503:on=CreateSubmission", UnavailableError, "503", AGAIN),
    ("hang:on=CreateSubmission", UnavailableError, "does not answer", AGAIN),
    ("submit-lost list-delayed", UnavailableError, "is not in the list", AGAIN),
    ("submit-silent", KaggleError, "Successfully submitted", AGAIN),
    ("list-delayed", KaggleError, "is not in the list", AGAIN),
    ("daily-limit", SubmissionError, "no submission is left today", "after midnight UTC"),
    ("daily-limit:on=CreateSubmission", KaggleError, "400", "daily Submission allowance"),
    ("score-error", SubmissionError, "scoring of this submission failed", "as an error"),
]
NEVER = "expired-url"  # hits a link that is used twice, and each of our tries has its own


def test_every_fault_is_in_the_tables_or_has_a_test_of_its_own() -> None:
    words = " ".join(["changed-file", *(row[0] for row in (*PASSING, *FAILING))])
    assert {word.partition(":")[0] for word in words.split()} == set(FAULTS)


def run_all(scene: Stand, workspace: Workspace, run: Path) -> None:
    scene.kaggle.download(workspace.raw)
    stage.submit(workspace, COMPETITION, scene.kaggle, run, scene.notebook)
    stage.fetch_scores(workspace, COMPETITION, scene.kaggle, scene.notebook)
    print_standings(workspace, COMPETITION, scene.kaggle, scene.notebook, refresh=True)


def failure(call: Callable[[], object], expected: type = object) -> str:
    """The one line that `call` ends in; "" if it ends well."""
    error: Exception | None = None
    try:
        call()
    except UserError as caught:
        error = caught
    assert isinstance(error, expected)
    assert "\n" not in str(error)
    return str(error or "")


@pytest.mark.parametrize(
    ("faults", "ends", "cause", "remedy"),
    [*((faults, None, said, "") for faults, said in PASSING), *FAILING],
    ids=[row[0] for row in (*PASSING, *FAILING)],
)
def test_a_run_ends_well_or_in_one_line_and_breaks_nothing(
    scene: Stand,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    faults: str,
    ends: type[UserError] | None,
    cause: str,
    remedy: str,
) -> None:
    workspace = make_workspace(tmp_path / "home")
    # a file that no test before has submitted
    run = make_run(workspace, seed=1000 + len(scene.server.requests))
    n_before = len(scene.server.submissions)

    scene.arm(*faults.split())
    line = failure(lambda: run_all(scene, workspace, run), ends or type(None))
    said = "\n".join(scene.notebook.lines)
    hit = [name for word in faults.split() if (name := word.partition(":")[0]) != NEVER]
    assert scene.server.struck == hit
    assert cause in (line if ends else said)
    assert remedy in line
    check_disk(scene, workspace, n_before)

    scene.arm()
    expected = SubmissionError if faults == "score-error" else type(None)
    after = failure(lambda: run_all(scene, workspace, run), expected)
    assert scene.kaggle.download(workspace.raw).read_bytes() == scene.archive.read_bytes()
    (known,) = scene.server.submissions[n_before:]
    (row,) = read_ledger(workspace.ledger)
    status = "error" if known.score is None else "complete"
    assert (row.ref, row.sha256, row.status) == (known.ref, known.sha256, status)
    check_disk(scene, workspace, n_before)
    check_secrecy(scene, tmp_path, [line, said, after, *scene.notebook.lines, *capfd.readouterr()])


def check_disk(scene: Stand, workspace: Workspace, n_before: int) -> None:
    """No archive but the server's or its start, and a ledger that agrees with the server."""
    content = scene.archive.read_bytes()
    archive, part = (workspace.raw / name for name in (ARCHIVE, f"{ARCHIVE}.part"))
    assert not archive.exists() or archive.read_bytes() == content
    assert not part.exists() or (part.stat().st_size and content.startswith(part.read_bytes()))
    assert {path.name for path in workspace.raw.iterdir()} <= RAW
    files = [path for path in workspace.submissions.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".csv", ".json", ".lock", ".uploading"}
    for capsule in (path for path in files if path.suffix == ".json"):
        assert json.loads(capsule.read_text())["run"]
    known = {made.ref: made for made in scene.server.submissions[n_before:]}
    for row in read_ledger(workspace.ledger):
        made = known[row.ref or 0]
        assert row.sha256 == made.sha256 == file_sha256(workspace.submissions / row.file)
        assert row.status in ("pending", "error" if made.score is None else "complete")
        if row.public_score is not None:  # the wire has five digits
            assert row.public_score == pytest.approx(made.score, abs=6e-6)


def check_secrecy(scene: Stand, folder: Path, lines: list[str]) -> None:
    token = scene.server.account.token
    assert token not in "\n".join(lines)
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert [path for path in files if token.encode() in path.read_bytes()] == []


def test_a_file_that_changes_in_the_middle_is_not_spliced(scene: Stand, tmp_path: Path) -> None:
    scene.arm("changed-file:1", "cut:1")
    changed = scene.kaggle.download(tmp_path)
    assert scene.server.struck == ["changed-file", "cut"]
    assert zip_problem(changed) == ""
    assert changed.read_bytes() != scene.archive.read_bytes()
    scene.arm()
    assert scene.kaggle.download(tmp_path).read_bytes() == scene.archive.read_bytes()


ALTERED = "no-range no-length no-validator short-length long-length gzip flipped-bytes bad-zip"
ALTERED += " changed-file wrong-206 error-on-resume expired-url no-redirect cut reset"
REFUSED = "503:{}:on=file 429:{}:on=DownloadDataFiles api-reset:{}:on=file html:{} 500:{}:on=file"
BROKEN = st.tuples(
    st.sampled_from(["cut:1", "cut:2", "reset:1", "cut", "reset"]), st.floats(0.01, 0.99)
)
WORDS = st.one_of(
    BROKEN.map(lambda drawn: f"{drawn[0]}:at={drawn[1]:.2f}"),
    st.sampled_from([*ALTERED.split(), "stall:1"]),
    st.tuples(st.sampled_from(ALTERED.split()), st.integers(1, 3)).map("{0[0]}:{0[1]}".format),
    st.tuples(st.sampled_from(REFUSED.split()), st.integers(1, 5)).map(
        lambda drawn: drawn[0].format(drawn[1])
    ),
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(runs=st.lists(st.lists(WORDS, min_size=1, max_size=3), min_size=1, max_size=3))
def test_after_any_faults_an_archive_is_equal_bit_for_bit_or_can_be_completed(
    scene: Stand, tmp_path_factory: pytest.TempPathFactory, runs: list[list[str]]
) -> None:
    folder = tmp_path_factory.mktemp("raw")
    archive, changed = folder / ARCHIVE, scene.archive.with_name("changed.zip")
    for faults in runs:
        scene.arm(*faults)
        assert failure(lambda: scene.kaggle.download(folder)) or archive.exists()
        good = [path.read_bytes() for path in (scene.archive, changed) if path.exists()]
        assert not archive.exists() or archive.read_bytes() in good
        assert {path.name for path in folder.iterdir()} <= RAW
    scene.arm()
    assert scene.kaggle.download(folder).read_bytes() == scene.archive.read_bytes()


STOPPED = "error: stopped; the same command resumes here\n"


@pytest.mark.parametrize(
    ("number", "status", "said"),
    [
        (signal.SIGINT, 130, STOPPED),
        (signal.SIGTERM, -signal.SIGTERM, ""),
        (signal.SIGKILL, -signal.SIGKILL, ""),
    ],
    ids=["SIGINT", "SIGTERM", "SIGKILL"],
)
def test_a_stopped_download_leaves_no_process_behind_and_the_next_run_goes_on(
    scene: Stand, tmp_path: Path, number: int, status: int, said: str
) -> None:
    scene.arm("slow:0.2")
    words = ["-m", "comp", "data", "--recipe", "lite0_head", "--workspace", str(tmp_path)]
    run = subprocess.Popen(
        [sys.executable, *words],
        cwd=Path(__file__).parents[1],
        env=scene.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    raw = Workspace(tmp_path).raw
    part, start = raw / f"{ARCHIVE}.part", time.monotonic()
    while not part.exists() or part.stat().st_size < 100_000:
        assert run.poll() is None
        assert time.monotonic() - start < 120
        time.sleep(0.02)
    # A child could outlive the run, with the token in its environment.
    assert Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text() == ""
    run.send_signal(number)
    shown = run.communicate(timeout=60)
    assert (run.returncode, shown) == (status, ("", said))
    have = part.read_bytes()
    assert scene.archive.read_bytes().startswith(have)
    scene.arm()
    assert scene.kaggle.download(raw).read_bytes() == scene.archive.read_bytes()
    assert scene.asked("file") == [f"bytes={len(have) - OVERLAP}-"]
