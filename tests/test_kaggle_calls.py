"""Calls through the real SDK over loopback: bounded, retried, refused in one line; submitted once.

tests/test_faults.py plays every fault against whole runs; here is what single calls promise.
"""

import re
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import kagglesdk.kaggle_env
import pytest
from kaggle_stand import ARCHIVE, HASTE, IDS, Stand, proxy
from kagglesdk import KaggleEnv

from comp.competition import COMPETITION
from comp.errors import (
    CredentialsError,
    KaggleError,
    NotFoundError,
    RulesError,
    SubmissionError,
    UnavailableError,
    UserError,
)
from comp.kaggle import Kaggle, Limits
from comp.kaggle.client import submission_of

ALL = ("files", "limits", "submissions", "download", "leaderboard")


@pytest.fixture
def csv(tmp_path: Path) -> Path:
    path = tmp_path / "predictions.csv"
    path.write_text("id,label\n" + "".join(f"{key},0.25\n" for key in IDS))
    return path


def call(kaggle: Kaggle, name: str, folder: Path) -> object:
    takes_folder = name in ("download", "leaderboard")
    return getattr(kaggle, name)(*[folder] if takes_folder else [])


def test_files_user_and_limits_are_what_the_server_says(scene: Stand) -> None:
    scene.arm()
    with zipfile.ZipFile(scene.archive) as bundle:
        sizes = {member.filename: member.file_size for member in bundle.infolist()}
    assert scene.kaggle.files() == sizes
    assert scene.kaggle.whoami() == "rehearsal"
    assert scene.kaggle.limits() == Limits(n_today=0, n_allowed_now=100_000)


@pytest.mark.parametrize(
    ("fault", "names", "error", "words"),
    [
        ("401", ALL, CredentialsError, ["401", "KAGGLE_API_TOKEN", "stale"]),
        ("404", ALL, NotFoundError, ["404", COMPETITION.slug]),
        ("403-rules", ("download", "check_rules"), RulesError, ["403", COMPETITION.rules_url]),
        ("api-reset", ("files",), UnavailableError, ["reset", "4 tries"]),
        ("hang", ("files",), UnavailableError, ["does not answer", "tries"]),
        ("html:on=ListDataFiles", ("files",), UnavailableError, ["something else", "3 tries"]),
        ("html:on=DownloadLeaderboard", ("leaderboard",), KaggleError, ["leaderboard"]),
    ],
)
def test_a_refusal_is_one_line_with_its_remedy_and_repeated_only_if_that_may_help(
    scene: Stand,
    tmp_path: Path,
    fault: str,
    names: tuple[str, ...],
    error: type[UserError],
    words: list[str],
) -> None:
    for name in names:
        scene.arm(fault)
        with pytest.raises(error) as caught:
            call(scene.kaggle, name, tmp_path / "raw")
        assert [word for word in ["\n", *words] if word not in str(caught.value)] == ["\n"]
        if error is not UnavailableError:
            assert len(scene.server.requests) - scene.n_before == 1
    assert [*tmp_path.rglob("*.zip*")] == []


@pytest.mark.parametrize("fault", ["503:2", "hang:1"])
def test_what_may_help_is_repeated_and_each_wait_is_said(scene: Stand, fault: str) -> None:
    n = int(fault.rpartition(":")[2])
    scene.arm(fault)
    assert len(scene.kaggle.files()) == 3
    assert len(scene.asked("ListDataFiles")) == n + 1
    waits = [re.search(r"trying again in \d\.\d s$", line) for line in scene.notebook.lines]
    assert [bool(wait) for wait in waits] == [True] * n


@contextmanager
def serving(body: bytes, pause_s: float = 0.0) -> Iterator[str]:
    """The address of a proxy that answers everything with `body` as JSON, byte by byte."""

    def reply(handler: BaseHTTPRequestHandler, _: str) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "application/json")
        handler.end_headers()
        for byte in body:
            if pause_s and stopped.wait(pause_s):
                return
            handler.wfile.write(bytes([byte]))

    stopped = threading.Event()
    with proxy(reply) as address:
        yield f"http://{address}"
        stopped.set()


def test_an_answer_that_trickles_is_given_up(scene: Stand) -> None:
    with serving(b" " * 1000, pause_s=0.05) as address:
        kaggle, _ = scene.another(replace(HASTE, answer_s=0.3, n_tries=1), http_proxy=address)
        start = time.monotonic()
        with pytest.raises(UnavailableError, match=r"does not answer \(no end after 0 s\)"):
            kaggle.files()
        assert time.monotonic() - start < 2


@pytest.mark.parametrize("body", [b"7", b"null", b"[]", b"{", b""])
def test_json_that_is_no_object_is_one_line(scene: Stand, body: bytes) -> None:
    with serving(body) as address:
        kaggle, _ = scene.another(http_proxy=address)
        with pytest.raises(UnavailableError, match=r"something else .*no JSON object"):
            kaggle.files()


def test_a_server_that_is_not_there_cannot_be_reached(scene: Stand) -> None:
    kaggle, notebook = scene.another(http_proxy="http://127.0.0.1:9")
    with pytest.raises(UnavailableError, match=r"cannot be reached \(Connection refused\); 4 tri"):
        kaggle.limits()
    assert len(notebook.lines) == 3


def test_no_call_leaves_this_machine_by_another_environment(
    scene: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither by this process's variables, nor by TEST, nor by an SDK that changes its mind."""
    scene.arm()
    for name in ("KAGGLE_API_ENVIRONMENT", "http_proxy", "https_proxy", "KAGGLE_API_TOKEN"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert len(scene.another(HTTP_PROXY="http://127.0.0.1:9")[0].files()) == 3
    for name in ("TEST", "STAGING"):
        elsewhere = Kaggle(
            COMPETITION, scene.notebook, scene.env | {"KAGGLE_API_ENVIRONMENT": name}
        )
        with pytest.raises(KaggleError, match=f"KAGGLE_API_ENVIRONMENT={name} is not supported"):
            elsewhere.files()
    prod = kagglesdk.kaggle_env.get_endpoint(KaggleEnv.PROD)
    monkeypatch.setitem(kagglesdk.kaggle_env._env_to_endpoint, KaggleEnv.LOCAL, prod)
    with pytest.raises(AssertionError, match=prod):
        scene.another()[0].files()


def test_help_imports_no_client() -> None:
    code = "import sys, comp.__main__ as m\ntry: m.main(['--help'])\nexcept SystemExit: pass\n"
    code += "sys.exit(str({'kagglesdk', 'requests'} & sys.modules.keys() or ''))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert run.stderr.strip() == b""


def test_the_same_file_submitted_again_on_purpose_gets_a_reference_of_its_own(
    scene: Stand, csv: Path
) -> None:
    scene.arm()
    first = scene.kaggle.upload(csv, "again")
    # While only the first is listed, it must not be mistaken for the second.
    scene.arm("submit-lost", "list-delayed:2")
    second = scene.kaggle.upload(csv, " again")
    listed = {each.ref: each.message for each in scene.kaggle.submissions()}
    assert (listed[first], listed[second]) == ("again", " again")
    assert first != second


def test_nothing_is_uploaded_that_is_not_there(scene: Stand, tmp_path: Path) -> None:
    (tmp_path / "empty.csv").touch()
    for name in ("empty.csv", "missing.csv"):
        with pytest.raises(SubmissionError, match=name):
            scene.kaggle.upload(tmp_path / name, "nothing")


@pytest.mark.parametrize(
    ("faults", "n_marks"),
    [(f"upload-{kind}", 0) for kind in ("503", "400", "expired", "reset")]
    + [
        ("hang:on=upload", 0),
        ("401", 0),
        ("submit-lost list-delayed", 1),
        ("submit-lost", 1),
        ("", 1),
    ],
)
def test_a_mark_is_made_once_and_only_when_the_storage_has_the_bytes(
    scene: Stand, csv: Path, faults: str, n_marks: int
) -> None:
    marks: list[str] = []
    scene.arm(*faults.split())
    with suppress(KaggleError):
        scene.kaggle.upload(csv, f"marked {faults}", lambda: marks.append("here"))
    assert len(marks) == n_marks


def test_a_score_is_waited_for_but_not_forever(scene: Stand, csv: Path) -> None:
    scene.arm("score-delayed:3")
    ref = scene.kaggle.upload(csv, "late")
    done = scene.kaggle.wait(ref, limit_s=5)
    assert (done.status, done.error) == ("complete", "")
    # -(ln .25 + ln .75) / 2, as half of the labels are 1
    assert done.public_score == pytest.approx(0.8369, abs=1e-4)
    scene.arm("503:5:on=GetSubmission")
    assert scene.kaggle.wait(ref, limit_s=5) == done
    scene.arm("503:on=GetSubmission")
    with pytest.raises(UnavailableError, match="503"):
        scene.kaggle.wait(ref, limit_s=0.2)
    scene.arm("score-delayed")
    pending = scene.kaggle.wait(scene.kaggle.upload(csv, "never"), limit_s=0.3)
    assert (pending.status, pending.public_score) == ("pending", None)
    scene.arm("score-error")
    failed = scene.kaggle.wait(scene.kaggle.upload(csv, "wrong"), limit_s=5)
    assert (failed.status, failed.public_score) == ("error", None)
    assert "Evaluation Exception" in failed.error


def test_all_pages_of_submissions_are_read(scene: Stand) -> None:
    scene.arm()
    for number in range(230):
        scene.server.add(file_name="x.csv", description=f"page {number}", score=0.5)
    listed = [known.message for known in scene.kaggle.submissions()]
    assert [message for message in listed if message.startswith("page ")] == [
        f"page {number}" for number in reversed(range(230))
    ]
    assert len(scene.asked("ListSubmissions")) == 3


def test_a_submission_is_read_whatever_its_status_is_called() -> None:
    row = {"ref": 7, "date": "2026-11-21T20:28:37.7181350Z", "publicScore": "0.03"}
    complete = submission_of(row | {"status": "SUBMISSION_STATUS_COMPLETE"})
    assert (complete.status, complete.public_score) == ("complete", 0.03)
    assert complete.date.isoformat() == "2026-11-21T20:28:37.718135+00:00"
    assert submission_of(row | {"status": "NEW_AND_UNKNOWN"}).status == "pending"
    assert submission_of({"ref": 7, "date": "2026-11-21T20:28:37"}).date.tzname() == "UTC"


def test_the_leaderboard_leaves_the_archive_alone(scene: Stand, tmp_path: Path) -> None:
    scene.arm()
    (tmp_path / ARCHIVE).write_bytes(b"the data")
    table = scene.kaggle.leaderboard(tmp_path)
    assert "Score" in table.read_text().splitlines()[0].split(",")
    assert (tmp_path / ARCHIVE).read_bytes() == b"the data"
    assert sorted(path.name for path in tmp_path.iterdir()) == [ARCHIVE, "leaderboard.csv"]
