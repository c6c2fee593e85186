"""One line of the doctor's."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Check:
    """What was looked at and found."""

    name: str
    level: Literal["ok", "warn", "bad"]  # bad: a run would not work
    text: str  # on one line; unless all is fine, with what to do
