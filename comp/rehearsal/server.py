"""A stand-in for Kaggle on 127.0.0.1: the calls that comp/kaggle makes, for one competition.

The unmodified client is pointed here by its environment alone: its LOCALHOST address is
`http://localhost`, and this server is its HTTP proxy, so every request arrives with an absolute
URL. Without the server or the proxy variable the connection is refused on this machine.

tests/twin breaks this server on purpose; it overrides `RehearsalServer.answer` and `Handler.send`.
"""

import hashlib
import io
import json
import mmap
import os
import re
import secrets
import sys
import threading
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingTCPServer
from typing import Any, Self
from urllib.parse import urlsplit

from comp.competition import COMPETITION, Competition
from comp.rehearsal.scoring import UnscorableError, labels_of, score_csv
from comp.store import read_json, write_json
from comp.submit.leaderboard import archived_scores

STORAGE_HOST = "storage.localhost"  # not localhost, so that requests drops Authorization on the way
FIRST_REF = 40_000_001
PAGE_SIZE = 20  # rows of a list, unless the client asks for another number

Fields = Mapping[str, Any]  # a JSON object


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request, read to its end; header names are in lower case."""

    method: str
    url: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """An answer; a body that comes from a file is a view of it."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | memoryview = b""


class Handler(BaseHTTPRequestHandler):
    """One connection of the client."""

    protocol_version = "HTTP/1.1"
    server: "RehearsalServer"

    def exchange(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(method=self.command, url=self.path, headers=headers, body=body)
        self.send(self.server.answer(request))

    do_GET = do_POST = do_PUT = exchange  # noqa: N815  (the base class looks for these names)

    def send(self, reply: Reply) -> None:
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        self.wfile.write(reply.body)

    def log_message(self, *_: Any) -> None:
        """Nothing is logged: the output belongs to the pipeline."""


class RehearsalServer(ThreadingTCPServer):
    """Serves `archive` and scores uploads against `solution` while its `with` block lasts.

    `journal` is a JSON file that keeps submissions across restarts; without it they are forgotten.
    """

    daemon_threads = True  # a connection that the client keeps open does not delay the end
    handler: type[Handler] = Handler

    def __init__(
        self,
        archive: Path,
        solution: Path,
        competition: Competition = COMPETITION,
        *,
        journal: Path | None = None,
        daily_limit: int = 100,  # submissions, as a rehearsal is for trying things
    ) -> None:
        self._solution = labels_of(archive, solution, competition)
        self.token = f"rehearsal-{secrets.token_hex(16)}"  # the account's; the client must send it
        self.archive = archive
        self.daily_limit = daily_limit
        earlier = read_json(journal) if journal and journal.exists() else []
        self.journal: list[dict[str, Any]] = earlier  # submissions as on the wire, oldest first
        self._journal_file = journal
        self._competition = competition
        self._links: dict[tuple[str, str], str] = {}  # upload tokens, by method and signed URL
        self._uploads: dict[str, tuple[str, bytes]] = {}  # file name and content, by token
        self._lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), self.handler)

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no error; anything else is a bug and shows its traceback."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    def environment(self, home: Path) -> dict[str, str]:
        """This process's environment with the client pointed here, and no other way to Kaggle."""
        proxy = f"http://127.0.0.1:{self.server_address[1]}"
        config = home / ".kaggle"
        config.mkdir(parents=True, exist_ok=True)
        misleading = re.compile("KAGGLE_|VERBOSE|.*_proxy$", re.IGNORECASE)
        kept = {name: value for name, value in os.environ.items() if not misleading.match(name)}
        kept |= {"HOME": str(home), "NETRC": os.devnull, "KAGGLE_CONFIG_DIR": str(config)}
        kept |= {"KAGGLE_API_ENVIRONMENT": "LOCALHOST", "KAGGLE_API_TOKEN": self.token}
        # This proxy makes no tunnels, so whatever is meant for Kaggle fails.
        kept |= {"http_proxy": proxy, "https_proxy": proxy, "no_proxy": "", "NO_PROXY": ""}
        return kept

    def answer(self, request: Request) -> Reply:
        """What Kaggle's API, or the storage that its links lead to, would answer."""
        url = urlsplit(request.url)
        if url.hostname == STORAGE_HOST:
            return self._answer_storage(request)
        if url.hostname != "localhost" or request.method != "POST":
            return refuse(403, f"A rehearsal does not forward {request.method} {request.url}")
        if request.headers.get("authorization") != f"Bearer {self.token}":
            return refuse(401, "Unauthenticated")
        return self._answer_call(url.path.rpartition("/")[2], json.loads(request.body))

    def _answer_call(self, name: str, fields: Fields) -> Reply:
        if name == "IntrospectToken":
            return json_reply({"active": True, "username": "rehearsal"})
        if name == "GetSubmission":
            found = [row for row in self.journal if row["ref"] == fields.get("ref")]
            return json_reply(found[0]) if found else refuse(404, "Submission not found")
        if fields.get("competitionName") != self._competition.slug:
            return refuse(404, f"Competition not found: {fields.get('competitionName')}")
        match name:
            case "ListDataFiles":
                with zipfile.ZipFile(self.archive) as bundle:
                    members = [item for item in bundle.infolist() if not item.is_dir()]
                files = [{"name": item.filename, "totalBytes": item.file_size} for item in members]
                return page_reply("files", files, fields)
            case "DownloadDataFiles":
                link = self._sign("GET", "kaggle-competitions-data/bundle/archive.zip")
                return Reply(status=302, headers={"Location": link})
            case "StartSubmissionUpload":
                token = secrets.token_hex(16)
                self._uploads[token] = (str(fields.get("fileName")), b"")
                link = self._sign("PUT", f"kaggle-uploads/{token}", token)
                return json_reply({"token": token, "createUrl": link})
            case "CreateSubmission":
                with self._lock:
                    return self._create_submission(fields)
            case "GetSubmissionLimits":
                n_left = max(self.daily_limit - self._n_today(), 0)
                return json_reply({"numToday": self._n_today(), "numAllowedNow": n_left})
            case "ListSubmissions":
                return page_reply("submissions", self.journal[::-1], fields)
            case "DownloadLeaderboard":
                return board_reply(self._competition)
        return refuse(404, f"A rehearsal does not answer {name}")

    def _n_today(self) -> int:
        """Submissions since midnight UTC, those with errors included."""
        today = str(datetime.now(UTC).date())
        return sum(row["date"].startswith(today) for row in self.journal)

    def _create_submission(self, fields: Fields) -> Reply:
        """A token makes one submission, once its upload has arrived."""
        name, content = self._uploads.pop(str(fields.get("blobFileTokens")), ("", b""))
        if not content:
            return refuse(400, "The uploaded file was not found")
        if self._n_today() >= self.daily_limit:
            used = f"Your team has used its daily Submission allowance ({self.daily_limit}) today"
            return refuse(400, f"{used}, please try again tomorrow UTC.")
        row = {
            "ref": max((row["ref"] for row in self.journal), default=FIRST_REF - 1) + 1,
            "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f0Z"),
            "fileName": name,
            "description": fields.get("submissionDescription", ""),
            "sha256": hashlib.sha256(content).hexdigest(),  # not Kaggle's; the client ignores it
        }
        try:
            score = score_csv(content, self._solution, self._competition.columns)
            row |= {"status": "COMPLETE", "publicScore": f"{score:.5f}"}
        except UnscorableError as error:
            row |= {"status": "ERROR", "errorDescription": f"Evaluation Exception: {error}"}
        self.journal.append(row)
        if self._journal_file:
            write_json(self._journal_file, self.journal)
        done = f"Successfully submitted to {self._competition.title}"
        return json_reply({"message": done, "ref": row["ref"]})

    def _sign(self, method: str, path: str, token: str = "") -> str:
        link = f"http://{STORAGE_HOST}/{path}?X-Goog-Signature={secrets.token_hex(16)}"
        self._links[method, link] = token
        return link

    def _answer_storage(self, request: Request) -> Reply:
        token = self._links.get((request.method, request.url))
        if token is None or "authorization" in request.headers:
            error = b"<Error><Code>SignatureDoesNotMatch</Code></Error>"
            return Reply(status=403, headers={"Content-Type": "application/xml"}, body=error)
        if request.method == "GET":
            return file_reply(self.archive, request.headers)
        self._uploads[token] = (self._uploads[token][0], request.body)
        return Reply(status=201)


def page_reply(key: str, rows: Sequence[Fields], fields: Fields) -> Reply:
    """The page of `rows` that starts at the token in `fields`, and the token of the next page."""
    start = int(fields.get("pageToken") or 0)
    stop = start + int(fields.get("pageSize") or PAGE_SIZE)
    token = str(stop) if stop < len(rows) else ""
    return json_reply({key: rows[start:stop], "nextPageToken": token})


def board_reply(competition: Competition) -> Reply:
    """Other people's scores, zipped. Yours are not among them, as the competition is over."""
    table = ["TeamId,TeamName,SubmissionDate,Score"] + [
        f"{400_000 + rank},Team {rank},2017-03-02 23:44:14,{score:.5f}"
        for rank, score in enumerate(archived_scores(competition), 1)
    ]
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as bundle:
        bundle.writestr(f"{competition.slug}-publicleaderboard.csv", "\n".join(table))
    return Reply(headers={"Content-Type": "application/zip"}, body=content.getvalue())


def file_reply(path: Path, headers: Mapping[str, str]) -> Reply:
    """A file as storage sends it: from the byte in Range on, if If-Range still fits, or whole."""
    stat = path.stat()
    etag = f'"{stat.st_size:x}-{stat.st_mtime_ns:x}"'
    about = {
        "Content-Type": "application/zip",
        "Accept-Ranges": "bytes",
        "ETag": etag,
        "Last-Modified": formatdate(stat.st_mtime, usegmt=True),
    }
    with path.open("rb") as file:
        content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    start = re.fullmatch(r"bytes=(\d+)-", headers.get("range", ""))
    if start is None or headers.get("if-range", etag) != etag:
        return Reply(headers=about, body=content)
    rest = content[int(start[1]) :]
    about["Content-Range"] = f"bytes {start[1]}-{len(content) - 1}/{len(content)}"
    return Reply(status=206 if rest else 416, headers=about, body=rest)


def json_reply(value: Fields, status: int = 200) -> Reply:
    body = json.dumps(value).encode()
    return Reply(status=status, headers={"Content-Type": "application/json"}, body=body)


def refuse(status: int, message: str) -> Reply:
    """How Kaggle's API says no."""
    return json_reply({"code": status, "message": message}, status)
