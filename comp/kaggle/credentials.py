"""Which credentials are used, where they come from, and what is wrong with them.

In the order of the `kaggle` command:

1. An access token: KAGGLE_API_TOKEN (the token, or a path to it), ~/.kaggle/access_token,
   ~/.kaggle/access_token.txt.
2. A user name and a key: KAGGLE_USERNAME and KAGGLE_KEY, or else the entries of kaggle.json.
3. What `kaggle auth login` left in ~/.kaggle/credentials.json.

A token that Kaggle refuses, or a file that is damaged, is an error and no reason to go on with what
comes after it.
"""

import base64
import json
import os
import re
import stat
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, unquote

from comp.errors import CredentialsError

SETTINGS = "https://www.kaggle.com/settings"
EVERY_WAY = (
    "set KAGGLE_API_TOKEN, or put the token into ~/.kaggle/access_token, or put kaggle.json into"
    " ~/.kaggle, or set KAGGLE_USERNAME and KAGGLE_KEY, or run `kaggle auth login`; tokens and keys"
    f" are made at {SETTINGS}"
)
STALE = "a stale token hides a good key"
RENEW = f"renew it at {SETTINGS}, or remove it to use other credentials, since {STALE}"
COPY = f"copy or download it again from {SETTINGS}"
# What editors, shells and pages put around a token: white space, invisible characters, quotes.
AROUND = r"[\s\0\x1a\x7f\xad\u180e\u200b-\u200f\u2018-\u202f\u2060-\u206f\ufe0f\ufeff\"'`]+"
UTF_16 = {b"\xff\xfe": "utf-16-le", b"\xfe\xff": "utf-16-be"}  # by the byte-order mark
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
    """The first credentials in `env` and the files it leads to.

    CredentialsError if there are none, or if those cannot be what Kaggle gave out.
    """
    kind: Literal["token", "key", "login"]
    warnings: list[str] = []
    if token := _token(env):
        kind, found = "token", [token]
        with suppress(CredentialsError):  # a damaged kaggle.json does not matter here
            if pair := _pair(env):
                both = f"both {token.source} and {_sources(pair)} are set"
                warnings.append(f"{both} and the token wins; {STALE}")
    elif pair := _pair(env):
        kind, found = "key", pair
        if pair[0].file != pair[1].file:
            mixed = f"the user name is from {pair[0].source} but the key from {pair[1].source}"
            warnings.append(f"{mixed}: Kaggle answers 401 unless they belong together")
    elif login := _entry(_dot_kaggle(env) / "credentials.json", "refresh_token"):
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


def checked(source: str, text: str) -> str:
    """`text` without what is surely not part of a token, a key or a user name.

    CredentialsError, which shows nothing of it, if it has anything else that none of them has.
    """
    text = _strip(text)
    if wrong := re.search("[^!-~]", text):
        none = "which no token, key or user name has"
        raise CredentialsError(f"{source} has the character {wrong[0]!a} inside, {none}: {COPY}")
    return text


def forms(secret: str) -> set[str]:
    """A secret as an answer or a message may repeat it."""
    return {secret, repr(secret)[1:-1], quote(secret, safe=""), _base64(secret)}


def _strip(text: str) -> str:
    return re.sub(rf"\A{AROUND}|{AROUND}\Z", "", text)


def _token(env: Mapping[str, str]) -> _Found | None:
    given = _strip(env.get("KAGGLE_API_TOKEN", ""))
    names = ("access_token", "access_token.txt")
    files = {f"~/.kaggle/{name}": _dot_kaggle(env) / name for name in names}
    if os.path.exists(given):  # unlike Path.exists, takes a token too long for a file name
        files = {"the file named by KAGGLE_API_TOKEN": Path(given)} | files
    elif given:
        return _Found("KAGGLE_API_TOKEN", checked("KAGGLE_API_TOKEN", given))
    found = (_Found(name, checked(name, _read(path) or ""), path) for name, path in files.items())
    return next((item for item in found if item.text), None)


def _pair(env: Mapping[str, str]) -> list[_Found] | None:
    """User name and key, each from its variable or else from kaggle.json."""
    config = _config_folder(env) / "kaggle.json"
    user, key = (
        _Found(name, text) if (text := checked(name, env.get(name, ""))) else _entry(config, entry)
        for name, entry in (("KAGGLE_USERNAME", "username"), ("KAGGLE_KEY", "key"))
    )
    return [user, key] if user and key else None


def _secrets(env: Mapping[str, str], username: str, secret: str) -> frozenset[str]:
    """Every text that is sent and must not be shown, the passwords of proxies included."""
    words = forms(secret) | {_base64(f"{username}:{secret}")}  # as an Authorization header has them
    for name, value in env.items():
        if name.lower().endswith("_proxy") and "@" in value:
            user, _, given = value.rpartition("@")[0].rpartition("//")[2].partition(":")
            plain = unquote(given)
            words |= forms(given) | forms(plain) | {_base64(f"{unquote(user)}:{plain}")}
    return frozenset(word for word in words if len(word) >= SHORTEST_SECRET)


def _sources(found: Sequence[_Found]) -> str:
    return " and ".join(dict.fromkeys(item.source for item in found))


def _entry(path: Path, name: str) -> _Found | None:
    """A text of a JSON file, None if there is no file; CredentialsError if the file is damaged."""
    if (text := _read(path)) is None:
        return None
    problem = f'it has no text for "{name}"'
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError) as error:  # which tells the place, not the content
        entries, problem = None, f"it is no plain UTF-8 JSON: {error}"
    value = entries.get(name) if isinstance(entries, dict) else None
    if not isinstance(value, str) or not _strip(value):
        raise CredentialsError(
            f"{path} cannot be used ({problem}): correct or delete it, or {COPY}"
        )
    return _Found(str(path), checked(str(path), value), path)


def _read(path: Path) -> str | None:
    """The text of a file, None if there is none; what cannot be decoded becomes U+FFFD."""
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise CredentialsError(
            f"{path} cannot be read ({error.strerror}): make it a readable file"
        ) from None
    return content.decode(UTF_16.get(content[:2], "utf-8"), errors="replace")


def _config_folder(env: Mapping[str, str]) -> Path:
    """Where the `kaggle` command looks for kaggle.json."""
    if env.get("KAGGLE_CONFIG_DIR"):
        return Path(env["KAGGLE_CONFIG_DIR"])
    if sys.platform.startswith("linux") and not os.path.exists(_dot_kaggle(env)):
        return Path(env.get("XDG_CONFIG_HOME") or _dot_kaggle(env).parent / ".config") / "kaggle"
    return _dot_kaggle(env)


def _dot_kaggle(env: Mapping[str, str]) -> Path:
    return Path(env.get("HOME") or os.path.expanduser("~")) / ".kaggle"


def _base64(text: str) -> str:
    return base64.b64encode(text.encode(errors="surrogateescape")).decode()
