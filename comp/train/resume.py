"""Where a fold's training goes on after it was stopped: `fold-k.resume.safetensors`.

Batches, augmentation, dropout and learning rates are functions of seed, epoch, photo and step. So
the file holds the rest: the weights, their average and those before the phase, the optimiser's
state, the scaler's, the micro-batch size, the curve so far. A resumed fold ends with the weights of
one that was not stopped: bit for bit on a CPU, on a GPU as near as two runs are.
"""

import hashlib
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from threading import current_thread, main_thread
from typing import Any, Protocol

import torch
from torch import Tensor

from comp.errors import StaleError
from comp.progress import Reporter
from comp.store import fingerprint, plain
from comp.train import run as runs
from comp.train.checkpoints import Arrays, load_tensors, resume_file, save_tensors
from comp.train.files import checkpoint_origin
from comp.train.run import Run

EVERY_S = 60.0  # between two writes
PAUSE = 50  # times what a write took: the least time to the next, so that writes take under 2 %
Facts = dict[str, Any]  # JSON
TakeState = Callable[[], tuple[dict[str, Tensor], Facts]]


@dataclass(frozen=True, slots=True)
class Point:
    """A point of the training curve."""

    step: int  # steps done
    loss: float  # mean since the point before
    lr: float  # the head's


def point_from(saved: Mapping[str, Any]) -> Point:
    """As `plain` wrote it."""
    return Point(saved["step"], saved["loss"], saved["lr"])


class _Stepper(Protocol):
    def state(self) -> tuple[dict[str, Tensor], Facts]: ...

    def restore(self, tensors: Mapping[str, Tensor], facts: Facts) -> None: ...


class Bookmark:
    """The resume file of a fold: read once at the start, written while the fold trains."""

    def __init__(
        self, run: Run, fold: int, weights_key: str, device_name: str, reporter: Reporter
    ) -> None:
        """StaleError if there is a file that cannot be continued with what is here now."""
        self._path, self._fold, self._reporter = resume_file(run.checkpoint(fold)), fold, reporter
        now = {**run.origin_of(fold, weights_key), "code": runs.code_digest()}
        versions = {name: version(name) for name in runs.LIBRARIES}
        self._origin = plain({**now, "device": device_name, **versions})
        self._arrays: Arrays = {}
        self.facts: Facts = {"phase": 0, "step": 0, "before": []}
        if self._path.exists():
            self._read()
        self._last, self._pause, self._signal = time.monotonic(), EVERY_S, 0

    def _read(self) -> None:
        saved: Mapping[str, Any] = checkpoint_origin(self._path)
        try:
            arrays = load_tensors(self._path)
            if saved["sha256"] != _digest(arrays, saved["facts"]):
                raise ValueError
        except (StaleError, KeyError, ValueError):
            self._reporter.warn(f"{self._path} is damaged: fold {self._fold} begins anew")
            return
        differing = [
            f"{name} ({saved['origin'].get(name)}, now {value})"
            for name, value in self._origin.items()
            if saved["origin"].get(name) != value
        ]
        if differing:
            raise StaleError(
                f"{self._path} was written with another {', '.join(differing)}: go back to that to"
                f" go on there, or delete the file, and fold {self._fold} begins anew"
            )
        self._arrays, self.facts = arrays, saved["facts"]
        self._reporter.say(f"fold {self._fold} goes on after step {self.facts['step']:,}")

    def take(self) -> tuple[dict[str, Tensor], Facts] | None:
        """What was saved of the phase that was stopped, once; None if there is nothing."""
        arrays, self._arrays = self._arrays, {}
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        return (tensors, self.facts) if tensors else None

    def step_done(self, step: int, take_state: TakeState) -> None:
        """Write the state after `step` steps of the phase, if it is time to or the run must end."""
        if not self._signal and time.monotonic() - self._last < self._pause:
            return
        where = "the same command resumes there"
        began = time.monotonic()
        try:
            self._write(*take_state())
        except OSError as error:
            self._reporter.warn(f"{self._path} cannot be written: {error.strerror}")
            where = "its resume file could not be written"
        self._last = time.monotonic()
        self._pause = max(EVERY_S, PAUSE * (self._last - began))
        if self._signal:
            line = f"stopped in fold {self._fold} after step {step:,}; {where}"
            raise KeyboardInterrupt(line, self._signal)

    def _write(self, tensors: dict[str, Tensor], facts: Facts) -> None:
        facts = plain({**self.facts, **facts})
        arrays = {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}
        digest = _digest(arrays, facts)
        saved = {"origin": self._origin, "facts": facts, "sha256": digest}
        save_tensors(self._path, arrays, saved)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM end the run after the step that is being taken; twice, at once."""
        if current_thread() is not main_thread():
            yield
            return
        before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}

        def note(number: int, _: object) -> None:
            self._signal = number
            restore()

        def restore() -> None:
            for number, handler in before.items():
                signal.signal(number, handler)

        for number in before:
            signal.signal(number, note)
        try:
            yield
        finally:
            restore()
        if self._signal:  # after the last step
            where = "the same command resumes at the last saved step, if there is one"
            raise KeyboardInterrupt(f"stopped in fold {self._fold}; {where}", self._signal)


def state_of(
    step: int, take_step: _Stepper, kept: dict[str, list[Tensor]], history: list[Point]
) -> tuple[dict[str, Tensor], Facts]:
    """All that the rest of the phase depends on after `step` steps: tensors and JSON."""
    tensors, facts = take_step.state()
    for name, values in kept.items():
        tensors |= {f"{name}.{at}": value for at, value in enumerate(values)}
    return tensors, {**facts, "step": step, "history": history}


def go_on(
    book: Bookmark, take_step: _Stepper, kept: dict[str, list[Tensor]], history: list[Point]
) -> int:
    """Restore what `state_of` took, if `book` has it; how many steps of the phase are done."""
    saved = book.take()
    if saved is None:
        return 0
    tensors, facts = saved
    with torch.no_grad():
        for name, values in kept.items():
            for at, value in enumerate(values):
                value.copy_(tensors[f"{name}.{at}"])  # keeps the memory format
    take_step.restore(tensors, facts)
    history += map(point_from, facts["history"])
    return int(facts["step"])


def optimiser_state(optimiser: torch.optim.Optimizer) -> tuple[dict[str, Tensor], Facts]:
    """The tensors of the optimiser's state by name, and what else it counts."""
    state = optimiser.state_dict()
    items = [(f"{i}.{k}", v) for i, each in state["state"].items() for k, v in each.items()]
    numbers = {name: value for name, value in items if not isinstance(value, Tensor)}
    groups = [
        {name: value for name, value in group.items() if isinstance(value, (int, float))}
        for group in state["param_groups"]
    ]
    tensors = {name: value for name, value in items if isinstance(value, Tensor)}
    return tensors, {"numbers": numbers, "groups": groups}


def restore_optimiser(
    optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor], facts: Facts
) -> None:
    """Give a new `optimiser` the state that `optimiser_state` took."""
    state = optimiser.state_dict()
    parameters = [value for group in optimiser.param_groups for value in group["params"]]
    found: dict[int, dict[str, Any]] = {}
    for name, value in {**tensors, **facts["numbers"]}.items():
        index, _, key = name.partition(".")
        parameter = parameters[int(index)]
        if isinstance(value, Tensor) and value.shape == parameter.shape:
            # in the parameter's memory format: another one is summed in another order
            value = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        found.setdefault(int(index), {})[key] = value
    groups = zip(state["param_groups"], facts["groups"], strict=True)
    optimiser.load_state_dict(
        {"state": found, "param_groups": [{**group, **saved} for group, saved in groups]}
    )


def _digest(arrays: Arrays, facts: Facts) -> str:
    """Of the values, which safetensors does not check."""
    digest = hashlib.sha256(fingerprint(facts).encode())
    for name in sorted(arrays):
        digest.update(name.encode() + arrays[name].tobytes())
    return digest.hexdigest()
