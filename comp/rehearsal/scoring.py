"""How an uploaded CSV is scored: a log loss, or the reason why there is none."""

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from comp.competition import Competition
from comp.data.archive import read_sample
from comp.data.zips import open_zip, read_member
from comp.errors import UserError
from comp.metric import log_loss


class UnscorableError(Exception):
    """What is wrong with a CSV, in words for its owner."""


def read_solution(path: Path) -> dict[str, int]:
    """The label, 0 or 1, of each id in `path`, a CSV with the columns id and label."""
    try:
        labels = _values_by_id(path.read_bytes(), ("id", "label"))
        if labels.empty or not (labels.isin(["0", "1"]).all() and labels.index.is_unique):
            raise UnscorableError("each id must have one label, 0 or 1")
    except (OSError, UnscorableError) as error:
        remedy = "name a CSV with the columns id,label"
        raise UserError(f"{path}: no solution ({error}); {remedy}") from None
    return {str(key): int(label) for key, label in labels.items()}


def labels_of(archive: Path, solution: Path, competition: Competition) -> dict[str, int]:
    """The labels in `solution`. UserError unless they are of the ids that `archive` asks for."""
    if not zipfile.is_zipfile(archive):
        raise UserError(f"{archive}: no zip like Kaggle's to rehearse with, nor a folder with one")
    labels = read_solution(solution)
    with open_zip(archive, archive.name) as bundle:
        if competition.sample not in bundle.namelist():
            return labels  # the stage that unpacks the archive refuses it and says so
        sample = b"".join(read_member(bundle, bundle.getinfo(competition.sample), archive.name))
    ids = read_sample(sample, competition)
    n_without, n_unknown = len({*ids} - {*labels}), len({*labels} - {*ids})
    if n_without or n_unknown:
        raise UserError(
            f"{solution} does not fit {archive}: {n_without:,} of {len(ids):,} ids in"
            f" {competition.sample} have no label, and {n_unknown:,} of {len(labels):,} labels"
            " are of other ids; name the SOLUTION of this ARCHIVE"
        )
    return labels


def score_csv(content: bytes, solution: Mapping[str, int], columns: tuple[str, str]) -> float:
    """The log loss of `content`, a CSV with `columns` (id, P(positive)), over all of `solution`."""
    texts = _values_by_id(content, columns)
    wrong = sorted({*solution} ^ {*texts.index}) + texts.index[texts.index.duplicated()].tolist()
    if wrong:
        raise UnscorableError(
            f"Submission must have the {len(solution)} ids of the solution, each once;"
            f" {len(wrong)} are missing, unknown or repeated, such as '{wrong[0]}'"
        )
    probs = pd.to_numeric(texts, errors="coerce")
    bad = texts[~probs.between(0, 1)]
    if len(bad):
        found = f"id '{bad.index[0]}' has '{bad.iloc[0]}'"
        raise UnscorableError(f"Column '{columns[1]}' must contain numbers in [0, 1]: {found}")
    return log_loss(list(solution.values()), probs[list(solution)])


def _values_by_id(content: bytes, columns: tuple[str, str]) -> pd.Series:
    """The second of `columns` as text, indexed by the first."""
    key, value = columns
    try:
        table = pd.read_csv(io.BytesIO(content), dtype=str, keep_default_na=False)
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise UnscorableError(f"Submission is not a CSV file in UTF-8 ({reason})") from None
    if sorted(table.columns) != sorted(columns):
        found = ",".join(table.columns)
        raise UnscorableError(f"Submission must have the columns {key},{value}; found {found}")
    return table.set_index(key)[value]
