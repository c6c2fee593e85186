"""The forecast: what it says it knows, it knows; scores teach it by their means alone."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from finished_run import make_run, make_workspace
from heard import Heard
from numpy.typing import NDArray

from comp.competition import COMPETITION
from comp.errors import DataError
from comp.metric import Floats, log_loss, sigmoid
from comp.predict.calibrate import Settings, board_losses
from comp.predict.runs import read_run
from comp.store import Workspace
from comp.submit import forecast as module
from comp.submit.forecast import (
    Forecast,
    Guess,
    board_draws,
    forecast,
    learnt,
    rate_draws,
    show_forecast,
)
from comp.submit.ledger import LedgerRow, write_row

NOISY = Settings(noise_rate=0.004, clip=0.005)


def photos(n: int, n_runs: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Labels, and what `n_runs` runs that err together would submit of `n` new photos of one endless world."""
    labels = rng.integers(0, 2, n).astype(np.float64)
    logits = (
        (2 * labels[:, None] - 1) * 6.5
        + rng.normal(0, 2.2, (n, 1))
        + rng.normal(0, 1.5, (n, n_runs))
    )
    return labels, NOISY.finish(sigmoid(logits))


def on_a_noisy_board(
    seed: int, n_runs: int, n: int = 400, n_test: int = 1200
) -> tuple[Forecast, float, float]:
    """The forecast of the last of `n_runs` runs when the others have scores; what it then scores, and the rate of flipped labels."""
    rng = np.random.default_rng(seed)
    labels, probs = photos(n, n_runs, rng)
    rate = float(rate_draws(COMPETITION.noise_rate, COMPETITION.noise_spread, 1, seed)[0])
    truth, submitted = photos(n_test, n_runs, rng)
    truth = np.where(rng.random(n_test) < rate, 1 - truth, truth)
    score, *others = (log_loss(truth, column) for column in submitted.T)
    made = forecast(
        labels,
        probs,
        others,
        min(others, default=None),
        np.arange(n),
        COMPETITION,
        n_test,
        n_draws=200,
    )
    return made, score, rate


@pytest.mark.parametrize("n_runs", [1, 3])
def test_over_many_noisy_boards_the_90_percent_interval_covers_85_to_95_percent_of_the_scores(
    n_runs: int,
) -> None:
    trials = [on_a_noisy_board(seed, n_runs) for seed in range(200)]
    assert (
        0.85
        <= np.mean([made.score.low <= score <= made.score.high for made, score, _ in trials])
        <= 0.95
    )
    assert (
        0.85
        <= np.mean(
            [made.noise_rate.low <= rate <= made.noise_rate.high for made, _, rate in trials]
        )
        <= 0.95
    )
    assert abs(np.mean([made.score.mean - score for made, score, _ in trials])) < 0.1 * np.mean(
        [score for _, score, _ in trials]
    )


def test_scores_on_the_same_board_narrow_the_forecast_and_the_noise_rate() -> None:
    alone, informed = (on_a_noisy_board(1, n_runs)[0] for n_runs in (1, 3))
    assert (alone.n_pairs, informed.n_pairs) == (0, 2)
    assert informed.score.spread < 0.8 * alone.score.spread
    assert informed.noise_rate.spread < alone.noise_rate.spread
    assert alone.gain is None
    assert informed.gain is not None


@pytest.mark.parametrize("rate", [0.002, 0.0065])
def test_the_noise_rate_is_learnt_from_scores_and_shrunk_to_what_was_believed(rate: float) -> None:
    rng = np.random.default_rng(5)
    labels, probs = photos(2000, 3, rng)
    scores = [float(board_losses(labels, column, rate).mean()) for column in probs.T]
    made = forecast(
        labels, probs, scores[1:], min(scores), np.arange(2000), COMPETITION, 12_500, n_draws=500
    )
    assert min(rate, 0.004) < made.noise_rate.mean < max(rate, 0.004)
    assert abs(made.noise_rate.mean - rate) < 0.6 * abs(rate - 0.004)
    assert made.score.low < scores[0] < made.score.high


def test_a_drawn_board_has_the_expected_loss_of_its_noise_rate() -> None:
    labels, probs = photos(400, 2, np.random.default_rng(0))
    for rate in (0.0, 0.02):
        drawn = board_draws(labels, probs, np.arange(400), np.full(2000, rate), n_test=1000, seed=0)
        assert drawn.mean(0) == pytest.approx(
            [float(board_losses(labels, column, rate).mean()) for column in probs.T], rel=0.02
        )


def test_near_duplicates_are_drawn_together_so_that_copies_make_no_forecast_surer() -> None:
    labels, probs = photos(300, 1, np.random.default_rng(0))
    rates = np.zeros(500)
    once = board_draws(labels, probs, np.arange(300), rates, n_test=300, seed=0)
    copied = np.repeat(labels, 4), np.repeat(probs, 4, axis=0)
    grouped = board_draws(*copied, np.repeat(np.arange(300), 4), rates, n_test=1200, seed=0)
    single = board_draws(*copied, np.arange(1200), rates, n_test=1200, seed=0)
    assert grouped.std() == pytest.approx(once.std(), rel=0.1)
    assert single.std() < 0.7 * once.std()


def test_rates_have_the_mean_and_spread_that_are_believed_and_none_where_nobody_flips() -> None:
    rates = rate_draws(0.004, 0.001, 20_000, seed=0)
    assert (rates.mean(), rates.std()) == pytest.approx((0.004, 0.001), rel=0.03)
    assert not rate_draws(0.0, 0.001, 10, seed=0).any()
    assert (rate_draws(0.003, 0.0, 10, seed=0) == 0.003).all()


def test_learning_is_the_conditional_distribution_where_everything_is_normal() -> None:
    rng = np.random.default_rng(0)
    shared = rng.normal(0, 1, 200_000)
    draws, known = shared[:, None] * 2 + 1, (shared + rng.normal(0, 0.5, shared.size))[:, None]
    after = learnt(draws, known, [1.5])
    assert after.mean() == pytest.approx(1 + 2 * 1.5 / 1.25, abs=0.01)
    assert after.std() == pytest.approx(2 * np.sqrt(1 - 1 / 1.25), abs=0.01)


def test_copies_of_one_scored_run_teach_what_one_of_them_teaches() -> None:
    labels, probs = photos(500, 1, np.random.default_rng(0))
    one, many = (
        forecast(
            labels, probs[:, [0] * (1 + k)], [0.06] * k, 0.06, np.arange(500), COMPETITION, 1000
        )
        for k in (1, 8)
    )
    assert one.score.mean == pytest.approx(0.06, abs=0.002)
    assert many.score.mean == pytest.approx(0.06, abs=0.002)
    assert many.noise_rate.mean == pytest.approx(one.noise_rate.mean, rel=0.1)
    assert many.noise_rate.spread > 0.8 * one.noise_rate.spread


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return make_workspace(tmp_path)


def scored(workspace: Workspace, run: Path, score: float | None, ref: int) -> None:
    recipe, _, fingerprint = run.name.rpartition("-")
    row = LedgerRow(
        when="2026-01-01T00:00:00Z",
        file=f"{run.name}.csv",
        sha256=f"{ref:064d}",
        recipe=recipe,
        fingerprint=fingerprint,
        commit="none",
        cv_raw=None,
        cv_calibrated=None,
        cv_clipped=None,
        public_score=score,
        status="pending" if score is None else "complete",
        ref=ref,
        message="",
    )
    write_row(workspace.ledger, row)


def foretold(workspace: Workspace, run: Path) -> tuple[Forecast, str]:
    heard = Heard()
    return show_forecast(workspace, COMPETITION, read_run(run), heard), str(heard)


def test_only_scored_runs_that_are_here_and_hold_the_same_photos_are_learnt_from_but_the_best_counts_anyhow(
    workspace: Workspace,
) -> None:
    run, first, second, other = (
        make_run(workspace, name, "0" * 10, seed) for seed, name in enumerate("abcd")
    )
    table = pd.read_csv(other / "oof.csv", dtype={"id": str})
    table[:-8].to_csv(other / "oof.csv", index=False)
    for ref, (name, score) in enumerate(
        [(first, 0.2), (second, None), (other, 0.25), (workspace.runs / "gone-1", 0.1), (run, 0.15)]
    ):
        scored(workspace, name, score, ref)
    made, shown = foretold(workspace, run)
    assert made.n_pairs == 1
    assert "by 1 scores in the ledger" in shown
    assert made.gain is not None
    assert made.gain.mean == pytest.approx(0.1 - made.score.mean, abs=0.01)
    assert "best submission so far (0.10000)" in shown


def test_a_gain_under_its_own_noise_is_warned_of_and_a_clear_one_is_not(
    workspace: Workspace,
) -> None:
    run, first = make_run(workspace, "a", "0" * 10, 0), make_run(workspace, "b", "1" * 10, 1)
    made, shown = foretold(workspace, run)
    assert (made.gain, "warning" in shown) == (None, False)
    assert "no score in the ledger yet" in shown
    assert "rank among 1,315" in shown
    scored(workspace, first, made.score.mean, 1)
    assert "under its own noise" in foretold(workspace, run)[1]
    scored(workspace, first, 3.0, 1)
    assert "warning" not in foretold(workspace, run)[1]


@pytest.mark.parametrize(("gain", "is_lost"), [(-0.01, True), (0.0019, True), (0.0021, False)])
def test_a_gain_is_lost_in_noise_below_one_standard_deviation(gain: float, is_lost: bool) -> None:
    some = Guess(mean=0.03, spread=0.002, low=0.02, high=0.04)
    made = Forecast(score=some, noise_rate=some, gain=replace(some, mean=gain), n_pairs=0)
    assert made.is_lost_in_noise == is_lost
    assert not replace(made, gain=None).is_lost_in_noise


def test_the_forecast_does_not_look_at_single_test_photos(workspace: Workspace) -> None:
    run = make_run(workspace)
    before = foretold(workspace, run)
    table = pd.read_csv(run / "test.csv", dtype={"id": str})
    rng: NDArray[np.float64] = np.random.default_rng(0).uniform(0.01, 0.99, len(table))
    table.assign(prob=rng, logit=rng).to_csv(run / "test.csv", index=False)
    assert foretold(workspace, run) == before


def test_a_noise_rate_that_scores_contradict_is_told_and_not_applied(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A board of 40 photos can tell little, so that the belief is made wide here."""
    wide = replace(COMPETITION, noise_rate=0.05, noise_spread=0.045)
    monkeypatch.setattr(module, "MISFIT", 0.0)
    runs = [make_run(workspace, name, "0" * 10, 0) for name in "ab"]
    scored(workspace, runs[1], 2.0, 1)
    heard = Heard()
    made = show_forecast(workspace, wide, read_run(runs[0]), heard)
    assert made.noise_rate.low > 0.05
    assert f"SET=prediction.noise_rate={made.noise_rate.mean:.4f} fits better" in str(heard)
    assert read_run(runs[0]).settings.noise_rate == 0.004


def test_too_few_photos_make_no_forecast(workspace: Workspace) -> None:
    run = make_run(workspace)
    table = pd.read_csv(run / "oof.csv", dtype={"id": str})
    table[:15].to_csv(run / "oof.csv", index=False)
    with pytest.raises(DataError, match="15 out-of-fold photos are too few"):
        foretold(workspace, run)
