"""Credentials are found where the `kaggle` command finds them, and never shown, whatever fails."""

import base64
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import quote, unquote

import pytest
from kaggle_stand import ARCHIVE, HASTE, IDS, Notebook, Stand, proxy

from comp.competition import COMPETITION
from comp.errors import CredentialsError, UserError
from comp.kaggle import Kaggle
from comp.kaggle.credentials import first_credentials

TOKEN = "KGAT_canary+/0123456789abcdef"
KEY = "canary-key-fedcba9876543210"
PROXY = "canary%20proxy%20password"
REFRESH = "canary-refresh-token"
FILES = {
    ".kaggle/access_token": TOKEN,
    ".kaggle/access_token.txt": TOKEN,
    ".kaggle/kaggle.json": json.dumps({"username": "someone", "key": KEY}),
    ".kaggle/credentials.json": json.dumps({"refresh_token": REFRESH, "username": "someone"}),
}


def write(home: Path, name: str, text: str = "", mode: int = 0o600) -> None:
    path = home / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text or FILES[name])
    path.chmod(mode)


def test_the_first_of_many_is_used_in_the_order_of_the_kaggle_command(tmp_path: Path) -> None:
    for name in FILES:
        write(tmp_path, name)
    write(tmp_path, "token", TOKEN)
    env = {"HOME": str(tmp_path), "KAGGLE_API_TOKEN": TOKEN}
    dot = tmp_path / ".kaggle"
    steps: list[tuple[str, str, Callable[[], object]]] = [
        ("token", "KAGGLE_API_TOKEN", lambda: env.update(KAGGLE_API_TOKEN=str(tmp_path / "token"))),
        ("token", "the file named by KAGGLE_API_TOKEN", lambda: env.pop("KAGGLE_API_TOKEN")),
        ("token", "~/.kaggle/access_token", (dot / "access_token").unlink),
        ("token", "~/.kaggle/access_token.txt", (dot / "access_token.txt").unlink),
        ("key", f"{dot}/kaggle.json", lambda: env.update(KAGGLE_USERNAME="me", KAGGLE_KEY=KEY)),
        ("key", "KAGGLE_USERNAME and KAGGLE_KEY", lambda: env.pop("KAGGLE_KEY")),
        ("key", f"KAGGLE_USERNAME and {dot}/kaggle.json", (dot / "kaggle.json").unlink),
        ("login", f"{dot}/credentials.json", (dot / "credentials.json").unlink),
    ]
    for kind, source, remove_it in steps:
        found = first_credentials(env)
        assert (found.kind, found.source) == (kind, source)
        assert found.secret == {"token": TOKEN, "key": KEY, "login": REFRESH}[kind]
        assert "canary" not in repr(found)
        remove_it()
    with pytest.raises(CredentialsError, match=r"KAGGLE_API_TOKEN.*access_token.*kaggle.json.*lo"):
        first_credentials(env)


@pytest.mark.parametrize(
    ("variable", "folder"),
    [("KAGGLE_CONFIG_DIR", "mine"), ("XDG_CONFIG_HOME", "mine/kaggle"), ("", ".config/kaggle")],
)
def test_kaggle_json_is_found_in_other_folders(tmp_path: Path, variable: str, folder: str) -> None:
    write(tmp_path, f"{folder}/kaggle.json", FILES[".kaggle/kaggle.json"])
    env = {"HOME": str(tmp_path), variable: str(tmp_path / "mine")}
    assert first_credentials(env).source == str(tmp_path / folder / "kaggle.json")


def test_each_trap_is_a_warning_of_one_line(tmp_path: Path) -> None:
    write(tmp_path, ".kaggle/kaggle.json", mode=0o644)
    path = tmp_path / ".kaggle/kaggle.json"

    def warnings(**env: str) -> str:
        return " | ".join(first_credentials({"HOME": str(tmp_path)} | env).warnings)

    assert warnings() == (
        f"{path} can be read by other users of this machine: run chmod 600 {path}"
    )
    assert "the token wins; a stale token hides" in warnings(KAGGLE_API_TOKEN=TOKEN)
    assert "the user name is from" in warnings(KAGGLE_KEY=KEY)
    path.chmod(0o600)
    assert warnings() == ""
    write(tmp_path, ".kaggle/access_token", mode=0o640)
    assert "chmod 600" in warnings()


AROUND = ["{}\n", "{}\r\n", "\n{}", " {}\t", "\ufeff{}", "{}\u200b", "\u2060\xa0{}", '"{}"']
AROUND += ["\"'{}' \n", "\u2066{}\u2069\r\n\x1a"]
INSIDE = ["\r\n", *"\n\r\t \u200b\ufeff\0\x7fé\u0416\U0001f600\udcff"]
PLACES = ["KAGGLE_API_TOKEN", "a named file", "access_token", "KAGGLE_USERNAME", "KAGGLE_KEY"]
PLACES += ["username of kaggle.json", "key of kaggle.json", "refresh_token of credentials.json"]


def place(home: Path, where: str, text: str) -> dict[str, str]:
    """An environment with `text` in that place, and what belongs to it in others."""
    env = {"HOME": str(home), "KAGGLE_CONFIG_DIR": str(home / ".kaggle")}
    content = text.encode(errors="surrogateescape")
    entry, _, name = where.partition(" of ")
    (home / ".kaggle").mkdir(exist_ok=True)
    if name:
        entries = {"username": "someone", "key": KEY} if name == "kaggle.json" else {}
        (home / ".kaggle" / name).write_text(json.dumps(entries | {entry: text}))
    elif where == "access_token":
        (home / ".kaggle" / where).write_bytes(content)
    elif where == "a named file":
        (home / "token").write_bytes(content)
        env["KAGGLE_API_TOKEN"] = f" {home / 'token'}\n"
    elif where != "KAGGLE_API_TOKEN":
        env |= {"KAGGLE_USERNAME": "someone", "KAGGLE_KEY": KEY}
    return env if name or " " in where or where == "access_token" else env | {where: text}


@pytest.mark.parametrize("where", PLACES)
def test_what_surely_belongs_to_no_token_is_stripped(tmp_path: Path, where: str) -> None:
    for around in AROUND:
        found = first_credentials(place(tmp_path, where, around.format(TOKEN)))
        assert TOKEN in (found.secret, found.username)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_token_in_a_file_of_another_encoding_is_read(tmp_path: Path, encoding: str) -> None:
    env = place(tmp_path, "access_token", "")
    (tmp_path / ".kaggle/access_token").write_text(f"{TOKEN}\r\n", encoding=encoding)
    assert first_credentials(env).secret == TOKEN


@pytest.mark.parametrize("where", PLACES)
def test_what_no_token_has_is_refused_in_one_line_that_shows_nothing_of_it(
    tmp_path: Path, where: str
) -> None:
    for inside in INSIDE:
        env = place(tmp_path, where, f"{TOKEN}{inside}{KEY}")
        source = where.removeprefix("a named ").rpartition(" of ")[2]
        with pytest.raises(
            CredentialsError, match=f"{source}.* has the character .* copy"
        ) as caught:
            first_credentials(env)
        shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
        assert "\n" not in str(caught.value)
        forms = [form for word in (TOKEN, KEY) for form in (word, quote(word, safe=""), word[:8])]
        assert [form for form in forms if form in shown] == []


@pytest.mark.parametrize("name", ["kaggle.json", "credentials.json"])
@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "no plain UTF-8 JSON"),
        (b" \n", "no plain UTF-8 JSON"),
        (b"{", "line 1 column 2"),
        (b"{%s,}", "no plain UTF-8 JSON"),
        (b"\xef\xbb\xbf{%s}", "BOM"),
        ("{%s}".encode("utf-16"), "BOM"),
        (b"{%s}\xff", "no plain UTF-8 JSON"),
        (b"[" * 100_000, "no plain UTF-8 JSON"),
        (b"[{%s}]", "no text for"),
        (b"{}", "no text for"),
        (b"null", "no text for"),
        (b'"text"', "no text for"),
        (b'{"username": "me"}', "no text for"),
        (b'{"username": "me", "key": "", "refresh_token": " "}', "no text for"),
        (b'{"username": 7, "key": ["x"], "refresh_token": null}', "no text for"),
    ],
)
def test_a_damaged_file_is_named_with_what_is_wrong_unless_a_token_makes_it_needless(
    tmp_path: Path, name: str, content: bytes, problem: str
) -> None:
    entries = f'"username": "someone", "key": "{KEY}", "refresh_token": "{REFRESH}"'
    encoding = "utf-16-le" if b"\0" in content else "utf-8"
    write(tmp_path, f".kaggle/{name}", "-")
    path = tmp_path / ".kaggle" / name
    path.write_bytes(content.replace("%s".encode(encoding), entries.encode(encoding)))
    with pytest.raises(CredentialsError) as caught:
        first_credentials({"HOME": str(tmp_path)})
    line = str(caught.value)
    assert [
        word for word in (f"{path} cannot be used", problem, "delete it") if word not in line
    ] == []
    shown = "".join(traceback.format_exception(caught.value))
    assert "canary" not in shown
    assert "no Kaggle credentials" not in shown
    token = first_credentials({"HOME": str(tmp_path), "KAGGLE_API_TOKEN": TOKEN})
    assert token.warnings == ()


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir(parents=True)  # a folder, as root can read a file of any mode
    with pytest.raises(CredentialsError, match=rf"{name} cannot be read \(Is a directory\)"):
        first_credentials({"HOME": str(tmp_path)})


def test_empty_variables_and_files_of_tokens_are_as_good_as_none(tmp_path: Path) -> None:
    for name in (".kaggle/access_token", ".kaggle/access_token.txt"):
        write(tmp_path, name, " \n")
    env = dict.fromkeys(("KAGGLE_API_TOKEN", "KAGGLE_USERNAME", "KAGGLE_KEY"), "\n")
    with pytest.raises(CredentialsError, match="no Kaggle credentials found"):
        first_credentials({"HOME": str(tmp_path)} | env)


@pytest.mark.parametrize(
    "variables",
    [
        {"KAGGLE_API_TOKEN": TOKEN},
        {"KAGGLE_USERNAME": "me", "KAGGLE_KEY": KEY},
        {"KAGGLE_KEY": KEY},
        {},
    ],
    ids=lambda variables: " ".join(variables) or "kaggle.json",
)
def test_what_we_use_is_what_the_kaggle_command_uses(
    tmp_path: Path, variables: dict[str, str]
) -> None:
    """The command's own code is asked, without a network: its proxy refuses every connection."""
    write(tmp_path, ".kaggle/kaggle.json")
    env = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "http_proxy": "http://127.0.0.1:9"}
    env |= {"KAGGLE_API_ENVIRONMENT": "LOCALHOST"} | variables
    code = """if True:
        import kaggle
        http = kaggle.api.build_kaggle_client().http_client()
        assert http._endpoint == "http://localhost"
        http._init_session()
        auth = http._session.auth
        print(auth if isinstance(auth, tuple) else auth.token)
    """
    run = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    )
    found = first_credentials(env)
    ours = found.secret if found.kind == "token" else (found.username, found.secret)
    assert run.stdout.strip() == str(ours)


def test_a_key_is_used_whatever_token_this_process_has_and_a_wrong_one_is_noticed(
    scene: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.arm()
    monkeypatch.setenv("KAGGLE_API_TOKEN", "t" * 300)  # the SDK fails to test it as a path
    account = scene.server.account
    key = {"KAGGLE_API_TOKEN": "", "KAGGLE_USERNAME": account.username, "KAGGLE_KEY": account.key}
    good, _ = scene.another(**key)
    assert good.whoami() == account.username
    assert len(good.files()) == 3
    wrong, _ = scene.another(**key | {"KAGGLE_KEY": "no-such-key"})
    with pytest.raises(CredentialsError, match="the key from KAGGLE_USERNAME and KAGGLE_KEY"):
        wrong.whoami()


@pytest.mark.parametrize("token", ["stale-token", "t" * 300])
def test_a_stale_token_is_named_and_no_good_key_is_used_in_its_place(
    scene: Stand, token: str
) -> None:
    scene.arm()
    account = scene.server.account
    key = {"KAGGLE_USERNAME": account.username, "KAGGLE_KEY": account.key}
    kaggle, notebook = scene.another(KAGGLE_API_TOKEN=token, **key)
    with pytest.raises(CredentialsError, match="the token from KAGGLE_API_TOKEN") as caught:
        kaggle.files()
    assert token not in str(caught.value)
    assert any("the token wins" in line for line in notebook.lines)


def test_nothing_of_netrc_is_sent_along_with_a_signed_link(
    scene: Stand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The storage refuses a request with an Authorization header of any kind."""
    scene.arm()
    netrc, csv = tmp_path / "netrc", tmp_path / "predictions.csv"
    netrc.write_text("default login me password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    csv.write_text("id,label\n" + "".join(f"{key},0.25\n" for key in IDS))
    kaggle, _ = scene.another(NETRC=str(netrc))
    assert kaggle.download(tmp_path / "raw").exists()
    assert kaggle.upload(csv, "with a netrc")


@contextmanager
def parrot(accepted: str) -> Iterator[str]:
    """A proxy that accepts one token and then repeats all that it is sent, in its refusals."""

    def reply(handler: BaseHTTPRequestHandler, asked: str) -> None:
        authorization = handler.headers.get("Authorization", "")
        secret = authorization.partition(" ")[2]
        escaped = f"{quote(secret, safe='')} {base64.b64encode(secret.encode()).decode()}"
        words = f"no: {authorization} {secret} {escaped} {asked} {handler.headers}"
        answer: dict[str, object] = {"code": 400, "message": words}
        if handler.path.endswith("IntrospectToken") and accepted in asked:
            answer = {"active": True, "username": "me"}
        if handler.path.endswith("GetSubmission"):
            answer = {"ref": 7, "errorDescription": words}
        if handler.path.endswith("GenerateAccessToken") and REFRESH in asked:
            answer = {"token": TOKEN, "expiresIn": 3600}
        handler.send_response(400 if "code" in answer else 200)
        handler.send_header("Content-Type", "application/json")
        handler.end_headers()
        handler.wfile.write(json.dumps(answer).encode())

    with proxy(reply) as address:
        yield address


def everything(kaggle: Kaggle, notebook: Notebook, folder: Path) -> str:
    """All that a run shows or leaves: messages, tracebacks with their causes, files."""
    csv = folder / "predictions.csv"
    csv.write_text("id,label\n" + "".join(f"{key},0.25\n" for key in IDS))
    seen = []
    calls: list[Callable[[], object]] = [
        kaggle.whoami,
        lambda: kaggle.download(folder / "raw"),
        lambda: kaggle.upload(csv, "a message"),
        kaggle.submissions,
        lambda: kaggle.leaderboard(folder / "board"),
    ]
    for call in calls:
        try:
            seen.append(repr(call()))
        except UserError as error:
            seen += [repr(error), *traceback.format_exception(error)]
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ARCHIVE]
    return "\n".join([*seen, *notebook.lines, *(path.read_text() for path in files)])


@pytest.mark.parametrize("kind", ["token", "unaccepted token", "key", "login"])
def test_not_even_a_service_that_repeats_our_credentials_makes_us_show_them(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], kind: str
) -> None:
    home = tmp_path.with_name(f"{tmp_path.name}-home")
    variables = {"key": {"KAGGLE_USERNAME": "someone", "KAGGLE_KEY": KEY}, "login": {}}.get(
        kind, {"KAGGLE_API_TOKEN": TOKEN}
    )
    write(home, ".kaggle/credentials.json")
    with parrot("no token" if kind == "unaccepted token" else TOKEN) as address:
        env = {"HOME": str(home), "KAGGLE_API_ENVIRONMENT": "LOCALHOST", "VERBOSE": "1"}
        env |= {"http_proxy": f"http://me:{PROXY}@{address}"} | variables
        notebook = Notebook()
        kaggle = Kaggle(COMPETITION, notebook, env, HASTE)
        shown = everything(kaggle, notebook, tmp_path) + "".join(capfd.readouterr())
    if kind == "unaccepted token":
        assert "does not accept the token from KAGGLE_API_TOKEN" in shown
    else:
        assert shown.count("***") >= 4  # they were repeated, and scrubbed
    pairs = [f"someone:{KEY}", f"me:{unquote(PROXY)}"]
    secrets = [TOKEN, KEY, REFRESH, PROXY, unquote(PROXY)]
    secrets += [quote(TOKEN, safe="")]
    secrets += [base64.b64encode(text.encode()).decode() for text in (*pairs, TOKEN)]
    assert [secret for secret in secrets if secret in shown] == []
