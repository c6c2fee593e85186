"""Calibration: formulas against brute force, bounds, held-out labels, the published clip scores."""

import math
from statistics import NormalDist

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.isotonic import IsotonicRegression

from comp import metric
from comp.competition import COMPETITION
from comp.errors import DataError, RecipeError, TrainingError
from comp.metric import Floats
from comp.options import restored
from comp.predict import calibrate as cal
from comp.recipe import Method, Prediction

METHODS: tuple[Method, ...] = ("none", "temperature", "platt", "beta", "isotonic")
NOISY = cal.Settings(noise_rate=0.004, clip=0.005)


def overconfident(n: int = 2000) -> tuple[Floats, NDArray[np.int64]]:
    """Logits that are 2.5 times too large, and labels drawn from the right ones."""
    rng = np.random.default_rng(0)
    z = rng.normal(0, 3, n)
    return z * 2.5, (rng.random(n) < 1 / (1 + np.exp(-z))).astype(np.int64)


def temperature(logits: object, labels: object) -> float:
    curve = cal.fit_curve("temperature", logits, labels)  # type: ignore[arg-type]
    assert isinstance(curve, cal.Curve)
    return 1 / curve.above


@pytest.mark.parametrize("scale", [1.0, 0.3, 4.0])
def test_the_temperature_has_the_least_log_loss_of_a_fine_grid_at_any_scale(scale: float) -> None:
    logits, labels = overconfident()
    fitted = temperature(logits * scale, labels)
    grid = np.exp(np.linspace(math.log(cal.MIN_TEMPERATURE), math.log(cal.MAX_TEMPERATURE), 2001))
    losses = [metric.logit_log_loss(labels, logits * scale / t) for t in grid]
    assert metric.logit_log_loss(labels, logits * scale / fitted) <= min(losses)
    assert fitted == pytest.approx(float(grid[int(np.argmin(losses))]), rel=2e-3)
    assert fitted == pytest.approx(2.5 * scale, rel=0.1)


def test_fits_to_separable_and_misleading_logits_end_at_the_documented_bounds() -> None:
    labels = np.array([0, 0, 1, 1])
    assert temperature([-3.0, -1.0, 1.0, 3.0], labels) == pytest.approx(cal.MIN_TEMPERATURE)
    assert temperature([3.0, 1.0, -1.0, -3.0], labels) == pytest.approx(cal.MAX_TEMPERATURE)
    # where every sigmoid underflows
    assert temperature([-3e4, -1e4, 1e4, 3e4], labels) == pytest.approx(cal.MIN_TEMPERATURE)
    logits, truth = overconfident()
    curve = cal.fit_curve("beta", logits, 1 - truth)
    assert isinstance(curve, cal.Curve)
    assert curve.below == curve.above == 1 / cal.MAX_TEMPERATURE


@pytest.mark.parametrize(
    ("logits", "labels", "words"),
    [([0.3, 0.3, 0.3], [0, 1, 1], "all 3 are 0.3"), ([], [], "there are none")],
)
def test_logits_that_cannot_be_calibrated_end_in_one_clear_line(
    logits: list[float], labels: list[int], words: str
) -> None:
    with pytest.raises(TrainingError, match=words) as caught:
        cal.fit_curve("none", logits, labels)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", METHODS)
def test_no_curve_changes_the_order_of_two_photos_or_is_quite_certain(method: Method) -> None:
    logits, labels = overconfident()
    # as they are, misleading, separable, one class
    for truth in (labels, 1 - labels, (logits > 0).astype(int), labels * 0):
        probs = cal.fit_curve(method, logits, truth).probs(np.linspace(-20, 20, 400))
        assert (np.diff(probs) >= 0).all()
        assert np.isfinite(metric.per_photo_loss(np.arange(400) % 2, probs)).all()


@pytest.mark.parametrize(
    ("method", "curve"),
    [
        ("platt", cal.Curve(below=0.5, above=0.5, shift=-1.0)),
        ("beta", cal.Curve(below=0.4, above=1.5, shift=0.3)),
    ],
)
def test_platt_and_beta_find_the_curve_that_made_the_labels_and_no_other_has_less_loss(
    method: Method, curve: cal.Curve
) -> None:
    rng = np.random.default_rng(3)
    z = rng.normal(0, 3, 20_000)
    labels = (rng.random(z.size) < curve.probs(z)).astype(np.int64)
    found = cal.fit_curve(method, z, labels)
    assert isinstance(found, cal.Curve)
    values = np.array([found.below, found.above, found.shift])
    assert values == pytest.approx([curve.below, curve.above, curve.shift], abs=0.1)
    assert (found.below == found.above) == (method == "platt")
    steps = np.array([(0.01, 0.01, 0), (0, 0, 0.01)] + [(0.01, -0.01, 0)] * (method == "beta"))
    for step in (*steps, *-steps):
        below, above, shift = values + step
        other = cal.Curve(below=below, above=above, shift=shift)
        assert metric.log_loss(labels, other.probs(z)) > metric.log_loss(labels, found.probs(z))


def test_isotonic_steps_are_those_of_scikit_learn_but_never_quite_certain() -> None:
    logits, labels = overconfident(500)
    logits = logits.round(1)  # with ties
    found = cal.fit_curve("isotonic", logits, labels)
    reference = IsotonicRegression(y_min=1 / 502, y_max=501 / 502, out_of_bounds="clip")
    grid = np.linspace(-30, 30, 999)
    expected = reference.fit(logits, labels).predict(grid)
    np.testing.assert_allclose(found.probs(grid), expected, atol=1e-9)


def test_what_is_submitted_is_mixed_for_flips_and_then_clipped() -> None:
    settings = cal.Settings(noise_rate=0.004, clip=0.01)
    probs = cal.Curve(below=0.5, above=0.5).probs([[3.0, -1e4, 1e4]])
    p = 1 / (1 + math.exp(-1.5))
    assert settings.finish(probs)[0].tolist() == pytest.approx(
        [p * 0.996 + (1 - p) * 0.004, 0.01, 0.99], rel=1e-14
    )


@pytest.mark.parametrize(("noise_rate", "clip"), [(0.5, 0.0), (0.0, -0.1), (0.0, math.nan)])
def test_settings_out_of_range_are_refused(noise_rate: float, clip: float) -> None:
    with pytest.raises(RecipeError):
        restored(cal.Settings, {"noise_rate": noise_rate, "clip": clip})


def test_the_noise_rate_is_the_competitions_unless_the_recipe_has_one() -> None:
    assert cal.settings_of(Prediction(), COMPETITION).noise_rate == COMPETITION.noise_rate == 0.004
    assert cal.settings_of(Prediction(noise_rate=0.0), COMPETITION).noise_rate == 0.0


def test_probabilities_mixed_for_flips_have_the_least_expected_loss_on_a_flipped_board() -> None:
    truth = np.array([0.02, 0.4, 0.999])
    best = truth * 0.995 + (1 - truth) * 0.005
    least = cal.board_losses(truth, best, 0.005).mean()
    for other in (truth, np.clip(best * 1.1, 0, 1), best * 0.9):
        assert least < cal.board_losses(truth, other, 0.005).mean()


def test_the_labels_of_a_fold_do_not_affect_the_probabilities_of_that_fold() -> None:
    logits, labels = overconfident()
    folds = np.arange(labels.size) % 5
    honest = cal.cross_fitted(logits, labels, folds, NOISY)
    after = cal.cross_fitted(logits, np.where(folds == 3, 1 - labels, labels), folds, NOISY)
    assert np.array_equal(honest[folds == 3], after[folds == 3])
    assert all((honest[folds == fold] != after[folds == fold]).any() for fold in (0, 1, 2, 4))


def test_cross_fitting_does_not_depend_on_the_order_of_the_photos() -> None:
    logits, labels = overconfident(500)
    folds = np.arange(labels.size) % 5
    order = np.random.default_rng(1).permutation(labels.size)
    there = cal.cross_fitted(logits, labels, folds, NOISY)
    back = cal.cross_fitted(logits[order], labels[order], folds[order], NOISY)
    np.testing.assert_allclose(back, there[order], rtol=1e-12)


def test_cross_fitting_needs_two_folds() -> None:
    with pytest.raises(DataError, match="got 1"):
        cal.cross_fitted([0.1, 0.2], [0, 1], [0, 0], NOISY)


def test_a_calibrated_loss_is_better_than_a_raw_one_for_an_overconfident_model() -> None:
    logits, labels = overconfident()
    losses = cal.out_of_fold_losses(logits, labels, np.arange(labels.size) % 5, NOISY)
    assert losses["cv_raw"] == metric.logit_log_loss(labels, logits)
    assert losses["cv_calibrated"] < losses["cv_raw"] - 0.05
    assert losses["cv_clipped"] == pytest.approx(losses["cv_calibrated"], abs=0.01)


# clip -> score on this leaderboard of the same predictions of one InceptionV3
PUBLISHED = {0: 0.0948, 0.05: 0.08616, 0.03: 0.06928, 0.01: 0.05569, 0.005: 0.0544, 0.0005: 0.05978}


def one_overconfident_model(n: int = 12_500) -> tuple[Floats, Floats]:
    """Synthetic probabilities and the truth behind them: logits of the true class are normal.

    Mean and width, the overconfidence 1.318 and the noise rate of .00423 below were fitted to the
    published scores: four numbers for six points, each met to 0.3 %. That noise rate agrees with
    other evidence, which says 0.3 to 0.5 %.
    """
    normal = NormalDist(11.735, 5.3)
    calibrated = np.array([normal.inv_cdf((rank + 0.5) / n) for rank in range(n)])
    return metric.sigmoid(1.318 * calibrated), metric.sigmoid(calibrated)


def on_board(probs: Floats, truth: Floats, noise_rate: float, clip: float) -> float:
    return float(cal.board_losses(truth, np.clip(probs, clip, 1 - clip), noise_rate).mean())


def test_one_overconfident_model_and_label_noise_explain_the_published_scores_of_six_clips() -> (
    None
):
    probs, truth = one_overconfident_model()
    scores = {clip: on_board(probs, truth, 0.00423, clip) for clip in PUBLISHED}
    assert min(scores, key=scores.__getitem__) == 0.005
    assert sorted(scores, key=scores.__getitem__) == sorted(PUBLISHED, key=PUBLISHED.__getitem__)
    for clip, published in PUBLISHED.items():
        assert scores[clip] == pytest.approx(published, rel=0.005)


def test_a_clip_chosen_on_clean_labels_is_too_small_for_the_board() -> None:
    probs, truth = one_overconfident_model()
    clips = [0, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.03, 0.05]
    clean, noisy = (
        min(clips, key=lambda clip: on_board(probs, truth, rate, clip)) for rate in (0.0, 0.00423)
    )
    assert clean < noisy == 0.005
