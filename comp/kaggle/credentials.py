"""Which credentials the client will use, where they come from, and what is wrong with them; the client itself need not be imported.

The order is the client's (kaggle 2.2.4, `authenticate()` and `_try_fill_auth`):

1. An access token: the file in KAGGLE_API_V1_TOKEN (in a Kaggle notebook only), KAGGLE_API_TOKEN (the token, or a path to it),
   ~/.kaggle/access_token, ~/.kaggle/access_token.txt, and then, which nobody documents, KAGGLE_TOKEN or "token" in kaggle.json.
2. User name and key: KAGGLE_USERNAME and KAGGLE_KEY, each overriding the entry of that name in kaggle.json.
3. What `kaggle auth login` left in ~/.kaggle/credentials.json.
"""

import base64
import json
import os
import stat
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from comp.errors import CredentialsError

EVERY_WAY = (
    "set KAGGLE_API_TOKEN, or put the token into ~/.kaggle/access_token, or put kaggle.json into ~/.kaggle, "
    "or set KAGGLE_USERNAME and KAGGLE_KEY, or run `kaggle auth login`; tokens and keys are made at https://www.kaggle.com/settings"
)
STALE = "a stale token defeats a good key"
RENEW = f"renew it at https://www.kaggle.com/settings, or remove it to fall back on others, since {STALE}"
SHORTEST_SECRET = 6  # characters; anything shorter would be scrubbed out of ordinary words


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """Which credentials are used; never the secret itself."""

    kind: Literal["token", "key", "oauth"]
    source: str  # a variable or a file, in words for a message
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Found:
    source: str
    secret: str
    file: Path | None = None

    def __repr__(self) -> str:
        return f"_Found({self.source!r})"


def find(env: Mapping[str, str]) -> Credentials | None:
    """The credentials that the client would use under `env`, or None. Nothing is checked with Kaggle."""
    token, pair, oauth = _token(env), _pair(env), _oauth(env)
    if token is not None:
        clash = (
            (f"both {token.source} and {_sources(pair)} are there and the token wins; {STALE}",)
            if pair is not None
            else ()
        )
        return Credentials(kind="token", source=token.source, warnings=_readable(token) + clash)
    if pair is not None:
        mixed = (pair[0].file is None) != (pair[1].file is None)
        advice = (
            f"the user name is from {pair[0].source} but the key from {pair[1].source}: Kaggle answers 401 unless they belong together",
        )
        return Credentials(
            kind="key", source=_sources(pair), warnings=_readable(*pair) + (advice if mixed else ())
        )
    if oauth is not None:
        return Credentials(kind="oauth", source=oauth.source, warnings=_readable(oauth))
    return None


def secrets(env: Mapping[str, str]) -> frozenset[str]:
    """Every string that must not appear in a message, a log or a file, whether it is in use or not."""
    pair = _pair(env)
    words = {found.secret for found in (*_tokens(env), *(pair or ())[1:], *_oauth_secrets(env))}
    words |= {env[name] for name in ("KAGGLE_KEY", "KAGGLE_TOKEN") if name in env}
    if pair is not None:
        words.add(_basic(pair[0].secret, pair[1].secret))
    for name in (
        "http_proxy",
        "https_proxy",
        "all_proxy",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
    ):
        proxy = urlsplit(env.get(name, ""))
        if proxy.password:
            words |= {
                proxy.password,
                unquote(proxy.password),
                _basic(unquote(proxy.username or ""), unquote(proxy.password)),
            }
    return frozenset(word for word in words if len(word) >= SHORTEST_SECRET)


def _basic(user: str, password: str) -> str:
    """As an Authorization header carries them."""
    return base64.b64encode(f"{user}:{password}".encode()).decode()


def scrubbed(text: str, hidden: frozenset[str]) -> str:
    """`text` with every secret in it replaced; the longest first, lest a part of one uncovers the rest."""
    for word in sorted(hidden, key=len, reverse=True):
        text = text.replace(word, "***")
    return text


def config_folder(env: Mapping[str, str]) -> Path:
    """Where the client looks for kaggle.json, and which it creates when it is imported."""
    if env.get("KAGGLE_CONFIG_DIR"):
        return Path(env["KAGGLE_CONFIG_DIR"])
    if sys.platform.startswith("linux") and not _dot_kaggle(env).exists():
        return Path(env.get("XDG_CONFIG_HOME") or _home(env) / ".config") / "kaggle"
    return _dot_kaggle(env)


def _token(env: Mapping[str, str]) -> _Found | None:
    first = next(_tokens(env), None)
    return first if first is not None and first.secret else None


def _tokens(env: Mapping[str, str]) -> Iterator[_Found]:
    """Access tokens in the client's order, those that are overruled included."""
    if (
        env.get("KAGGLE_KERNEL_RUN_TYPE") is not None
        and env.get("KAGGLE_DATA_PROXY_URL") is not None
    ):
        yield from _from_file(env.get("KAGGLE_API_V1_TOKEN", ""), "KAGGLE_API_V1_TOKEN")
    if given := env.get("KAGGLE_API_TOKEN"):
        if _is_path(given):  # a file without a token in it ends the search all the same
            yield _Found(
                "the file named by KAGGLE_API_TOKEN", _read(Path(given)).strip(), Path(given)
            )
        else:
            yield _Found("KAGGLE_API_TOKEN", given)
    for name in ("access_token", "access_token.txt"):
        yield from _from_file(str(_dot_kaggle(env) / name), f"~/.kaggle/{name}")
    if given := env.get("KAGGLE_TOKEN"):
        yield _Found("KAGGLE_TOKEN", given)
    elif given := _config(env).get("token"):
        yield _Found(
            str(config_folder(env) / "kaggle.json"), str(given), config_folder(env) / "kaggle.json"
        )


def _is_path(given: str) -> bool:
    try:
        return Path(given).exists()
    except OSError as error:  # the client asks the same question and fails the same way, but as a traceback at import
        way_out = "put it into ~/.kaggle/access_token instead"
        raise CredentialsError(
            f"the Kaggle client cannot take a token of {len(given)} characters from KAGGLE_API_TOKEN: {way_out}"
        ) from error


def _from_file(path: str, source: str) -> Iterator[_Found]:
    text = _read(Path(path)).strip() if path else ""
    if text:
        yield _Found(source, text, Path(path))


def _pair(env: Mapping[str, str]) -> tuple[_Found, _Found] | None:
    """User name and key, each from the environment or else from kaggle.json."""
    path, config = config_folder(env) / "kaggle.json", _config(env)
    halves = []
    for name, variable in (("username", "KAGGLE_USERNAME"), ("key", "KAGGLE_KEY")):
        if env.get(variable):
            halves.append(_Found(variable, env[variable]))
        elif config.get(name):
            halves.append(_Found(str(path), str(config[name]), path))
    return (halves[0], halves[1]) if len(halves) == 2 else None


def _sources(pair: tuple[_Found, _Found]) -> str:
    return " and ".join(dict.fromkeys(half.source for half in pair))


def _oauth(env: Mapping[str, str]) -> _Found | None:
    return next((item for item in _oauth_secrets(env)), None)


def _oauth_secrets(env: Mapping[str, str]) -> list[_Found]:
    path = _dot_kaggle(env) / "credentials.json"
    entries = _json(path)
    if not entries.get("refresh_token"):
        return []
    return [
        _Found("~/.kaggle/credentials.json", str(entries[name]), path)
        for name in ("refresh_token", "access_token")
        if entries.get(name)
    ]


def _config(env: Mapping[str, str]) -> dict[str, Any]:
    return _json(config_folder(env) / "kaggle.json")


def _json(path: Path) -> dict[str, Any]:
    """The object in `path`; nothing where the client, too, ignores the file silently."""
    try:
        value = json.loads(_read(path) or "{}")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _readable(*found: _Found) -> tuple[str, ...]:
    """A warning for each file among `found` that other users of this machine can read."""
    files = {item.file for item in found if item.file is not None}
    return tuple(
        f"{file} can be read by other users of this machine: run chmod 600 {file}"
        for file in sorted(files)
        if os.name != "nt" and file.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH)
    )


def _dot_kaggle(env: Mapping[str, str]) -> Path:
    return _home(env) / ".kaggle"


def _home(env: Mapping[str, str]) -> Path:
    return Path(env["HOME"]) if env.get("HOME") else Path.home()
