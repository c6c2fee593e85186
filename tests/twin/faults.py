"""What can go wrong on the wire, each fault by its name.

    NAME[:NUMBER][:OPTION=VALUE]...   cut   cut:1   slow:0.5   503:2:on=file   cut:1:skip=1:at=0.3

NUMBER says how many requests are hit (all of them without it), unless the fault says otherwise.
`skip=N` spares the first N of those that it would hit; `on=TARGET` aims at one call of the API, at
`file` (downloads from storage) or at `upload`; `retry-after=S` adds that header. Faults compose:
each wraps those named after it, which never see a request that it refuses.
"""

import gzip
import json
import re
import shutil
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from comp.rehearsal.server import STORAGE_HOST, Reply, Request, file_reply, json_reply, refuse

OPTIONS = {"on", "skip", "at", "retry-after"}
NO_HEAD = -1  # for `BadReply.ends_after`


@dataclass(slots=True, kw_only=True)
class Seen:
    """A request, and what was sent back."""

    target: str  # see `target_of`
    range: str  # the Range header
    status: int = 0  # 0: no answer
    n_sent: int = 0  # bytes of the body


@dataclass(frozen=True, slots=True, kw_only=True)
class BadReply(Reply):
    """A reply, and how the network mistreats it."""

    ends_after: int | None = None  # bytes of the body; None: all, NO_HEAD: no answer at all
    ending: Literal["", "cut", "reset", "silence"] = ""  # what happens to the connection then
    chunked: bool = False  # without Content-Length
    mib_per_s: float | None = None
    seen: Seen | None = None


def spoil(reply: Reply, **changes: Any) -> BadReply:
    return BadReply(**{item.name: getattr(reply, item.name) for item in fields(reply)} | changes)


def without(reply: Reply, *names: str) -> BadReply:
    return spoil(reply, headers={key: reply.headers[key] for key in reply.headers.keys() - names})


def target_of(request: Request) -> str:
    """The API's method, `file` for a download from storage, or `upload` for an upload to it."""
    url = urlsplit(request.url)
    if url.hostname == STORAGE_HOST:
        return {"GET": "file", "PUT": "upload"}[request.method]
    if "/kernels/logs/stream/" in url.path:
        return "log"
    return url.path.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens to requests for `targets`; `act` returns None if one is not concerned."""

    targets: frozenset[str]
    act: Callable[["Call"], Reply | None]
    needs_file: bool = False  # only hits replies that carry a file
    is_count: bool = True  # the number says how many requests are hit
    default: float | None = None  # of the number


class Armed:
    """A fault as a test asks for it, and what it has done so far."""

    def __init__(self, word: str) -> None:
        self.name, *rest = word.split(":")
        self.fault = (FAULTS | KERNEL_FAULTS)[self.name]
        self.options = dict(part.split("=") for part in rest if "=" in part)
        assert self.options.keys() <= OPTIONS, f"{word}: the options are {OPTIONS}"
        self.skip, on = int(self.options.get("skip", 0)), self.options.get("on")
        self.targets = frozenset({on}) if on else self.fault.targets
        assert self.targets <= CALLS | TOKEN | FILE | UPLOAD | KERNELS, f"{word}: there is no {on}"
        numbers = [float(part) for part in rest if "=" not in part]
        self.number = numbers[0] if numbers else self.fault.default
        self.memory: Counter[str] = Counter()  # for the fault's own use
        self.n_struck = 0  # skipped ones included

    def answer(self, twin: Any, proceed: Callable[[Request], Reply], request: Request) -> Reply:
        call = Call(request, twin, self, proceed)
        is_over = self.fault.is_count and self.n_struck >= (self.number or 1e9) + self.skip
        if target_of(request) not in self.targets or is_over:
            return call.reply
        if self.fault.needs_file and not isinstance(call.reply.body, memoryview):
            return call.reply
        bad = call.reply if self.n_struck < self.skip else self.fault.act(call)
        self.n_struck += bad is not None
        return bad or call.reply


@dataclass
class Call:
    """A request that a fault may hit."""

    request: Request
    twin: Any
    armed: Armed
    proceed: Callable[[Request], Reply]

    @cached_property
    def reply(self) -> Reply:
        """The answer without this fault; the request is carried out when it is first read."""
        return self.proceed(self.request)

    @property
    def span(self) -> tuple[int, int]:
        """Where in the file the reply's body begins, and where it ends."""
        place = re.match(r"bytes (\d+)", self.reply.headers.get("Content-Range", ""))
        start = int(place[1]) if place else 0
        return start, start + len(self.reply.body)


def send_instead(reply: Reply) -> Callable[[Call], Reply]:
    """`reply`, without carrying out the request."""

    def act(call: Call) -> Reply:
        wait_s = call.armed.options.get("retry-after")
        return spoil(reply, headers={**reply.headers, "Retry-After": wait_s}) if wait_s else reply

    return act


def send_page(status: int, title: str) -> Callable[[Call], Reply]:
    """HTML, as gateways answer."""
    body = f"<html><head><title>{title}</title></head><body><h1>{title}</h1></body></html>"
    headers = {"Content-Type": "text/html"}
    return send_instead(Reply(status=status, headers=headers, body=body.encode()))


def break_off(ending: str) -> Callable[[Call], Reply | None]:
    """The connection ends after the share `at` (0.6) of what should be sent."""

    def act(call: Call) -> Reply | None:
        n_bytes = int(len(call.reply.body) * float(call.armed.options.get("at", 0.6)))
        good = call.reply.status in (200, 206)
        return spoil(call.reply, ending=ending, ends_after=n_bytes) if good else None

    return act


def mention_newer_client(call: Call) -> Reply:
    return spoil(call.reply, headers={**call.reply.headers, "X-Kaggle-APIVersion": "99.0.0"})


def ignore_range(call: Call) -> Reply:
    headers = {name: value for name, value in call.request.headers.items() if name != "range"}
    return without(call.proceed(replace(call.request, headers=headers)), "Accept-Ranges")


def throttle(call: Call) -> Reply:
    """The number is MiB/s."""
    return spoil(call.reply, mib_per_s=call.armed.number)


def promise_less(call: Call) -> Reply:
    """Content-Length says half, and half is sent."""
    return spoil(call.reply, body=call.reply.body[: len(call.reply.body) // 2])


def promise_more(call: Call) -> Reply:
    """Content-Length says 1000 bytes more than are sent before the connection closes."""
    length = {"Content-Length": str(len(call.reply.body) + 1000)}
    return spoil(call.reply, headers={**call.reply.headers, **length}, ending="cut")


def pack(call: Call) -> Reply:
    """The whole file with Content-Encoding gzip; Content-Length is that of the packed bytes."""
    packed = gzip.compress(call.twin.archive.read_bytes(), compresslevel=0, mtime=0)
    plain = without(call.reply, "Content-Range")
    headers = {**plain.headers, "Content-Encoding": "gzip"}
    return spoil(plain, status=200, headers=headers, body=memoryview(packed))


def invert(call: Call, first: int, stop: int) -> Reply:
    """Bytes `first` to `stop` of the file arrive inverted; length and validators are right."""
    body, (start, _) = bytearray(call.reply.body), call.span
    for at in range(max(first - start, 0), max(stop - start, 0)):
        body[at] ^= 0xFF
    return spoil(call.reply, body=memoryview(body))


def invert_middle(call: Call) -> Reply | None:
    """Sixteen bytes; a range without them is not hit."""
    start, stop = call.span
    return invert(call, stop // 2, stop // 2 + 16) if start <= stop // 2 else None


def invert_end(call: Call) -> Reply:
    """128 KiB, more than a reader searches for the end of a zip."""
    return invert(call, max(call.span[1] - 128 * 2**10, 0), call.span[1])


def change_file(call: Call) -> Reply | None:
    """After so many downloads, another version: the same members in another order."""
    call.armed.memory["downloads"] += 1
    if call.armed.memory["downloads"] <= call.armed.number:
        return None
    other = file_reply(changed(call.twin.archive), call.request.headers)
    return spoil(call.reply, status=other.status, headers=other.headers, body=other.body)


def changed(archive: Path) -> Path:
    """The other version of `archive`, beside it."""
    path = archive.with_name("changed.zip")
    if not path.exists():
        with zipfile.ZipFile(archive) as old, zipfile.ZipFile(path, "w") as new:
            for member in reversed(old.infolist()):
                entry = zipfile.ZipInfo(member.filename, date_time=(2017, 3, 3, 0, 0, 0))
                with old.open(member) as source, new.open(entry, "w") as target:
                    shutil.copyfileobj(source, target)
    return path


def send_start(call: Call) -> Reply | None:
    """206 with as many bytes as asked for, but from the file's start; Content-Range admits it."""
    n_bytes, (_, stop) = len(call.reply.body), call.span
    headers = {**call.reply.headers, "Content-Range": f"bytes 0-{n_bytes - 1}/{stop}"}
    body = file_reply(call.twin.archive, {}).body[:n_bytes]
    return spoil(call.reply, headers=headers, body=body) if call.reply.status == 206 else None


def refuse_to_resume(call: Call) -> Reply | None:
    """503 for a request with Range, and for those that follow."""
    call.armed.memory["resumed"] += "range" in call.request.headers
    return send_page(503, "Service Unavailable")(call) if call.armed.memory["resumed"] else None


def expire(call: Call) -> Reply | None:
    """A link is good for one request."""
    return send_page(403, "Expired")(call) if call.twin.n_asked[call.request.url] > 1 else None


def lose_answer(call: Call) -> Reply | None:
    """The submission is recorded and counts, but the connection closes without an answer."""
    good = call.reply.status == 200
    return spoil(call.reply, ending="cut", ends_after=NO_HEAD) if good else None


def forget(call: Call) -> Reply:
    """Success is reported, with a reference, and nothing is recorded."""
    ref = 99_000_000 + call.armed.n_struck
    return json_reply({"message": "Successfully submitted to Dogs vs. Cats", "ref": ref})


def use_up(call: Call) -> Reply:
    """No submission is left today; one gets 400 after its upload."""
    limit, call.twin.daily_limit = call.twin.daily_limit, 0
    try:
        return call.reply
    finally:
        call.twin.daily_limit = limit


def fail_to_score(call: Call) -> Reply:
    """The submission is recorded and cannot be scored, whatever is in it."""
    if call.reply.status == 200:
        error = "Evaluation Exception: The scoring of this submission failed"
        call.twin.journal[-1].update(status="ERROR", publicScore="", errorDescription=error)
    return call.reply


def delay(call: Call, spoil_row: Callable[[dict[str, Any]], list[dict[str, Any]]]) -> Reply:
    """A submission made from now on is spoilt for the first so many looks at it (all)."""
    n_looks, value = call.armed.memory, json.loads(call.reply.body)
    if target_of(call.request) == "CreateSubmission" and call.reply.status == 200:
        n_looks[str(value["ref"])] = 1
    elif call.reply.status == 200:
        rows = []
        for row in value.get("submissions", [value]):
            n = n_looks.get(str(row["ref"]), 0)
            n_looks.update([str(row["ref"])] if n else [])
            rows += spoil_row(row) if 0 < n <= (call.armed.number or n) else [row]
        return json_reply(value | {"submissions": rows} if "submissions" in value else rows[0])
    return call.reply


def as_pending(row: dict[str, Any]) -> list[dict[str, Any]]:
    return [row | {"status": "PENDING", "publicScore": ""}]


def on_file(act: Callable[[Call], Reply | None], **settings: Any) -> Fault:
    return Fault(FILE, act, needs_file=True, **settings)


DOWNLOAD, CREATE, TOKEN, FILE, UPLOAD = (
    frozenset({name})
    for name in ("DownloadDataFiles", "CreateSubmission", "IntrospectToken", "file", "upload")
)
LIMITS, LIST = frozenset({"GetSubmissionLimits"}), frozenset({"ListSubmissions"})
SUBMIT, LOOK = CREATE | {"StartSubmissionUpload"}, LIST | {"GetSubmission"}
CALLS = DOWNLOAD | SUBMIT | LOOK | LIMITS | {"ListDataFiles", "DownloadLeaderboard"}
RULES = "You must accept this competition's rules before you'll be able to download files."
SILENCE = BadReply(ending="silence", ends_after=NO_HEAD)
RESET = BadReply(ending="reset", ends_after=NO_HEAD)
FAULTS = {
    "401": Fault(CALLS | TOKEN, send_instead(refuse(401, "Unauthenticated"))),
    "403-rules": Fault(DOWNLOAD | SUBMIT, send_instead(refuse(403, RULES))),
    "404": Fault(CALLS, send_instead(refuse(404, "Not found"))),
    "429": Fault(CALLS, send_instead(refuse(429, "Too many requests"))),
    "500": Fault(CALLS, send_instead(refuse(500, "Internal error"))),
    "503": Fault(CALLS, send_page(503, "Service Unavailable")),
    "hang": Fault(CALLS, send_instead(SILENCE)),
    "api-reset": Fault(CALLS, send_instead(RESET)),
    "outdated-client": Fault(CALLS | TOKEN, mention_newer_client),
    "no-redirect": Fault(DOWNLOAD, lambda call: file_reply(call.twin.archive, {})),
    "html": Fault(FILE, send_page(200, "Sign in")),
    "cut": Fault(FILE, break_off("cut")),
    "reset": Fault(FILE, break_off("reset")),
    "stall": Fault(FILE, break_off("silence")),
    "slow": on_file(throttle, is_count=False, default=1.0),
    "no-range": Fault(FILE, ignore_range),
    "no-length": on_file(lambda call: spoil(call.reply, chunked=True)),
    "no-validator": on_file(lambda call: without(call.reply, "ETag", "Last-Modified")),
    "short-length": on_file(promise_less),
    "long-length": on_file(promise_more),
    "gzip": on_file(pack),
    "flipped-bytes": on_file(invert_middle),
    "bad-zip": on_file(invert_end),
    "changed-file": on_file(change_file, is_count=False, default=1),
    "wrong-206": on_file(send_start),
    "error-on-resume": Fault(FILE, refuse_to_resume),
    "expired-url": Fault(FILE, expire),
    "upload-503": Fault(UPLOAD, send_page(503, "Service Unavailable")),
    "upload-400": Fault(UPLOAD, send_page(400, "Bad Request")),
    "upload-expired": Fault(UPLOAD, send_page(404, "Not Found")),
    "upload-reset": Fault(UPLOAD, send_instead(RESET)),
    "submit-lost": Fault(CREATE, lose_answer),
    "submit-silent": Fault(CREATE, forget),
    "daily-limit": Fault(CREATE | LIMITS, use_up),
    "score-error": Fault(CREATE, fail_to_score),
    "score-delayed": Fault(CREATE | LOOK, lambda call: delay(call, as_pending), is_count=False),
    "list-delayed": Fault(CREATE | LIST, lambda call: delay(call, lambda _: []), is_count=False),
}


def refuse_push(words: str) -> Callable[[Call], Reply]:
    """With status 200, as Kaggle does."""
    return send_instead(json_reply({"url": "", "versionNumber": 0, "error": words}))


def change_answer(**changes: Any) -> Callable[[Call], Reply]:
    """The request is carried out; the answer says something else."""
    return lambda call: json_reply(json.loads(call.reply.body) | changes)


def drift(call: Call) -> Reply:
    """The kernel is filed under another name than was asked for, which the answer's URL has."""
    answer = json.loads(call.reply.body)
    slug = answer["url"].rpartition("/")[2]
    call.twin.kernels[f"{slug}-v2"] = call.twin.kernels.pop(slug)
    return json_reply(answer | {"url": f"{answer['url']}-v2"})


def stay(call: Call) -> Reply:
    """Kaggle says that it cannot delete the kernel, and does not."""
    return json_reply({"errorMessage": "Something went wrong"})


SAVE, STATUS, DELETE, OUTPUT, LOG, QUOTA = (
    frozenset({name})
    for name in (
        *("SaveKernel", "GetKernelSessionStatus", "DeleteKernel", "ListKernelSessionOutput"),
        *("log", "GetAcceleratorQuotaStatistics"),
    )
)
DATASETS = frozenset({"StartBlobUpload", "CreateDataset", "GetDatasetStatus"})
KERNELS = SAVE | STATUS | DELETE | OUTPUT | LOG | QUOTA | DATASETS
KERNEL_FAULTS = {
    "push-busy": Fault(SAVE, refuse_push("Maximum batch GPU session count of 2 reached.")),
    "push-412": Fault(SAVE, send_instead(refuse(412, "Precondition failed"))),
    "push-quota": Fault(SAVE, refuse_push("Maximum weekly GPU quota of 30.00 hours reached.")),
    "push-phone": Fault(SAVE, refuse_push("Your account must be phone verified to use GPUs.")),
    "push-ghost": Fault(SAVE, refuse_push("Notebook not found")),
    "push-lost": Fault(SAVE, lose_answer),
    "push-drift": Fault(SAVE, drift),
    "dataset-missing": Fault(SAVE, change_answer(invalidDatasetSources=["rehearsal/comp-x"])),
    "dataset-lost": Fault(DATASETS & {"CreateDataset"}, lose_answer),
    "status-unknown": Fault(STATUS, change_answer(status="FROZEN")),
    "status-null": Fault(STATUS, change_answer(status=None)),
    "quota-unknown": Fault(QUOTA, change_answer(gpuQuota=None)),
    "undeleted": Fault(DELETE, stay),
}
