"""All cores at work on photos, with the results in order and little of them in memory."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

BATCH = 4  # photos a task: less overhead than one, little to wait for
AHEAD = 3  # tasks a thread that are running or wait to be taken


def n_cores() -> int:
    """Cores this process may use, which in a container or under taskset are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_order(
    function: Callable[[Item], Result], items: Iterable[Item], n_threads: int = 0
) -> Iterator[Result]:
    """`function` of each item, in the order of `items`, by `n_threads` threads (0: one a core).

    Threads, because decoding and resizing leave Python's lock alone. While they work torch keeps to one thread in each, or each of them
    would ask for every core. At most AHEAD x BATCH results a thread are in memory, however many items there are.
    """
    n_threads = n_threads or n_cores()
    rest = iter(items)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    pool = ThreadPoolExecutor(n_threads, thread_name_prefix="photos")
    try:
        running: deque[Future[list[Result]]] = deque()
        while batch := list(islice(rest, BATCH)):
            running.append(pool.submit(_each, function, batch))
            if len(running) == AHEAD * n_threads:
                yield from running.popleft().result()
        while running:
            yield from running.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(before)


def _each(function: Callable[[Item], Result], batch: list[Item]) -> list[Result]:
    return [function(item) for item in batch]
