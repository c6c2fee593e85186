"""The process that holds the real client: a JSON line asks, a JSON line answers, with others before it that tell how far a download is.

Questions come, and answers go, through the socket that is its standard input; a question may bring an open file. What the client prints
goes nowhere. The process ends with its input, in the middle of whatever it does, so that it never outlives whoever asks. An error that is a
bug ends it too, with the traceback on standard error.
"""

import json
import os
import queue
import socket
import sys
import threading
from dataclasses import asdict
from typing import Any

import requests
import urllib3

from comp.kaggle.client import Client
from comp.kaggle.credentials import scrubbed, secrets
from comp.kaggle.failures import FailedError
from comp.kaggle.wire import failure_of

Questions = queue.SimpleQueue[tuple[bytes, list[int]]]


def main() -> None:
    slug, connect_s, read_s = sys.argv[1:]
    wire = socket.socket(fileno=os.dup(0))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)

    def tell(message: dict[str, Any]) -> None:
        hidden = secrets(os.environ)  # looked up anew: the client renews some of them
        wire.sendall(json.dumps(_clean(message, hidden)).encode() + b"\n")

    client = Client(slug, float(connect_s), float(read_s), tell)
    questions: Questions = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(wire, questions), daemon=True).start()
    while True:
        tell(_answer(client, *questions.get()))


def _answer(client: Client, question: bytes, fds: list[int]) -> dict[str, Any]:
    asked = json.loads(question)
    files = {"fd": fds[0]} if fds else {}
    try:
        return {"result": getattr(client, asked["call"])(**asked["arguments"], **files)}
    except FailedError as failed:
        return {"failure": asdict(failed.failure)}
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        return {"failure": asdict(failure_of(error))}
    finally:
        for fd in fds:
            os.close(fd)


def _clean(value: Any, hidden: frozenset[str]) -> Any:
    """`value` without secrets in any of its strings."""
    if isinstance(value, dict):
        return {key: _clean(item, hidden) for key, item in value.items()}
    if isinstance(value, list):
        return [_clean(item, hidden) for item in value]
    return scrubbed(value, hidden) if isinstance(value, str) else value


def _listen(wire: socket.socket, questions: Questions) -> None:
    """Puts each line into the queue, with the open files that came with it."""
    buffer, fds = b"", []
    while True:
        data, new_fds, _, _ = socket.recv_fds(wire, 1 << 16, 1)
        if not data:
            os._exit(0)
        fds += new_fds
        buffer += data
        while b"\n" in buffer:
            line, _, buffer = buffer.partition(b"\n")
            questions.put((line, fds))
            fds = []


if __name__ == "__main__":
    main()
