"""Which credentials are used, where they come from, and what is wrong with them.

In the order of the `kaggle` command:

1. An access token: KAGGLE_API_TOKEN (the token, or a path to it), ~/.kaggle/access_token,
   ~/.kaggle/access_token.txt.
2. A user name and a key: KAGGLE_USERNAME and KAGGLE_KEY, or else the entries of kaggle.json.
3. What `kaggle auth login` left in ~/.kaggle/credentials.json.

A token that Kaggle refuses is an error, and no reason to go on with what comes after it.
"""

import base64
import json
import os
import stat
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from comp.errors import CredentialsError

EVERY_WAY = (
    "set KAGGLE_API_TOKEN, or put the token into ~/.kaggle/access_token, or put kaggle.json into"
    " ~/.kaggle, or set KAGGLE_USERNAME and KAGGLE_KEY, or run `kaggle auth login`; tokens and keys"
    " are made at https://www.kaggle.com/settings"
)
STALE = "a stale token hides a good key"
RENEW = (
    "renew it at https://www.kaggle.com/settings, or remove it to use other credentials,"
    f" since {STALE}"
)
SHORTEST_SECRET = 6  # characters; replacing anything shorter would mangle ordinary words


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What is sent to Kaggle, and where it was found."""

    kind: Literal["token", "key", "login"]
    source: str  # a variable or a file, as a message names it
    secret: str = field(repr=False)  # the token, the key, or the refresh token
    username: str  # of a key, else empty
    warnings: tuple[str, ...]
    secrets: frozenset[str] = field(repr=False)  # never to be shown

    def scrub(self, value: Any) -> Any:
        """`value`, a text or JSON, with every secret in its texts replaced."""
        if isinstance(value, dict):
            return {key: self.scrub(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.scrub(item) for item in value]
        if isinstance(value, str):
            for secret in sorted(self.secrets, key=len, reverse=True):  # one may contain another
                value = value.replace(secret, "***")
        return value


@dataclass(frozen=True, slots=True)
class _Found:
    source: str
    text: str
    file: Path | None = None


def first_credentials(env: Mapping[str, str]) -> Credentials:
    """The first credentials in `env` and the files it leads to; CredentialsError if none."""
    token, pair = _token(env), _pair(env)
    login = _entry(_dot_kaggle(env) / "credentials.json", "refresh_token")
    kind: Literal["token", "key", "login"]
    warnings: list[str] = []
    if token:
        kind, found = "token", [token]
        if pair:
            both = f"both {token.source} and {_sources(pair)} are set"
            warnings.append(f"{both} and the token wins; {STALE}")
    elif pair:
        kind, found = "key", pair
        if pair[0].file != pair[1].file:
            mixed = f"the user name is from {pair[0].source} but the key from {pair[1].source}"
            warnings.append(f"{mixed}: Kaggle answers 401 unless they belong together")
    elif login:
        kind, found = "login", [login]
    else:
        raise CredentialsError(
            f"no Kaggle credentials found: {EVERY_WAY}; only `make data ARCHIVE=file-or-folder`,"
            " with an archive that you have, needs none"
        )
    username, secret = found[0].text if kind == "key" else "", found[-1].text
    warnings += [
        f"{file} can be read by other users of this machine: run chmod 600 {file}"
        for file in sorted({item.file for item in found if item.file})
        if file.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH)
    ]
    return Credentials(
        kind=kind,
        source=_sources(found),
        secret=secret,
        username=username,
        warnings=tuple(warnings),
        secrets=_secrets(env, username, secret),
    )


def _token(env: Mapping[str, str]) -> _Found | None:
    given = env.get("KAGGLE_API_TOKEN", "").strip()
    first = _Found("KAGGLE_API_TOKEN", given)
    if os.path.exists(given):  # unlike Path.exists, takes a token too long for a file name
        first = _Found("the file named by KAGGLE_API_TOKEN", _read(Path(given)), Path(given))
    files = (_dot_kaggle(env) / name for name in ("access_token", "access_token.txt"))
    found = (first, *(_Found(f"~/.kaggle/{path.name}", _read(path), path) for path in files))
    return next((item for item in found if item.text), None)


def _pair(env: Mapping[str, str]) -> list[_Found] | None:
    """User name and key, each from its variable or else from kaggle.json."""
    config = _config_folder(env) / "kaggle.json"
    user, key = (
        _Found(variable, env[variable].strip()) if env.get(variable) else _entry(config, name)
        for variable, name in (("KAGGLE_USERNAME", "username"), ("KAGGLE_KEY", "key"))
    )
    return [user, key] if user and key else None


def _secrets(env: Mapping[str, str], username: str, secret: str) -> frozenset[str]:
    """Every text that is sent and must not be shown, the passwords of proxies included."""
    words = {secret, _basic(username, secret)}
    for name, value in env.items():
        proxy = urlsplit(value if name.lower().endswith("_proxy") else "")
        if proxy.password:
            password = unquote(proxy.password)
            words |= {proxy.password, password, _basic(unquote(proxy.username or ""), password)}
    return frozenset(word for word in words if len(word) >= SHORTEST_SECRET)


def _sources(found: Sequence[_Found]) -> str:
    return " and ".join(dict.fromkeys(item.source for item in found))


def _entry(path: Path, name: str) -> _Found | None:
    """An entry of a JSON file; None also where the `kaggle` command ignores the file."""
    try:
        entries = json.loads(_read(path) or "{}")
    except ValueError:
        return None
    text = entries.get(name) if isinstance(entries, dict) else None
    return _Found(str(path), str(text), path) if text else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _config_folder(env: Mapping[str, str]) -> Path:
    """Where the `kaggle` command looks for kaggle.json."""
    if env.get("KAGGLE_CONFIG_DIR"):
        return Path(env["KAGGLE_CONFIG_DIR"])
    if sys.platform.startswith("linux") and not _dot_kaggle(env).exists():
        return Path(env.get("XDG_CONFIG_HOME") or _dot_kaggle(env).parent / ".config") / "kaggle"
    return _dot_kaggle(env)


def _dot_kaggle(env: Mapping[str, str]) -> Path:
    return (Path(env["HOME"]) if env.get("HOME") else Path.home()) / ".kaggle"


def _basic(user: str, password: str) -> str:
    """Both as an Authorization header has them."""
    return base64.b64encode(f"{user}:{password}".encode()).decode()
