"""Optimisers by name: each moves what trains, by the rate of its depth, and a name that nobody knows is refused."""

import pytest
import torch
from torch import nn

from comp.errors import RecipeError
from comp.network.backbone import build
from comp.network.surgery import freeze
from comp.recipe import FineTune, Model
from comp.train.optimiser import check_optimiser, make_optimiser

NAMES = ["sgd", "rmsprop", "adam", "adamw", "lamb", "lion"]


def network_of(trains: str = "last:1") -> nn.Module:
    network = build(Model(backbone="resnet18", weights="random"))
    nn.init.normal_(network.get_classifier().weight, generator=torch.Generator().manual_seed(0))  # type: ignore[operator]
    freeze(network, trains)
    return network


def stepped(training: FineTune, n_steps: int = 1) -> tuple[nn.Module, nn.Module]:
    """A network before and after steps against gradients of 1."""
    before, after = network_of(), network_of()
    optimiser = make_optimiser(after, training)
    for _ in range(n_steps):
        for parameter in after.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.ones_like(parameter)
        optimiser.step()
    return before, after


@pytest.mark.parametrize("name", NAMES)
def test_a_step_moves_what_trains_against_the_gradient_and_nothing_else(name: str) -> None:
    before, after = stepped(
        FineTune(
            optimiser=name, weight_decay=0.0, peak_lr=1e-2, momentum=0.0 if name == "lamb" else 0.9
        )
    )
    for (label, old), new in zip(before.named_parameters(), after.parameters(), strict=True):
        assert bool((new < old).all()) if new.requires_grad else torch.equal(new, old), label


def test_momentum_carries_on_and_nesterov_looks_ahead() -> None:
    def moved(momentum: float, nesterov: bool) -> float:
        before, after = stepped(
            FineTune(
                optimiser="sgd", weight_decay=0.0, peak_lr=0.1, momentum=momentum, nesterov=nesterov
            ),
            n_steps=2,
        )
        return float((before.get_classifier().bias - after.get_classifier().bias).detach())  # type: ignore[operator]

    assert moved(0.0, False) == pytest.approx(0.2)
    assert moved(0.5, False) == pytest.approx(0.1 * (1 + 1.5))
    assert moved(0.5, True) == pytest.approx(0.1 * (1.5 + 1.75))


def test_names_that_neither_torch_nor_timm_knows_are_refused_with_near_ones() -> None:
    with pytest.raises(
        RecipeError, match=r"neither torch nor timm has an optimiser 'adamx'; near it are .*adam"
    ):
        check_optimiser(FineTune(optimiser="adamx"))
    for name in NAMES:
        check_optimiser(FineTune(optimiser=name))


def test_nesterov_needs_the_momentum_of_sgd() -> None:
    for knobs in ({"optimiser": "adam"}, {"optimiser": "sgd", "momentum": 0.0}):
        with pytest.raises(ValueError, match=r"training\.nesterov must be false with"):
            FineTune(nesterov=True, **knobs)
