"""The forecast: its intervals cover, and scores correct it by their means alone."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from finished_run import SAMPLE_IDS, add_score, edit_json, edit_table, make_run, make_workspace
from heard import Heard

from comp.competition import COMPETITION, Competition
from comp.errors import DataError
from comp.metric import Floats, log_loss, sigmoid
from comp.predict.calibrate import Settings, board_losses
from comp.predict.runs import read_run
from comp.store import Workspace
from comp.submit import forecast as module
from comp.submit.forecast import (
    Forecast,
    adjust,
    draw_noise_rates,
    draw_scores,
    forecast,
    print_forecast,
)

SETTINGS = Settings(noise_rate=0.004, clip=0.005)


def photos(n: int, n_runs: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Labels of `n` photos, and the probabilities of `n_runs` runs with correlated errors."""
    labels = rng.integers(0, 2, n).astype(np.float64)
    errors = rng.normal(0, 2.2, (n, 1)) + rng.normal(0, 1.5, (n, n_runs))
    return labels, SETTINGS.finish(sigmoid((2 * labels[:, None] - 1) * 6.5 + errors))


def forecast_one(seed: int, n_runs: int) -> tuple[Forecast, float, float]:
    """A forecast when all other runs have scores; the real score; the real label-noise rate."""
    rng, n, n_test = np.random.default_rng(seed), 400, 1200
    labels, probs = photos(n, n_runs, rng)
    (rate,) = draw_noise_rates(COMPETITION.noise_rate, COMPETITION.noise_spread, 1, seed)
    truth, submitted = photos(n_test, n_runs, rng)
    truth = np.where(rng.random(n_test) < rate, 1 - truth, truth)
    score, *others = (log_loss(truth, column) for column in submitted.T)
    best = min(others, default=None)
    made = forecast(labels, probs, others, best, np.arange(n), COMPETITION, n_test, n_draws=200)
    return made, score, float(rate)


@pytest.mark.parametrize("n_runs", [1, 3])
def test_on_many_noisy_leaderboards_the_90_percent_interval_covers_85_to_95_percent(
    n_runs: int,
) -> None:
    trials = [forecast_one(seed, n_runs) for seed in range(200)]
    scores = np.mean([made.score.low <= score <= made.score.high for made, score, _ in trials])
    rates = np.mean(
        [made.noise_rate.low <= rate <= made.noise_rate.high for made, _, rate in trials]
    )
    bias = np.mean([made.score.mean - score for made, score, _ in trials])
    assert 0.85 <= scores <= 0.95
    assert 0.85 <= rates <= 0.95
    assert abs(bias) < 0.1 * np.mean([score for _, score, _ in trials])


def test_scores_on_the_same_leaderboard_narrow_the_forecast_and_the_noise_rate() -> None:
    alone, informed = (forecast_one(1, n_runs)[0] for n_runs in (1, 3))
    assert (alone.n_pairs, informed.n_pairs) == (0, 2)
    assert informed.score.spread < 0.8 * alone.score.spread
    assert informed.noise_rate.spread < alone.noise_rate.spread
    assert (alone.gain is None, informed.gain is None) == (True, False)


@pytest.mark.parametrize("rate", [0.002, 0.0065])
def test_the_noise_rate_is_learnt_from_scores_and_shrunk_to_the_prior(rate: float) -> None:
    labels, probs = photos(2000, 3, np.random.default_rng(5))
    score, *others = (float(board_losses(labels, column, rate).mean()) for column in probs.T)
    best = min(score, *others)
    groups = np.arange(2000)
    made = forecast(labels, probs, others, best, groups, COMPETITION, 12_500, n_draws=500)
    assert min(rate, 0.004) < made.noise_rate.mean < max(rate, 0.004)
    assert abs(made.noise_rate.mean - rate) < 0.6 * abs(rate - 0.004)
    assert made.score.low < score < made.score.high


@pytest.mark.parametrize("rate", [0.0, 0.02])
def test_a_simulated_leaderboard_has_the_expected_loss_of_its_noise_rate(rate: float) -> None:
    labels, probs = photos(400, 2, np.random.default_rng(0))
    rates = np.full(2000, rate)
    drawn = draw_scores(labels, probs, np.arange(400), rates, n_test=1000, seed=0)
    expected = [float(board_losses(labels, column, rate).mean()) for column in probs.T]
    assert drawn.mean(0) == pytest.approx(expected, rel=0.02)


def test_near_duplicates_are_drawn_together_so_that_copies_do_not_narrow_the_forecast() -> None:
    labels, probs = photos(300, 1, np.random.default_rng(0))
    rates = np.zeros(500)
    once = draw_scores(labels, probs, np.arange(300), rates, n_test=300, seed=0)
    copied = np.repeat(labels, 4), np.repeat(probs, 4, axis=0)
    grouped = draw_scores(*copied, np.repeat(np.arange(300), 4), rates, n_test=1200, seed=0)
    single = draw_scores(*copied, np.arange(1200), rates, n_test=1200, seed=0)
    assert grouped.std() == pytest.approx(once.std(), rel=0.1)
    assert single.std() < 0.7 * once.std()


def test_noise_rates_have_the_mean_and_spread_of_the_prior() -> None:
    rates = draw_noise_rates(0.004, 0.001, 20_000, seed=0)
    assert (rates.mean(), rates.std()) == pytest.approx((0.004, 0.001), rel=0.03)
    assert not draw_noise_rates(0.0, 0.001, 10, seed=0).any()
    assert (draw_noise_rates(0.003, 0.0, 10, seed=0) == 0.003).all()


def test_the_adjustment_is_the_conditional_distribution_of_a_normal_one() -> None:
    rng = np.random.default_rng(0)
    shared = rng.normal(0, 1, 200_000)
    simulated = (shared + rng.normal(0, 0.5, shared.size))[:, None]
    after = adjust(shared[:, None] * 2 + 1, simulated, [1.5])
    assert after.mean() == pytest.approx(1 + 2 * 1.5 / 1.25, abs=0.01)
    assert after.std() == pytest.approx(2 * np.sqrt(1 - 1 / 1.25), abs=0.01)


def test_copies_of_one_scored_run_are_worth_one_of_them() -> None:
    labels, probs = photos(500, 1, np.random.default_rng(0))
    groups = np.arange(500)
    one, many = (
        forecast(labels, probs[:, [0] * (1 + k)], [0.06] * k, 0.06, groups, COMPETITION, 1000)
        for k in (1, 8)
    )
    assert (one.score.mean, many.score.mean) == pytest.approx((0.06, 0.06), abs=0.002)
    assert many.noise_rate.mean == pytest.approx(one.noise_rate.mean, rel=0.1)
    assert many.noise_rate.spread > 0.8 * one.noise_rate.spread


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return make_workspace(tmp_path)


def printed(
    workspace: Workspace, run: Path, competition: Competition = COMPETITION
) -> tuple[Forecast, str]:
    heard = Heard()
    return print_forecast(workspace, competition, read_run(run), heard), str(heard)


def cut_oof(run: Path, stop: int) -> None:
    edit_table(run / "oof.csv", lambda table: table[:stop])
    edit_json(run / "calibration.json", of=None)


def test_scored_runs_with_the_same_photos_on_disk_are_learnt_from_and_any_may_be_the_best(
    workspace: Workspace,
) -> None:
    run, first, second, other = (
        make_run(workspace, name, "0" * 10, seed) for seed, name in enumerate("abcd")
    )
    cut_oof(other, -8)
    scores = [(first, 0.3), (first, 0.2), (second, None), (other, 0.25), (run, 0.15)]
    for ref, (folder, score) in enumerate([*scores, (Path("gone-1"), 0.1)]):
        add_score(workspace, folder.name, score, ref)
    made, text = printed(workspace, run)
    assert made.n_pairs == 1
    assert "label noise 0." in text
    assert text.count("estimated from 1 score") == text.count("estimated from 1 scores") + 1
    assert made.gain is not None
    assert made.gain.mean == pytest.approx(0.1 - made.score.mean, abs=0.01)
    assert "worse than your best (0.10000)" in text


def test_a_gain_below_its_standard_deviation_gets_a_warning(workspace: Workspace) -> None:
    run, first = make_run(workspace, "a", "0" * 10, 0), make_run(workspace, "b", "1" * 10, 1)
    made, text = printed(workspace, run)
    assert made.gain is None
    assert "warning" not in text
    assert "assumed label noise 0.40 % (prior; no scores yet)" in text
    assert "rank among 1,315" in text
    add_score(workspace, first.name, made.score.mean + made.score.spread / 4, 1)
    assert "less than the standard deviation" in printed(workspace, run)[1]
    add_score(workspace, first.name, 3.0, 1)
    clear, text = printed(workspace, run)
    assert clear.gain is not None
    assert clear.gain.mean > clear.gain.spread
    assert "warning" not in text


def test_a_competition_without_an_archived_leaderboard_gets_a_forecast_without_ranks(
    workspace: Workspace,
) -> None:
    run = make_run(workspace)
    made, text = printed(workspace, run, replace(COMPETITION, archived_board=None))
    assert made == printed(workspace, run)[0]
    assert "rank" not in text


def test_the_forecast_does_not_depend_on_single_test_photos(workspace: Workspace) -> None:
    run = make_run(workspace)
    before = printed(workspace, run)
    noise = np.random.default_rng(0).uniform(0.01, 0.99, len(SAMPLE_IDS))
    edit_table(run / "test.csv", lambda table: table.assign(prob=noise, logit=noise))
    assert printed(workspace, run) == before


def test_a_noise_rate_that_contradicts_the_scores_is_reported_and_not_changed(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 40 photos say little, so that the prior has to be wide here.
    wide = replace(COMPETITION, noise_rate=0.05, noise_spread=0.045)
    monkeypatch.setattr(module, "MISFIT", 0.0)
    runs = [make_run(workspace, name, "0" * 10, 0) for name in "ab"]
    add_score(workspace, runs[1].name, 2.0, 1)
    made, text = printed(workspace, runs[0], wide)
    assert made.noise_rate.low > 0.05
    assert f"SET=prediction.noise_rate={made.noise_rate.mean:.4f} fits the scores better" in text
    assert read_run(runs[0]).settings.noise_rate == 0.004


def test_too_few_photos_make_no_forecast(workspace: Workspace) -> None:
    run = make_run(workspace)
    cut_oof(run, 15)
    with pytest.raises(DataError, match="15 out-of-fold photos are too few"):
        printed(workspace, run)
