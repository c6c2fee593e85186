"""Networks of which only the last part trains: where the frozen part ends, and each part alone.

The frozen part's output for a picture is the same in every epoch, fold and run, so it is computed
once and cached; the rest trains on the cache in a small share of the time. No architecture is known
here: a boundary is found by watching one forward pass, and accepted only if the network's output is
the same with it as without.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import accumulate
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

    hook = network.get_submodule(module).register_forward_pre_hook(stop)
    try:
        network(images)
    except _Reached as reached:
        return reached.args[0]  # type: ignore[no-any-return]
    finally:
        hook.remove()
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

    start = network.get_submodule(boundary.module)
    hooks = [
        network.register_forward_pre_hook(set_aside),
        start.register_forward_pre_hook(bring_in),
    ]
    skipped: list[Any] = [network.get_submodule(name) for name in boundary.skipped]
    for module in skipped:
        module.forward = _pass_on

    def undo() -> None:
        for hook in hooks:
            hook.remove()
        for module in skipped:
            del module.forward

    return undo


def _pass_on(given: Tensor, *_: Any, **__: Any) -> Tensor:
    return given


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
    watch = _Watch(network)
    expected = watch.run(images)
    for boundary in watch.candidates():
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


class _Watch:
    """When each module starts and ends in one forward pass, and whether it keeps shapes."""

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._clock = 0
        self._started: dict[str, int] = {}  # its first call
        self._ended: dict[str, int] = {}  # its last call
        self._n_calls: dict[str, int] = {}
        self._takes_tensor: set[str] = set()  # not a list of them, as in DenseNet
        self._keeps_shape: set[str] = set()

    def run(self, images: Tensor) -> Tensor:
        """One forward pass; the logits."""
        hooks = []
        for name, module in self._network.named_modules():
            if name:
                hooks.append(module.register_forward_pre_hook(self._on_start(name)))
                hooks.append(module.register_forward_hook(self._on_end(name)))
        try:
            logits: Tensor = self._network(images)
        finally:
            for hook in hooks:
                hook.remove()
        return logits

    def _on_start(self, name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            self._clock += 1
            if inputs and isinstance(inputs[0], Tensor):
                self._takes_tensor.add(name)
            self._started.setdefault(name, self._clock)
            self._n_calls[name] = self._n_calls.get(name, 0) + 1

        return hook

    def _on_end(self, name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            self._clock += 1
            self._ended[name] = self._clock
            maps_tensor = name in self._takes_tensor and isinstance(output, Tensor)
            if maps_tensor and inputs[0].shape == output.shape:
                self._keeps_shape.add(name)

        return hook

    def candidates(self) -> Iterable[Boundary]:
        """Modules that run while the first trained one starts, the innermost first.

        Skipped is everything before it, or, as a second try, what keeps shapes.
        """
        parameters = self._network.named_parameters()
        owners = {name.rpartition(".")[0] for name, value in parameters if value.requires_grad}
        if "" in owners:  # such as a class token, which the network itself adds
            return
        first = min(self._started[name] for name in owners if name in self._started)
        running = [
            name
            for name, started in self._started.items()
            if started <= first <= self._ended[name] and self._n_calls[name] == 1
        ]
        innermost_first = sorted(running, key=lambda name: -self._started[name])
        for name in innermost_first:
            if name not in self._takes_tensor:
                continue
            done = {other for other, end in self._ended.items() if end < self._started[name]}
            for skipped in (done, done & self._keeps_shape):
                outermost = (other for other in skipped if not _parents(other) & skipped)
                yield Boundary(module=name, skipped=tuple(sorted(outermost)))


def _parents(name: str) -> set[str]:
    """Of a.b.c: a and a.b."""
    return set(accumulate(name.split("."), lambda above, below: f"{above}.{below}")) - {name}
