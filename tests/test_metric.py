"""The metric: its formula, exactness at the ends, and intervals that cover what they say."""

import math

import numpy as np
import pytest

from comp import metric
from comp.errors import DataError
from comp.metric import bootstrap_interval

LOSSES = np.random.default_rng(0).exponential(1.0, 200)
PAIRS = np.arange(200) // 2


def test_log_loss_is_the_definition_and_the_same_from_logits_and_probabilities() -> None:
    labels, probs = np.array([1, 0, 1]), np.array([0.9, 0.2, 0.3])
    expected = -(math.log(0.9) + math.log(0.8) + math.log(0.3)) / 3
    logits = np.log(probs / (1 - probs))
    assert metric.log_loss(labels, probs) == pytest.approx(expected, rel=1e-14)
    assert metric.logit_log_loss(labels, logits) == pytest.approx(expected, rel=1e-12)
    assert metric.per_photo_loss(labels, probs).mean() == metric.log_loss(labels, probs)


def test_a_certain_error_costs_what_the_leaderboard_charges_and_a_logit_stays_exact() -> None:
    assert metric.log_loss([1, 0], [0.0, 1.0]) == pytest.approx(-math.log(1e-15), rel=1e-3)
    assert metric.log_loss([0, 1], [0.0, 1.0]) == pytest.approx(0, abs=1e-14)
    assert metric.logit_log_loss([1, 0], [-900.0, 900.0]) == 900.0
    assert metric.per_photo_logit_loss([1], [50.0])[0] == pytest.approx(math.exp(-50), rel=1e-12)


def test_the_prior_is_the_share_of_the_positive_class_and_finite_for_one_class() -> None:
    assert metric.prior_logit([0, 1, 0, 1]) == 0.0
    logit = metric.prior_logit([1] * 3000 + [0] * 1000)
    assert 1 / (1 + math.exp(-logit)) == pytest.approx(0.75, abs=1e-3)
    assert math.isfinite(metric.prior_logit([1, 1]))
    with pytest.raises(DataError):
        metric.prior_logit([])


def test_the_bootstrap_interval_covers_the_mean_as_often_as_it_says() -> None:
    rng, hits = np.random.default_rng(0), 0
    for trial in range(200):
        losses = rng.exponential(1.0, 150)
        low, high = bootstrap_interval(losses, range(150), seed=trial)
        hits += low <= 1.0 <= high
    assert 0.89 <= hits / 200 <= 0.98


def test_near_duplicates_are_drawn_whole_so_that_copies_add_no_certainty() -> None:
    copied, groups = np.repeat(LOSSES, 5), np.repeat(np.arange(200), 5)
    low, high = bootstrap_interval(LOSSES, range(200), seed=1)
    assert bootstrap_interval(copied, groups, seed=1) == pytest.approx((low, high), rel=1e-12)
    single_low, single_high = bootstrap_interval(copied, range(1000), seed=1)
    assert single_high - single_low < 0.6 * (high - low)


def test_a_bootstrap_is_the_same_for_the_same_seed_and_only_then() -> None:
    first, again, other = (bootstrap_interval(LOSSES, PAIRS, seed=seed) for seed in (5, 5, 6))
    assert first == again != other
    with pytest.raises(DataError):
        bootstrap_interval([], [])


def test_a_ratio_is_drawn_on_the_same_photos_above_and_below() -> None:
    ratio = bootstrap_interval(0.85 * LOSSES, PAIRS, LOSSES)
    assert ratio == pytest.approx((0.85, 0.85), rel=1e-12)
    of_ones = bootstrap_interval(LOSSES, PAIRS, np.ones(200), seed=3)
    assert of_ones == pytest.approx(bootstrap_interval(LOSSES, PAIRS, seed=3), rel=1e-12)
    shuffled = np.random.default_rng(1).permutation(LOSSES)
    low, high = bootstrap_interval(shuffled, PAIRS, LOSSES)
    assert low < 1 < high
