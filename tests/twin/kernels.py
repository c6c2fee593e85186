"""Kaggle's kernels, as the twin plays them: a pushed script really runs, in a process of its own.

Its tree /kaggle is a folder, which the script finds by COMP_KAGGLE. A session bills its wall clock,
ends by its script's exit status or at its limit, and is stopped only by deleting its kernel.
"""

import io
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from comp.rehearsal.server import (
    Fields,
    RehearsalServer,
    Reply,
    Request,
    file_reply,
    json_reply,
    page_reply,
    refuse,
)

OWNER = "rehearsal"
BUSY = "Maximum batch GPU session count of 2 reached."
QUOTA = "Maximum weekly GPU quota of 30.00 hours reached."
TOO_LONG = "Your notebook was stopped because it exceeded the max allowed execution duration."
OUT_OF_MEMORY = "Your notebook tried to allocate more memory than is available."
MOST_SESSIONS = 2


@dataclass
class KaggleSession:
    """A version of a kernel, from its push to its end."""

    slug: str
    fields: Fields  # of the push
    root: Path  # its /kaggle
    pushed: float = field(default_factory=time.monotonic)
    process: subprocess.Popen[bytes] | None = None
    status: str = "QUEUED"
    failure: str = ""
    log: list[dict[str, Any]] = field(default_factory=list)

    @property
    def is_over(self) -> bool:
        return self.status in ("COMPLETE", "ERROR", "CANCEL_ACKNOWLEDGED")

    def end(self, status: str, failure: str = "") -> None:
        """Kills its processes; the first end counts."""
        if not self.is_over:
            self.status, self.failure = status, failure
        if self.process and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)


@dataclass
class Dataset:
    """Files that were uploaded, by name."""

    files: dict[str, bytes]
    made: float = field(default_factory=time.monotonic)


class KernelService(RehearsalServer):
    """The rehearsal's server with kernels and datasets."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.machines = Path(tempfile.mkdtemp(prefix="kaggle-machines-"))
        self.sessions: list[KaggleSession] = []  # all that ever began
        self.kernels: dict[str, list[KaggleSession]] = {}  # by slug: their versions
        self.datasets: dict[str, Dataset] = {}  # by OWNER/SLUG
        self.python = sys.executable  # of Kaggle's image
        self.queue_s = self.ready_s = 0.0
        self.never_ends = False  # a session is RUNNING, and nothing runs
        self.used_s, self.allowed_s = 4500.25, 108_000.0
        self.accepted_rules = True
        self.n_elsewhere = 0  # other GPU sessions of the account

    def __exit__(self, *error: object) -> None:
        for session in self.sessions:
            session.end("CANCEL_ACKNOWLEDGED")
        super().__exit__(*error)
        shutil.rmtree(self.machines, ignore_errors=True)

    def answer(self, request: Request) -> Reply:
        url = urlsplit(request.url)
        if request.method == "GET" and "/kernels/logs/stream/" in url.path:
            if request.headers.get("authorization") != f"Bearer {self.token}":
                return refuse(401, "Unauthenticated")
            return self._log(url.path.rpartition("/")[2])
        return super().answer(request)

    def _answer_call(self, name: str, fields: Fields) -> Reply:
        slug = str(fields.get("kernelSlug", ""))
        match name:
            case "SaveKernel":
                with self._lock:
                    return self._save_kernel(fields)
            case "GetAcceleratorQuotaStatistics":
                quota = {"timeUsed": f"{self.gpu_s():.3f}s", "totalTimeAllowed": "108000s"}
                return json_reply(
                    {"gpuQuota": quota, "quotaRefreshTime": "2026-11-28T00:00:00Z"},
                )
            case "GetKernelSessionStatus" | "ListKernelSessionOutput" | "DeleteKernel":
                if slug not in self.kernels or fields.get("userName") != OWNER:
                    return refuse(403, "Permission 'kernels.get' was denied")
                session = self.kernels[slug][-1]
                if name == "DeleteKernel":
                    del self.kernels[slug]
                    session.end("CANCEL_ACKNOWLEDGED")
                    return json_reply({"errorMessage": None})
                if name == "GetKernelSessionStatus":
                    return json_reply({"status": session.status, "failureMessage": session.failure})
                return self._list_output(session, fields)
            case "StartBlobUpload":
                token = secrets.token_hex(16)
                self._uploads[token] = (str(fields["name"]), b"")
                link = self._sign("PUT", f"kaggle-blobs/{token}", token)
                return json_reply({"token": token, "createUrl": link})
            case "CreateDataset":
                return self._create_dataset(fields)
            case "GetDatasetStatus":
                dataset = self.datasets.get(f"{fields['ownerSlug']}/{fields['datasetSlug']}")
                if dataset is None:
                    return refuse(403, "Permission 'datasets.get' was denied")
                return json_reply(
                    {"status": "READY" if self._is_ready(dataset) else "BLOBS_COPIED"}
                )
        return super()._answer_call(name, fields)

    def _is_ready(self, dataset: Dataset) -> bool:
        return time.monotonic() > dataset.made + self.ready_s

    def _create_dataset(self, fields: Fields) -> Reply:
        ref = f"{fields['ownerSlug']}/{fields['slug']}"
        if ref in self.datasets:
            words = f'The requested slug "{fields["slug"]}" is already in use by a dataset.'
            return json_reply({"status": "Error", "error": words})
        assert fields["isPrivate"]
        assert 6 <= len(fields["title"]) <= 50
        files = dict(self._uploads.pop(str(file["token"])) for file in fields["files"])
        self.datasets[ref] = Dataset(files)
        return json_reply({"ref": ref, "status": "Ok", "error": ""})

    def gpu_s(self) -> float:
        """Wall clock of all sessions so far."""
        now = time.monotonic()
        return self.used_s + sum(now - each.pushed for each in self.sessions if not each.is_over)

    def _save_kernel(self, fields: Fields) -> Reply:
        running = [each for each in self.sessions if not each.is_over]
        if len(running) + self.n_elsewhere >= MOST_SESSIONS:
            return push_refused(BUSY)
        if self.gpu_s() >= self.allowed_s:
            return push_refused(QUOTA)
        slug = str(fields["slug"]).rpartition("/")[2]
        versions = self.kernels.setdefault(slug, [])
        root = self.machines / f"{slug}-v{len(versions) + 1}"
        session = KaggleSession(slug=slug, fields=fields, root=root)
        versions.append(session)  # beside one that runs already: both are billed
        self.sessions.append(session)
        invalid = self._attach(session)
        threading.Thread(target=self._run, args=(session,), daemon=True).start()
        url = f"https://www.kaggle.com/code/{OWNER}/{slug}"
        return json_reply({"url": url, "versionNumber": len(versions), "error": "", **invalid})

    def _attach(self, session: KaggleSession) -> dict[str, list[str]]:
        """Fills /kaggle/input; the sources that are not there, by the answer's lists."""
        inputs, invalid = session.root / "input", dict[str, list[str]]()
        (session.root / "working").mkdir(parents=True)
        for slug in session.fields.get("competitionDataSources", []):
            if not self.accepted_rules:
                invalid.setdefault("invalidCompetitionSources", []).append(slug)
                continue
            with zipfile.ZipFile(self.archive) as bundle:
                bundle.extractall(inputs / "competitions" / slug)
        for ref in session.fields.get("datasetDataSources", []):
            dataset = self.datasets.get(ref)
            if dataset is None or not self._is_ready(dataset):
                invalid.setdefault("invalidDatasetSources", []).append(ref)
                continue
            folder = inputs / "datasets" / ref
            folder.mkdir(parents=True)
            for name, content in dataset.files.items():
                (folder / name).write_bytes(content)
                if zipfile.is_zipfile(folder / name) and name.endswith(".zip"):
                    shutil.unpack_archive(folder / name, folder)
                    (folder / name).unlink()
        for ref in session.fields.get("kernelDataSources", []):
            slug = ref.rpartition("/")[2]
            if slug not in self.kernels:
                invalid.setdefault("invalidKernelSources", []).append(ref)
                continue
            output = self.kernels[slug][-1].root / "working"
            shutil.copytree(output, inputs / "notebooks" / OWNER / slug)
        return invalid

    def _run(self, session: KaggleSession) -> None:
        """The session, from the queue to its end."""
        time.sleep(self.queue_s)
        if session.is_over or self.never_ends:
            session.status = session.status if session.is_over else "RUNNING"
            return
        script = session.root / "script.py"
        script.write_text(session.fields["text"], encoding="utf-8")
        env = {"PATH": os.environ["PATH"], "HOME": str(session.root), "OMP_NUM_THREADS": "1"}
        env |= {"COMP_KAGGLE": str(session.root), "HF_HUB_OFFLINE": "1", "PIP_NO_INDEX": "1"}
        env |= dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
        session.process = process = subprocess.Popen(
            [self.python, str(script)],
            cwd=session.root / "working",
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        session.status = "CANCEL_ACKNOWLEDGED" if session.is_over else "RUNNING"
        limit_s = float(session.fields.get("sessionTimeoutSeconds") or 43_200)
        end = ("CANCEL_ACKNOWLEDGED", TOO_LONG)
        clock = threading.Timer(limit_s, session.end, end)
        clock.start()
        with process:
            assert isinstance(process.stdout, io.BufferedReader)
            while piece := process.stdout.read1(70):  # which ends anywhere, as Kaggle's pieces do
                took = round(time.monotonic() - session.pushed, 3)
                text = piece.decode(errors="replace")
                session.log.append({"stream_name": "stdout", "time": took, "data": text})
            status = process.wait()
        clock.cancel()
        why = OUT_OF_MEMORY if status == -signal.SIGKILL else ""
        session.end("ERROR" if status else "COMPLETE", why)
        self.used_s += time.monotonic() - session.pushed

    def _list_output(self, session: KaggleSession, fields: Fields) -> Reply:
        """Files under /kaggle/working, once the session has ended."""
        working = session.root / "working"
        found = (path for path in working.rglob("*") if path.is_file() and session.is_over)
        files = sorted(found, reverse=True)
        rows = [
            {"fileName": str(path.relative_to(working)), "url": self._sign("GET", "out", str(path))}
            for path in files
        ]
        return page_reply("files", rows, {**fields, "pageSize": 3})

    def _answer_storage(self, request: Request) -> Reply:
        path = self._links.get((request.method, request.url))
        if request.method == "GET" and path and "authorization" not in request.headers:
            return file_reply(Path(path), request.headers)
        return super()._answer_storage(request)

    def _log(self, slug: str) -> Reply:
        """The stream so far, whereupon the connection ends; the array once the session has."""
        if slug not in self.kernels:
            return refuse(404, "Not found")
        session = self.kernels[slug][-1]
        if session.is_over:
            return Reply(
                headers={"Content-Type": "application/json"}, body=json.dumps(session.log).encode()
            )
        events = "".join(f"data: {json.dumps(each)}\n\n" for each in session.log)
        return Reply(headers={"Content-Type": "text/event-stream"}, body=events.encode())


def push_refused(words: str) -> Reply:
    """How Kaggle refuses a push: with status 200."""
    return json_reply({"url": "", "versionNumber": 0, "error": words, "hasError": True})
