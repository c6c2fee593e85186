"""The calls of Kaggle's API that the client makes, each from the fields of a request to an answer."""

import base64
import binascii
import hashlib
import hmac
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from comp.competition import Competition
from comp.rehearsal import board
from comp.rehearsal.exchange import API_PATH, Ask, RefusedError, Reply, json_reply
from comp.rehearsal.scoring import Verdict
from comp.rehearsal.storage import Storage
from comp.rehearsal.submissions import Submissions, wire_time

COMPETITIONS = "competitions.CompetitionApiService"
INTROSPECTION = "security.OAuthService/IntrospectToken"
PAGE_SIZE = 20
MAX_PAGE_SIZE = 200
START = datetime(2016, 9, 2, tzinfo=UTC)
DEADLINE = datetime(2017, 3, 2, 23, 59, tzinfo=UTC)

Fields = Mapping[str, Any]
Call = Callable[[Ask], Reply]


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """Who may ask: by token, or by name and key."""

    token: str
    username: str
    key: str

    def admits(self, authorization: str) -> bool:
        scheme, _, secret = authorization.partition(" ")
        if scheme == "Bearer":
            return hmac.compare_digest(secret.encode(), self.token.encode())
        try:
            given = base64.b64decode(secret, validate=True)
        except binascii.Error:
            return False
        return scheme == "Basic" and hmac.compare_digest(
            given, f"{self.username}:{self.key}".encode()
        )


class Service:
    """Kaggle's API for one competition and one account."""

    def __init__(
        self,
        *,
        competition: Competition,
        account: Account,
        archive: Path,
        storage: Storage,
        submissions: Submissions,
        judge: Callable[[bytes], Verdict],
        scores: Sequence[float],
        daily_limit: int,
    ) -> None:
        self._competition = competition
        self._account = account
        self._archive = archive
        self._storage = storage
        self._submissions = submissions
        self._judge = judge
        self._scores = scores
        self._daily_limit = daily_limit
        self._calls: dict[str, Call] = {
            INTROSPECTION: self._introspect,
            f"{COMPETITIONS}/ListCompetitions": self._list_competitions,
            f"{COMPETITIONS}/GetCompetition": self._within(self._get_competition),
            f"{COMPETITIONS}/ListDataFiles": self._within(self._list_data_files),
            f"{COMPETITIONS}/DownloadDataFiles": self._within(self._download_data_files),
            f"{COMPETITIONS}/DownloadDataFile": self._within(self._download_data_file),
            f"{COMPETITIONS}/StartSubmissionUpload": self._within(self._start_submission_upload),
            f"{COMPETITIONS}/CreateSubmission": self._within(self._create_submission),
            f"{COMPETITIONS}/GetSubmissionLimits": self._within(self._get_submission_limits),
            f"{COMPETITIONS}/ListSubmissions": self._within(self._list_submissions),
            f"{COMPETITIONS}/GetSubmission": self._get_submission,
            f"{COMPETITIONS}/GetLeaderboard": self._within(self._get_leaderboard),
            f"{COMPETITIONS}/DownloadLeaderboard": self._within(self._download_leaderboard),
        }

    def answer(self, ask: Ask) -> Reply:
        call = self._calls.get(ask.path.removeprefix(API_PATH))
        try:
            if call is None or not ask.target:
                raise RefusedError(404, f"A rehearsal does not answer {ask.method} {ask.path}")
            if not self._account.admits(ask.headers.get("authorization", "")):
                raise RefusedError(401, "Unauthenticated")
            return call(ask)
        except RefusedError as refusal:
            return refusal.reply()

    def _within(self, call: Call) -> Call:
        """`call`, refused for any competition but this one."""

        def checked(ask: Ask) -> Reply:
            asked_for = ask.fields.get("competitionName")
            if asked_for != self._competition.slug:
                raise RefusedError(404, f"Competition not found: {asked_for}")
            return call(ask)

        return checked

    def _introspect(self, ask: Ask) -> Reply:
        active = ask.fields.get("token") == self._account.token
        return json_reply({"active": active, "username": self._account.username if active else ""})

    def _entry(self) -> dict[str, Any]:
        slug = self._competition.slug
        return {
            "id": 5441,
            "ref": f"https://www.kaggle.com/competitions/{slug}",
            "url": f"https://www.kaggle.com/competitions/{slug}",
            "title": self._competition.title,
            "description": "A rehearsal on this machine",
            "category": "Playground",
            "reward": "Knowledge",
            "enabledDate": wire_time(START),
            "dateCreated": wire_time(START),
            "deadline": wire_time(DEADLINE),
            "teamCount": len(self._scores),
            "userHasEntered": True,
            "maxDailySubmissions": self._daily_limit,
            "maxTeamSize": 5,
            "evaluationMetric": "Log Loss",
            "submissionsDisabled": False,
        }

    def _list_competitions(self, ask: Ask) -> Reply:
        wanted = str(ask.fields.get("search") or "").lower()
        name = f"{self._competition.slug} {self._competition.title}".lower()
        return json_reply(
            {"competitions": [self._entry()] if wanted in name else [], "nextPageToken": ""}
        )

    def _get_competition(self, _: Ask) -> Reply:
        return json_reply(self._entry())

    def _members(self) -> dict[str, int]:
        """Sizes of the archive's files by name; an archive that is no zip, served on purpose, has none."""
        if not zipfile.is_zipfile(self._archive):
            return {}
        with zipfile.ZipFile(self._archive) as bundle:
            return {
                member.filename: member.file_size
                for member in bundle.infolist()
                if not member.is_dir()
            }

    def _list_data_files(self, ask: Ask) -> Reply:
        created = wire_time(START)
        files = [
            {"ref": name, "name": name, "totalBytes": n, "creationDate": created}
            for name, n in self._members().items()
        ]
        return json_reply(page("files", files, ask.fields) | {"childrenFetchTimeMs": 1})

    def _download_data_files(self, _: Ask) -> Reply:
        return Reply(status=302, headers={"Location": self._storage.archive_url()})

    def _download_data_file(self, ask: Ask) -> Reply:
        name = str(ask.fields.get("fileName", ""))
        if name not in self._members():
            raise RefusedError(404, f"File not found: {name}")
        return Reply(status=302, headers={"Location": self._storage.member_url(name)})

    def _start_submission_upload(self, ask: Ask) -> Reply:
        token = self._storage.uploads.open(str(ask.fields.get("fileName", "")))
        return json_reply({"token": token, "createUrl": self._storage.upload_url(token)})

    def _create_submission(self, ask: Ask) -> Reply:
        upload = self._storage.uploads.take(str(ask.fields.get("blobFileTokens", "")))
        if upload is None:
            raise RefusedError(400, "The uploaded file was not found")
        name, content = upload
        verdict = Verdict(reason=ask.unscorable) if ask.unscorable else self._judge(content)
        submission = self._submissions.add(
            file_name=name,
            description=str(ask.fields.get("submissionDescription") or ""),
            sha256=hashlib.sha256(content).hexdigest(),
            n_bytes=len(content),
            score=verdict.score,
            error=verdict.reason,
        )
        return json_reply(
            {
                "message": f"Successfully submitted to {self._competition.title}",
                "ref": submission.ref,
            }
        )

    def _get_submission_limits(self, _: Ask) -> Reply:
        return json_reply(self._submissions.limits())

    def _list_submissions(self, ask: Ask) -> Reply:
        newest_first = self._submissions.all()[::-1]
        if ask.fields.get("group") == "SUBMISSION_GROUP_SUCCESSFUL":
            newest_first = [each for each in newest_first if each.score is not None]
        if ask.fields.get("sortBy") == "SUBMISSION_SORT_BY_PUBLIC_SCORE":
            newest_first.sort(key=lambda each: float("inf") if each.score is None else each.score)
        return json_reply(
            page(
                "submissions",
                [each.wire(self._account.username) for each in newest_first],
                ask.fields,
            )
        )

    def _get_submission(self, ask: Ask) -> Reply:
        return json_reply(
            self._submissions.find(int(ask.fields.get("ref", 0))).wire(self._account.username)
        )

    def _get_leaderboard(self, ask: Ask) -> Reply:
        return json_reply(page("submissions", board.rows(self._scores), ask.fields))

    def _download_leaderboard(self, _: Ask) -> Reply:
        return Reply(
            headers={"Content-Type": "application/zip"},
            body=board.packed(self._competition.slug, self._scores),
        )


def page(key: str, items: Sequence[Fields], fields: Fields) -> dict[str, Any]:
    """The page of `items` that `fields` ask for, by token or by number, with the token of the next."""
    size = min(int(fields.get("pageSize") or PAGE_SIZE), MAX_PAGE_SIZE)
    token = str(fields.get("pageToken") or "")
    start = int(token) if token.isdecimal() else (max(int(fields.get("page") or 1), 1) - 1) * size
    stop = start + size
    return {key: list(items[start:stop]), "nextPageToken": str(stop) if stop < len(items) else ""}
