"""Which parameters of a network train, by a rule that works for any timm backbone."""

from typing import Any

from comp.errors import RecipeError
from comp.network.backbone import depths, module_index
from comp.recipe import FineTune


def freeze(network: Any, trainable: str) -> tuple[int, int]:
    """Let gradients reach only what `trainable` names; the numbers of trained and all parameters.

    See `comp.recipe.Layers`. from:NAME takes what the network defines after NAME. That is also what
    runs after it in 94 of the 98 families that timm 1.0.31 can run on a meta device; coat,
    efficientvim, hrnet and twins define their parts in another order. RecipeError if there is no
    such block or module.
    """
    sizes = {name: parameter.numel() for name, parameter in network.named_parameters()}
    head = {name for name in sizes if name.startswith(f"{network.pretrained_cfg['classifier']}.")}
    trained = head | _trained_below_head(network, trainable, head)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in trained)
    return sum(sizes[name] for name in trained), sum(sizes.values())


def freeze_phases(network: Any, training: FineTune) -> None:
    """Let gradients reach what trains in any phase of `training`."""
    trained: set[str] = set()
    for phase in training.phases():
        freeze(network, phase.trainable)
        trained |= {name for name, value in network.named_parameters() if value.requires_grad}
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in trained)


def _trained_below_head(network: Any, trainable: str, head: set[str]) -> set[str]:
    kind, _, what = trainable.partition(":")
    names = [name for name, _ in network.named_parameters()]
    if kind == "from":
        modules = [name for name, _ in network.named_modules()]
        after = modules[module_index(network, what) :]
        return {name for name in names if name.rpartition(".")[0] in after}
    if kind == "last":
        depth = depths(network)
        blocks = sorted({block for name, block in depth.items() if name not in head})
        if int(what) > len(blocks):
            raise RecipeError(
                f"training.trainable={trainable}: {network.pretrained_cfg['architecture']} has"
                f" {len(blocks)} blocks below its head"
            )
        return {name for name, block in depth.items() if block in blocks[-int(what) :]}
    return set(names) if kind == "all" else set()
