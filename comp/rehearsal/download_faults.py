"""Downloads that break off, crawl, or are not what their headers say."""

import gzip
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from comp.rehearsal.exchange import Ending, Reply, Slice, page_reply
from comp.rehearsal.faults import FILE, RATE, STREAMS, Call, fault
from comp.rehearsal.storage import download, expired_page, stored
from comp.store import whole

TAIL = (
    128 * 2**10
)  # more than a reader searches for a zip's end, lest it take that of the last member, itself a zip


@fault("cut", FILE, reach=STREAMS, options={"at": 0.6})
def cut(call: Call) -> Reply | None:
    """The connection closes after `at` (0.6) of what should come."""
    return _broken_off(call, Ending.CUT)


@fault("reset", FILE, reach=STREAMS, options={"at": 0.6})
def reset(call: Call) -> Reply | None:
    """The connection is reset after `at` (0.6) of what should come."""
    return _broken_off(call, Ending.RESET)


@fault("stall", FILE, reach=STREAMS, options={"at": 0.6})
def stall(call: Call) -> Reply | None:
    """Nothing comes after `at` (0.6) of what should come, and the connection stays open."""
    return _broken_off(call, Ending.SILENCE)


@fault("slow", FILE, number=RATE, default=1.0)
def slow(call: Call) -> Reply | None:
    """The stream is held to the number given, in MiB/s (1)."""
    return replace(call.reply, mib_per_s=call.armed.amount) if call.reply.carries_file else None


@fault("no-range", FILE)
def no_range(call: Call) -> Reply:
    """Range is ignored: 200 with the whole file, and no Accept-Ranges."""
    headers = {
        name: value for name, value in call.ask.headers.items() if name not in ("range", "if-range")
    }
    return _without(call.proceed(replace(call.ask, headers=headers)), "Accept-Ranges")


@fault("no-length", FILE)
def no_length(call: Call) -> Reply | None:
    """The file comes in chunks, without Content-Length."""
    return replace(call.reply, chunked=True) if call.reply.carries_file else None


@fault("no-validator", FILE)
def no_validator(call: Call) -> Reply | None:
    """Neither ETag nor Last-Modified."""
    return _without(call.reply, "ETag", "Last-Modified") if call.reply.carries_file else None


@fault("short-length", FILE)
def short_length(call: Call) -> Reply | None:
    """Content-Length says half, and half comes."""
    body = call.reply.body
    return (
        replace(call.reply, body=replace(body, stop=body.start + len(body) // 2))
        if isinstance(body, Slice)
        else None
    )


@fault("long-length", FILE)
def long_length(call: Call) -> Reply | None:
    """Content-Length says 1000 bytes more than come before the connection closes."""
    if not call.reply.carries_file:
        return None
    return replace(call.reply, stated_length=len(call.reply.body) + 1000, ending=Ending.CUT)


@fault("gzip", FILE)
def gzipped(call: Call) -> Reply | None:
    """The whole file with Content-Encoding gzip; Content-Length is that of the packed bytes."""
    body = call.reply.body
    if not isinstance(body, Slice):
        return None
    packed = _made(call, f"{body.path.name}.gz", lambda path: _pack(body.path, path))
    headers = {
        name: value for name, value in call.reply.headers.items() if name != "Content-Range"
    } | {"Content-Encoding": "gzip"}
    return replace(
        call.reply,
        status=200,
        headers=headers,
        body=Slice(path=packed, start=0, stop=packed.stat().st_size),
    )


@fault("flipped-bytes", FILE)
def flipped_bytes(call: Call) -> Reply | None:
    """Sixteen bytes in the middle of the file arrive inverted; length and validators are right. A range without them is not struck."""
    body = call.reply.body
    if not isinstance(body, Slice):
        return None
    middle = body.path.stat().st_size // 2
    return (
        replace(call.reply, body=replace(body, damage=range(middle, middle + 16)))
        if body.start <= middle < body.stop
        else None
    )


@fault("bad-zip", FILE)
def bad_zip(call: Call) -> Reply | None:
    """The last 128 KiB of the file arrive inverted: no zip any more, though length and validators are right."""
    body = call.reply.body
    if not isinstance(body, Slice):
        return None
    n_bytes = body.path.stat().st_size
    return replace(call.reply, body=replace(body, damage=range(max(n_bytes - TAIL, 0), n_bytes)))


@fault("changed-file", FILE, number="downloads", default=1)
def changed_file(call: Call) -> Reply | None:
    """From the second download on (after the number given) the archive is another: new validators, as a rule the same length.

    It holds the same members in another order.
    """
    body = call.reply.body
    with call.armed.lock:
        call.armed.memory["requests"] += 1
        early = call.armed.memory["requests"] <= (call.armed.amount or 0)
    if early or not isinstance(body, Slice) or body.path != call.scene.archive:
        return None
    changed = _made(call, "changed.zip", lambda path: _rearrange(body.path, path))
    other = download(stored(changed), call.ask.headers)
    return replace(call.reply, status=other.status, headers=other.headers, body=other.body)


@fault("wrong-206", FILE)
def wrong_206(call: Call) -> Reply | None:
    """206 with as many bytes as asked for, but from the file's start; Content-Range admits it."""
    body = call.reply.body
    if call.reply.status != 206 or not isinstance(body, Slice) or body.start == 0:
        return None
    place = {"Content-Range": f"bytes 0-{len(body) - 1}/{body.path.stat().st_size}"}
    return replace(
        call.reply,
        headers={**call.reply.headers, **place},
        body=replace(body, start=0, stop=len(body)),
    )


@fault("error-on-resume", FILE)
def error_on_resume(call: Call) -> Reply | None:
    """503 with a gateway's HTML for a request with Range, and for those that follow."""
    if "range" not in call.ask.headers and not call.armed.memory["resumed"]:
        return None
    call.armed.memory["resumed"] = 1
    return page_reply(503, "Service Unavailable")


@fault("expired-url", FILE)
def expired_url(call: Call) -> Reply | None:
    """403 with the storage's XML when an address is used again; each good for one request."""
    return expired_page() if call.ask.n_before else None


def _without(reply: Reply, *names: str) -> Reply:
    return replace(
        reply, headers={name: value for name, value in reply.headers.items() if name not in names}
    )


def _broken_off(call: Call, ending: Ending) -> Reply | None:
    if call.reply.status not in (200, 206):
        return None
    return replace(
        call.reply,
        ending=ending,
        ends_after=int(len(call.reply.body) * (call.armed.options["at"] or 0)),
    )


def _made(call: Call, name: str, make: Callable[[Path], None]) -> Path:
    path = call.scene.scratch / name
    with call.armed.lock:
        if not path.exists():
            with whole(path) as scratch:
                make(scratch)
    return path


def _pack(source: Path, target: Path) -> None:
    """Level 0: photos do not shrink."""
    with source.open("rb") as plain, gzip.open(target, "wb", compresslevel=0) as packed:
        shutil.copyfileobj(plain, packed)


def _rearrange(source: Path, target: Path) -> None:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for member in reversed(old.infolist()):
            entry = zipfile.ZipInfo(member.filename, date_time=(2017, 3, 3, 0, 0, 0))
            entry.compress_type, entry.external_attr, entry.file_size = (
                member.compress_type,
                member.external_attr,
                member.file_size,
            )
            with old.open(member) as reader, new.open(entry, "w") as writer:
                shutil.copyfileobj(reader, writer)
