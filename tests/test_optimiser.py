"""Optimisers by name, and the learning rate of each step."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from tiny import random_network
from torch import nn

from comp.errors import RecipeError
from comp.network.surgery import freeze
from comp.recipe import FineTune
from comp.train.finetune import check_optimiser, learning_rate, make_optimiser

NAMES = ("sgd", "rmsprop", "adam", "adamw", "lamb", "lion")
SCHEDULES = ("cosine", "one-cycle", "step", "exponential", "constant")


def stepped(n_steps: int = 1, **options: Any) -> tuple[Any, Any]:
    """A network before and after steps against gradients of 1."""
    before, after = random_network("resnet18"), random_network("resnet18")
    for network in (before, after):
        weight, rng = network.get_classifier().weight, torch.Generator().manual_seed(0)
        nn.init.normal_(weight, generator=rng)
        freeze(network, "last:1")
    optimiser = make_optimiser(after, FineTune(weight_decay=0.0, **options))
    for _ in range(n_steps):
        for parameter in after.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.ones_like(parameter)
        optimiser.step()
    return before, after


@pytest.mark.parametrize("name", NAMES)
def test_a_step_moves_what_trains_against_the_gradient_and_nothing_else(name: str) -> None:
    momentum = 0.0 if name == "lamb" else 0.9
    before, after = stepped(optimiser=name, peak_lr=1e-2, momentum=momentum)
    for (label, old), new in zip(before.named_parameters(), after.parameters(), strict=True):
        assert bool((new < old).all()) if new.requires_grad else torch.equal(new, old), label


@pytest.mark.parametrize(
    ("momentum", "nesterov", "moved"),
    [(0.0, False, 0.2), (0.5, False, 0.1 * (1 + 1.5)), (0.5, True, 0.1 * (1.5 + 1.75))],
)
def test_momentum_carries_on_and_nesterov_looks_ahead(
    momentum: float, nesterov: bool, moved: float
) -> None:
    options = {"optimiser": "sgd", "peak_lr": 0.1, "momentum": momentum, "nesterov": nesterov}
    before, after = stepped(n_steps=2, **options)
    change = before.get_classifier().bias - after.get_classifier().bias
    assert change.item() == pytest.approx(moved)


def test_unknown_optimisers_are_refused_with_near_names_and_nesterov_without_momentum() -> None:
    says = r"neither torch nor timm has an optimiser 'adamx'; near it are .*adam"
    with pytest.raises(RecipeError, match=says):
        check_optimiser(FineTune(optimiser="adamx"))
    for name in NAMES:
        check_optimiser(FineTune(optimiser=name))
    for options in ({"optimiser": "adam"}, {"optimiser": "sgd", "momentum": 0.0}):
        with pytest.raises(ValueError, match=r"training\.nesterov must be false with"):
            FineTune(nesterov=True, **options)  # type: ignore[arg-type]


def rates(n_steps: int = 100, **options: Any) -> list[float]:
    training = FineTune(peak_lr=1.0, **options)
    return [learning_rate(step, n_steps, training) for step in range(n_steps)]


def test_the_learning_rate_rises_in_a_line_then_falls_as_a_cosine() -> None:
    found = rates(warmup=0.1, final_lr=0.01)
    assert np.allclose(np.diff(found[:10]), 1 / 11)
    assert max(found) == found[10] == 1.0
    assert all(a > b for a, b in itertools.pairwise(found[10:]))
    assert found[55] == pytest.approx(0.01 + 0.99 * (1 + math.cos(math.pi * 0.5)) / 2)
    assert 0.01 < found[-1] < 0.012


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule_starts_at_the_peak_never_rises_after_it_and_keeps_the_floor(
    schedule: str,
) -> None:
    options = {"schedule": schedule, "epochs": 20, "step_epochs": 5, "decay": 1e-4}
    found = rates(warmup=0.2, final_lr=0.05, **options)
    assert found[20] == max(found) <= 1.0
    assert all(a >= b for a, b in itertools.pairwise(found[20:]))
    assert min(found[20:]) >= 0.05
    assert all(a < b for a, b in itertools.pairwise(found[:20]))
    assert min(found) > 0
    # and it does not depend on the number of steps
    options = {"schedule": schedule, "epochs": 10, "step_epochs": 3, "warmup": 0.0}
    assert np.allclose(rates(100, **options), rates(1000, **options)[::10], atol=1e-9)


def test_step_falls_by_its_factor_at_whole_epochs() -> None:
    options = {"schedule": "step", "decay": 0.1, "step_epochs": 7, "epochs": 20}
    found = rates(20 * 39, warmup=0.0, final_lr=0.0, **options)
    falls = [step for step in range(1, len(found)) if found[step] < found[step - 1]]
    assert falls == [7 * 39, 14 * 39]
    assert found[-1] == pytest.approx(0.01)


def test_exponential_goes_from_the_first_rate_to_the_last_by_equal_factors() -> None:
    found = rates(10_000, schedule="exponential", warmup=0.0, decay=0.01, final_lr=0.01)
    factors = np.array(found[1:]) / np.array(found[:-1])
    assert np.allclose(factors, 0.01 ** (1 / 10_000))
    assert found[0] == 1.0
    assert found[-1] == pytest.approx(0.01, rel=1e-3)


def test_one_cycle_starts_at_a_twenty_fifth_of_the_peak_and_constant_stays() -> None:
    found = rates(schedule="one-cycle", warmup=0.3, final_lr=0.0)
    assert [found[0], found[15], found[30]] == pytest.approx([1 / 25, (1 + 1 / 25) / 2, 1.0])
    assert set(rates(schedule="constant", warmup=0.0)) == {1.0}
