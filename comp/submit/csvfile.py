"""The file that Kaggle scores: what must be true of it before it may cost a slot, and its bytes."""

import csv
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from comp.competition import Competition
from comp.errors import SubmissionError
from comp.metric import logit_log_loss
from comp.store import write_text

BEYOND_CHANCE = 3.0  # standard errors on the wrong side of nothing at which predictions count as swapped, not as poor
MIN_NEIGHBOURS = 10  # test photos with a labelled near-duplicate; fewer say too little
LAST_DIGITS = 1e-9  # by which a probability may pass the clip: a rounded 1 - clip


def write_submission(
    path: Path,
    ids: Sequence[str],
    probs: Sequence[float] | NDArray[np.float64],
    competition: Competition,
) -> None:
    """`ids` and `probs` side by side, in this order: LF line ends, no exponents, as many digits as read back bit for bit."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(competition.columns)
    lines.writerows(
        (name, np.format_float_positional(prob, trim="0"))
        for name, prob in zip(ids, probs, strict=True)
    )
    write_text(path, text.getvalue())


def check_submission(
    predictions: pd.DataFrame,
    sample_ids: Sequence[str],
    competition: Competition,
    *,
    clip: float,
    oof: pd.DataFrame,
    train: pd.DataFrame,
    test: pd.DataFrame,
) -> list[str]:
    """Remarks that do not stop an upload; what must stop it is raised as a SubmissionError, the first of them.

    `predictions` (id, prob), `oof` (label, logit: raw, out-of-fold), `train` (label, group) and `test` (id, group) are tables
    whose rows may stand in any order.
    """
    check_ids(predictions["id"].tolist(), sample_ids)
    check_values(predictions["prob"].to_numpy(np.float64), clip)
    remarks = check_out_of_fold(
        oof["label"].to_numpy(np.float64), oof["logit"].to_numpy(np.float64), competition
    )
    known = neighbours(predictions, train, test)
    check_neighbours(
        known["label"].to_numpy(np.float64), known["prob"].to_numpy(np.float64), competition
    )
    return remarks + constant(predictions["prob"].to_numpy(np.float64))


def check_ids(ids: Sequence[str], sample_ids: Sequence[str]) -> None:
    """Each id of the sample once, and no other."""
    wanted, given = set(sample_ids), set(ids)
    faults = {
        "missing": [name for name in sample_ids if name not in given],
        "not asked for": sorted(given - wanted),
        "given more than once": [name for name, n in Counter(ids).items() if n > 1],
    }
    if any(faults.values()):
        found = "; ".join(f"{_some(names)} {fault}" for fault, names in faults.items() if names)
        raise SubmissionError(
            f"{len(ids):,} predictions for {len(sample_ids):,} ids: {found}; run `make data` and `make predict` again"
        )


def _some(names: Sequence[str]) -> str:
    """How many, and the first three by name."""
    return f"{len(names):,} {'id' if len(names) == 1 else 'ids'} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"


def check_values(probs: NDArray[np.float64], clip: float) -> None:
    n_strange = int(np.count_nonzero(~np.isfinite(probs)))
    if n_strange:
        raise SubmissionError(
            f"{n_strange:,} of {probs.size:,} probabilities are not finite numbers: run `make predict` again"
        )
    n_outside = int(
        np.count_nonzero((probs < clip - LAST_DIGITS) | (probs > 1 - clip + LAST_DIGITS))
    )
    if n_outside:
        seen, allowed = f"[{probs.min():.6g}, {probs.max():.6g}]", f"[{clip:g}, {1 - clip:g}]"
        raise SubmissionError(
            f"{n_outside:,} of {probs.size:,} probabilities are outside the clip, in {seen} and not in {allowed}: run `make predict` again"
        )


def check_out_of_fold(
    labels: NDArray[np.float64], logits: NDArray[np.float64], competition: Competition
) -> list[str]:
    """Refuses a model whose out-of-fold predictions have a lower log loss flipped, beyond chance; short of that, remarks on it.

    Flipped, a prediction's log loss is larger by the logit of the photo's own class: the mean of that logit decides, with its
    own standard error.
    """
    n_finite = int(np.count_nonzero(np.isfinite(logits)))
    if not n_finite or n_finite < logits.size:
        raise SubmissionError(
            f"only {n_finite:,} of {logits.size:,} out-of-fold logits are finite numbers: run `make train` again"
        )
    gained = np.where(labels > 0.5, logits, -logits)
    if gained.mean() >= 0:
        return []
    losses = f"{logit_log_loss(labels, -logits):.5f} flipped against {logit_log_loss(labels, logits):.5f}"
    if gained.mean() < -BEYOND_CHANCE * gained.std() / np.sqrt(gained.size):
        raise SubmissionError(
            f"the classes are swapped: {labels.size:,} out-of-fold predictions have a log loss of {losses}; "
            f"see that label 1 means {competition.classes[1]} in data/train.csv, then train again"
        )
    return [
        f"out-of-fold predictions are no better than their opposites (log loss {losses}): this submission can teach nothing"
    ]


def neighbours(predictions: pd.DataFrame, train: pd.DataFrame, test: pd.DataFrame) -> pd.DataFrame:
    """`prob` and `label` of each test photo that shares a group with labelled training photos of one class."""
    known = (
        train[["group", "label"]].dropna().astype({"label": np.float64}).groupby("group")["label"]
    )
    labels = known.first()[known.nunique() == 1]
    grouped = test[["id", "group"]].dropna().merge(predictions[["id", "prob"]], on="id")
    return grouped.join(labels, on="group", how="inner")[["prob", "label"]]


def check_neighbours(
    labels: NDArray[np.float64], probs: NDArray[np.float64], competition: Competition
) -> None:
    """Refuses test predictions that run against the labels of their near-duplicates, where there are enough of both classes to tell.

    Correlation by Fisher's z: atanh(r) has the standard error 1 / sqrt(n - 3).
    """
    if labels.size < MIN_NEIGHBOURS or np.ptp(labels) == 0 or np.ptp(probs) == 0:
        return
    correlation = float(np.corrcoef(labels, probs)[0, 1])
    if (
        np.arctanh(np.clip(correlation, -0.999999, 0.999999)) * np.sqrt(labels.size - 3)
        < -BEYOND_CHANCE
    ):
        raise SubmissionError(
            f"the classes are swapped: over {labels.size:,} test photos with near-duplicates in the training set, predictions and labels "
            f"correlate by {correlation:.2f}; see that {competition.columns[1]} is P({competition.classes[1]}), then `make predict` again"
        )


def constant(probs: NDArray[np.float64]) -> list[str]:
    if probs.size > 1 and np.ptp(probs) == 0:
        return [
            f"all {probs.size:,} predictions are {probs[0]:g}: this submission can only score what a constant does"
        ]
    return []
