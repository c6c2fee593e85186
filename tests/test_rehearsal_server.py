"""The rehearsal server: what Kaggle's own client, and plain requests, meet on the wire."""

import base64
import gzip
import hashlib
import io
import json
import math
import random
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import requests

from comp.competition import COMPETITION
from comp.errors import UserError
from comp.rehearsal.catalogue import FAULTS, table
from comp.rehearsal.scoring import judge, log_loss
from comp.rehearsal.server import RehearsalServer

SLUG = COMPETITION.slug
N_TEST = 12
LABELS = {str(number): number % 2 for number in range(1, N_TEST + 1)}
KAGGLE = Path(sys.executable).with_name("kaggle")

Serve = Callable[..., RehearsalServer]


def _zip(members: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as bundle:
        for name, content in members.items():
            bundle.writestr(zipfile.ZipInfo(name, date_time=(2016, 9, 2, 0, 0, 0)), content)
    return file.getvalue()


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Large enough for the client, which writes blocks of 1 MiB, to have something to resume."""
    noise = random.Random(0)
    train, test = (
        _zip({f"{split}/1.jpg": noise.randbytes(size)})
        for split, size in (("train", 3_000_000), ("test", 1_200_000))
    )
    sample = csv_of(dict.fromkeys(LABELS, 0.5))
    path = tmp_path_factory.mktemp("served") / "archive.zip"
    path.write_bytes(_zip({"sample_submission.csv": sample, "test.zip": test, "train.zip": train}))
    return path


@pytest.fixture(scope="session")
def solution(archive: Path) -> Path:
    path = archive.with_name("solution.csv")
    path.write_bytes(csv_of(LABELS))
    return path


@pytest.fixture
def serve(archive: Path, solution: Path) -> Iterator[Serve]:
    with ExitStack() as stack:
        yield lambda *faults, **settings: stack.enter_context(
            RehearsalServer(archive, solution, faults=faults, **settings)
        )


def csv_of(values: Mapping[str, object]) -> bytes:
    return ("id,label\n" + "".join(f"{key},{value}\n" for key, value in values.items())).encode()


class Caller:
    """Plain requests through the server as their proxy."""

    def __init__(self, server: RehearsalServer) -> None:
        self.server = server

    def send(self, method: str, url: str, **options: Any) -> requests.Response:
        with requests.Session() as session:
            session.trust_env = False
            session.proxies = {"http": self.server.url}
            return session.request(method, url, **{"timeout": 5, **options})

    def call(self, name: str, *, status: int = 200, **fields: object) -> Any:
        service = (
            "security.OAuthService"
            if name == "IntrospectToken"
            else "competitions.CompetitionApiService"
        )
        answer = self.send(
            "POST",
            f"http://localhost/api/v1/{service}/{name}",
            json={"competitionName": SLUG, **fields},
            headers={"Authorization": f"Bearer {self.server.account.token}"},
            allow_redirects=False,
        )
        assert answer.status_code == status, answer.text
        return answer.json() if "json" in answer.headers.get("Content-Type", "") else answer

    def signed(self) -> str:
        return str(self.call("DownloadDataFiles", status=302).headers["Location"])

    def fetch(self, url: str = "", start: int = 0, **headers: str) -> requests.Response:
        ranged = {"Range": f"bytes={start}-"} if start else {}
        return self.send("GET", url or self.signed(), headers={**ranged, **headers})

    def n_arriving(self) -> int:
        """Bytes of a download that arrive before it ends, well or not."""
        with requests.Session() as session:
            session.trust_env = False
            with session.get(
                self.signed(), proxies={"http": self.server.url}, stream=True, timeout=0.5
            ) as answer:
                n_bytes = 0
                try:
                    for block in answer.iter_content(4096):
                        n_bytes += len(block)
                except (
                    requests.ConnectionError,
                    requests.exceptions.ChunkedEncodingError,
                ) as error:
                    self.broken_by = str(error)
        return n_bytes

    def upload(self, content: bytes = b"", name: str = "mine.csv") -> tuple[str, requests.Response]:
        started = self.call("StartSubmissionUpload", fileName=name)
        return started["token"], self.send(
            "PUT", started["createUrl"], data=content or csv_of(dict.fromkeys(LABELS, 0.5))
        )

    def submit(self, content: bytes = b"", description: str = "mark", *, status: int = 200) -> Any:
        token, _ = self.upload(content)
        return self.call(
            "CreateSubmission",
            status=status,
            blobFileTokens=token,
            submissionDescription=description,
        )

    def listed(self, **fields: object) -> list[dict[str, Any]]:
        return list(self.call("ListSubmissions", **fields)["submissions"])


# The real client.


def kaggle(
    server: RehearsalServer, home: Path, *words: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    environment = {**server.environment(home), **variables}
    return subprocess.run(
        [KAGGLE, "competitions", *words],
        env=environment,
        cwd=home,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_real_client_downloads_bit_for_bit_and_goes_on_where_it_was_cut(
    serve: Serve, archive: Path, tmp_path: Path
) -> None:
    server = serve("cut:1")
    done = kaggle(server, tmp_path, "download", SLUG, "-q")
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / f"{SLUG}.zip").read_bytes() == archive.read_bytes()
    downloads = [seen for seen in server.requests if seen.target == "file"]
    assert [seen.status for seen in downloads] == [200, 206]
    assert downloads[1].range.startswith("bytes=2097152-")  # whole blocks of 1 MiB
    assert {seen.authorization for seen in downloads} == {""}
    assert {seen.authorization for seen in server.requests if seen.host == "localhost"} == {
        "Bearer"
    }


def test_the_real_client_submits_and_reads_its_score(serve: Serve, tmp_path: Path) -> None:
    server = serve()
    probs = {key: 0.9 if label else 0.2 for key, label in LABELS.items()}
    (tmp_path / "mine.csv").write_bytes(csv_of(probs))
    done = kaggle(server, tmp_path, "submit", SLUG, "-f", "mine.csv", "-m", "a mark")
    assert (
        done.stdout
        == "4 submissions remaining today.\nSuccessfully submitted to Dogs vs. Cats Redux: Kernels Edition"
    )
    listing = kaggle(server, tmp_path, "submissions", SLUG, "--csv")
    score = -(math.log(0.9) + math.log(0.8)) / 2
    assert f"mine.csv,{server.submissions[0].date[:10]}" in listing.stdout
    assert f"a mark,SubmissionStatus.COMPLETE,{score:.5f}," in listing.stdout
    assert server.submissions[0].score == pytest.approx(score, abs=1e-12)
    assert server.submissions[0].sha256 == hashlib.sha256(csv_of(probs)).hexdigest()
    assert server.n_uploads == 1


def test_the_real_client_lists_files_and_competitions_and_downloads_one_file(
    serve: Serve, archive: Path, tmp_path: Path
) -> None:
    server = serve()
    with zipfile.ZipFile(archive) as bundle:
        expected = {member.filename: member.file_size for member in bundle.infolist()}
        sample = bundle.read("sample_submission.csv")
    files = kaggle(server, tmp_path, "files", SLUG, "--csv").stdout.splitlines()
    assert {line.split(",")[0]: int(line.split(",")[1]) for line in files[1:]} == expected
    assert SLUG in kaggle(server, tmp_path, "list", "-s", "dogs", "--csv").stdout
    kaggle(server, tmp_path, "download", SLUG, "-f", "sample_submission.csv")
    assert (tmp_path / "sample_submission.csv").read_bytes() == sample


def test_the_real_client_shows_and_downloads_the_leaderboard(serve: Serve, tmp_path: Path) -> None:
    server = serve(scores=[0.2, 0.1])
    shown = kaggle(server, tmp_path, "leaderboard", SLUG, "-s", "--csv")
    assert [line.rpartition(",")[2] for line in shown.stdout.splitlines()] == [
        "score",
        "0.10000",
        "0.20000",
    ]
    assert kaggle(server, tmp_path, "leaderboard", SLUG, "-d", "-q").returncode == 0
    with zipfile.ZipFile(tmp_path / f"{SLUG}.zip") as bundle:
        lines = bundle.read(bundle.namelist()[0]).decode().splitlines()
    assert lines[0] == "TeamId,TeamName,SubmissionDate,Score"
    assert [line.rpartition(",")[2] for line in lines[1:]] == ["0.10000", "0.20000"]


def test_the_real_client_may_use_name_and_key_and_is_refused_with_a_wrong_key(
    serve: Serve, tmp_path: Path
) -> None:
    server = serve()
    pair = {
        "KAGGLE_API_TOKEN": "",
        "KAGGLE_USERNAME": server.account.username,
        "KAGGLE_KEY": server.account.key,
    }
    assert kaggle(server, tmp_path, "files", SLUG, **pair).returncode == 0
    assert (
        kaggle(server, tmp_path, "files", SLUG, **{**pair, "KAGGLE_KEY": "wrong"}).returncode == 1
    )
    assert [(seen.authorization, seen.status) for seen in server.requests] == [
        ("Basic", 200),
        ("Basic", 401),
    ]


# The API.


def test_nothing_is_answered_without_the_right_credentials(serve: Serve) -> None:
    server = serve()
    caller = Caller(server)
    wrong_pair = base64.b64encode(b"rehearsal:wrong").decode()
    for name in (
        "security.OAuthService/IntrospectToken",
        "competitions.CompetitionApiService/ListDataFiles",
    ):
        for headers in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": f"Basic {wrong_pair}"},
            {"Authorization": "Basic ?"},
        ):
            answer = caller.send(
                "POST",
                f"http://localhost/api/v1/{name}",
                json={"competitionName": SLUG},
                headers=headers,
            )
            assert (answer.status_code, answer.json()["code"]) == (401, 401)
    assert server.account.token not in repr(server.requests)


def test_another_competition_another_call_and_another_host_are_refused(serve: Serve) -> None:
    server = serve()
    caller = Caller(server)
    assert caller.call("ListDataFiles", status=404, competitionName="titanic")["code"] == 404
    assert caller.call("LaunchRockets", status=404)["code"] == 404
    assert caller.call("GetSubmission", status=404, ref=1)["code"] == 404
    assert caller.send("GET", "http://example.com/").status_code == 403
    assert caller.call("IntrospectToken", token=server.account.token) == {
        "active": True,
        "username": "rehearsal",
    }


def test_lists_come_in_pages_newest_first(serve: Serve) -> None:
    caller = Caller(serve(daily_limit=9))
    refs = [caller.submit()["ref"] for _ in range(5)]
    first = caller.call("ListSubmissions", pageSize=2)
    second = caller.call("ListSubmissions", pageSize=2, pageToken=first["nextPageToken"])
    third = caller.call("ListSubmissions", pageSize=2, page=3)
    assert [row["ref"] for page in (first, second, third) for row in page["submissions"]] == refs[
        ::-1
    ]
    assert (
        third["nextPageToken"] == caller.call("ListSubmissions", pageSize=5)["nextPageToken"] == ""
    )
    assert caller.call("GetSubmission", ref=refs[0]) == third["submissions"][0]


def test_a_successful_list_leaves_out_errors_and_can_be_sorted_by_score(serve: Serve) -> None:
    caller = Caller(serve())
    worse, better = (
        caller.submit(csv_of({key: prob if label else 1 - prob for key, label in LABELS.items()}))[
            "ref"
        ]
        for prob in (0.6, 0.9)
    )
    failed = caller.submit(b"id,label\n1,0.5\n")["ref"]
    assert [row["ref"] for row in caller.listed()] == [failed, better, worse]
    assert [row["ref"] for row in caller.listed(group="SUBMISSION_GROUP_SUCCESSFUL")] == [
        better,
        worse,
    ]
    assert [row["ref"] for row in caller.listed(sortBy="SUBMISSION_SORT_BY_PUBLIC_SCORE")] == [
        better,
        worse,
        failed,
    ]


def test_the_daily_limit_counts_days_in_utc(serve: Serve) -> None:
    now = [datetime(2026, 1, 1, 23, 59, tzinfo=UTC)]
    caller = Caller(serve(daily_limit=1, clock=lambda: now[0]))
    caller.submit()
    assert caller.call("GetSubmissionLimits")["numAllowedNow"] == 0
    assert "daily Submission allowance (1)" in caller.submit(status=400)["message"]
    now[0] += timedelta(minutes=2)
    assert caller.call("GetSubmissionLimits") == {
        "numToday": 0,
        "numTotal": 1,
        "numAllowedNow": 1,
        "limitedByTotal": False,
    }
    caller.submit()


def test_submissions_survive_in_the_journal_and_a_line_cut_by_a_crash_does_not(
    serve: Serve, tmp_path: Path
) -> None:
    journal = tmp_path / "deep" / "journal.jsonl"
    first = serve(journal=journal)
    Caller(first).submit()
    journal.write_bytes(journal.read_bytes() + b'{"ref": 4')
    second = serve(journal=journal)
    assert second.submissions == first.submissions
    assert Caller(second).submit()["ref"] == first.submissions[0].ref + 1
    assert [json.loads(line)["ref"] for line in journal.read_text().splitlines()] == [
        each.ref for each in second.submissions
    ]
    journal.write_text("something else\n")
    with pytest.raises(UserError, match="not a rehearsal's journal"):
        serve(journal=journal)


def test_a_token_makes_one_submission_and_only_of_a_whole_upload(serve: Serve) -> None:
    caller = Caller(serve())
    started = caller.call("StartSubmissionUpload", fileName="mine.csv")
    assert (
        caller.call("CreateSubmission", status=400, blobFileTokens=started["token"])["code"] == 400
    )
    token, answer = caller.upload()
    assert answer.status_code == 201
    caller.call("CreateSubmission", blobFileTokens=token)
    caller.call("CreateSubmission", status=400, blobFileTokens=token)
    assert caller.server.n_uploads == len(caller.server.submissions) == 1


def test_an_upload_goes_on_where_it_was(serve: Serve) -> None:
    caller = Caller(serve())
    content = csv_of(dict.fromkeys(LABELS, 0.5))
    started = caller.call("StartSubmissionUpload", fileName="mine.csv")

    def put(data: bytes, place: str) -> requests.Response:
        return caller.send(
            "PUT",
            started["createUrl"],
            data=data,
            headers={"Content-Range": f"bytes {place}/{len(content)}"},
        )

    nothing = put(b"", "*")
    assert (nothing.status_code, nothing.headers.get("Range")) == (308, None)
    part = put(content[:30], "0-29")
    assert (part.status_code, part.headers["Range"]) == (308, "bytes=0-29")
    assert put(content[30:], f"30-{len(content) - 1}").status_code == 201
    assert put(b"", "*").status_code == 201
    caller.call("CreateSubmission", blobFileTokens=started["token"])
    assert caller.server.submissions[0].sha256 == hashlib.sha256(content).hexdigest()


def test_an_empty_upload_arrives_in_chunks_and_is_scored_as_an_error(serve: Serve) -> None:
    caller = Caller(serve())
    started = caller.call("StartSubmissionUpload", fileName="empty.csv")
    assert caller.send("PUT", started["createUrl"], data=iter([b""])).status_code == 201
    caller.call("CreateSubmission", blobFileTokens=started["token"])
    assert caller.listed()[0]["status"] == "ERROR"
    assert "columns id,label" in caller.listed()[0]["errorDescription"]


# Storage.


def test_a_range_is_honoured_only_for_the_version_it_belongs_to(
    serve: Serve, archive: Path
) -> None:
    caller = Caller(serve())
    content, url = archive.read_bytes(), caller.signed()
    whole = caller.fetch(url)
    assert whole.content == content
    assert whole.headers["Accept-Ranges"] == "bytes"
    n_bytes = len(content)
    for validator in (whole.headers["ETag"], whole.headers["Last-Modified"]):
        rest = caller.fetch(url, 1000, **{"If-Range": validator})
        assert (rest.status_code, rest.content) == (206, content[1000:])
        assert rest.headers["Content-Range"] == f"bytes 1000-{n_bytes - 1}/{n_bytes}"
    other = caller.fetch(url, 1000, **{"If-Range": '"another"'})
    assert (other.status_code, other.content) == (200, content)


@pytest.mark.parametrize(
    ("asked", "status", "first", "last"),
    [
        ("bytes=0-0", 206, 0, 1),
        ("bytes=5-9", 206, 5, 10),
        ("bytes=-7", 206, -7, None),
        ("bytes=9-5", 200, 0, None),
        ("lines=1-2", 200, 0, None),
        ("bytes=0-1,5-6", 200, 0, None),
        ("bytes=999999999-", 416, 0, 0),
        ("bytes=-0", 416, 0, 0),
    ],
)
def test_ranges_are_read_as_the_standard_has_them(
    serve: Serve, archive: Path, asked: str, status: int, first: int, last: int | None
) -> None:
    answer = Caller(serve()).fetch(Range=asked)
    assert (answer.status_code, answer.content) == (status, archive.read_bytes()[first:last])


def test_storage_refuses_a_changed_address_and_a_second_kind_of_credentials(serve: Serve) -> None:
    caller = Caller(serve())
    url = caller.signed()
    assert caller.fetch(url.replace("archive.zip", "files/test.zip")).status_code == 403
    assert caller.fetch(url.replace("Expires=", "Expires=9")).status_code == 403
    assert caller.fetch(url.partition("?")[0]).status_code == 403
    assert caller.fetch(url, Authorization="Bearer x").status_code == 400
    assert caller.send("PUT", url, data=b"x").status_code == 403
    assert caller.send("GET", caller.call("StartSubmissionUpload")["createUrl"]).status_code == 403
    assert caller.fetch(url).status_code == 200


# Faults, each on the wire.


def probe_401(caller: Caller, _: Path) -> None:
    assert (
        caller.call("IntrospectToken", status=401, token=caller.server.account.token)["code"] == 401
    )
    assert caller.call("ListDataFiles", status=401) == {"code": 401, "message": "Unauthenticated"}


def probe_403_rules(caller: Caller, _: Path) -> None:
    caller.call("ListDataFiles")
    assert caller.call("DownloadDataFiles", status=403)["message"].startswith(
        "You must accept this competition's rules"
    )
    caller.call("StartSubmissionUpload", status=403)
    assert caller.call("GetCompetition")["userHasEntered"] is False
    assert [each["userHasEntered"] for each in caller.call("ListCompetitions")["competitions"]] == [
        False
    ]


def probe_status(status: int) -> Callable[[Caller, Path], None]:
    def probe(caller: Caller, _: Path) -> None:
        caller.call("ListDataFiles", status=status)
        token, _answer = "", caller.call("StartSubmissionUpload", status=status)
        caller.call("CreateSubmission", status=status, blobFileTokens=token)
        assert caller.server.submissions == []

    return probe


def probe_silent(caller: Caller, _: Path) -> None:
    with pytest.raises(requests.ReadTimeout):
        caller.send(
            "POST",
            "http://localhost/api/v1/competitions.CompetitionApiService/ListDataFiles",
            timeout=0.3,
        )


def probe_api_reset(caller: Caller, _: Path) -> None:
    with pytest.raises(requests.ConnectionError, match="reset by peer"):
        caller.call("ListDataFiles")


def probe_html(caller: Caller, _: Path) -> None:
    page = caller.fetch()
    assert (page.status_code, page.headers["Content-Type"][:9], b"Sign in" in page.content) == (
        200,
        "text/html",
        True,
    )


def probe_outdated_client(caller: Caller, archive: Path) -> None:
    listing = kaggle(caller.server, archive.parent, "files", SLUG, "--csv").stdout
    assert listing.startswith("Warning: Looks like you're using an outdated")


def probe_no_redirect(caller: Caller, archive: Path) -> None:
    assert caller.call("DownloadDataFiles").content == archive.read_bytes()


def probe_cut(caller: Caller, archive: Path) -> None:
    assert caller.n_arriving() == pytest.approx(0.6 * archive.stat().st_size, abs=4096)
    assert "IncompleteRead" in caller.broken_by


def probe_reset(caller: Caller, archive: Path) -> None:
    assert caller.n_arriving() <= 0.6 * archive.stat().st_size
    assert "reset by peer" in caller.broken_by


def probe_stall(caller: Caller, archive: Path) -> None:
    assert caller.n_arriving() == pytest.approx(0.6 * archive.stat().st_size, abs=4096)
    assert "timed out" in caller.broken_by


def probe_slow(caller: Caller, archive: Path) -> None:
    caller.server.arm(["slow:8"])
    start = time.monotonic()
    assert caller.fetch().content == archive.read_bytes()
    assert time.monotonic() - start > archive.stat().st_size / 2**20 / 8


def probe_no_range(caller: Caller, archive: Path) -> None:
    answer = caller.fetch(start=1000)
    assert (answer.status_code, "Accept-Ranges" in answer.headers, answer.content) == (
        200,
        False,
        archive.read_bytes(),
    )


def probe_no_length(caller: Caller, archive: Path) -> None:
    answer = caller.fetch()
    assert ("Content-Length" in answer.headers, answer.content) == (False, archive.read_bytes())


def probe_no_validator(caller: Caller, archive: Path) -> None:
    answer = caller.fetch(start=1000)
    assert (answer.status_code, answer.content) == (206, archive.read_bytes()[1000:])
    assert not {"ETag", "Last-Modified"} & set(answer.headers)


def probe_short_length(caller: Caller, archive: Path) -> None:
    assert caller.fetch().content == archive.read_bytes()[: archive.stat().st_size // 2]


def probe_long_length(caller: Caller, archive: Path) -> None:
    assert caller.n_arriving() == pytest.approx(archive.stat().st_size, abs=4096)
    assert "1000 more expected" in caller.broken_by


def probe_gzip(caller: Caller, archive: Path) -> None:
    with requests.Session() as session:
        session.trust_env = False
        with session.get(
            caller.signed(), proxies={"http": caller.server.url}, stream=True, timeout=5
        ) as answer:
            packed = answer.raw.read(decode_content=False)
    assert (answer.headers["Content-Encoding"], int(answer.headers["Content-Length"])) == (
        "gzip",
        len(packed),
    )
    assert len(packed) > archive.stat().st_size
    assert gzip.decompress(packed) == archive.read_bytes()


def probe_flipped_bytes(caller: Caller, archive: Path) -> None:
    content = archive.read_bytes()
    answer = caller.fetch()
    wrong = [
        at
        for at, (ours, theirs) in enumerate(zip(content, answer.content, strict=True))
        if ours != theirs
    ]
    assert wrong == list(range(len(content) // 2, len(content) // 2 + 16))
    with zipfile.ZipFile(io.BytesIO(answer.content)) as bundle:
        assert bundle.testzip() is not None
    assert caller.fetch(start=len(content) - 100).content == content[-100:]


def probe_bad_zip(caller: Caller, archive: Path) -> None:
    answer = caller.fetch()
    assert len(answer.content) == archive.stat().st_size
    assert not zipfile.is_zipfile(io.BytesIO(answer.content))


def probe_changed_file(caller: Caller, archive: Path) -> None:
    first = caller.fetch()
    second = caller.fetch(start=1000, **{"If-Range": first.headers["ETag"]})
    assert (first.content, second.status_code) == (archive.read_bytes(), 200)
    assert len(second.content) == len(first.content)
    assert second.headers["ETag"] != first.headers["ETag"]
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(io.BytesIO(second.content)) as new:
        assert new.testzip() is None
        assert {name: old.read(name) for name in old.namelist()} == {
            name: new.read(name) for name in new.namelist()
        }
    spliced = first.content[:2_000_000] + second.content[2_000_000:]
    with zipfile.ZipFile(io.BytesIO(spliced)) as bundle, pytest.raises(zipfile.BadZipFile):
        bundle.testzip() and bundle.read(bundle.testzip() or "")


def probe_wrong_206(caller: Caller, archive: Path) -> None:
    content = archive.read_bytes()
    answer = caller.fetch(start=1000)
    assert (answer.status_code, answer.content) == (206, content[:-1000])
    assert answer.headers["Content-Range"] == f"bytes 0-{len(content) - 1001}/{len(content)}"
    assert caller.fetch().content == content


def probe_error_on_resume(caller: Caller, archive: Path) -> None:
    caller.server.arm(["error-on-resume:2"])
    assert [caller.fetch(start=start).status_code for start in (0, 9, 0, 0)] == [200, 503, 503, 200]


def probe_expired_url(caller: Caller, _: Path) -> None:
    url = caller.signed()
    answers = [caller.fetch(url), caller.fetch(url), caller.fetch()]
    assert [answer.status_code for answer in answers] == [200, 403, 200]
    assert "ExpiredToken" in answers[1].text


def probe_upload(status: int) -> Callable[[Caller, Path], None]:
    def probe(caller: Caller, _: Path) -> None:
        token, answer = caller.upload()
        assert answer.status_code == status
        caller.call("CreateSubmission", status=400, blobFileTokens=token)

    return probe


def probe_upload_reset(caller: Caller, _: Path) -> None:
    with pytest.raises(requests.ConnectionError, match="reset by peer"):
        caller.upload()
    assert caller.server.n_uploads == 0


def probe_submit_lost(caller: Caller, _: Path) -> None:
    with pytest.raises(requests.ConnectionError, match="without response"):
        caller.submit()
    assert [row["description"] for row in caller.listed()] == ["mark"]
    assert caller.call("GetSubmissionLimits")["numToday"] == 1


def probe_submit_silent(caller: Caller, _: Path) -> None:
    answer = caller.submit()
    assert answer["message"].startswith("Successfully submitted to Dogs vs. Cats")
    assert answer["ref"] > 0
    assert caller.listed() == []
    caller.call("GetSubmission", status=404, ref=answer["ref"])


def probe_daily_limit(caller: Caller, _: Path) -> None:
    assert caller.call("GetSubmissionLimits")["numAllowedNow"] == 0
    assert "daily Submission allowance (5)" in caller.submit(status=400)["message"]
    assert caller.listed() == []


def probe_score_error(caller: Caller, _: Path) -> None:
    ref = caller.submit()["ref"]
    row = caller.call("GetSubmission", ref=ref)
    assert (row["status"], row["publicScore"]) == ("ERROR", "")
    assert row["errorDescription"].startswith("Evaluation Exception")


def probe_score_delayed(caller: Caller, _: Path) -> None:
    caller.server.arm([])
    caller.submit()
    caller.server.arm(["score-delayed:2"])
    ref = caller.submit()["ref"]
    rows = [caller.listed()[0], *(caller.call("GetSubmission", ref=ref) for _ in range(2))]
    assert [(row["status"], bool(row["publicScore"])) for row in rows] == [
        ("PENDING", False),
        ("PENDING", False),
        ("COMPLETE", True),
    ]
    assert caller.listed()[1]["status"] == "COMPLETE"


def probe_list_delayed(caller: Caller, _: Path) -> None:
    caller.server.arm(["list-delayed:2"])
    ref = caller.submit()["ref"]
    assert [len(caller.listed()) for _ in range(3)] == [0, 0, 1]
    assert caller.call("GetSubmission", ref=ref)["status"] == "COMPLETE"


PROBES: dict[str, Callable[[Caller, Path], None]] = {
    "401": probe_401,
    "403-rules": probe_403_rules,
    "404": probe_status(404),
    "429": probe_status(429),
    "500": probe_status(500),
    "503": probe_status(503),
    "hang": probe_silent,
    "api-reset": probe_api_reset,
    "html": probe_html,
    "outdated-client": probe_outdated_client,
    "no-redirect": probe_no_redirect,
    "cut": probe_cut,
    "reset": probe_reset,
    "stall": probe_stall,
    "slow": probe_slow,
    "no-range": probe_no_range,
    "no-length": probe_no_length,
    "no-validator": probe_no_validator,
    "short-length": probe_short_length,
    "long-length": probe_long_length,
    "gzip": probe_gzip,
    "flipped-bytes": probe_flipped_bytes,
    "bad-zip": probe_bad_zip,
    "changed-file": probe_changed_file,
    "wrong-206": probe_wrong_206,
    "error-on-resume": probe_error_on_resume,
    "expired-url": probe_expired_url,
    "upload-503": probe_upload(503),
    "upload-400": probe_upload(400),
    "upload-reset": probe_upload_reset,
    "upload-expired": probe_upload(404),
    "submit-lost": probe_submit_lost,
    "submit-silent": probe_submit_silent,
    "daily-limit": probe_daily_limit,
    "score-error": probe_score_error,
    "score-delayed": probe_score_delayed,
    "list-delayed": probe_list_delayed,
}


@pytest.mark.parametrize("name", PROBES)
def test_each_fault_does_on_the_wire_what_it_says_and_leaves_with_its_word(
    serve: Serve, archive: Path, name: str
) -> None:
    caller = Caller(serve(name))
    PROBES[name](caller, archive)
    caller.server.arm([])
    assert caller.fetch().content == archive.read_bytes()
    assert caller.call("GetSubmission", ref=caller.submit()["ref"])["status"] == "COMPLETE"


def test_every_fault_is_tried_and_described() -> None:
    assert set(PROBES) == set(FAULTS)
    assert all(effect.endswith(".") for _, effect in table())


def test_a_number_says_how_often_and_options_say_where(serve: Serve) -> None:
    caller = Caller(
        serve(
            "503:2:on=GetCompetition:retry-after=7",
            "429:1:skip=1:on=GetSubmissionLimits",
            "404:1:on=file",
        )
    )
    answers = [caller.call("GetCompetition", status=status) for status in (503, 503, 200)]
    assert [answer.headers["Retry-After"] for answer in answers[:2]] == ["7", "7"]
    for status in (200, 429, 200):
        caller.call("GetSubmissionLimits", status=status)
    assert [caller.fetch().status_code for _ in range(2)] == [404, 200]
    caller.call("ListDataFiles")


def test_of_two_refusals_the_first_named_is_seen(serve: Serve) -> None:
    caller = Caller(serve("503:1", "429:1"))
    for status in (503, 429, 200):
        caller.call("ListDataFiles", status=status)


def test_faults_compose(serve: Serve, archive: Path) -> None:
    caller = Caller(
        serve(
            "no-validator",
            "no-length",
            "flipped-bytes",
            "cut:1:at=0.25",
            "cut:1:at=0:on=DownloadLeaderboard",
        )
    )
    assert caller.n_arriving() == pytest.approx(0.25 * archive.stat().st_size, abs=4096)
    answer = caller.fetch()
    assert not {"ETag", "Content-Length"} & set(answer.headers)
    assert answer.content != archive.read_bytes()
    with pytest.raises(
        requests.exceptions.ChunkedEncodingError, match=r"IncompleteRead.0 bytes read"
    ):
        caller.call("DownloadLeaderboard")
    assert zipfile.is_zipfile(io.BytesIO(caller.call("DownloadLeaderboard").content))


@pytest.mark.parametrize(
    ("word", "complaint"),
    [
        ("cuts", "there is no 'cuts'; known are 401, 403-rules, "),
        ("cut:many", "'many' is not a positive whole number"),
        ("cut:0", "'0' is not a positive whole number"),
        ("cut:1.5", "'1.5' is not a positive whole number"),
        ("slow:-1", "'-1' is not a positive number"),
        ("slow:nan", "'nan' is not a positive number"),
        ("429:1:2", "'2' does not fit 429[:times][:retry-after=]"),
        ("429:retry=1", "'retry=1' does not fit"),
        (
            "cut:on=upload",
            "'on=upload' does not fit cut[:times][:at=][:skip=][:on=], on= one of DownloadLeaderboard, file",
        ),
        ("", "there is no ''"),
    ],
)
def test_a_fault_that_makes_no_sense_is_refused_in_one_line(
    archive: Path, solution: Path, word: str, complaint: str
) -> None:
    with pytest.raises(UserError) as caught:
        RehearsalServer(archive, solution, faults=[word])
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


# The server itself.


def test_stopping_ends_every_connection_and_thread(archive: Path, solution: Path) -> None:
    before = set(threading.enumerate())
    with (
        RehearsalServer(archive, solution, faults=["hang"]) as server,
        closing(requests.Session()) as session,
    ):
        session.trust_env = False
        session.get(server.url, timeout=5)  # a connection that stays open
        probe_silent(Caller(server), archive)
    assert set(threading.enumerate()) == before


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
        "HTTPS_PROXY",
    ):
        monkeypatch.setenv(name, "elsewhere")
    monkeypatch.setenv("no_proxy", "localhost")
    server = serve()
    environment = server.environment(tmp_path)
    assert "elsewhere" not in environment.values()
    assert {name for name in environment if name.startswith("KAGGLE_")} == {
        "KAGGLE_API_ENVIRONMENT",
        "KAGGLE_API_TOKEN",
        "KAGGLE_CONFIG_DIR",
    }
    assert (environment["http_proxy"], environment["no_proxy"], environment["HOME"]) == (
        server.url,
        "",
        str(tmp_path),
    )
    assert Path(environment["KAGGLE_CONFIG_DIR"]).is_dir()
    with pytest.raises(requests.exceptions.ProxyError):
        requests.get(
            "https://api.kaggle.com/", proxies={"https": environment["https_proxy"]}, timeout=5
        )


def test_an_archive_that_is_no_zip_is_served_all_the_same(solution: Path, tmp_path: Path) -> None:
    (tmp_path / "odd.zip").write_bytes(b"not a zip")
    with RehearsalServer(tmp_path / "odd.zip", solution) as server:
        assert Caller(server).call("ListDataFiles")["files"] == []
        assert Caller(server).fetch().content == b"not a zip"


def test_a_missing_archive_or_solution_is_a_users_error(
    archive: Path, solution: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="no archive"):
        RehearsalServer(tmp_path / "none.zip", solution)
    with pytest.raises(UserError, match="cannot read the solution"):
        RehearsalServer(archive, tmp_path / "none.csv")
    for content in (b"PK\xff", b"id,label\n", b"id,label\n1,0.5\n", b"id,label\n1,0\n1,1\n"):
        (tmp_path / "odd.csv").write_bytes(content)
        with pytest.raises(UserError, match="not a solution"):
            RehearsalServer(archive, tmp_path / "odd.csv")


# Scores.


def test_log_loss_is_that_of_the_formula_and_bounded_like_kaggles() -> None:
    assert log_loss([1, 0], [0.9, 0.2]) == pytest.approx(
        -(math.log(0.9) + math.log(0.8)) / 2, abs=1e-15
    )
    assert log_loss([1, 0, 1], [0.5, 0.5, 0.5]) == pytest.approx(math.log(2), abs=1e-15)
    assert log_loss([1], [0]) == pytest.approx(34.539, abs=1e-3)
    assert log_loss([0], [1]) == pytest.approx(34.539, abs=1e-2)
    assert log_loss([1], [1]) == pytest.approx(0, abs=1e-14)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "must have the columns id,label; found none"),
        (b"id,prob\n1,0.5\n2,0.5\n", "must have the columns id,label; found id,prob"),
        (b"id,label,fold\n1,0.5,0\n2,0.5,0\n", "must have the columns"),
        (
            b"id,label\n1,0.5\n",
            "must have 2 rows with the ids of the solution; found 1: 1 missing, such as '2'",
        ),
        (b"id,label\n1,0.5\n2,0.5\n3,0.5\n", "found 3: 1 unknown, such as '3'"),
        (b"id,label\n1,0.5\n3,0.5\n", "1 missing, such as '2'; 1 unknown, such as '3'"),
        (b"id,label\n1,0.5\n2,0.5\n1,0.5\n", "1 duplicate values in column 'id', such as '1'"),
        (b"id,label\n1,0.5\n2,\n", "must be numeric: id '2' has ''"),
        (b"id,label\n1,0.5\n2,0_1\n", "must be numeric"),
        (b"id,label\n1,0.5\n2,nan\n", "must lie within [0, 1]: id '2' has 'nan'"),
        (b"id,label\n1,0.5\n2,1.0001\n", "must lie within [0, 1]"),
        (b"id,label\n1,0.5\n2,-inf\n", "must lie within [0, 1]"),
        (b"id,label\n1,0.5\n2\n", "Record 2 has 1 values instead of 2"),
        (b"id,label\n1,\xff\n", "not a CSV file in UTF-8"),
    ],
)
def test_a_csv_that_cannot_be_scored_gets_the_reason(content: bytes, reason: str) -> None:
    verdict = judge(content, {"1": 0, "2": 1}, ("id", "label"))
    assert verdict.score is None
    assert verdict.reason.startswith("Evaluation Exception: ")
    assert reason in verdict.reason


@pytest.mark.parametrize(
    "content",
    [
        b"id,label\n2,0.9\n1,0.2",
        b'\xef\xbb\xbf"id","label"\r\n"1",2e-1\r\n"2",0.9\r\n',
        b"label,id\n0.9,2\n0.2,1\n\n",
    ],
)
def test_the_form_of_a_csv_does_not_change_its_score(content: bytes) -> None:
    assert judge(content, {"1": 0, "2": 1}, ("id", "label")).score == pytest.approx(
        -(math.log(0.9) + math.log(0.8)) / 2
    )
