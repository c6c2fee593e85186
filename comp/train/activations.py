"""Networks of which the last part alone trains: where the frozen part ends, and each part run without the other.

The frozen part makes the same of the same picture in every epoch, fold and run, so that is computed once and kept; then the rest trains on
what is kept, in a small share of the time. No architecture is known here: a boundary is found by watching one forward pass, and is believed
only if the network says the same with it as without.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from comp.errors import RecipeError
from comp.train.device import Device

BATCH = 256  # activations that the last part is given at once in prediction
TOLERANCE = 1e-4  # of what the network says with a boundary, relative to what it says without


@dataclass(frozen=True, slots=True, kw_only=True)
class Boundary:
    """Where a network is cut in two."""

    module: str  # that is given the activations first
    skipped: tuple[str, ...]  # modules that need not run where the activations are there


@dataclass(frozen=True, slots=True, kw_only=True)
class Tail:
    """The last part of a network, as a head [n, *activations] -> [n]."""

    network: nn.Module  # resumed, in evaluation mode
    device: Device

    def logits(self, features: Tensor) -> Tensor:
        with torch.inference_mode():
            parts: list[Tensor] = [
                self.network(part.to(self.device.where))[:, 0]
                for part in torch.split(features, BATCH)
            ]
        return torch.cat(parts).double().cpu()


class _Reached(Exception):  # noqa: N818  # no error: it carries the activations out of a forward pass
    pass


def given_to(network: nn.Module, module: str, given: Tensor) -> Tensor:
    """What `module` is given when `network` is given `given`; nothing after it runs."""

    def stop(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        raise _Reached(inputs[0])

    hook = network.get_submodule(module).register_forward_pre_hook(stop)
    try:
        network(given)
    except _Reached as reached:
        return reached.args[0]  # type: ignore[no-any-return]
    finally:
        hook.remove()
    raise AssertionError(f"{module} was not reached")


def resume(network: nn.Module, boundary: Boundary, size_px: int) -> Callable[[], None]:
    """Let `network` take activations before `boundary` in the place of images of `size_px`, until what is returned is called.

    Its modules, parameters and their names stay what they are.
    """
    waiting: list[Tensor] = []

    def set_aside(_: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        given = inputs[0]
        waiting.append(
            given.contiguous(memory_format=torch.channels_last) if given.ndim == 4 else given
        )
        return given.new_zeros(1, 1, 1, 1).expand(
            len(given), 3, size_px, size_px
        )  # takes no memory

    def bring_in(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (waiting.pop(), *inputs[1:])

    hooks = [
        network.register_forward_pre_hook(set_aside),
        network.get_submodule(boundary.module).register_forward_pre_hook(bring_in),
    ]
    skipped: list[Any] = [network.get_submodule(name) for name in boundary.skipped]
    for module in skipped:
        module.forward = _passed_on

    def undo() -> None:
        for hook in hooks:
            hook.remove()
        for module in skipped:
            del module.forward

    return undo


def _passed_on(given: Tensor, *_: Any, **__: Any) -> Tensor:
    return given


@torch.no_grad()
def find_boundary(network: Any, size_px: int) -> Boundary:
    """The last place in `network`, frozen by `comp/train/freezing.py`, before which nothing trains; its head comes back random.

    RecipeError if there is none through which everything passes, as in networks whose branches all train.
    """
    network.eval()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for parameter in network.get_classifier().parameters():
            nn.init.normal_(parameter)  # a fresh one says 0 of everything
        images = torch.rand(2, 3, size_px, size_px)
    watched = _Watched(network)
    expected = watched.watch(images)
    for boundary in watched.candidates():
        given = given_to(network, boundary.module, images)
        undo = resume(network, boundary, size_px)
        try:
            logits = network(given)
        except (RuntimeError, ValueError, IndexError, TypeError, AssertionError):
            continue  # what was skipped makes shapes that others count on
        finally:
            undo()
        if (
            logits.shape == expected.shape
            and (logits - expected).abs().max() <= TOLERANCE * expected.abs().max()
        ):
            return boundary
    raise RecipeError(
        f"{network.pretrained_cfg['architecture']} cannot be cut where its trained part begins: set training.cached_views=0, or train "
        "from another module on"
    )


class _Watched:
    """When each module of a network begins and ends in one forward pass, and what it makes of its input's shape."""

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._clock = 0
        self._begun: dict[str, int] = {}  # its first call
        self._ended: dict[str, int] = {}  # its last call
        self._n_calls: dict[str, int] = {}
        self._takes_tensor: set[str] = set()  # and not, as in DenseNet, a list of them
        self._keeps_shape: set[str] = set()

    def watch(self, images: Tensor) -> Tensor:
        """One forward pass; the logits."""
        hooks = []
        for name, module in self._network.named_modules():
            if name:
                hooks += [
                    module.register_forward_pre_hook(self._enter(name)),
                    module.register_forward_hook(self._leave(name)),
                ]
        try:
            logits: Tensor = self._network(images)
        finally:
            for hook in hooks:
                hook.remove()
        return logits

    def _enter(self, name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            self._clock += 1
            if inputs and isinstance(inputs[0], Tensor):
                self._takes_tensor.add(name)
            self._begun.setdefault(name, self._clock)
            self._n_calls[name] = self._n_calls.get(name, 0) + 1

        return hook

    def _leave(self, name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            self._clock += 1
            self._ended[name] = self._clock
            if (
                name in self._takes_tensor
                and isinstance(output, Tensor)
                and inputs[0].shape == output.shape
            ):
                self._keeps_shape.add(name)

        return hook

    def candidates(self) -> Iterable[Boundary]:
        """Modules at work when the first that trains begins, the innermost first; skipped is all before it, or what keeps shapes."""
        owners = {
            name.rpartition(".")[0]
            for name, parameter in self._network.named_parameters()
            if parameter.requires_grad
        }
        if "" in owners:  # such as a class token, which the network itself adds
            return
        first = min(self._begun[name] for name in owners if name in self._begun)
        at_work = [
            name
            for name, begun in self._begun.items()
            if begun <= first <= self._ended[name] and self._n_calls[name] == 1
        ]
        for name in sorted(
            self._takes_tensor.intersection(at_work), key=lambda name: -self._begun[name]
        ):
            done = {other for other, ended in self._ended.items() if ended < self._begun[name]}
            for skipped in (done, done & self._keeps_shape):
                yield Boundary(
                    module=name,
                    skipped=tuple(
                        sorted(other for other in skipped if not _parents(other) & skipped)
                    ),
                )


def _parents(name: str) -> set[str]:
    """Of a.b.c: a and a.b."""
    return set(accumulate(name.split("."), lambda above, below: f"{above}.{below}")) - {name}
