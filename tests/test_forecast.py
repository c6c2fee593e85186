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
    draw_noise_rates,
    forecast,
    print_forecast,
    score_moments,
)

SETTINGS = Settings(noise_rate=0.004, clip=0.005)


REHEARSED = replace(COMPETITION, noise_rate=0.0, noise_spread=0.0)


def photos(
    n: int, n_runs: int, rng: np.random.Generator, harder: float = 0.0
) -> tuple[Floats, Floats]:
    """Labels of `n` photos, and the probabilities of `n_runs` runs with correlated errors."""
    labels = rng.integers(0, 2, n).astype(np.float64)
    margins = rng.normal(6.5 - harder, 2.2, (n, 1)) + rng.normal(0, 1.5, (n, n_runs))
    return labels, SETTINGS.finish(sigmoid((2 * labels[:, None] - 1) * margins))


def flipped(labels: Floats, rate: float, rng: np.random.Generator) -> Floats:
    return np.where(rng.permutation(labels.size) < round(rate * labels.size), 1 - labels, labels)


def forecast_one(
    seed: int, rate: float, n_scores: int, competition: Competition, harder: float = 0.0
) -> tuple[Forecast, float]:
    """A forecast with `n_scores` on a leaderboard with `rate` flipped labels; the real score."""
    rng, n, n_test = np.random.default_rng(seed), 5000, 2000
    labels, probs = photos(n, 1 + n_scores, rng)
    truth, submitted = photos(n_test, 1 + n_scores, rng, harder)
    truth = flipped(truth, rate, rng)
    score, *others = (log_loss(truth, column) for column in submitted.T)
    best = min(others, default=None)
    return forecast(labels, probs, others, best, np.arange(n), competition, n_test), score


@pytest.mark.parametrize("competition", [COMPETITION, REHEARSED], ids=["kaggle", "rehearsal"])
@pytest.mark.parametrize("n_scores", [0, 1, 5])
@pytest.mark.parametrize("rate", [0, 0.002, 0.0045])
def test_the_90_percent_interval_covers_the_score_whatever_share_of_labels_is_flipped(
    rate: float, n_scores: int, competition: Competition
) -> None:
    trials = [forecast_one(seed, rate, n_scores, competition) for seed in range(20)]
    covered = sum(made.score.low <= score <= made.score.high for made, score in trials)
    width = np.mean([made.score.high - made.score.low for made, _ in trials])
    assert covered >= 17
    assert width < (0.055 if n_scores == 0 else 0.5 * np.mean([score for _, score in trials]))


def test_harder_photos_are_covered_and_are_never_read_as_label_noise_alone() -> None:
    trials = [forecast_one(seed, 0.0, 1, COMPETITION, harder=0.5) for seed in range(20)]
    assert sum(made.score.low <= score <= made.score.high for made, score in trials) >= 17
    assert all(made.gap > 0 and made.hardness.high > 1.25 for made, _ in trials)


@pytest.mark.parametrize(("rate", "harder"), [(0.0075, 0.0), (0.0, 1.2)])
def test_the_score_of_a_weak_run_tells_flipped_labels_from_harder_photos(
    rate: float, harder: float
) -> None:
    def runs(n: int, harder: float) -> tuple[Floats, Floats]:
        labels = rng.integers(0, 2, n).astype(np.float64)
        margins = rng.normal(0, 2.2, (n, 1)) + rng.normal([7, 7, 4], 1.5, (n, 3)) - harder
        return labels, SETTINGS.finish(sigmoid((2 * labels[:, None] - 1) * margins))

    rng = np.random.default_rng(0)
    (labels, probs), (truth, submitted) = runs(10_000, 0.0), runs(10_000, harder)
    truth = flipped(truth, rate, rng)
    scores = [log_loss(truth, column) for column in submitted.T]
    strong, both = (
        forecast(
            labels, probs[:, :k], scores[1:k], None, np.arange(10_000), COMPETITION, 10_000
        ).noise_rate
        for k in (2, 3)
    )
    assert abs(both.mean - rate) < abs(strong.mean - rate)
    assert both.high - both.low < strong.high - strong.low


def test_scores_on_the_same_leaderboard_narrow_the_forecast_and_the_noise_rate() -> None:
    alone, informed = (forecast_one(1, 0.004, n, COMPETITION)[0] for n in (0, 2))
    assert (alone.n_pairs, informed.n_pairs) == (0, 2)
    assert informed.score.spread < 0.5 * alone.score.spread
    assert informed.noise_rate.spread < alone.noise_rate.spread
    assert (alone.gain is None, informed.gain is None) == (True, False)


@pytest.mark.parametrize("rate", [0.002, 0.0065])
def test_the_noise_rate_is_learnt_from_scores_and_shrunk_to_the_prior(rate: float) -> None:
    labels, probs = photos(2000, 3, np.random.default_rng(5))
    score, *others = (float(board_losses(labels, column, rate).mean()) for column in probs.T)
    best = min(score, *others)
    groups = np.arange(2000)
    made = forecast(labels, probs, others, best, groups, COMPETITION, 12_500)
    assert min(rate, 0.004) < made.noise_rate.mean < max(rate, 0.004)
    assert abs(made.noise_rate.mean - rate) < 0.6 * abs(rate - 0.004)
    assert made.score.low < score < made.score.high


def test_a_simulated_leaderboard_has_the_moments_of_real_ones() -> None:
    rng = np.random.default_rng(0)
    labels, probs = photos(20_000, 2, rng)
    rate, n_test, ones = np.full(1, 0.02), 500, np.ones(1)
    means, spread = score_moments(labels, probs, np.arange(20_000), rate, ones, n_test)
    scores = []
    for _ in range(1500):
        drawn = rng.integers(labels.size, size=n_test)
        truth = flipped(labels[drawn], 0.02, rng)
        scores.append([log_loss(truth, column) for column in probs[drawn].T])
    assert np.mean(scores, axis=0) == pytest.approx(means[0], rel=0.02)
    assert np.cov(np.transpose(scores)) == pytest.approx(spread[0], rel=0.15)


def test_near_duplicates_are_kept_together_so_that_copies_do_not_narrow_the_forecast() -> None:
    labels, probs = photos(300, 1, np.random.default_rng(0))
    copied, groups = (np.repeat(labels, 4), np.repeat(probs, 4, axis=0)), np.arange(300)
    zeros, ones = np.zeros(1), np.ones(1)
    once = score_moments(labels, probs, groups, zeros, ones, 300)[1]
    grouped = score_moments(*copied, np.repeat(groups, 4), zeros, ones, 1200)[1]
    single = score_moments(*copied, np.arange(1200), zeros, ones, 1200)[1]
    assert (grouped / once).item() == pytest.approx(1)
    assert (single / once).item() == pytest.approx(1 / 4)


def test_noise_rates_have_the_mean_and_spread_of_the_prior() -> None:
    rates = draw_noise_rates(0.004, 0.001, 20_000, seed=0)
    assert (rates.mean(), rates.std()) == pytest.approx((0.004, 0.001), rel=0.03)
    assert not draw_noise_rates(0.0, 0.001, 10, seed=0).any()
    assert (draw_noise_rates(0.003, 0.0, 10, seed=0) == 0.003).all()


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
    assert "times as hard as the training photos" in text
    assert ("because of label noise or harder photos" in text) == (made.gap > 0)
    assert text.count("estimated from 1 score") == text.count("estimated from 1 scores") + 1
    assert made.gain is not None
    assert made.gain.mean == pytest.approx(0.1 - made.score.mean, abs=0.01)
    assert "worse than your best (0.10000)" in text


def test_a_gain_below_its_standard_deviation_gets_a_warning(workspace: Workspace) -> None:
    run, first = make_run(workspace, "a", "0" * 10, 0), make_run(workspace, "b", "1" * 10, 1)
    made, text = printed(workspace, run)
    assert made.gain is None
    assert "warning" not in text
    assert "assumed label noise 0.40% (prior; no scores yet)" in text
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
    assert "because of label noise or harder photos" in text
    assert f"SET=prediction.noise_rate={made.noise_rate.mean:.4f} fits the scores better" in text
    assert read_run(runs[0]).figures.noise_rate == 0.004


def test_too_few_photos_make_no_forecast(workspace: Workspace) -> None:
    run = make_run(workspace)
    cut_oof(run, 15)
    with pytest.raises(DataError, match="15 out-of-fold photos are too few"):
        printed(workspace, run)
