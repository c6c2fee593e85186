"""What of a network trains: a policy that is understood for any timm backbone."""

from typing import Any

from comp.errors import RecipeError
from comp.recipe import FineTune
from comp.train.backbone import depths, module_index


def freeze(network: Any, trains: str) -> tuple[int, int]:
    """Let gradients reach only what `trains` names; (trained, all) parameters.

    all: everything. head: the head. last:N: timm's last N blocks, and the head. from:NAME: the module that timm calls NAME, what the
    network holds after it, and the head. What is held after is also run after in 94 of the 98 families that timm 1.0.31 can run on a meta
    device; coat, efficientvim, hrnet and twins hold their parts by kind. RecipeError if there is no such block or module.
    """
    sizes = {name: parameter.numel() for name, parameter in network.named_parameters()}
    head = {name for name in sizes if name.startswith(f"{network.pretrained_cfg['classifier']}.")}
    trained = head | _below_head(network, trains, head)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in trained)
    return sum(sizes[name] for name in trained), sum(sizes.values())


def freeze_phases(network: Any, training: FineTune) -> None:
    """Let gradients reach what trains in any phase of `training`."""
    trained: set[str] = set()
    for phase in training.phases():
        freeze(network, phase.trainable)
        trained |= {
            name for name, parameter in network.named_parameters() if parameter.requires_grad
        }
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in trained)


def _below_head(network: Any, trains: str, head: set[str]) -> set[str]:
    kind, _, what = trains.partition(":")
    names = [name for name, _ in network.named_parameters()]
    if kind == "from":
        modules = [name for name, _ in network.named_modules()]
        after = modules[module_index(network, what) :]
        return {name for name in names if name.rpartition(".")[0] in after}
    if kind == "last":
        depth = depths(network)
        blocks = sorted({block for name, block in depth.items() if name not in head})
        if int(what) > len(blocks):
            called = network.pretrained_cfg["architecture"]
            raise RecipeError(
                f"training.trainable={trains}: {called} has {len(blocks)} blocks below its head"
            )
        return {name for name, block in depth.items() if block in blocks[-int(what) :]}
    return set(names) if kind == "all" else set()
