"""The bytes of a submission, and each problem that stops or warns before an upload."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from comp.competition import COMPETITION
from comp.errors import SubmissionError
from comp.submit import csvfile

SAMPLE_IDS = [str(n) for n in range(40)]


def tables(*, flip_test: bool = False, flip_oof: bool = False) -> dict[str, pd.DataFrame]:
    """Good predictions of 40 test photos, each with one labelled near-duplicate."""
    numbers = np.arange(40)
    labels, wave = numbers % 2, np.sin(numbers)
    probs = np.where(labels == 1, 0.95, 0.05) + 0.01 * wave
    logits = np.where(labels == 1, 2.0, -2.0) + wave
    groups = pd.array(numbers, dtype="Int64")
    return {
        "predictions": pd.DataFrame({"id": SAMPLE_IDS, "prob": 1 - probs if flip_test else probs}),
        "oof": pd.DataFrame({"label": labels, "logit": -logits if flip_oof else logits}),
        "train": pd.DataFrame({"group": groups, "label": pd.array(labels, dtype="Int8")}),
        "test": pd.DataFrame({"id": SAMPLE_IDS, "group": groups}),
    }


def check(**changed: pd.DataFrame) -> list[str]:
    given = tables() | changed
    run: Any = SimpleNamespace(
        predictions=given["predictions"], oof=given["oof"], figures=SimpleNamespace(clip=0.005)
    )
    return csvfile.check_submission(run, SAMPLE_IDS, given["train"], given["test"], COMPETITION)


def refusal(**changed: pd.DataFrame) -> str:
    with pytest.raises(SubmissionError) as caught:
        check(**changed)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def predictions(row: int, **cells: object) -> pd.DataFrame:
    """Good predictions with other cells in one row."""
    table = tables()["predictions"]
    for column, cell in cells.items():
        table.loc[row, column] = cell
    return table


def test_the_file_keeps_the_order_of_ids_and_has_lf_line_ends_and_no_exponents(
    tmp_path: Path,
) -> None:
    path = tmp_path / "s.csv"
    csvfile.write_submission(path, ["1", "10", "2", "100"], [0.5, 1e-7, 0.995, 1.0], COMPETITION)
    assert path.read_bytes() == b"id,label\n1,0.5\n10,0.0000001\n2,0.995\n100,1.0\n"


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_every_probability_reads_back_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, probs: list[float]
) -> None:
    path = tmp_path_factory.getbasetemp() / "round_trip.csv"
    csvfile.write_submission(path, [str(n) for n in range(len(probs))], probs, COMPETITION)
    assert [float(line.split(",")[1]) for line in path.read_text().splitlines()[1:]] == probs


def test_unequal_numbers_of_ids_and_probabilities_are_a_bug_and_keep_the_old_file(
    tmp_path: Path,
) -> None:
    path = tmp_path / "s.csv"
    path.write_text("old")
    with pytest.raises(ValueError, match="same length"):
        csvfile.write_submission(path, SAMPLE_IDS, [0.5], COMPETITION)
    assert [each.read_text() for each in tmp_path.iterdir()] == ["old"]


def test_good_predictions_pass_without_a_warning_in_any_order_of_rows() -> None:
    shuffled = {name: table.sample(frac=1, random_state=0) for name, table in tables().items()}
    assert check() == check(**shuffled) == []
    perfect = tables()["predictions"].assign(prob=np.arange(40) % 2 * 0.9 + 0.05)
    assert check(predictions=perfect) == []


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (tables()["predictions"][:-1], "39 predictions for 40 ids: 1 is missing"),
        (tables()["predictions"][:0], "0 predictions for 40 ids: 40 are missing"),
        (predictions(1, id="01"), "40 predictions for 40 ids: 2 are missing"),
        (predictions(7, id="8"), "40 predictions for 40 ids: 1 is missing"),
        (predictions(39, id="cat.1"), "40 predictions for 40 ids: 2 are missing"),
    ],
)
def test_ids_that_are_missing_or_unexpected_are_counted_and_compared_as_text(
    table: pd.DataFrame, words: str
) -> None:
    assert refusal(predictions=table).startswith(words)


@pytest.mark.parametrize("value", [0.0049, 0.9951, -1.0, 2.0])
def test_a_probability_outside_the_clip_is_refused(value: float) -> None:
    line = refusal(predictions=predictions(5, prob=value))
    assert line.startswith("1 of 40 probabilities are not in [0.005, 0.995]")


@pytest.mark.parametrize("clip", [0.05, 0.03, 0.01, 0.005, 0.0005, 1e-7])
def test_a_probability_at_the_clip_is_inside_it(clip: float) -> None:
    csvfile.check_probs(np.array([clip, 1 - clip, float(f"{1 - clip:.10g}")]), clip)


def test_classes_swapped_in_training_are_detected_out_of_fold() -> None:
    line = refusal(oof=tables(flip_oof=True)["oof"])
    assert line.startswith("the classes are swapped: 40 out-of-fold predictions have log loss")
    assert "label 1 means dog" in line


def test_a_model_that_guesses_gets_a_warning_and_is_not_called_swapped() -> None:
    rng = np.random.default_rng(1)
    labels, logits = rng.integers(0, 2, 400), rng.normal(0, 1, 400)
    signs = np.where(labels == 1, 1, -1)
    logits -= 0.02 + (signs * logits).mean() * signs
    (warning,) = check(oof=pd.DataFrame({"label": labels, "logit": logits}))
    assert "no better than chance" in warning


def test_classes_swapped_in_prediction_are_detected_by_near_duplicates() -> None:
    line = refusal(predictions=tables(flip_test=True)["predictions"])
    assert line.startswith("the classes are swapped: predictions of 40 test photos correlate by -")


def test_near_duplicates_are_matched_by_group_and_id_and_never_by_position() -> None:
    shuffled = {name: table.sample(frac=1, random_state=1) for name, table in tables().items()}
    assert check(**shuffled | {"test": tables()["test"]}) == []


def test_only_groups_whose_known_labels_agree_are_matched() -> None:
    more = pd.DataFrame({"group": [0, 1, 2], "label": [1, 0, pd.NA]})
    train = pd.concat([tables()["train"], more]).astype({"label": "Int8"})
    line = refusal(predictions=tables(flip_test=True)["predictions"], train=train)
    assert "predictions of 38 test photos" in line  # the unknown label in group 2 is ignored


TRAIN = tables()["train"]


@pytest.mark.parametrize(
    "train", [TRAIN[:0], TRAIN[:1], TRAIN[: csvfile.MIN_NEIGHBOURS - 1], TRAIN[TRAIN["label"] == 1]]
)
def test_few_near_duplicates_or_those_of_one_class_prove_nothing(train: pd.DataFrame) -> None:
    assert check(predictions=tables(flip_test=True)["predictions"], train=train) == []


def test_constant_predictions_get_a_warning() -> None:
    table = tables()["predictions"].assign(prob=0.5)
    assert check(predictions=table) == ["all 40 predictions are the same, 0.5"]
