"""Kernels: a script runs on Kaggle's machines, and nothing starts it twice.

A push is accepted if its answer has no error, a version and no source that could not be attached;
Kaggle says the rest with status 200. No call stops a session: only deleting its kernel does.
"""

import json
import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from comp.errors import (
    BusyError,
    KaggleError,
    NotAttachedError,
    NotFoundError,
    RulesError,
    UnavailableError,
)
from comp.kaggle.client import Kaggle
from comp.kaggle.download import Archive, fetch_whole

SHAPE = "NvidiaTeslaT4"  # which is two of them
ENDED = ("COMPLETE", "ERROR", "CANCELACKNOWLEDGED")
END_OF_LOG = "END_OF_LOG"
PHONE = "https://www.kaggle.com/settings"
# kinds of sources, by the list of an answer that names those that could not be attached
SOURCES = ("Competition", "Dataset", "Kernel", "Model")


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """What is pushed: a private script with a GPU, and what it finds under /kaggle/input."""

    title: str  # Kaggle makes the kernel's name from it: at most 50 characters
    text: str
    limit_s: int  # after which Kaggle ends the session
    internet: bool = True
    datasets: Sequence[str] = ()  # owner/slug
    kernels: Sequence[str] = ()  # whose output it gets

    @property
    def slug(self) -> str:
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """GPU hours of this week."""

    used_h: float
    allowed_h: float
    renewed: str  # when it begins anew, as Kaggle writes it; "" if it does not say

    @property
    def left_h(self) -> float:
        return max(self.allowed_h - self.used_h, 0.0)


def push(kaggle: Kaggle, script: Script) -> str:
    """The slug of the kernel that now runs `script`. Its title must be new.

    If the answer is lost, the kernel is looked for before anything is pushed again. BusyError,
    NotAttachedError, NotFoundError (another title may do) and KaggleErrors by Kaggle's words.
    """

    lost: list[UnavailableError] = []

    def save() -> dict[str, Any]:
        lost.clear()
        try:
            return kaggle.session.call("SaveKernel", **_fields(kaggle, script))
        except UnavailableError as error:
            if error.not_done:
                raise
            kaggle.reporter.warn(f"{error}; checking if the kernel arrived anyway")
            lost.append(error)
            return {"versionNumber": 1}  # which it has, if it did

    for _ in range(kaggle.patience.n_tries):
        answer = kaggle.retried(save)
        if not lost or appears(kaggle, script.slug):
            break
    else:
        raise lost[0]
    if words := str(answer.get("error") or ""):
        raise _refusal(kaggle, words)
    if int(answer.get("versionNumber") or 0) < 1:
        raise KaggleError("Kaggle accepted the kernel without running it: try again later")
    slug = str(answer.get("url") or script.slug).rstrip("/").rpartition("/")[2]
    for kind in SOURCES:
        if missing := answer.get(f"invalid{kind}Sources"):
            delete(kaggle, slug)
            raise _not_attached(kaggle, kind, ", ".join(map(str, missing)))
    return slug


def status_of(kaggle: Kaggle, slug: str) -> tuple[str, str]:
    """A session's status, of which those in ENDED are final, and why it failed. Asks once.

    NotFoundError if there is no such kernel, or not yet.
    """
    answer = kaggle.session.call("GetKernelSessionStatus", **_name(kaggle, slug))
    status = re.sub("[^A-Z]", "", str(answer.get("status") or "QUEUED").upper())
    return status, " ".join(str(answer.get("failureMessage") or "").split())


def delete(kaggle: Kaggle, slug: str) -> None:
    """Deletes a kernel with its output, which ends its session; UnavailableError if it stays."""
    try:
        answer = kaggle.call("DeleteKernel", **_name(kaggle, slug))
    except NotFoundError:
        return
    if words := answer.get("errorMessage"):
        remedy = f"delete it at {url_of(kaggle, slug)}, else it goes on and uses up quota"
        raise UnavailableError(f"Kaggle does not delete the kernel {slug} ({words}): {remedy}")


def quota_of(kaggle: Kaggle) -> Quota:
    """Without limit if Kaggle does not say what is allowed: a push tells."""
    answer = kaggle.call("GetAcceleratorQuotaStatistics")
    gpu = answer.get("gpuQuota") or {}
    used, reserved, allowed = (
        float(str(gpu.get(name) or "0s").removesuffix("s")) / 3600
        for name in ("timeUsed", "timeReserved", "totalTimeAllowed")
    )
    renewed = str(answer.get("quotaRefreshTime") or "")
    return Quota(used_h=used + reserved, allowed_h=allowed or math.inf, renewed=renewed)


def log_of(kaggle: Kaggle, slug: str) -> Iterator[str]:
    """The log's pieces from its start, until the session or the connection ends."""
    with kaggle.session.log(kaggle.owner, slug) as response:
        if not response.headers.get("Content-Type", "").startswith("text/event-stream"):
            try:
                events = json.loads(response.content)
            except ValueError:
                events = [{"data": response.text}]
        else:
            events = _events(response)
        for event in events:
            if isinstance(event, Mapping):
                yield str(kaggle.credentials.scrub(str(event.get("data") or "")))


def fetch_output(kaggle: Kaggle, slug: str, name: str, folder: Path) -> Path | None:
    """The file `name` of the kernel's output, whole, in `folder`; None if there is no such file.

    Its signed link may expire in a long download, so each try asks for a new one.
    """
    if _link(kaggle, slug, name) is None:
        return None

    def ask(headers: dict[str, str]) -> AbstractContextManager[requests.Response]:
        return kaggle.session.get(_link(kaggle, slug, name) or "", headers)

    part = Archive(folder / name).part
    fetch_whole(part, kaggle, ask)
    return part.path.replace(folder / name)


def url_of(kaggle: Kaggle, slug: str) -> str:
    """Where a person sees the kernel."""
    return f"https://www.kaggle.com/code/{kaggle.owner}/{slug}"


def _name(kaggle: Kaggle, slug: str) -> dict[str, str]:
    return {"user_name": kaggle.owner, "kernel_slug": slug}


def _fields(kaggle: Kaggle, script: Script) -> dict[str, Any]:
    return {
        "slug": f"{kaggle.owner}/{script.slug}",
        "new_title": script.title,
        "text": script.text,
        "language": "python",
        "kernel_type": "script",
        "competition_data_sources": [kaggle.competition.slug],
        "dataset_data_sources": list(script.datasets),
        "kernel_data_sources": list(script.kernels),
        "is_private": True,
        "enable_gpu": True,
        "machine_shape": SHAPE,
        "enable_internet": script.internet,
        "session_timeout_seconds": script.limit_s,
    }


def appears(kaggle: Kaggle, slug: str) -> bool:
    """Whether the kernel is there within the time that a list may lag behind.

    UnavailableError if Kaggle does not say so: nothing may be pushed in its place.
    """
    end = time.monotonic() + kaggle.patience.listed_s
    while True:
        try:
            status_of(kaggle, slug)
            return True
        except NotFoundError:
            problem = ""
        except UnavailableError as error:
            problem = str(error)
        if time.monotonic() > end:
            break
        time.sleep(kaggle.patience.poll_s)
    if problem:
        unknown = f"whether the kernel {slug} runs is not known"
        raise UnavailableError(f"{problem}; {unknown}: run this again later, which looks first")
    return False


def _refusal(kaggle: Kaggle, words: str) -> KaggleError:
    """By words, as Kaggle refuses with status 200. `words` are without secrets already."""
    said = f'Kaggle refuses the kernel ("{" ".join(words.split())[:200]}")'
    if re.search(r"session count|TooManyAssignments|precondition", words, re.IGNORECASE):
        return BusyError(said)
    if re.search(r"quota", words, re.IGNORECASE):
        renewed = quota_of(kaggle).renewed
        return KaggleError(f"{said}: run this again after {renewed or 'the week is over'}")
    if re.search(r"phone|verif", words, re.IGNORECASE):
        return KaggleError(f"{said}: a GPU needs a verified account, see {PHONE}")
    if "not found" in words.lower():
        return NotFoundError(said)
    return KaggleError(f"{said}: try again later, or look at {PHONE}")


def _not_attached(kaggle: Kaggle, kind: str, names: str) -> KaggleError:
    if kind == "Competition":
        rules = f"accept the rules at {kaggle.competition.rules_url} with this account"
        return RulesError(f"Kaggle does not let the kernel read {names}: {rules}")
    said = f"Kaggle did not attach {names} to the kernel, which was deleted"
    return NotAttachedError(f"{said}: run this again", kind)


def _events(response: requests.Response) -> Iterator[Any]:
    """What a stream of server-sent events says, as it comes."""
    rest = b""
    while block := response.raw.read1(2**16, decode_content=True):
        *lines, rest = (rest + block).split(b"\n")
        for line in lines:
            text = line.decode(errors="replace").strip()
            if text == f"data: {END_OF_LOG}":
                return
            if text.startswith("data:"):
                try:
                    yield json.loads(text.removeprefix("data:"))
                except ValueError:
                    yield {"data": text}


def _link(kaggle: Kaggle, slug: str, name: str) -> str | None:
    """A signed link to a file of the output, which comes in pages."""
    for file in kaggle.rows("ListKernelSessionOutput", "files", **_name(kaggle, slug)):
        if file.get("fileName") == name:
            return str(file.get("url"))
    return None
