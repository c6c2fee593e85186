"""The same call again, with backoff, jitter and an end; each wait is shown."""

import time
from collections.abc import Callable
from typing import TypeVar

import stamina
from stamina.instrumentation import RetryDetails, set_on_retry_hooks

from comp.errors import UnavailableError
from comp.kaggle.failures import AgainError
from comp.kaggle.values import Patience

T = TypeVar("T")


def patiently(
    call: Callable[[], T],
    patience: Patience,
    say: Callable[[str], None],
    only: Callable[[AgainError], bool] = lambda _: True,
) -> T:
    """What `call` returns once it no longer raises AgainError. Gives up, with a count of the tries; at once if `only` says so."""
    start = time.monotonic()
    n_tries = n_refused = 0

    def worth_it(error: Exception) -> bool | float:
        nonlocal n_refused
        if not isinstance(error, AgainError) or not only(error):
            return False
        n_refused += error.is_refused_link
        if n_refused >= patience.n_links:
            return False
        wait_s = error.failure.retry_after_s
        if wait_s is None:
            return True
        return wait_s if time.monotonic() - start + wait_s <= patience.retry_s else False

    def show(details: RetryDetails) -> None:
        say(f"{details.caused_by}; trying again in {details.wait_for:.1f} s")

    set_on_retry_hooks([show])  # stamina's own writes to the log, whose last resort is the terminal
    tries = stamina.retry_context(
        on=worth_it,
        attempts=patience.n_tries,
        timeout=patience.retry_s,
        wait_initial=patience.wait_first_s,
        wait_max=patience.wait_most_s,
        wait_jitter=patience.wait_first_s,
    )
    try:
        for attempt in tries:
            with attempt:
                n_tries += 1
                return call()
    except AgainError as error:
        asked = error.failure.retry_after_s
        later = f"it asks to wait {asked:,.0f} s" if asked is not None else "try again later"
        count = (
            f"{n_tries} {'try' if n_tries == 1 else 'tries'} in {time.monotonic() - start:.0f} s"
        )
        raise GaveUpError(f"{error}; {count}; {later}", error) from None
    raise AssertionError("stamina neither returned nor raised")


class GaveUpError(UnavailableError):
    """The last failure of a call that was tried often enough."""

    def __init__(self, message: str, last: AgainError) -> None:
        super().__init__(message)
        self.last = last
