"""Our end of the process that holds the real client: one JSON line asks, a few answer.

The client authenticates, prints and may exit when it is imported, and bears a silent peer for ever. In a process of its own none of that
can hurt: what it prints goes nowhere, its exit is a failure like any other, and after too long a silence it is ended.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from comp.kaggle.credentials import config_folder, scrubbed
from comp.kaggle.failures import FailedError, Failure
from comp.kaggle.values import Patience

Event = dict[str, Any]
OnEvent = Callable[[Event], None]
HERE = Path(__file__).resolve().parent


def client_environment(env: Mapping[str, str]) -> dict[str, str]:
    """`env` without what makes the client talk (VERBOSE prints the Authorization header), fail, or send foreign credentials."""
    quiet = {
        name: value for name, value in env.items() if name not in ("VERBOSE", "VERBOSE_OUTPUT")
    }
    quiet["NETRC"] = (
        os.devnull
    )  # an entry in ~/.netrc would be sent to the storage along with the signed link
    quiet["PYTHONPATH"] = os.pathsep.join(
        [str(HERE.parent.parent), *filter(None, [env.get("PYTHONPATH")])]
    )
    if not config_folder(env).exists():
        # Any folder without a kaggle.json: the client would create its own when it is imported, and fail where it may not.
        quiet["KAGGLE_CONFIG_DIR"] = str(HERE)
    return quiet


class Process:
    """The client's process, started when it is first asked and again after it has ended."""

    def __init__(
        self, env: Mapping[str, str], slug: str, patience: Patience, secrets: frozenset[str]
    ) -> None:
        self._env = client_environment(env)
        self._command = [
            sys.executable,
            "-P",
            "-m",
            "comp.kaggle.child",
            slug,
            str(patience.connect_s),
            str(patience.read_s),
        ]
        self._silence_s = patience.silence_s
        self._secrets = secrets
        self._running: _Running | None = None

    def ask(self, call: str, on_event: OnEvent, fd: int | None, arguments: dict[str, Any]) -> Any:
        """The result of `call` in the client's process, which holds the open file `fd`, if one is given, until then; raises FailedError."""
        if self._running is None:
            self._running = _Running(self._command, self._env, self._silence_s)
        finished = False
        try:
            answer = self._running.ask({"call": call, "arguments": arguments}, on_event, fd)
            finished = True
        except _EndedError as ended:
            trace = self._running.end()
            if "Traceback" in trace:
                raise RuntimeError(
                    f"a bug in the Kaggle client or in comp/kaggle/client.py:\n{scrubbed(trace, self._secrets)}"
                ) from None
            raise FailedError(Failure(kind="ended", words=str(ended))) from None
        finally:
            if (
                not finished
            ):  # Ctrl-C, for one: what is asked for next must not get the rest of this answer
                self.close()
        if "failure" in answer:
            raise FailedError(Failure(**answer["failure"]))
        return answer["result"]

    def close(self) -> None:
        if self._running is not None:
            self._running.end()
            self._running = None


class _EndedError(Exception):
    """The process ended, or was silent for too long."""


class _Running:
    """One process, from its start to its end; it is ended at the latest when this object or this program is gone."""

    def __init__(self, command: list[str], env: dict[str, str], silence_s: float) -> None:
        self._wire, theirs = socket.socketpair()
        self._wire.settimeout(silence_s)
        errors = tempfile.TemporaryFile()  # noqa: SIM115  (closed at the end of the process)
        with theirs:
            self._process = subprocess.Popen(
                command,
                env=env,
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=errors,
                start_new_session=True,  # Ctrl-C is ours to handle; the process notices by the end of its input that we are gone
            )
        self._buffer = b""
        self._finalizer = weakref.finalize(self, _end, self._process, self._wire, errors)

    def ask(self, question: dict[str, Any], on_event: OnEvent, fd: int | None) -> dict[str, Any]:
        """The last line of the answer; those before it go to `on_event`."""
        with self._watched():
            socket.send_fds(
                self._wire, [json.dumps(question).encode() + b"\n"], [] if fd is None else [fd]
            )
        while True:
            with self._watched():
                answer: dict[str, Any] = json.loads(self._line())
            if {"result", "failure"} & answer.keys():
                return answer
            on_event(answer)

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Tells the end and the silence of the process, and no other error, from its answers."""
        try:
            yield
        except TimeoutError:
            raise _EndedError(
                f"has been silent for {self._wire.gettimeout():.0f} s and was ended"
            ) from None
        except ConnectionError:
            raise _EndedError(f"ended by itself (status {self._process.wait()})") from None

    def _line(self) -> bytes:
        pieces = [self._buffer]
        while b"\n" not in pieces[-1]:
            pieces.append(self._wire.recv(1 << 16))
            if not pieces[-1]:
                raise ConnectionError
        line, _, self._buffer = b"".join(pieces).partition(b"\n")
        return line

    def end(self) -> str:
        """What it wrote to standard error, the first time."""
        return self._finalizer() or ""


def _end(process: subprocess.Popen[bytes], wire: socket.socket, errors: IO[bytes]) -> str:
    process.kill()  # what it has written to disk is written; nothing else of it matters
    process.wait()
    wire.close()
    with errors:
        errors.seek(0)
        return errors.read().decode(errors="replace")
