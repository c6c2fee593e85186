"""The storage behind the API: signed addresses, downloads with ranges, uploads that can go on."""

import hashlib
import hmac
import re
import secrets
import shutil
import threading
import time
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path
from urllib.parse import quote, unquote, urlencode

from comp.rehearsal.exchange import STORAGE_HOST, Ask, Reply, Slice
from comp.store import whole

URL_LIFE_S = 3 * 24 * 3600
BUNDLE = "/kaggle-competitions-data/bundle/"
UPLOADS = "/kaggle-uploads/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A file as it is served: its bytes, and what tells this version from another."""

    path: Path
    n_bytes: int
    etag: str
    modified: str  # as Last-Modified has it


def stored(path: Path) -> Stored:
    """Size and time tell two versions apart, so that a large archive need not be read for it."""
    stat = path.stat()
    mark = hashlib.md5(
        f"{path.name} {stat.st_size} {stat.st_mtime_ns}".encode(), usedforsecurity=False
    ).hexdigest()
    return Stored(
        path=path,
        n_bytes=stat.st_size,
        etag=f'"{mark}"',
        modified=formatdate(stat.st_mtime, usegmt=True),
    )


def download(file: Stored, headers: Mapping[str, str]) -> Reply:
    """The answer to a GET: 200 with all of it, 206 with the range asked for, 416 where there is no such range."""
    common = {
        "Content-Type": "application/zip"
        if file.path.suffix == ".zip"
        else "application/octet-stream",
        "ETag": file.etag,
        "Last-Modified": file.modified,
        "Accept-Ranges": "bytes",
    }
    if headers.get("if-range", file.etag) not in (file.etag, file.modified):
        return Reply(headers=common, body=Slice(path=file.path, start=0, stop=file.n_bytes))
    match span(headers.get("range", ""), file.n_bytes):
        case None:
            return Reply(headers=common, body=Slice(path=file.path, start=0, stop=file.n_bytes))
        case start, stop if start < stop:
            place = {"Content-Range": f"bytes {start}-{stop - 1}/{file.n_bytes}"}
            return Reply(
                status=206,
                headers=common | place,
                body=Slice(path=file.path, start=start, stop=stop),
            )
        case _:
            return Reply(status=416, headers={"Content-Range": f"bytes */{file.n_bytes}"})


def span(header: str, n_bytes: int) -> tuple[int, int] | None:
    """Start and stop of the one range in `header`, empty if it lies outside; None where there is none to honour."""
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", header.strip())
    if not match or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if not first:
        return (max(n_bytes - int(last), 0), n_bytes) if int(last) else (n_bytes, n_bytes)
    if last and int(last) < int(first):
        return None
    stop = min(int(last) + 1, n_bytes) if last else n_bytes
    return min(int(first), stop), stop


class Uploads:
    """Uploads by token, each with what has arrived so far."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}
        self._arrived: dict[str, bytes] = {}
        self._whole: set[str] = set()
        self._lock = threading.Lock()

    @property
    def n_whole(self) -> int:
        return len(self._whole)

    def open(self, name: str) -> str:
        """The token of a new upload."""
        token = secrets.token_hex(16)
        with self._lock:
            self._names[token], self._arrived[token] = name, b""
        return token

    def take(self, token: str) -> tuple[str, bytes] | None:
        """Name and content of a whole upload, once: a token makes one submission."""
        with self._lock:
            if token not in self._whole or token not in self._arrived:
                return None
            return self._names[token], self._arrived.pop(token)

    def put(self, token: str, ask: Ask) -> Reply:
        """201 when all of it is here; 308 with the range that is, when asked (`bytes */N`) or when more must come."""
        start, n_bytes = _place(ask)
        with self._lock:
            if token not in self._arrived:
                return Reply(status=404)
            if start is not None:
                self._arrived[token] = self._arrived[token][:start] + ask.body
            n_here = len(self._arrived[token])
            if n_here >= n_bytes:
                self._whole.add(token)
                return Reply(status=201)
        return Reply(status=308, headers={"Range": f"bytes=0-{n_here - 1}"} if n_here else {})


def _place(ask: Ask) -> tuple[int | None, int]:
    """Where an upload's bytes belong (None: it only asks), and the size of the whole file."""
    match = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+)", ask.headers.get("content-range", ""))
    if match is None:
        return 0, int(ask.headers.get("content-length", len(ask.body)))
    return (None if match[1] is None else int(match[1])), int(match[2])


class Storage:
    """What lies under signed addresses: the archive, its members one by one, and uploads."""

    def __init__(self, archive: Path, scratch: Path) -> None:
        self._archive = archive
        self._scratch = scratch
        self._secret = secrets.token_bytes(32)
        self._lock = threading.Lock()
        self.uploads = Uploads()

    def archive_url(self) -> str:
        return self._sign(f"{BUNDLE}archive.zip")

    def member_url(self, name: str) -> str:
        return self._sign(f"{BUNDLE}files/{quote(name)}")

    def upload_url(self, token: str) -> str:
        return self._sign(UPLOADS + token)

    def answer(self, ask: Ask) -> Reply:
        if "authorization" in ask.headers:
            return error_page(
                400,
                "InvalidArgument",
                "Only one auth mechanism allowed; the address is signed, and so is the request.",
            )
        if not self._signed(ask):
            return error_page(
                403, "SignatureDoesNotMatch", "The signature of this address is not right."
            )
        if int(ask.query["X-Goog-Expires"]) < time.time():
            return expired_page()
        if ask.target == "upload" and ask.path.startswith(UPLOADS):
            return self.uploads.put(ask.path.removeprefix(UPLOADS), ask)
        if ask.target == "file" and ask.path.startswith(BUNDLE):
            return download(self._stored(unquote(ask.path.removeprefix(BUNDLE))), ask.headers)
        return error_page(
            403, "SignatureDoesNotMatch", f"This address is not signed for {ask.method}."
        )

    def _stored(self, name: str) -> Stored:
        return (
            stored(self._archive)
            if name == "archive.zip"
            else self._member(name.removeprefix("files/"))
        )

    def _member(self, name: str) -> Stored:
        """A member of the archive as a file of its own, unpacked when it is first asked for."""
        path = self._scratch / hashlib.sha256(name.encode()).hexdigest()[:16] / Path(name).name
        with self._lock:
            if not path.exists():
                with (
                    zipfile.ZipFile(self._archive) as bundle,
                    bundle.open(name) as source,
                    whole(path) as part,
                    part.open("wb") as target,
                ):
                    shutil.copyfileobj(source, target)
        return stored(path)

    def _sign(self, path: str) -> str:
        query = {
            "X-Goog-Expires": str(int(time.time()) + URL_LIFE_S),
            "X-Goog-Nonce": secrets.token_hex(8),
        }
        return f"http://{STORAGE_HOST}{path}?{urlencode(query | {'X-Goog-Signature': self._signature(path, query)})}"

    def _signed(self, ask: Ask) -> bool:
        given = ask.query.get("X-Goog-Signature", "")
        return hmac.compare_digest(given.encode(), self._signature(ask.path, ask.query).encode())

    def _signature(self, path: str, query: Mapping[str, str]) -> str:
        text = f"{path}\n{query.get('X-Goog-Expires')}\n{query.get('X-Goog-Nonce')}"
        return hmac.new(self._secret, text.encode(), "sha256").hexdigest()


def error_page(status: int, code: str, message: str) -> Reply:
    """A refusal as object stores write it."""
    page = f"<?xml version='1.0' encoding='UTF-8'?><Error><Code>{code}</Code><Message>{message}</Message></Error>"
    return Reply(
        status=status,
        headers={"Content-Type": "application/xml; charset=UTF-8"},
        body=page.encode(),
    )


def expired_page() -> Reply:
    return error_page(403, "ExpiredToken", "The provided token has expired.")
