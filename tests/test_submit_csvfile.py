"""The submission's bytes, and each way in which it may be off."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from comp.competition import COMPETITION
from comp.errors import SubmissionError
from comp.submit import csvfile

IDS = ["1", "10", "2", "100"]


def tables(n: int = 40, flip_test: bool = False, flip_oof: bool = False) -> dict[str, pd.DataFrame]:
    """Sound predictions of `n` test photos, each with one labelled near-duplicate."""
    labels = np.arange(n) % 2
    probs = np.where(labels == 1, 0.95, 0.05) + 0.01 * np.sin(np.arange(n))
    logits = np.where(labels == 1, 2.0, -2.0) + np.sin(np.arange(n))
    ids = [str(number) for number in range(n)]
    return {
        "predictions": pd.DataFrame({"id": ids, "prob": 1 - probs if flip_test else probs}),
        "oof": pd.DataFrame({"label": labels, "logit": -logits if flip_oof else logits}),
        "train": pd.DataFrame(
            {"group": pd.array(range(n), dtype="Int64"), "label": pd.array(labels, dtype="Int8")}
        ),
        "test": pd.DataFrame({"id": ids, "group": pd.array(range(n), dtype="Int64")}),
    }


def check(
    sample_ids: list[str] | None = None, clip: float = 0.005, **changed: pd.DataFrame
) -> list[str]:
    given_tables = tables() | changed
    return csvfile.check_submission(
        given_tables["predictions"],
        sample_ids or [str(number) for number in range(40)],
        COMPETITION,
        clip=clip,
        oof=given_tables["oof"],
        train=given_tables["train"],
        test=given_tables["test"],
    )


def refusal(**changed: object) -> str:
    with pytest.raises(SubmissionError) as caught:
        check(**changed)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_bytes_are_id_and_label_in_the_given_order_with_lf_and_no_exponent(
    tmp_path: Path,
) -> None:
    csvfile.write_submission(tmp_path / "s.csv", IDS, [0.5, 1e-7, 0.995, 1.0], COMPETITION)
    assert (tmp_path / "s.csv").read_bytes() == b"id,label\n1,0.5\n10,0.0000001\n2,0.995\n100,1.0\n"


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_every_probability_reads_back_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, probs: list[float]
) -> None:
    path = tmp_path_factory.getbasetemp() / "round_trip.csv"
    csvfile.write_submission(path, [str(n) for n in range(len(probs))], probs, COMPETITION)
    assert [float(line.split(",")[1]) for line in path.read_text().splitlines()[1:]] == probs


def test_ids_and_probabilities_of_different_number_are_a_bug_and_leave_the_old_file(
    tmp_path: Path,
) -> None:
    path = tmp_path / "s.csv"
    path.write_text("old")
    with pytest.raises(ValueError, match="shorter"):
        csvfile.write_submission(path, IDS, [0.5], COMPETITION)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_sound_predictions_pass_without_a_remark_whatever_the_order_of_their_rows() -> None:
    shuffled = {name: table.sample(frac=1, random_state=0) for name, table in tables().items()}
    assert check() == check(**shuffled) == []


def test_missing_extra_and_doubled_ids_are_counted_and_named_together() -> None:
    predictions = tables()["predictions"]
    predictions.loc[predictions["id"] == "7", "id"] = "8"
    predictions.loc[predictions["id"] == "39", "id"] = "cat.1"
    line = refusal(predictions=predictions)
    assert line.startswith(
        "40 predictions for 40 ids: 2 ids (7, 39) missing; 1 id (cat.1) not asked for; 1 id (8) given more than once;"
    )


def test_a_wrong_number_of_rows_is_refused() -> None:
    assert refusal(predictions=tables()["predictions"][:-1]).startswith(
        "39 predictions for 40 ids: 1 id (39) missing"
    )
    assert refusal(predictions=tables()["predictions"][:0]).startswith(
        "0 predictions for 40 ids: 40 ids (0, 1, 2, ...) missing"
    )


def test_ids_are_compared_as_text_so_that_01_is_not_1() -> None:
    predictions = tables()["predictions"]
    predictions.loc[1, "id"] = "01"
    assert "1 id (1) missing; 1 id (01) not asked for" in refusal(predictions=predictions)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_probability_that_is_no_finite_number_is_refused(value: float) -> None:
    predictions = tables()["predictions"]
    predictions.loc[5, "prob"] = value
    assert refusal(predictions=predictions).startswith(
        "1 of 40 probabilities are not finite numbers"
    )


@pytest.mark.parametrize("value", [0.0049, 0.9951, -1.0, 2.0])
def test_a_probability_outside_the_clip_is_refused(value: float) -> None:
    predictions = tables()["predictions"]
    predictions.loc[5, "prob"] = value
    assert refusal(predictions=predictions).startswith("1 of 40 probabilities are outside the clip")


@pytest.mark.parametrize("clip", [0.05, 0.03, 0.01, 0.005, 0.0005, 1e-7])
def test_a_probability_at_the_clip_is_inside_it(clip: float) -> None:
    csvfile.check_values(np.array([clip, 1 - clip, float(f"{1 - clip:.10g}")]), clip)


def test_classes_swapped_in_training_are_told_by_the_out_of_fold_orientation() -> None:
    line = refusal(oof=tables(flip_oof=True)["oof"])
    assert line.startswith("the classes are swapped: 40 out-of-fold predictions have a log loss of")
    assert "label 1 means dog" in line


def test_a_model_that_guesses_is_remarked_on_and_not_called_swapped() -> None:
    rng = np.random.default_rng(1)
    guesses = pd.DataFrame({"label": rng.integers(0, 2, 400), "logit": rng.normal(0, 1, 400)})
    guesses["logit"] -= 0.02 + (
        np.where(guesses["label"] == 1, 1, -1) * guesses["logit"]
    ).mean() * np.where(guesses["label"] == 1, 1, -1)
    (remark,) = check(oof=guesses)
    assert "no better than their opposites" in remark


def test_out_of_fold_logits_that_are_missing_are_refused() -> None:
    oof = tables()["oof"]
    oof.loc[3, "logit"] = math.nan
    assert refusal(oof=oof).startswith("only 39 of 40 out-of-fold logits are finite")
    assert refusal(oof=oof[:0]).startswith("only 0 of 0 out-of-fold logits are finite")


def test_classes_swapped_in_prediction_are_told_by_the_labels_of_near_duplicates() -> None:
    line = refusal(predictions=tables(flip_test=True)["predictions"])
    assert line.startswith(
        "the classes are swapped: over 40 test photos with near-duplicates in the training set"
    )


def test_near_duplicates_are_matched_by_group_and_id_and_never_by_position() -> None:
    given_tables = tables()
    shuffled = {
        name: given_tables[name].sample(frac=1, random_state=n)
        for n, name in enumerate(("predictions", "train", "test"))
    }
    matched = csvfile.neighbours(shuffled["predictions"], shuffled["train"], shuffled["test"])
    assert len(matched) == 40
    assert ((matched["prob"] > 0.5) == (matched["label"] == 1)).all()


def test_only_groups_whose_labels_are_known_and_agree_say_anything() -> None:
    given_tables = tables()
    train = pd.concat(
        [given_tables["train"], pd.DataFrame({"group": [0, 1, 2], "label": [1, 0, pd.NA]})]
    ).astype({"label": "Int8"})
    matched = csvfile.neighbours(given_tables["predictions"], train, given_tables["test"])
    assert (
        len(matched) == 38
    )  # groups 0 and 1 disagree; an unknown label in group 2 takes nothing away


@pytest.mark.parametrize("n", [0, 1, csvfile.MIN_NEIGHBOURS - 1])
def test_too_few_near_duplicates_prove_nothing(n: int) -> None:
    flipped = tables(flip_test=True)
    assert check(predictions=flipped["predictions"], train=flipped["train"][:n]) == []


def test_near_duplicates_of_one_class_prove_nothing() -> None:
    flipped = tables(flip_test=True)
    assert (
        check(
            predictions=flipped["predictions"],
            train=flipped["train"][flipped["train"]["label"] == 1],
        )
        == []
    )


def test_constant_predictions_are_remarked_on() -> None:
    predictions = tables()["predictions"].assign(prob=0.5)
    assert check(predictions=predictions) == [
        "all 40 predictions are 0.5: this submission can only score what a constant does"
    ]
