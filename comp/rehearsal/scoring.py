"""What Kaggle makes of an uploaded CSV: a log loss, or the reason why there is none."""

import csv
import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from comp.errors import UserError

CLIP = 1e-15  # Kaggle's log loss bounds each probability by this and its complement


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The score of a submission, or why it has none; exactly one of the two is there."""

    score: float | None = None
    reason: str = ""


class _InvalidError(Exception):
    """What is wrong with a CSV, in the words that its owner will read."""


def read_solution(path: Path) -> dict[str, int]:
    """The label, 0 or 1, of each id of `id,label` in `path`."""
    try:
        rows = _table(path.read_bytes(), ("id", "label"))
        solution = {row["id"]: {"0": 0, "1": 1}[row["label"]] for row in rows}
        if not 0 < len(solution) == len(rows):
            raise _InvalidError(f"{len(rows)} rows with {len(solution)} different ids")
        return solution
    except OSError as error:
        raise UserError(
            f"{path}: cannot read the solution ({error.strerror}); name a CSV with the columns id,label"
        ) from None
    except (KeyError, _InvalidError) as error:
        raise UserError(
            f"{path}: not a solution ({error}); it needs the columns id,label, with labels 0 and 1"
        ) from None


def judge(content: bytes, solution: Mapping[str, int], columns: tuple[str, str]) -> Verdict:
    """The log loss of `content`, a CSV with `columns` (id, P(positive)), over all ids of `solution`.

    The whole of it counts as the public score: a rehearsal has no private part.
    """
    try:
        probs = _probabilities(_table(content, columns), columns)
        _same_ids(probs, solution)
    except _InvalidError as error:
        return Verdict(reason=f"Evaluation Exception: {error}")
    return Verdict(score=log_loss(list(solution.values()), [probs[key] for key in solution]))


def log_loss(labels: Sequence[int], probs: Sequence[float]) -> float:
    """Mean of -ln(probability of what came true), probabilities within [1e-15, 1 - 1e-15]; `probs` are P(label is 1)."""
    bounded = (min(max(prob, CLIP), 1 - CLIP) for prob in probs)
    return -math.fsum(
        math.log(prob if label else 1 - prob) for label, prob in zip(labels, bounded, strict=True)
    ) / len(labels)


def _table(content: bytes, columns: tuple[str, str]) -> list[dict[str, str]]:
    """The rows under a header that names `columns`, in any order and nothing else."""
    try:
        rows = list(csv.reader(io.StringIO(content.decode("utf-8-sig"), newline="")))
    except (UnicodeDecodeError, csv.Error) as error:
        raise _InvalidError(f"Submission is not a CSV file in UTF-8 ({error})") from None
    header = rows[0] if rows else []
    if sorted(header) != sorted(columns):
        raise _InvalidError(
            f"Submission must have the columns {','.join(columns)}; found {','.join(header) or 'none'}"
        )
    filled = [row for row in rows[1:] if row]
    for number, row in enumerate(filled, 1):
        if len(row) != len(header):
            raise _InvalidError(f"Record {number} has {len(row)} values instead of {len(header)}")
    return [dict(zip(header, row, strict=True)) for row in filled]


def _probabilities(rows: Sequence[Mapping[str, str]], columns: tuple[str, str]) -> dict[str, float]:
    key, value = columns
    repeated = [name for name, n in Counter(row[key] for row in rows).items() if n > 1]
    if repeated:
        raise _InvalidError(
            f"Submission has {len(repeated)} duplicate values in column '{key}', such as '{repeated[0]}'"
        )
    return {row[key]: _probability(row[value], row[key], value) for row in rows}


def _probability(text: str, key: str, column: str) -> float:
    try:
        value = float(text.replace("_", "?"))  # Python, unlike a CSV, reads 0_1 as a number
    except ValueError:
        raise _InvalidError(f"Column '{column}' must be numeric: id '{key}' has '{text}'") from None
    if not 0 <= value <= 1:
        raise _InvalidError(f"Column '{column}' must lie within [0, 1]: id '{key}' has '{text}'")
    return value


def _same_ids(probs: Mapping[str, float], solution: Mapping[str, int]) -> None:
    extra = [key for key in probs if key not in solution]
    missing = [key for key in solution if key not in probs]
    if extra or missing:
        found = f"Submission must have {len(solution)} rows with the ids of the solution; found {len(probs)}"
        wrong = [
            f"{len(keys)} {kind}, such as '{keys[0]}'"
            for keys, kind in ((missing, "missing"), (extra, "unknown"))
            if keys
        ]
        raise _InvalidError(f"{found}: {'; '.join(wrong)}")
