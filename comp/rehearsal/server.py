"""A local twin of the part of Kaggle's API that the `kaggle` client uses.

The unmodified client is pointed to it by environment alone (`RehearsalServer.environment`): it takes the server for its HTTP proxy, and
since its `LOCALHOST` base address is `http://localhost`, all it asks for comes here in absolute form. With the server down, or the proxy
variable lost, the client meets a refused connection on this machine, never Kaggle.

The public score counts all ids of the solution; there is no private one. Faults on request are named in `comp.rehearsal.catalogue`.
"""

import os
import secrets
import tempfile
import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from comp.board import archived_scores
from comp.competition import COMPETITION, Competition
from comp.errors import UserError
from comp.rehearsal.catalogue import FAULTS
from comp.rehearsal.exchange import API_HOST, STORAGE_HOST, Ask, RefusedError, Reply
from comp.rehearsal.faults import Plan, Scene
from comp.rehearsal.scoring import Verdict, judge, read_solution
from comp.rehearsal.service import Account, Service
from comp.rehearsal.storage import Storage
from comp.rehearsal.submissions import Submission, Submissions
from comp.rehearsal.wire import Listener, Request


def _now() -> datetime:
    return datetime.now(UTC)


class RehearsalServer:
    """Serves `archive` and scores uploads against `solution`, on an ephemeral port of 127.0.0.1, while its `with` block lasts."""

    def __init__(
        self,
        archive: Path,
        solution: Path,
        *,
        competition: Competition = COMPETITION,
        faults: Sequence[str] = (),
        journal: Path | None = None,
        daily_limit: int = 5,
        scores: Sequence[float] | None = None,
        token: str | None = None,
        clock: Callable[[], datetime] = _now,
    ) -> None:
        if not archive.is_file():
            raise UserError(f"{archive}: no archive to rehearse with; name a zip like Kaggle's")
        self.account = Account(
            token=token or f"rehearsal-{secrets.token_hex(16)}",
            username="rehearsal",
            key=secrets.token_hex(16),
        )
        self._archive = archive
        self._solution = read_solution(solution)
        self._competition = competition
        self._plan = Plan(faults, FAULTS)
        self._daily_limit = daily_limit
        self._submissions = Submissions(journal, daily_limit, clock)
        self._scores = archived_scores(competition).tolist() if scores is None else scores

    def __enter__(self) -> Self:
        self._scratch = tempfile.TemporaryDirectory(prefix="rehearsal-")
        scratch = Path(self._scratch.name)
        self._scene = Scene(
            archive=self._archive,
            scratch=scratch,
            daily_limit=self._daily_limit,
            title=self._competition.title,
        )
        self._storage = Storage(self._archive, scratch)
        self._service = Service(
            competition=self._competition,
            account=self.account,
            archive=self._archive,
            storage=self._storage,
            submissions=self._submissions,
            judge=self._judge,
            scores=self._scores,
            daily_limit=self._daily_limit,
        )
        self._listener = Listener(lambda ask: self._plan.answer(ask, self._scene, self._answer))
        self._thread = threading.Thread(
            target=self._listener.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        )
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._listener.stop()
        self._thread.join()
        self._scratch.cleanup()
        if self._listener.bugs and error is None:
            raise self._listener.bugs[0]

    def arm(self, faults: Sequence[str]) -> None:
        """From the next request on, these faults and no others; `comp.rehearsal.catalogue` names them."""
        self._plan = Plan(faults, FAULTS)

    @property
    def url(self) -> str:
        """What `http_proxy` is set to."""
        return f"http://127.0.0.1:{self._listener.server_address[1]}"

    @property
    def requests(self) -> list[Request]:
        """All requests so far, in the order of their answers."""
        return list(self._listener.requests)

    @property
    def submissions(self) -> list[Submission]:
        """All recorded submissions, oldest first; those from the journal too."""
        return self._submissions.all()

    @property
    def n_uploads(self) -> int:
        """Uploads that arrived whole."""
        return self._storage.uploads.n_whole

    def environment(self, home: Path) -> dict[str, str]:
        """A whole environment for the client: this process's, without credentials, proxies and Kaggle settings, and with the way here."""
        config = home / ".kaggle"
        config.mkdir(parents=True, exist_ok=True)
        kept = {name: value for name, value in os.environ.items() if not _misleads(name)}
        return (
            kept
            | {
                "HOME": str(home),
                "NETRC": os.devnull,
                "KAGGLE_CONFIG_DIR": str(config),
                "KAGGLE_API_ENVIRONMENT": "LOCALHOST",
                "KAGGLE_API_TOKEN": self.account.token,
                "http_proxy": self.url,
                "https_proxy": self.url,  # it makes no tunnels: whatever might still be meant for the real Kaggle fails here
                "no_proxy": "",
                "NO_PROXY": "",
            }
        )

    def _answer(self, ask: Ask) -> Reply:
        if ask.host == STORAGE_HOST:
            return self._storage.answer(ask)
        if ask.host == API_HOST:
            return self._service.answer(ask)
        return RefusedError(403, f"A rehearsal does not forward requests to {ask.host}").reply()

    def _judge(self, content: bytes) -> Verdict:
        return judge(content, self._solution, self._competition.columns)


def _misleads(name: str) -> bool:
    """True of variables that would send the client elsewhere, or make it print what it must not."""
    return name.startswith(("KAGGLE_", "VERBOSE")) or name.lower().endswith("_proxy")
