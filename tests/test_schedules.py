"""Learning rates: five shapes after a warm-up, each what its name says."""

import itertools
import math

import numpy as np
import pytest

from comp.recipe import FineTune
from comp.train.optimiser import learning_rate

SHAPES = ("cosine", "one-cycle", "step", "exponential", "constant")


def rates(n_steps: int = 100, **knobs: object) -> list[float]:
    training = FineTune(peak_lr=1.0, **knobs)  # type: ignore[arg-type]
    return [learning_rate(step, n_steps, training) for step in range(n_steps)]


def test_the_learning_rate_rises_in_a_line_then_falls_as_a_cosine() -> None:
    found = rates(warmup=0.1, final_lr=0.01)
    assert np.allclose(np.diff(found[:10]), 1 / 11)
    assert max(found) == found[10] == 1.0
    assert all(a > b for a, b in itertools.pairwise(found[10:]))
    assert found[55] == pytest.approx(0.01 + 0.99 * (1 + math.cos(math.pi * 0.5)) / 2)
    assert 0.01 < found[-1] < 0.012


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_begins_at_the_peak_never_rises_after_it_and_keeps_the_floor(
    shape: str,
) -> None:
    found = rates(schedule=shape, warmup=0.2, final_lr=0.05, decay=1e-4, epochs=20, step_epochs=5)
    assert found[20] == max(found) <= 1.0
    assert all(a >= b for a, b in itertools.pairwise(found[20:]))
    assert min(found[20:]) >= 0.05
    assert all(a < b for a, b in itertools.pairwise(found[:20]))
    assert min(found) > 0


def test_a_schedule_does_not_depend_on_how_many_steps_it_is_cut_into() -> None:
    for shape in SHAPES:
        knobs = {"schedule": shape, "warmup": 0.0, "epochs": 10, "step_epochs": 3}
        assert np.allclose(rates(100, **knobs), rates(1000, **knobs)[::10], atol=1e-9)


def test_step_falls_by_its_factor_at_whole_epochs() -> None:
    found = rates(
        20 * 39, schedule="step", warmup=0.0, decay=0.1, step_epochs=7, epochs=20, final_lr=0.0
    )
    falls = [step for step in range(1, len(found)) if found[step] < found[step - 1]]
    assert falls == [7 * 39, 14 * 39]
    assert found[-1] == pytest.approx(0.01)


def test_exponential_goes_from_the_first_rate_to_the_last_by_equal_factors() -> None:
    found = rates(10_000, schedule="exponential", warmup=0.0, decay=0.01, final_lr=0.01)
    factors = np.array(found[1:]) / np.array(found[:-1])
    assert np.allclose(factors, 0.01 ** (1 / 10_000))
    assert found[0] == 1.0
    assert found[-1] == pytest.approx(0.01, rel=1e-3)


def test_one_cycle_begins_at_a_twenty_fifth_of_the_peak() -> None:
    found = rates(schedule="one-cycle", warmup=0.3, final_lr=0.0)
    assert found[0] == pytest.approx(1 / 25)
    assert found[15] == pytest.approx((1 + 1 / 25) / 2)
    assert found[30] == 1.0


def test_constant_stays() -> None:
    assert set(rates(schedule="constant", warmup=0.0)) == {1.0}
