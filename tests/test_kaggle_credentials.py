"""Credentials: found where the client finds them, in its order, and nothing about them leaks, whatever fails."""

import base64
import json
import os
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest
from kaggle_stand import ARCHIVE, HASTE, IDS, Notebook, Stand, stand

from comp.competition import COMPETITION
from comp.errors import CredentialsError, UserError
from comp.kaggle import Kaggle
from comp.kaggle.credentials import Credentials, find, secrets
from comp.kaggle.process import client_environment

TOKEN = "KGAT_canary0123456789abcdef"
KEY = "canary-key-fedcba9876543210"
PROXY = "canary%20proxy%20password"


def write(home: Path, name: str, text: str, mode: int = 0o600) -> None:
    path = home / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)


def pair(user: str = "someone", key: str = KEY) -> str:
    return json.dumps({"username": user, "key": key})


OAUTH = json.dumps(
    {"refresh_token": "canary-refresh", "access_token": "canary-access", "username": "someone"}
)
FILES = {
    ".kaggle/access_token": TOKEN,
    ".kaggle/access_token.txt": TOKEN,
    ".kaggle/kaggle.json": pair(),
    ".kaggle/credentials.json": OAUTH,
}


def test_the_first_of_many_is_used_in_the_clients_order(tmp_path: Path) -> None:
    for name, text in FILES.items():
        write(tmp_path, name, text)
    write(tmp_path, "token", TOKEN)
    env = {"HOME": str(tmp_path), "KAGGLE_API_TOKEN": TOKEN}
    steps = [
        (lambda: env.update(KAGGLE_API_TOKEN=str(tmp_path / "token")), "token", "KAGGLE_API_TOKEN"),
        (lambda: env.pop("KAGGLE_API_TOKEN"), "token", "the file named by KAGGLE_API_TOKEN"),
        (lambda: (tmp_path / ".kaggle/access_token").unlink(), "token", "~/.kaggle/access_token"),
        (
            lambda: (tmp_path / ".kaggle/access_token.txt").unlink(),
            "token",
            "~/.kaggle/access_token.txt",
        ),
        (
            lambda: env.update(KAGGLE_USERNAME="me", KAGGLE_KEY=KEY),
            "key",
            str(tmp_path / ".kaggle/kaggle.json"),
        ),
        (
            lambda: (env.clear(), env.update(HOME=str(tmp_path))),
            "key",
            "KAGGLE_USERNAME and KAGGLE_KEY",
        ),
        (
            lambda: (tmp_path / ".kaggle/kaggle.json").unlink(),
            "key",
            str(tmp_path / ".kaggle/kaggle.json"),
        ),
        (
            lambda: (tmp_path / ".kaggle/credentials.json").unlink(),
            "oauth",
            "~/.kaggle/credentials.json",
        ),
    ]
    for remove_it, kind, source in steps:
        found = find(env)
        assert found is not None
        assert (found.kind, found.source) == (kind, source)
        remove_it()
    assert find(env) is None


@pytest.mark.parametrize("where", ["KAGGLE_CONFIG_DIR", "XDG_CONFIG_HOME", "~/.config"])
def test_kaggle_json_is_looked_for_where_the_client_looks(tmp_path: Path, where: str) -> None:
    folders = {
        "KAGGLE_CONFIG_DIR": "mine",
        "XDG_CONFIG_HOME": "xdg/kaggle",
        "~/.config": ".config/kaggle",
    }
    write(tmp_path, f"{folders[where]}/kaggle.json", pair())
    env = {"HOME": str(tmp_path)} | (
        {where: str(tmp_path / folders[where].split("/")[0])} if where.isupper() else {}
    )
    found = find(env)
    assert found is not None
    assert found.source == str(tmp_path / folders[where] / "kaggle.json")


def test_each_trap_is_warned_of(tmp_path: Path) -> None:
    write(tmp_path, ".kaggle/kaggle.json", pair(), mode=0o644)
    home = {"HOME": str(tmp_path)}

    def warnings(env: dict[str, str]) -> str:
        found = find(home | env)
        assert found is not None
        return " | ".join(found.warnings)

    assert (
        warnings({})
        == f"{tmp_path}/.kaggle/kaggle.json can be read by other users of this machine: run chmod 600 {tmp_path}/.kaggle/kaggle.json"
    )
    assert "the token wins" in warnings({"KAGGLE_API_TOKEN": TOKEN})
    assert "the user name is from" in warnings({"KAGGLE_KEY": KEY})
    (tmp_path / ".kaggle/kaggle.json").chmod(0o600)
    assert warnings({}) == ""
    write(tmp_path, ".kaggle/access_token", TOKEN, mode=0o640)
    assert "chmod 600" in warnings({})


@pytest.mark.parametrize("text", ["", "{", "[]", '{"username": "me"}', '"text"'])
def test_files_that_the_client_ignores_are_ignored(tmp_path: Path, text: str) -> None:
    for name in (".kaggle/kaggle.json", ".kaggle/credentials.json"):
        write(tmp_path, name, text)
    write(tmp_path, ".kaggle/access_token", " \n")
    assert find({"HOME": str(tmp_path)}) is None


def test_a_token_that_the_client_would_trip_over_is_refused_with_a_way_out() -> None:
    with pytest.raises(CredentialsError, match=r"300 characters .*/access_token instead") as caught:
        find({"HOME": "/nowhere", "KAGGLE_API_TOKEN": "t" * 300})
    assert "t" * 300 not in str(caught.value)


@pytest.mark.parametrize(
    "variables",
    [
        {"KAGGLE_API_TOKEN": TOKEN},
        {"KAGGLE_USERNAME": "me", "KAGGLE_KEY": KEY},
        {"KAGGLE_KEY": KEY},
        {},
    ],
    ids=str,
)
def test_what_we_find_is_what_the_client_uses(tmp_path: Path, variables: dict[str, str]) -> None:
    """The client itself, asked without a network: its proxy refuses every connection."""
    write(tmp_path, ".kaggle/kaggle.json", pair("file-user", "file-key"))
    env = {
        "HOME": str(tmp_path),
        "PATH": os.environ["PATH"],
        "KAGGLE_API_ENVIRONMENT": "LOCALHOST",
        "http_proxy": "http://127.0.0.1:9",
    } | variables
    code = """if True:
        import kaggle
        http = kaggle.api.build_kaggle_client().http_client()
        assert http._endpoint == "http://localhost"
        http._init_session()
        auth = http._session.auth
        print(auth if isinstance(auth, tuple) else auth.token)
    """
    used = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    ).stdout.strip()
    found = find(env)
    assert found is not None
    key = variables.get("KAGGLE_KEY", "file-key")
    assert used == (
        TOKEN
        if found.kind == "token"
        else str((variables.get("KAGGLE_USERNAME", "file-user"), key))
    )
    assert {"token": TOKEN, "key": key}[found.kind] in secrets(env)


def test_the_clients_environment_is_quiet_and_sends_nothing_of_netrc(tmp_path: Path) -> None:
    env = client_environment(
        {
            "HOME": str(tmp_path),
            "VERBOSE": "1",
            "VERBOSE_OUTPUT": "1",
            "NETRC": "/home/me/.netrc",
            "KAGGLE_API_TOKEN": TOKEN,
        }
    )
    assert not {"VERBOSE", "VERBOSE_OUTPUT"} & env.keys()
    assert env["NETRC"] == os.devnull
    assert Path(env["KAGGLE_CONFIG_DIR"]).is_dir()
    assert list(tmp_path.iterdir()) == []


def test_no_secret_is_shown_by_the_values_themselves() -> None:
    env = {
        "HOME": "/nowhere",
        "KAGGLE_API_TOKEN": TOKEN,
        "KAGGLE_USERNAME": "me",
        "KAGGLE_KEY": KEY,
    }
    assert repr(find(env)).count("canary") == 0
    assert Credentials(kind="key", source="KAGGLE_KEY").warnings == ()


@contextmanager
def parrot(accepts_token: bool) -> Iterator[str]:
    """A stand-in that throws the credentials it gets, and all else, back into the face of whoever asks."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
            authorization = self.headers.get("Authorization", "")
            words = f"no: {authorization} {authorization.partition(' ')[2]} {asked} {self.headers}"
            known = accepts_token and self.path.endswith("IntrospectToken")
            body = json.dumps(
                {"active": True, "username": "me"} if known else {"code": 400, "message": words}
            ).encode()
            self.send_response(200 if known else 400)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    with stand(tmp_path_factory.mktemp("kaggle")) as made:
        yield made


def everything(
    kaggle: Kaggle, notebook: Notebook, folder: Path, *bugs: Callable[[], object]
) -> str:
    """All that a run shows or leaves: messages, tracebacks with their causes, what is said, the child's arguments, every file."""
    csv = folder / "predictions.csv"
    csv.write_text("id,label\n" + "".join(f"{key},0.25\n" for key in IDS))
    seen = []
    calls = [
        kaggle.whoami,
        lambda: kaggle.download(folder / "raw"),
        lambda: kaggle.upload(csv, "a message"),
        lambda: kaggle.find("a message"),
        lambda: kaggle.leaderboard(folder / "board"),
        *bugs,
    ]
    for call in calls:
        try:
            seen.append(repr(call()))
        except (UserError, RuntimeError) as error:
            seen += [repr(error), *traceback.format_exception(error)]
        running = kaggle._process._running
        if running is not None:
            seen.append(Path(f"/proc/{running._process.pid}/cmdline").read_bytes().decode())
    seen += notebook.lines
    seen += [
        path.read_bytes().decode(errors="replace")
        for path in folder.rglob("*")
        if path.is_file() and path.name not in (ARCHIVE,)
    ]
    return "\n".join(seen)


@pytest.mark.parametrize(
    "faults",
    [
        "",
        "401",
        "403-rules",
        "404",
        "429",
        "500",
        "api-reset",
        "html",
        "no-range cut",
        "upload-400 bad-zip",
        "submit-silent",
        "score-error",
    ],
)
def test_no_failure_of_the_service_shows_the_token(
    scene: Stand, tmp_path: Path, capfd: pytest.CaptureFixture[str], faults: str
) -> None:
    scene.arm(*faults.split())
    shown = everything(scene.kaggle, scene.notebook, tmp_path)
    assert scene.server.account.token not in shown + "".join(capfd.readouterr())


@pytest.mark.parametrize("kind", ["token", "unaccepted token", "key"])
def test_not_even_a_service_that_repeats_our_credentials_makes_us_show_them(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], kind: str
) -> None:
    with parrot(accepts_token=kind == "token") as address:
        env = {
            "HOME": str(tmp_path / "home"),
            "PATH": os.environ["PATH"],
            "KAGGLE_API_ENVIRONMENT": "LOCALHOST",
            "VERBOSE": "1",
        }
        env |= {"http_proxy": f"http://me:{PROXY}@{address}", "no_proxy": ""}
        env |= (
            {"KAGGLE_USERNAME": "someone", "KAGGLE_KEY": KEY}
            if kind == "key"
            else {"KAGGLE_API_TOKEN": TOKEN}
        )
        notebook = Notebook()
        kaggle = Kaggle(COMPETITION, notebook, env, HASTE)
        assert not kaggle.is_real
        bug = lambda: kaggle._ask(KEY if kind == "key" else TOKEN)  # noqa: E731  (a name that the traceback repeats)
        shown = everything(kaggle, notebook, tmp_path, bug) + "".join(capfd.readouterr())
        kaggle.close()
    if kind == "unaccepted token":
        assert "does not accept the token from KAGGLE_API_TOKEN" in shown
    else:
        assert "***" in shown  # it was repeated, and it was scrubbed
    basic = [
        base64.b64encode(words.encode()).decode()
        for words in (f"someone:{KEY}", f"me:{unquote(PROXY)}")
    ]
    assert [word for word in (TOKEN, KEY, PROXY, unquote(PROXY), *basic) if word in shown] == []
