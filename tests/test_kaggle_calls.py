"""Calls to Kaggle: the real client over loopback, each refusal told by its status, and a submission made exactly once."""

import os
import re
import signal
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from kaggle_stand import ARCHIVE, HASTE, IDS, Stand, stand

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
from comp.kaggle.values import submission


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    with stand(tmp_path_factory.mktemp("kaggle")) as made:
        yield made


@pytest.fixture
def csv(tmp_path: Path) -> Path:
    path = tmp_path / "predictions.csv"
    path.write_text("id,label\n" + "".join(f"{key},0.25\n" for key in IDS))
    return path


def call(kaggle: Kaggle, name: str, folder: Path) -> object:
    match name:
        case "download":
            return kaggle.download(folder)
        case "leaderboard":
            return kaggle.leaderboard(folder)
        case _:
            return getattr(kaggle, name)()


def test_files_and_user_and_limits_are_what_the_server_tells(scene: Stand) -> None:
    scene.arm()
    with zipfile.ZipFile(scene.archive) as bundle:
        expected = {member.filename: member.file_size for member in bundle.infolist()}
    assert {file.name: file.total_bytes for file in scene.kaggle.files()} == expected
    assert scene.kaggle.whoami() == "rehearsal"
    assert scene.kaggle.limits() == Limits(n_today=0, n_allowed_now=100_000)


@pytest.mark.parametrize(
    ("fault", "calls", "error", "words"),
    [
        (
            "401",
            ("files", "limits", "submissions", "download", "leaderboard"),
            CredentialsError,
            ["401", "KAGGLE_API_TOKEN", "stale"],
        ),
        (
            "403-rules",
            ("download", "check_rules"),
            RulesError,
            ["403", COMPETITION.rules_url, "does not exist"],
        ),
        (
            "404",
            ("files", "limits", "submissions", "download", "leaderboard"),
            NotFoundError,
            ["404", COMPETITION.slug],
        ),
        ("429", ("files", "download"), UnavailableError, ["429", "4 tries"]),
        ("500", ("files", "download", "leaderboard"), UnavailableError, ["500", "4 tries"]),
        ("503", ("files", "download"), UnavailableError, ["503", "4 tries"]),
        ("api-reset", ("files",), UnavailableError, ["reset", "4 tries"]),
        ("hang", ("files",), UnavailableError, ["does not answer", "tries"]),
        ("html:on=ListDataFiles", ("files",), UnavailableError, ["something else", "3 tries"]),
        ("html:on=DownloadLeaderboard", ("leaderboard",), KaggleError, ["leaderboard"]),
    ],
)
def test_a_refusal_becomes_one_line_with_its_remedy(
    scene: Stand,
    tmp_path: Path,
    fault: str,
    calls: tuple[str, ...],
    error: type[UserError],
    words: list[str],
) -> None:
    scene.arm(fault)
    for name in calls:
        with pytest.raises(error) as caught:
            call(scene.kaggle, name, tmp_path / "raw")
        line = str(caught.value)
        assert "\n" not in line
        assert [word for word in words if word not in line] == []
    assert [*tmp_path.rglob("*.*")] == []


@pytest.mark.parametrize("fault", ["401", "403-rules", "404"])
def test_what_will_not_change_is_asked_for_once(scene: Stand, tmp_path: Path, fault: str) -> None:
    scene.arm(fault)
    with pytest.raises(KaggleError):
        scene.kaggle.download(tmp_path)
    assert len(scene.asked("DownloadDataFiles")) == 1


@pytest.mark.parametrize("fault", ["429:2", "503:2", "500:1", "api-reset:2", "hang:1"])
def test_what_may_change_is_asked_for_again_and_each_wait_is_shown(
    scene: Stand, fault: str
) -> None:
    n = int(fault.rpartition(":")[2])
    scene.arm(fault)
    assert len(scene.kaggle.files()) == 3
    assert len(scene.asked("ListDataFiles")) == n + 1
    assert [
        bool(re.search(r"trying again in \d\.\d s$", line)) for line in scene.notebook.lines
    ] == [True] * n


def test_retry_after_is_honoured_unless_it_is_too_long(scene: Stand) -> None:
    scene.arm("429:1:retry-after=0.3")
    scene.kaggle.files()
    assert "trying again in 0.3 s" in scene.notebook.lines[0]
    scene.arm("503:1:retry-after=3600")
    with pytest.raises(UnavailableError, match=r"1 try .* asks to wait 3,600 s"):
        scene.kaggle.files()


def test_without_credentials_nothing_is_started_and_every_way_is_named(scene: Stand) -> None:
    kaggle, _ = scene.another(KAGGLE_API_TOKEN="")
    with pytest.raises(CredentialsError) as caught:
        kaggle.files()
    ways = [
        "KAGGLE_API_TOKEN",
        "~/.kaggle/access_token",
        "kaggle.json",
        "KAGGLE_USERNAME and KAGGLE_KEY",
        "kaggle auth login",
    ]
    assert [way for way in ways if way not in str(caught.value)] == []
    assert kaggle._process._running is None


def test_a_user_name_and_key_are_accepted_and_a_wrong_key_is_found_out_by_asking_who_one_is(
    scene: Stand,
) -> None:
    scene.arm()
    account = scene.server.account
    good, _ = scene.another(
        KAGGLE_API_TOKEN="", KAGGLE_USERNAME=account.username, KAGGLE_KEY=account.key
    )
    assert good.whoami() == account.username
    assert len(good.files()) == 3
    wrong, _ = scene.another(
        KAGGLE_API_TOKEN="", KAGGLE_USERNAME=account.username, KAGGLE_KEY="no such key"
    )
    with pytest.raises(CredentialsError, match="the key from KAGGLE_USERNAME and KAGGLE_KEY"):
        wrong.whoami()


def test_a_stale_token_beside_a_good_key_is_named_as_the_cause(scene: Stand) -> None:
    scene.arm()
    account = scene.server.account
    kaggle, notebook = scene.another(
        KAGGLE_API_TOKEN="stale-token", KAGGLE_USERNAME=account.username, KAGGLE_KEY=account.key
    )
    with pytest.raises(CredentialsError, match="the token from KAGGLE_API_TOKEN"):
        kaggle.files()
    assert any("the token wins" in line for line in notebook.lines)


def test_a_home_that_cannot_be_written_is_no_hindrance(scene: Stand) -> None:
    scene.arm()
    kaggle, _ = scene.another(HOME="/dev/null", KAGGLE_CONFIG_DIR="", XDG_CONFIG_HOME="")
    assert len(kaggle.files()) == 3


def test_a_server_that_is_not_there_cannot_be_reached(scene: Stand) -> None:
    nobody, account = "http://127.0.0.1:9", scene.server.account
    kaggle, notebook = scene.another(
        http_proxy=nobody,
        KAGGLE_API_TOKEN="",
        KAGGLE_USERNAME=account.username,
        KAGGLE_KEY=account.key,
    )
    with pytest.raises(
        UnavailableError, match=r"cannot be reached \(Connection refused\); 4 tries"
    ):
        kaggle.limits()
    assert len(notebook.lines) == 3


def test_a_client_that_cannot_be_imported_says_so(scene: Stand, tmp_path: Path) -> None:
    (tmp_path / "six.py").write_text("raise ImportError('No module named six')")
    kaggle, _ = scene.another(PYTHONPATH=str(tmp_path))
    with pytest.raises(KaggleError, match=r"cannot be imported \(No module named six\)"):
        kaggle.files()


def test_a_client_that_ends_or_falls_silent_is_started_again(scene: Stand) -> None:
    scene.arm()
    kaggle, notebook = scene.another(replace(HASTE, silence_s=6.0, retry_s=60.0))
    for number, words in (
        (signal.SIGKILL, "ended by itself (status -9)"),
        (signal.SIGSTOP, "has been silent for 6 s"),
    ):
        kaggle.limits()
        running = kaggle._process._running
        assert running is not None
        os.kill(running._process.pid, number)
        assert len(kaggle.files()) == 3
        assert words in notebook.lines[-1]


def test_a_bug_in_the_client_keeps_its_traceback(scene: Stand) -> None:
    kaggle, _ = scene.another()
    with pytest.raises(
        RuntimeError, match="AttributeError: 'Client' object has no attribute 'no_such_call'"
    ):
        kaggle._ask("no_such_call")


@pytest.mark.parametrize(
    "faults",
    [
        "",
        "503:2",
        "upload-503:2",
        "upload-reset:1",
        "upload-expired:2",
        "hang:1:on=upload",
        "429:1:on=CreateSubmission",
        "submit-lost",
        "list-delayed:2",
        "submit-lost list-delayed:2",
    ],
)
def test_an_upload_that_goes_through_is_one_submission_that_is_listed(
    scene: Stand, csv: Path, faults: str
) -> None:
    message = f"through {faults}!"
    known = len(scene.server.submissions)
    scene.arm(*faults.split())
    ref = scene.kaggle.upload(csv, message)
    (made,) = scene.server.submissions[known:]
    assert (ref, message) == (made.ref, made.description)
    scene.arm()
    found = scene.kaggle.find(message)
    assert found is not None
    assert (found.ref, found.file_name, found.status) == (ref, csv.name, "complete")


@pytest.mark.parametrize(
    ("faults", "error", "words", "n_made"),
    [
        ("upload-503", UnavailableError, ["503", "4 tries"], 0),
        ("upload-400", UnavailableError, ["400", "3 tries"], 0),
        ("upload-expired", UnavailableError, ["404", "3 tries"], 0),
        ("daily-limit", KaggleError, ["400", "daily Submission allowance"], 0),
        ("403-rules", RulesError, [COMPETITION.rules_url], 0),
        (
            "submit-silent",
            KaggleError,
            ["Successfully submitted", "not in the list", "before submitting again"],
            0,
        ),
        (
            "list-delayed",
            KaggleError,
            ["Successfully submitted", "not in the list", "before submitting again"],
            1,
        ),
        (
            "503:on=CreateSubmission",
            UnavailableError,
            ["503", "not in the list", "before submitting again"],
            0,
        ),
        (
            "hang:on=CreateSubmission",
            UnavailableError,
            ["does not answer", "not in the list", "before submitting again"],
            0,
        ),
        (
            "submit-lost list-delayed",
            UnavailableError,
            ["not in the list", "before submitting again"],
            1,
        ),
    ],
)
def test_an_upload_that_fails_says_what_became_of_it_and_is_never_made_twice(
    scene: Stand, csv: Path, faults: str, error: type[UserError], words: list[str], n_made: int
) -> None:
    known = len(scene.server.submissions)
    scene.arm(*faults.split())
    with pytest.raises(error) as caught:
        scene.kaggle.upload(csv, f"fails {faults}")
    assert len(scene.server.submissions) - known == n_made
    assert len(scene.asked("CreateSubmission")) <= 1
    line = str(caught.value)
    assert "\n" not in line
    assert [word for word in words if word not in line] == []


def test_a_crash_after_the_upload_is_repaired_by_the_message(scene: Stand, csv: Path) -> None:
    scene.arm()
    ref = scene.kaggle.upload(csv, "lite0  sha256:abc\ncv 0.03")
    found = scene.another()[0].find("lite0 sha256:abc cv 0.03")
    assert found is not None
    assert found.ref == ref
    assert scene.kaggle.find("lite0 sha256:abc cv 0.0") is None


def test_the_same_file_submitted_again_on_purpose_gets_a_reference_of_its_own(
    scene: Stand, csv: Path
) -> None:
    scene.arm()
    first = scene.kaggle.upload(csv, "again")
    scene.arm(
        "submit-lost", "list-delayed:2"
    )  # while only the first is listed, it must not be taken for the second
    second = scene.kaggle.upload(csv, "again")
    assert second > first
    latest = scene.kaggle.find("again")
    assert latest is not None
    assert latest.ref == second


def test_nothing_is_uploaded_that_is_not_there(scene: Stand, tmp_path: Path) -> None:
    (tmp_path / "empty.csv").touch()
    for name in ("empty.csv", "missing.csv"):
        with pytest.raises(SubmissionError, match=name):
            scene.kaggle.upload(tmp_path / name, "nothing")


def test_a_score_is_waited_for_and_a_wait_ends(scene: Stand, csv: Path) -> None:
    scene.arm("score-delayed:3")
    done = scene.kaggle.wait(scene.kaggle.upload(csv, "late"), limit_s=5)
    assert (done.status, done.error) == ("complete", "")
    assert done.public_score == pytest.approx(
        0.8369, abs=1e-4
    )  # -(ln .25 + ln .75) / 2: half of the labels are 1
    scene.arm("score-delayed")
    pending = scene.kaggle.wait(scene.kaggle.upload(csv, "never"), limit_s=0.3)
    assert (pending.status, pending.public_score) == ("pending", None)
    scene.arm("score-error")
    failed = scene.kaggle.wait(scene.kaggle.upload(csv, "wrong"), limit_s=5)
    assert (failed.status, failed.public_score) == ("error", None)
    assert "Evaluation Exception" in failed.error


def test_a_wait_outlasts_a_server_that_is_down_for_a_while_and_not_one_that_stays_down(
    scene: Stand, csv: Path
) -> None:
    scene.arm()
    ref = scene.kaggle.upload(csv, "patient")
    scene.arm("503:5:on=GetSubmission")
    assert scene.kaggle.wait(ref, limit_s=5).status == "complete"
    scene.arm("503:on=GetSubmission")
    with pytest.raises(UnavailableError, match="503"):
        scene.kaggle.wait(ref, limit_s=0.2)


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
    wire = {
        "ref": 7,
        "date": "2026-11-21T20:28:37.7181350Z",
        "publicScore": "0.03",
        "status": "SUBMISSION_STATUS_COMPLETE",
    }
    assert submission(wire).status == "complete"
    assert submission(wire).date.isoformat() == "2026-11-21T20:28:37.718135+00:00"
    assert submission(wire | {"status": "UNHEARD_OF"}).status == "pending"
    assert submission({"ref": 7, "date": "2026-11-21T20:28:37"}).date.tzname() == "UTC"


def test_the_leaderboard_leaves_the_archive_alone(scene: Stand, tmp_path: Path) -> None:
    scene.arm()
    (tmp_path / ARCHIVE).write_bytes(b"the data")
    table = scene.kaggle.leaderboard(tmp_path)
    assert "Score" in table.read_text().splitlines()[0].split(",")
    assert (tmp_path / ARCHIVE).read_bytes() == b"the data"
    assert sorted(path.name for path in tmp_path.iterdir()) == [ARCHIVE, "leaderboard.csv"]
