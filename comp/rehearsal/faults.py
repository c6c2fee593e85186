"""Faults on request: how a word such as `cut:1` comes to strike one answer and leave the next alone.

    NAME[:NUMBER][:OPTION=VALUE]...        cut   cut:1   slow:0.5   429:1:retry-after=2   503:2:on=CreateSubmission   cut:1:skip=1:at=0.3

NUMBER says how many requests are struck, unless the fault's own line says otherwise; without it every one is. `skip=N` lets the
first N pass of those it is aimed at; `on=TARGET` aims it at one call of the API, at `file` (downloads from storage) or at `upload`.
Several faults compose: each wraps the ones named after it, and a request that the first refuses is never seen by the others.
`catalogue` has them all.
"""

import json
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from comp.errors import UserError
from comp.rehearsal.exchange import Ask, Reply, json_reply

READS = frozenset(
    {
        "ListCompetitions",
        "GetCompetition",
        "ListDataFiles",
        "GetSubmissionLimits",
        "ListSubmissions",
        "GetSubmission",
    }
)
BOARD = frozenset({"GetLeaderboard", "DownloadLeaderboard"})
DOWNLOADS = frozenset({"DownloadDataFiles", "DownloadDataFile"})
SUBMITS = frozenset({"StartSubmissionUpload", "CreateSubmission"})
CALLS = READS | BOARD | DOWNLOADS | SUBMITS
# Targets beside the calls: GETs from storage, PUTs to it, the client's check of its own token.
FILE, UPLOAD, TOKEN, CREATE = (
    frozenset({name}) for name in ("file", "upload", "IntrospectToken", "CreateSubmission")
)
EVERYTHING = CALLS | TOKEN | FILE | UPLOAD
STREAMS = FILE | {"DownloadLeaderboard"}

TIMES = "times"
RATE = "MiB/s"  # the one number that need not be whole

Proceed = Callable[[Ask], Reply]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What faults may know of the server."""

    archive: Path
    scratch: Path  # a folder for what they make
    daily_limit: int
    title: str  # of the competition


class Call:
    """A request on its way, as a fault meets it."""

    def __init__(self, ask: Ask, scene: Scene, armed: "Armed", proceed: Proceed) -> None:
        self.ask = ask
        self.scene = scene
        self.armed = armed
        self.proceed = proceed

    @cached_property
    def reply(self) -> Reply:
        """The answer that the request would get; reading it carries the request out, once."""
        return self.proceed(self.ask)


Act = Callable[[Call], Reply | None]  # the answer instead; None: this request is not concerned


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A way to go wrong."""

    name: str
    effect: str  # a sentence: what is seen on the wire
    act: Act
    targets: frozenset[str]  # the requests it may strike
    reach: frozenset[str]  # those it may be aimed at by `on=`
    number: str  # what the number means: TIMES for a count of requests struck
    default: float | None  # of the number, where it is not a count
    options: Mapping[str, float | None]


def fault(
    name: str,
    targets: frozenset[str],
    *,
    reach: frozenset[str] | None = None,
    number: str = TIMES,
    default: float | None = None,
    options: Mapping[str, float | None] | None = None,
) -> Callable[[Act], Fault]:
    """The decorated act as a fault; its docstring is what users read."""

    def enter(act: Act) -> Fault:
        return Fault(
            name=name,
            effect=" ".join((act.__doc__ or "").split()),
            act=act,
            targets=targets,
            reach=reach or targets,
            number=number,
            default=default,
            options=options or {},
        )

    return enter


@dataclass(slots=True, kw_only=True)
class Armed:
    """A fault in one server, with its settings and what it has seen."""

    fault: Fault
    targets: frozenset[str]
    amount: float | None  # the number; None: without end
    options: Mapping[str, float | None]
    memory: Counter[str] = field(default_factory=Counter)  # for the fault's own use
    lock: threading.Lock = field(default_factory=threading.Lock)
    n_struck: int = 0  # including those let pass by `skip`

    def answer(self, scene: Scene, proceed: Proceed, ask: Ask) -> Reply:
        """The answer to `ask`: the fault's, or that of `proceed`."""
        call = Call(ask, scene, self, proceed)
        turn = self._claim() if ask.target in self.targets else None
        if turn is None:
            return call.reply
        struck = self.fault.act(call) if turn >= self._n_skipped else None
        if struck is None and turn >= self._n_skipped:
            self._disclaim()
        return struck or call.reply

    @property
    def _n_skipped(self) -> int:
        return int(self.options["skip"] or 0)

    def _claim(self) -> int | None:
        """How many were struck before this one; None when that is enough."""
        limit = self.amount if self.fault.number == TIMES else None
        with self.lock:
            if limit is not None and self.n_struck >= limit + self._n_skipped:
                return None
            self.n_struck += 1
            return self.n_struck - 1

    def _disclaim(self) -> None:
        with self.lock:
            self.n_struck -= 1


class Plan:
    """The faults of one server, in order."""

    def __init__(self, words: Sequence[str], known: Mapping[str, Fault]) -> None:
        self._armed = [_arm(word, known) for word in words]

    def answer(self, ask: Ask, scene: Scene, proceed: Proceed) -> Reply:
        for armed in reversed(self._armed):
            proceed = partial(armed.answer, scene, proceed)
        return proceed(ask)


def _arm(word: str, known: Mapping[str, Fault]) -> Armed:
    """The fault that `word` asks for; a UserError says what can be asked for."""
    name, *rest = word.split(":")
    if name not in known:
        raise UserError(f"fault '{word}': there is no '{name}'; known are {', '.join(known)}")
    fault = known[name]
    amount, targets = fault.default, fault.targets
    options = {"skip": None, **fault.options}
    for index, part in enumerate(rest):
        key, is_option, value = part.partition("=")
        if key == "on" and value in fault.reach:
            targets = frozenset({value})
        elif is_option and key in options:
            options[key] = _number(value, word, zero=True)
        elif not is_option and index == 0:
            amount = _number(part, word, whole=fault.number != RATE)
        else:
            aims = ", ".join(sorted(fault.reach))
            raise UserError(
                f"fault '{word}': '{part}' does not fit {usage(fault)}[:skip=][:on=], on= one of {aims}"
            )
    return Armed(fault=fault, targets=targets, amount=amount, options=options)


def _number(text: str, word: str, *, whole: bool = False, zero: bool = False) -> float:
    """A positive number, `whole` or not, or `zero` where that makes sense."""
    try:
        value = int(text) if whole else float(text)
    except ValueError:
        value = -1
    if not 0 < value < float("inf") and not (zero and value == 0):
        raise UserError(
            f"fault '{word}': '{text}' is not a positive{' whole' if whole else ''} number"
        )
    return value


def usage(fault: Fault) -> str:
    """How to ask for `fault`, without what all of them take: `429[:times][:retry-after=]`."""
    return fault.name + "".join(
        f"[:{part}]" for part in (fault.number, *(f"{key}=" for key in fault.options))
    )


def edited(
    reply: Reply, edit: Callable[[dict[str, Any]], dict[str, Any] | None], key: str
) -> Reply | None:
    """`reply` with `edit` done to each entry under `key`, or to the one entry that it is; None drops an entry."""
    if reply.status != 200 or not isinstance(reply.body, bytes):
        return None
    value = json.loads(reply.body)
    if key in value:
        entries = [edit(entry) for entry in value[key]]
        return json_reply(value | {key: [entry for entry in entries if entry is not None]})
    return json_reply(edit(value) or {})
