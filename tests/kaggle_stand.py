"""The real client against the rehearsal server, in milliseconds, for the tests of comp/kaggle."""

import random
import threading
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from twin.server import Twin

from comp.competition import COMPETITION
from comp.kaggle import Kaggle, Patience
from comp.progress import Advance, Reporter

ARCHIVE = f"{COMPETITION.slug}.zip"
IDS = [str(n) for n in range(1, 41)]
HASTE = Patience(
    connect_s=2.0,
    read_s=0.5,
    answer_s=10.0,
    n_tries=4,
    retry_s=5.0,
    wait_first_s=0.01,
    wait_most_s=0.02,
    poll_s=0.03,
    listed_s=0.3,
    other_run_s=20.0,
)


class Notebook(Reporter):
    """Keeps what would be printed."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)

    def warn(self, line: str) -> None:
        self.lines.append(f"warning: {line}")

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        self.lines.append(title)

    @contextmanager
    def track(self, label: str, total: int, unit: str) -> Iterator[Advance]:
        done = 0

        def advance(n: int = 1, note: str = "") -> None:
            nonlocal done
            done += n

        yield advance
        self.lines.append(f"{label}: {done} of {total} {unit}")


@dataclass
class Stand:
    """A server, and one Kaggle that asks it."""

    server: Twin
    archive: Path
    env: dict[str, str]
    kaggle: Kaggle
    notebook: Notebook

    def arm(self, *faults: str) -> None:
        """These faults from now on; what was noted until now is forgotten."""
        self.server.arm(faults)
        self.notebook.lines.clear()
        self.n_before = len(self.server.requests)

    def asked(self, target: str) -> list[str]:
        """The Range headers of the requests for `target` since `arm`."""
        return [
            request.range
            for request in self.server.requests[self.n_before :]
            if request.target == target
        ]

    def another(self, patience: Patience = HASTE, **variables: str) -> tuple[Kaggle, Notebook]:
        """Another run, in an environment that differs by `variables`; an empty one is absent."""
        env = {name: value for name, value in (self.env | variables).items() if value}
        notebook = Notebook()
        kaggle = Kaggle(COMPETITION, notebook, env, patience)
        assert not kaggle.is_real
        return kaggle, notebook


def make_competition(folder: Path, n_bytes: int = 3_000_000) -> tuple[Path, Path]:
    """An archive of about that size like Kaggle's, with noise for photos, and its solution."""
    noise = random.Random(7)
    for name, share in (("train.zip", 0.8), ("test.zip", 0.2)):
        with zipfile.ZipFile(folder / name, "w") as inner:
            inner.writestr(f"{name[:-4]}/1.jpg", noise.randbytes(int(share * n_bytes)))
    (folder / "sample_submission.csv").write_text(
        "id,label\n" + "".join(f"{key},0.5\n" for key in IDS)
    )
    with zipfile.ZipFile(folder / ARCHIVE, "w") as outer:
        for name in ("train.zip", "test.zip", "sample_submission.csv"):
            outer.write(folder / name, name)
    (folder / "solution.csv").write_text(
        "id,label\n" + "".join(f"{key},{int(key) % 2}\n" for key in IDS)
    )
    return folder / ARCHIVE, folder / "solution.csv"


@contextmanager
def stand(folder: Path) -> Iterator[Stand]:
    """Both, once it is certain that nothing is sent anywhere but to this machine."""
    archive, solution = make_competition(folder)
    with Twin(archive, solution, daily_limit=100_000) as server:
        env = server.environment(folder / "home")
        assert env["KAGGLE_API_ENVIRONMENT"] == "LOCALHOST"
        assert env["http_proxy"].startswith("http://127.0.0.1:")
        notebook = Notebook()
        kaggle = Kaggle(COMPETITION, notebook, env, HASTE)
        assert not kaggle.is_real
        yield Stand(server=server, archive=archive, env=env, kaggle=kaggle, notebook=notebook)


@contextmanager
def proxy(reply: Callable[[BaseHTTPRequestHandler, str], None]) -> Iterator[str]:
    """The address of a proxy that has every POST answered by `reply`, which gets its body."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            reply(self, self.rfile.read(int(self.headers.get("Content-Length", 0))).decode())

        def log_message(self, *args: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
