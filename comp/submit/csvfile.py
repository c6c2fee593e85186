"""The CSV that Kaggle scores: its bytes, and everything that must hold before it is uploaded."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from comp.competition import Competition
from comp.errors import SubmissionError
from comp.metric import Floats, logit_log_loss
from comp.predict.runs import FinishedRun
from comp.progress import counted
from comp.store import write_table

SIGNIFICANT = 3.0  # standard errors below zero at which the classes count as swapped, not as noise
MIN_NEIGHBOURS = 10  # test photos with a labelled near-duplicate; fewer prove nothing
ROUNDING = 1e-9  # by which a probability may exceed the clip, as a rounded 1 - clip does


def write_submission(
    path: Path, ids: Sequence[str], probs: Sequence[float], competition: Competition
) -> None:
    """`ids` and `probs` in this order, without exponents, in digits that read back bit for bit."""
    id_column, prob_column = competition.columns
    digits = [np.format_float_positional(prob, trim="0") for prob in probs]
    write_table(path, pd.DataFrame({id_column: list(ids), prob_column: digits}))


def check_submission(
    run: FinishedRun,
    sample_ids: Sequence[str],
    train: pd.DataFrame,
    test: pd.DataFrame,
    competition: Competition,
) -> list[str]:
    """Warnings that do not stop an upload. SubmissionError for the first problem that must.

    `train` and `test` are the manifests. That numbers are finite and ids unique has been checked
    where they were read.
    """
    probs = run.predictions["prob"].to_numpy(np.float64)
    check_ids(run.predictions["id"].tolist(), sample_ids, test)
    check_probs(probs, run.figures.clip)
    warnings = check_oof(run.oof, competition)
    check_neighbours(run.predictions, train, test, competition)
    if probs.size > 1 and np.ptp(probs) == 0:
        warnings.append(f"all {probs.size:,} predictions are the same, {probs[0]:g}")
    return warnings


def check_ids(ids: Sequence[str], sample_ids: Sequence[str], test: pd.DataFrame) -> None:
    """Each id of the sample, and no other; the manifest `test` tells which file is wrong."""
    wrong = sorted({*ids} ^ {*sample_ids})
    is_manifest_right = sorted(sample_ids) == sorted(test["id"])
    file = "the run's test.csv" if is_manifest_right else "data/test.csv"
    if wrong:
        raise SubmissionError(
            f"{counted(len(ids), 'prediction')} for {counted(len(sample_ids), 'id')}:"
            f" {counted(len(wrong), 'is', 'are')} missing or unexpected, such as {wrong[0]};"
            f" delete {file} and run `make data predict` again"
        )


def check_probs(probs: Floats, clip: float) -> None:
    """All within `clip` and its complement."""
    n_outside = np.count_nonzero(np.abs(probs - 0.5) > 0.5 - clip + ROUNDING)
    if n_outside:
        raise SubmissionError(
            f"{n_outside:,} of {probs.size:,} probabilities are not in [{clip:g}, {1 - clip:g}],"
            " the range of the clip: delete the run's test.csv and run `make predict` again"
        )


def check_oof(oof: pd.DataFrame, competition: Competition) -> list[str]:
    """Refuse out-of-fold predictions that are significantly better when flipped; else warn.

    Flipping raises log loss by the logit of a photo's own class, whose mean decides.
    """
    labels, logits = (oof[column].to_numpy(np.float64) for column in ("label", "logit"))
    margin = np.where(labels > 0.5, logits, -logits)
    if margin.mean() >= 0:
        return []
    flipped, unflipped = (logit_log_loss(labels, each) for each in (-logits, logits))
    losses = f"log loss {flipped:.5f} flipped, {unflipped:.5f} as they are"
    if margin.mean() < -SIGNIFICANT * margin.std() / np.sqrt(margin.size):
        raise SubmissionError(
            f"the classes are swapped: {labels.size:,} out-of-fold predictions have {losses}; check"
            f" that label 1 means {competition.classes[1]} in data/train.csv, then train again"
        )
    return [f"out-of-fold predictions are no better than chance ({losses})"]


def check_neighbours(
    predictions: pd.DataFrame, train: pd.DataFrame, test: pd.DataFrame, competition: Competition
) -> None:
    """Refuse predictions that contradict the labels of near-duplicates in the training set.

    Groups whose labels disagree do not count. Fisher: atanh(r) has standard error 1 / sqrt(n - 3).
    """
    labels = train.dropna(subset="label").groupby("group")["label"].agg(["first", "nunique"])
    agreed = labels["first"][labels["nunique"] == 1].astype(np.float64)
    near = test[["id", "group"]].merge(predictions[["id", "prob"]], on="id")
    near = near.join(agreed.rename("truth"), on="group", how="inner")
    if len(near) < MIN_NEIGHBOURS or near[["truth", "prob"]].nunique().min() < 2:
        return
    correlation = near["truth"].corr(near["prob"])
    z = np.arctanh(np.clip(correlation, -0.999999, 0.999999)) * np.sqrt(len(near) - 3)
    if z < -SIGNIFICANT:
        raise SubmissionError(
            f"the classes are swapped: predictions of {len(near):,} test photos correlate by"
            f" {correlation:.2f} with the labels of their near-duplicates in the training set;"
            f" check that {competition.columns[1]} is P({competition.classes[1]}),"
            " then run `make predict` again"
        )
