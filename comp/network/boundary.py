"""Networks of which only the last part trains: where the frozen part ends, and each part alone.

The frozen part's output for a picture is the same in every epoch, fold and run, so it is computed
once and cached; the rest trains on the cache in a small share of the time. No architecture is known
here: a boundary is found by watching one forward pass, and accepted only if the network's output is
the same with it as without.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import accumulate, count
from typing import Any

import torch
from torch import Tensor, nn

from comp.errors import RecipeError

TOLERANCE = 1e-4  # of the logits with a boundary, relative to those without


@dataclass(frozen=True, slots=True, kw_only=True)
class Boundary:
    """Where a network is cut in two."""

    module: str  # the first one to receive the cached activations
    skipped: tuple[str, ...]  # modules that need not run when the activations are cached


class _Reached(Exception):  # noqa: N818  # no error: it carries activations out of a forward pass
    pass


def input_to(network: nn.Module, module: str, images: Tensor) -> Tensor:
    """What `module` receives when `network` runs on `images`; nothing after it runs."""

    def stop(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        raise _Reached(inputs[0])

    # first of all hooks, so that nobody sees the module receive what is kept for it
    with network.get_submodule(module).register_forward_pre_hook(stop, prepend=True):
        try:
            network(images)
        except _Reached as reached:
            return reached.args[0]  # type: ignore[no-any-return]
    raise AssertionError(f"{module} was not reached")


def resume_from(network: nn.Module, boundary: Boundary, size_px: int) -> Callable[[], None]:
    """Make `network` take activations at `boundary` in place of images of `size_px`.

    Modules, parameters and names stay what they are; the function that is returned undoes it.
    """
    waiting: list[Tensor] = []

    def set_aside(_: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        given = inputs[0]
        is_map = given.ndim == 4
        waiting.append(given.contiguous(memory_format=torch.channels_last) if is_map else given)
        return given.new_zeros(1, 1, 1, 1).expand(len(given), 3, size_px, size_px)  # no memory

    def bring_in(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (waiting.pop(), *inputs[1:])

    undo = ExitStack()
    undo.enter_context(network.register_forward_pre_hook(set_aside))
    undo.enter_context(network.get_submodule(boundary.module).register_forward_pre_hook(bring_in))
    for name in boundary.skipped:
        module: Any = network.get_submodule(name)
        module.forward = lambda given, *_, **__: given
        undo.callback(delattr, module, "forward")
    return undo.close


@torch.no_grad()
def find_boundary(network: Any, size_px: int) -> Boundary:
    """The last place in `network` before which nothing trains (requires_grad).

    Randomises the head. RecipeError if there is no such place that everything passes through, as in
    networks whose branches all train.
    """
    network.eval()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for parameter in network.get_classifier().parameters():
            nn.init.normal_(parameter)  # a new head is zero for every photo
        images = torch.rand(2, 3, size_px, size_px)
    expected, calls = _watch(network, images)
    for boundary in _candidates(network, calls):
        activations = input_to(network, boundary.module, images)
        undo = resume_from(network, boundary, size_px)
        try:
            logits = network(activations)
        except (RuntimeError, ValueError, IndexError, TypeError, AssertionError):
            continue  # a skipped module makes shapes that others rely on
        finally:
            undo()
        bound = TOLERANCE * expected.abs().max()
        if logits.shape == expected.shape and (logits - expected).abs().max() <= bound:
            return boundary
    raise RecipeError(
        f"{network.pretrained_cfg['architecture']} cannot be cut where its trained part begins:"
        " set training.cached_views=0, or train from another module on"
    )


@dataclass(slots=True)
class _Calls:
    """Of one module in one forward pass."""

    started: int  # when its first call began
    ended: int = 0  # when its last call ended
    n: int = 0
    takes_tensor: bool = False  # not a list of them, as in DenseNet
    keeps_shape: bool = False


def _watch(network: nn.Module, images: Tensor) -> tuple[Tensor, dict[str, _Calls]]:
    """The logits of `images`, and the calls of each module inside `network`, by name."""
    clock, calls = count(), dict[str, _Calls]()
    names = {module: name for name, module in network.named_modules() if name}

    def on_start(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        called = calls.setdefault(names[module], _Calls(started=next(clock)))
        called.n += 1
        called.takes_tensor |= bool(inputs) and isinstance(inputs[0], Tensor)

    def on_end(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        called = calls[names[module]]
        called.ended = next(clock)
        if called.takes_tensor and isinstance(output, Tensor):
            called.keeps_shape |= inputs[0].shape == output.shape

    with ExitStack() as hooks:
        for module in names:
            hooks.enter_context(module.register_forward_pre_hook(on_start))
            hooks.enter_context(module.register_forward_hook(on_end))
        return network(images), calls


def _candidates(network: nn.Module, calls: dict[str, _Calls]) -> Iterator[Boundary]:
    """Modules that run while the first trained one starts, the innermost first.

    Skipped is everything before it, or, as a second try, what keeps shapes.
    """
    parameters = network.named_parameters()
    owners = {name.rpartition(".")[0] for name, value in parameters if value.requires_grad}
    if "" in owners:  # such as a class token, which the network itself adds
        return
    first = min(calls[name].started for name in owners if name in calls)
    running = [
        (called.started, name)
        for name, called in calls.items()
        if called.started <= first <= called.ended and called.n == 1 and called.takes_tensor
    ]
    for started, name in sorted(running, reverse=True):
        done = {other for other, called in calls.items() if called.ended < started}
        for skipped in (done, {other for other in done if calls[other].keeps_shape}):
            outermost = [other for other in skipped if not _parents(other) & skipped]
            yield Boundary(module=name, skipped=tuple(sorted(outermost)))


def _parents(name: str) -> set[str]:
    """Of a.b.c: a and a.b."""
    return set(accumulate(name.split(".")[:-1], "{}.{}".format))
