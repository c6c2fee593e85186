"""Our calls to the real client, with its unmodified transport and authentication. Runs in the client's process, see child.py."""

import base64
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import requests

from comp.kaggle.download import Part, StoppedError, Version, receive, refuse_pages, wanted
from comp.kaggle.failures import FailedError, Failure
from comp.kaggle.wire import ahead_s, refusal

SERVICE = "competitions.CompetitionApiService"
PAGE_SIZE = 100  # asked for; whatever comes, pages are followed
EVENT_EVERY_S = 0.1  # between two reports of a download


class Answer:
    """An answer as plain JSON, in place of the SDK's types, of which one raises KeyError for a status that it does not know."""

    @staticmethod
    def prepare_from(response: requests.Response) -> dict[str, Any]:
        answer = response.json()
        if not isinstance(answer, dict):
            raise requests.exceptions.InvalidJSONError("no JSON object")
        return answer


class Client:
    """The real client for one competition. Each public method can be asked for by name; it raises FailedError or what `requests` raises."""

    def __init__(
        self, slug: str, connect_s: float, read_s: float, tell: Callable[[dict[str, Any]], None]
    ) -> None:
        self._slug = slug
        self._tell = tell
        self._api: Any = None
        self._get_headers: dict[str, str] = {}
        self._skew_s: float | None = None
        self._bound_every_request((connect_s, read_s))

    def endpoint(self) -> str:
        return str(self._authenticated().build_kaggle_client().http_client()._endpoint)

    def whoami(self) -> str:
        """The user name. A token has been checked by authenticating; a key is checked by a call that needs no rules accepted."""
        values = self._authenticated().config_values
        if not values.get("token"):
            try:
                self.limits()
            except requests.HTTPError as error:
                if refusal(error.response).status not in (403, 404):
                    raise
        return str(values.get("username") or "")

    def skew(self) -> float | None:
        """By how many seconds the clock at the other end is ahead of ours, by its latest answer."""
        return self._skew_s

    def files(self, page_token: str) -> dict[str, Any]:
        return self._ask(
            "ListDataFiles", "ApiListDataFilesRequest", page_token=page_token, page_size=PAGE_SIZE
        )

    def limits(self) -> dict[str, Any]:
        return self._ask("GetSubmissionLimits", "ApiGetSubmissionLimitsRequest")

    def submissions(self, page: int, page_token: str) -> dict[str, Any]:
        """One page, by the token of the page before if there was one, else by its number, as the client's own wrapper asks."""
        which: dict[str, Any] = (
            {"page_token": page_token} if page_token else {"page_token": "", "page": page}
        )
        return self._ask(
            "ListSubmissions", "ApiListSubmissionsRequest", page_size=PAGE_SIZE, **which
        )

    def submission(self, ref: int) -> dict[str, Any]:
        return self._ask("GetSubmission", "ApiGetSubmissionRequest", competition=False, ref=ref)

    def put(self, path: str) -> str:
        """Uploads a file, which as yet submits nothing; returns the token by which it can be submitted."""
        stat = os.stat(path)
        about: dict[str, Any] = {
            "file_name": os.path.basename(path),
            "content_length": stat.st_size,
            "last_modified_epoch_seconds": int(stat.st_mtime),
        }
        link = self._ask("StartSubmissionUpload", "ApiStartSubmissionUploadRequest", **about)
        # The client's own upload_complete does the same, but returns a failure as a string, and repeats a reset for six minutes.
        with requests.Session() as session, open(path, "rb") as file:
            response = session.put(str(link.get("createUrl")), data=file)
        if response.status_code not in (200, 201):
            raise FailedError(refusal(response, storage=True))
        return str(link.get("token") or "")

    def create(self, token: str, message: str) -> dict[str, Any]:
        return self._ask(
            "CreateSubmission",
            "ApiCreateSubmissionRequest",
            blob_file_tokens=token,
            submission_description=message,
        )

    def leaderboard(self) -> str:
        """The zip, some ten kilobytes, in base64."""
        with self._authenticated().build_kaggle_client() as kaggle:
            response = kaggle.competitions.competition_api_client.download_leaderboard(
                self._request("ApiDownloadLeaderboardRequest")
            )
            return base64.b64encode(response.content).decode()

    def version(self) -> dict[str, Any]:
        """Which archive the server has now, told by the head of an answer whose body is not read."""
        with self._archive({"Accept-Encoding": "identity"}) as response:
            try:
                refuse_pages(response.headers)
            except StoppedError as stopped:
                raise FailedError(Failure(kind=stopped.kind, words=str(stopped))) from stopped
            return asdict(Version.of(response.headers))

    def archive(self, fd: int, note: str) -> dict[str, Any]:
        """One try at (the rest of) the archive; tells where it starts, the length, and now and then how far it is."""
        part, last_s = Part(fd, Path(note)), 0.0

        def advanced(position: int) -> None:
            nonlocal last_s
            if time.monotonic() - last_s > EVENT_EVERY_S:
                last_s = time.monotonic()
                self._tell({"position": position})

        try:
            start = part.resume_at()
            with self._archive(wanted(part)) as response:
                version = receive(
                    response,
                    part,
                    start,
                    lambda at, total: self._tell({"start": at, "total": total}),
                    advanced,
                )
        except StoppedError as stopped:
            raise FailedError(Failure(kind=stopped.kind, words=str(stopped))) from stopped
        self._tell({"position": part.n_bytes})
        return asdict(version)

    @contextmanager
    def _archive(self, headers: dict[str, str]) -> Iterator[requests.Response]:
        """The answer to a request for the archive; the client follows a fresh signed link by its own rules. Only that gets `headers`."""
        self._get_headers = headers
        try:
            with self._authenticated().build_kaggle_client() as kaggle:
                api = kaggle.competitions.competition_api_client
                with api.download_data_files(
                    self._request("ApiDownloadDataFilesRequest")
                ) as response:
                    yield response
        finally:
            self._get_headers = {}

    def _authenticated(self) -> Any:
        """The client, which has authenticated. It does so when it is imported, and swallows what goes wrong then; so it is asked again."""
        if self._api is None:
            try:
                import kaggle
            except (
                ImportError,
                OSError,
            ) as error:  # kaggle does not declare that it needs six; it creates a folder
                raise FailedError(Failure(kind="client", words=str(error))) from error
            if not kaggle.api._authenticated:
                try:
                    kaggle.api.authenticate()
                except SystemExit as error:
                    raise FailedError(Failure(kind="anonymous")) from error
            self._api = kaggle.api
        return self._api

    def _ask(
        self, method: str, request: str, *, competition: bool = True, **fields: Any
    ) -> dict[str, Any]:
        with self._authenticated().build_kaggle_client() as kaggle:
            prepared = self._request(request, competition=competition, **fields)
            try:
                answer: dict[str, Any] = kaggle.http_client().call(
                    SERVICE, method, prepared, Answer
                )
            except TypeError as error:  # the client looks for "code" in whatever JSON comes
                raise requests.exceptions.InvalidJSONError("no JSON object") from error
            return answer

    def _request(self, name: str, *, competition: bool = True, **fields: Any) -> Any:
        from kagglesdk.competitions.types import competition_api_service

        request = getattr(competition_api_service, name)()
        for field, value in (
            fields | ({"competition_name": self._slug} if competition else {})
        ).items():
            setattr(request, field, value)
        return request

    def _bound_every_request(self, timeout_s: tuple[float, float]) -> None:
        """Puts time-outs under every request of this process, and our headers on each GET: the client makes them only to follow a link."""
        send = requests.Session.send

        def bounded(
            session: requests.Session, request: requests.PreparedRequest, **options: Any
        ) -> requests.Response:
            if options.get("timeout") is None:
                options["timeout"] = timeout_s
            if request.method == "GET":
                request.headers.update(self._get_headers)
            response = send(session, request, **options)
            self._skew_s = ahead_s(response.headers.get("Date", ""))
            return response

        requests.Session.send = bounded  # type: ignore[assignment, method-assign]
