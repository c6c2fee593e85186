"""The rehearsal's server: what Kaggle's own client, and plain requests, get from it."""

import base64
import hashlib
import io
import json
import math
import os
import random
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import requests
from twin.server import Twin

from comp.competition import COMPETITION
from comp.errors import UserError
from comp.rehearsal.scoring import UnscorableError, read_solution, score_csv
from comp.rehearsal.server import RehearsalServer
from comp.submit.leaderboard import archived_scores

SLUG = COMPETITION.slug
LABELS = {str(number): number % 2 for number in range(1, 13)}
STORAGE = "http://storage.localhost"


def csv_of(values: Mapping[str, object]) -> bytes:
    return ("id,label\n" + "".join(f"{key},{value}\n" for key, value in values.items())).encode()


HALVES = csv_of(dict.fromkeys(LABELS, 0.5))


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Large enough for the client, which writes blocks of 1 MiB, to have something to resume."""
    path = tmp_path_factory.mktemp("served") / "archive.zip"
    with zipfile.ZipFile(path, "w") as bundle:
        bundle.writestr("sample_submission.csv", HALVES)
        bundle.mkdir("folder")
        bundle.writestr("train.zip", random.Random(0).randbytes(4_200_000))
    return path


@pytest.fixture(scope="session")
def solution(archive: Path) -> Path:
    path = archive.with_name("solution.csv")
    path.write_bytes(csv_of(LABELS))
    return path


@pytest.fixture
def serve(archive: Path, solution: Path) -> Iterator[Callable[..., "Caller"]]:
    with ExitStack() as stack:

        def started(**settings: Any) -> Caller:
            return Caller(stack.enter_context(RehearsalServer(archive, solution, **settings)))

        yield started


@pytest.fixture
def spoilt(archive: Path, solution: Path) -> Iterator[Callable[..., "Caller"]]:
    with Twin(archive, solution) as twin:

        def armed(*faults: str) -> Caller:
            twin.arm(faults)
            return Caller(twin)

        yield armed


class Caller:
    """Plain requests, with the server as their proxy."""

    def __init__(self, server: Any) -> None:
        self.server = server
        self.proxy = f"http://127.0.0.1:{server.server_address[1]}"

    def send(self, method: str, url: str, **options: Any) -> requests.Response:
        with requests.Session() as session:
            session.trust_env = False
            session.proxies = {"http": self.proxy}
            return session.request(method, url, **{"timeout": 5, **options})

    def call(self, name: str, *, status: int = 200, **fields: object) -> Any:
        answer = self.send(
            "POST",
            f"http://localhost/api/v1/competitions.CompetitionApiService/{name}",
            json={"competitionName": SLUG, **fields},
            headers={"Authorization": f"Bearer {self.server.token}"},
            allow_redirects=False,
        )
        assert answer.status_code == status, answer.text
        return answer.json() if "json" in answer.headers.get("Content-Type", "") else answer

    def link(self) -> str:
        return str(self.call("DownloadDataFiles", status=302).headers["Location"])

    def get(self, link: str = "", **headers: str) -> requests.Response:
        return self.send("GET", link or self.link(), headers=headers)

    def submit(self, content: bytes = HALVES, *, status: int = 200, **fields: str) -> Any:
        started = self.call("StartSubmissionUpload", fileName="mine.csv")
        assert self.send("PUT", started["createUrl"], data=content).status_code == 201
        return self.call(
            "CreateSubmission", status=status, blobFileTokens=started["token"], **fields
        )

    def listed(self) -> list[dict[str, Any]]:
        return list(self.call("ListSubmissions")["submissions"])

    def kaggle(self, home: Path, *words: str) -> subprocess.CompletedProcess[str]:
        """Kaggle's own command."""
        command = [Path(sys.executable).with_name("kaggle"), "competitions", *words]
        env = self.server.environment(home)
        return subprocess.run(
            command, env=env, cwd=home, capture_output=True, text=True, timeout=60
        )


Serve = Callable[..., Caller]


def test_the_real_client_downloads_bit_for_bit_and_resumes(
    spoilt: Serve, archive: Path, tmp_path: Path
) -> None:
    caller = spoilt("cut:1")
    done = caller.kaggle(tmp_path, "download", SLUG, "-q")
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / f"{SLUG}.zip").read_bytes() == archive.read_bytes()
    downloads = [seen for seen in caller.server.requests if seen.target == "file"]
    assert [(seen.status, seen.range) for seen in downloads] == [
        (200, ""),
        (206, "bytes=2097152-"),  # whole blocks of 1 MiB
    ]


def test_the_real_client_lists_files_submits_and_reads_its_score(
    serve: Serve, archive: Path, tmp_path: Path
) -> None:
    caller = serve(daily_limit=5)
    files = caller.kaggle(tmp_path, "files", SLUG, "--csv").stdout.splitlines()
    assert [line.split(",")[0] for line in files[1:]] == ["sample_submission.csv", "train.zip"]
    assert files[2].startswith("train.zip,4200000,")
    content = csv_of({key: 0.9 if label else 0.2 for key, label in LABELS.items()})
    (tmp_path / "mine.csv").write_bytes(content)
    done = caller.kaggle(tmp_path, "submit", SLUG, "-f", "mine.csv", "-m", "a mark")
    assert "4 submissions remaining today.\n" in done.stdout
    assert f"Successfully submitted to {COMPETITION.title}" in done.stdout
    listing = caller.kaggle(tmp_path, "submissions", SLUG, "--csv").stdout
    score = -(math.log(0.9) + math.log(0.8)) / 2
    assert f"a mark,SubmissionStatus.COMPLETE,{score:.5f}," in listing
    (row,) = caller.server.journal
    assert row["sha256"] == hashlib.sha256(content).hexdigest()


def test_nothing_is_answered_without_the_right_credentials(serve: Serve) -> None:
    caller = serve()
    pair = base64.b64encode(b"rehearsal:wrong").decode()
    for service in ("security.OAuthService/IntrospectToken", "x/ListDataFiles"):
        for authorization in ("", "Bearer wrong", f"Basic {pair}", "Basic ?"):
            answer = caller.send(
                "POST",
                f"http://localhost/api/v1/{service}",
                json={"competitionName": SLUG},
                headers={"Authorization": authorization},
            )
            assert (answer.status_code, answer.json()["code"]) == (401, 401)
    assert caller.call("IntrospectToken") == {"active": True, "username": "rehearsal"}


def test_another_competition_another_call_and_another_host_are_refused(serve: Serve) -> None:
    caller = serve()
    assert caller.call("ListDataFiles", status=404, competitionName="titanic")["code"] == 404
    assert caller.call("ListDataFiles", status=404, competitionName=None)["code"] == 404
    assert caller.call("LaunchRockets", status=404)["code"] == 404
    assert caller.call("GetSubmission", status=404, ref=1)["code"] == 404
    elsewhere = f"http://example.com/{caller.link().partition('//')[2]}"
    token = {"Authorization": f"Bearer {caller.server.token}"}
    answer = caller.send("POST", "http://example.com/ListDataFiles", headers=token, json={})
    assert (answer.status_code, caller.get(elsewhere).status_code) == (403, 403)


def test_lists_come_in_pages_newest_first(serve: Serve) -> None:
    caller = serve(daily_limit=9)
    refs = [caller.submit()["ref"] for _ in range(5)]
    pages, token = [], ""
    while token or not pages:
        pages.append(caller.call("ListSubmissions", pageSize=2, pageToken=token))
        token = pages[-1]["nextPageToken"]
    rows = [row for page in pages for row in page["submissions"]]
    assert [len(page["submissions"]) for page in pages] == [2, 2, 1]
    assert [row["ref"] for row in rows] == refs[::-1]
    assert caller.call("GetSubmission", ref=refs[0]) == rows[-1]


def test_the_journal_survives_a_restart_and_yesterday_does_not_count_towards_the_daily_limit(
    serve: Serve, tmp_path: Path
) -> None:
    journal = tmp_path / "server" / "submissions.json"
    first = serve(journal=journal, daily_limit=1)
    ref = first.submit(submissionDescription="mark")["ref"]
    full = serve(journal=journal, daily_limit=1)
    assert full.listed() == first.listed()
    assert full.call("GetSubmissionLimits") == {"numToday": 1, "numAllowedNow": 0}
    assert "daily Submission allowance (1)" in full.submit(status=400)["message"]
    (row,) = json.loads(journal.read_text())
    row["date"] = f"{datetime.now(UTC) - timedelta(days=1):%Y-%m-%dT%H:%M:%S}Z"
    journal.write_text(json.dumps([row]))
    later = serve(journal=journal, daily_limit=1)
    assert later.call("GetSubmissionLimits") == {"numToday": 0, "numAllowedNow": 1}
    assert later.submit()["ref"] == ref + 1
    assert [row["ref"] for row in json.loads(journal.read_text())] == [ref, ref + 1]


def test_a_token_makes_one_submission_and_only_after_its_upload(serve: Serve) -> None:
    caller = serve()
    early = caller.call("StartSubmissionUpload", fileName="mine.csv")
    caller.call("CreateSubmission", status=400, blobFileTokens=early["token"])
    started = caller.call("StartSubmissionUpload", fileName="mine.csv")
    caller.send("PUT", started["createUrl"], data=HALVES)
    caller.call("CreateSubmission", blobFileTokens=started["token"])
    caller.call("CreateSubmission", status=400, blobFileTokens=started["token"])
    assert [row["fileName"] for row in caller.listed()] == ["mine.csv"]


def test_a_csv_that_cannot_be_scored_is_listed_as_an_error(serve: Serve) -> None:
    caller = serve()
    ref = caller.submit(b"id,label\n1,0.5\n")["ref"]
    row = caller.call("GetSubmission", ref=ref)
    assert row["status"] == "ERROR"
    assert row["errorDescription"].startswith("Evaluation Exception: Submission must have the 12")


def test_a_range_is_honoured_only_for_the_version_it_belongs_to(
    serve: Serve, archive: Path
) -> None:
    caller = serve()
    content, link = archive.read_bytes(), caller.link()
    whole = caller.get(link)
    assert whole.content == content
    assert whole.headers["Accept-Ranges"] == "bytes"
    rest = caller.get(link, Range="bytes=1000-", **{"If-Range": whole.headers["ETag"]})
    assert (rest.status_code, rest.content) == (206, content[1000:])
    assert rest.headers["Content-Range"] == f"bytes 1000-{len(content) - 1}/{len(content)}"
    other = caller.get(link, Range="bytes=1000-", **{"If-Range": '"another"'})
    assert (other.status_code, other.content) == (200, content)
    beyond = caller.get(link, Range=f"bytes={len(content)}-")
    assert (beyond.status_code, beyond.content) == (416, b"")


def test_storage_refuses_a_changed_link_another_method_and_a_second_kind_of_credentials(
    serve: Serve,
) -> None:
    caller = serve()
    link = caller.link()
    upload = caller.call("StartSubmissionUpload", fileName="mine.csv")["createUrl"]
    answers = [
        caller.get(f"{link}0"),
        caller.get(link.partition("?")[0]),
        caller.get(link, Authorization="Bearer x"),
        caller.send("PUT", link, data=b"x"),
        caller.get(upload),
    ]
    assert [answer.status_code for answer in answers] == [403] * 5
    assert caller.get(link).status_code == 200


def test_the_leaderboard_is_a_zip_with_the_archived_scores(serve: Serve) -> None:
    content = serve().call("DownloadLeaderboard").content
    with zipfile.ZipFile(io.BytesIO(content)) as bundle:
        lines = bundle.read(f"{SLUG}-publicleaderboard.csv").decode().splitlines()
    assert lines[0] == "TeamId,TeamName,SubmissionDate,Score"
    scores = [float(line.rpartition(",")[2]) for line in lines[1:]]
    assert scores == pytest.approx(archived_scores(COMPETITION), abs=6e-6)


def test_the_clients_environment_has_nothing_that_leads_elsewhere(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (
        "KAGGLE_KEY",
        "KAGGLE_PROXY",
        "VERBOSE",
        "VERBOSE_OUTPUT",
        "ALL_PROXY",
        "all_proxy",
    ):
        monkeypatch.setenv(name, "elsewhere")
    monkeypatch.setenv("no_proxy", "localhost")
    caller = serve()
    env = caller.server.environment(tmp_path)
    assert "elsewhere" not in env.values()
    assert {name for name in env if name.startswith("KAGGLE_")} == {
        "KAGGLE_API_ENVIRONMENT",
        "KAGGLE_API_TOKEN",
        "KAGGLE_CONFIG_DIR",
    }
    assert env["NETRC"] == os.devnull
    assert (env["http_proxy"], env["no_proxy"], env["HOME"]) == (caller.proxy, "", str(tmp_path))
    assert Path(env["KAGGLE_CONFIG_DIR"]).is_dir()
    with pytest.raises(requests.exceptions.ProxyError):
        requests.get("https://api.kaggle.com/", proxies={"https": env["https_proxy"]}, timeout=5)


def test_a_stopped_server_cannot_be_reached(archive: Path, solution: Path) -> None:
    with RehearsalServer(archive, solution) as server:
        assert Caller(server).call("ListDataFiles")["files"]
    with pytest.raises(requests.exceptions.ProxyError):
        Caller(server).call("ListDataFiles")


def test_a_missing_archive_or_solution_is_a_users_error(
    archive: Path, solution: Path, tmp_path: Path
) -> None:
    (tmp_path / "odd.zip").write_bytes(b"not a zip")
    for name in ("none.zip", "odd.zip"):
        with pytest.raises(UserError, match="no zip like Kaggle"):
            RehearsalServer(tmp_path / name, solution)
    odd = tmp_path / "odd.csv"
    for content in (None, b"PK\xff", b"id,label\n", b"id,label\n1,0.5\n", b"id,label\n1,0\n1,1\n"):
        if content is not None:
            odd.write_bytes(content)
        with pytest.raises(UserError, match="no solution") as caught:
            RehearsalServer(archive, odd)
        assert "\n" not in str(caught.value)
    assert read_solution(solution) == LABELS


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not a CSV file in UTF-8"),
        (b"id,label\n1,\xff\n", "not a CSV file in UTF-8"),
        (b"id,label\n1,0.5\n2,0.5,3\n", "not a CSV file in UTF-8"),
        (b"id,label\n1,0.5,3\n2,0.5,3\n", "missing, unknown or repeated"),
        (b"id,prob\n1,0.5\n2,0.5\n", "must have the columns id,label; found id,prob"),
        (b"id,label,fold\n1,0.5,0\n2,0.5,0\n", "must have the columns"),
        (b"id,label\n1,0.5\n", "1 are missing, unknown or repeated, such as '2'"),
        (b"id,label\n1,0.5\n2,0.5\n3,0.5\n", "1 are missing, unknown or repeated, such as '3'"),
        (b"id,label\n1,0.5\n2,0.5\n1,0.5\n", "1 are missing, unknown or repeated, such as '1'"),
        (b"id,label\n1,0.5\n2\n", "must contain numbers in [0, 1]: id '2' has ''"),
        (b"id,label\n1,0.5\n2,0_1\n", "must contain numbers in [0, 1]: id '2' has '0_1'"),
        (b"id,label\n1,0.5\n2,nan\n", "must contain numbers in [0, 1]: id '2' has 'nan'"),
        (b"id,label\n1,0.5\n2,1.0001\n", "must contain numbers in [0, 1]"),
        (b"id,label\n1,0.5\n2,-inf\n", "must contain numbers in [0, 1]"),
    ],
)
def test_a_csv_that_cannot_be_scored_gets_the_reason(content: bytes, reason: str) -> None:
    with pytest.raises(UnscorableError) as caught:
        score_csv(content, {"1": 0, "2": 1}, ("id", "label"))
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "score"),
    [
        (b"id,label\n2,0.9\n1,0.2", -(math.log(0.9) + math.log(0.8)) / 2),
        (b'\xef\xbb\xbf"id","label"\r\n"1",2e-1\r\n"2",0.9\r\n', -math.log(0.9 * 0.8) / 2),
        (b"label,id\n0.9,2\n0.2,1\n\n", -math.log(0.9 * 0.8) / 2),
        (b"id,label\n1,0\n2,0\n", 34.539 / 2),  # probabilities are clipped to 1e-15, as by Kaggle
        (b"id,label\n1,0\n2,1\n", 0),
    ],
)
def test_a_score_is_the_log_loss_whatever_the_form_of_the_csv(content: bytes, score: float) -> None:
    assert score_csv(content, {"1": 0, "2": 1}, ("id", "label")) == pytest.approx(score, abs=1e-3)
