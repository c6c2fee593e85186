"""The files of a run: `files.json` has the size, time of change and hash of each, as written.

A stage is done if all files that later stages read are intact. What is not, it makes again.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from safetensors import SafetensorError, safe_open

from comp.errors import RecipeError, StaleError
from comp.progress import Reporter
from comp.store import file_sha256, locked, read_object, write_json

RECORD = "files.json"
LOCK = ".lock"  # of RECORD and of run.json
ORIGIN = "comp"  # the one key of a checkpoint's metadata: several would be in a random order
Parsed = TypeVar("Parsed")


def record(*paths: Path) -> None:
    """Note what `paths`, files of one run, are now. Other processes may fit its other folds."""
    if paths:
        with locked(paths[0].with_name(LOCK), Reporter()):
            _note(paths)


def write_recorded(
    path: Path, change: Callable[[dict[str, Any]], Mapping[str, Any] | None]
) -> None:
    """Write what `change` makes of the JSON object at `path`, if anything, and record it."""
    with locked(path.with_name(LOCK), Reporter()):
        changed = change(read_object(path) if is_intact(path) else {})
        if changed is not None:
            write_json(path, changed)
            _note([path])


def _note(paths: Sequence[Path]) -> None:
    entries = {path.name: {**_stat(path), "sha256": file_sha256(path)} for path in paths}
    write_json(paths[0].with_name(RECORD), {**_entries(paths[0]), **entries})


def is_intact(path: Path) -> bool:
    """Whether `path` is as recorded: by its size and time of change, else by its hash."""
    entry = _entries(path).get(path.name)
    if not entry or not path.is_file():
        return False
    return _stat(path).items() <= entry.items() or bool(file_sha256(path) == entry["sha256"])


def damaged(paths: Iterable[Path]) -> list[Path]:
    """Those of `paths` that are there, but not as recorded."""
    there = [path for path in paths if path.exists() and path.name in _entries(path)]
    return [path for path in there if not is_intact(path)]


def warn_of_damage(paths: Iterable[Path], reporter: Reporter) -> None:
    if names := [path.name for path in damaged(paths)]:
        reporter.warn(f"damaged since they were written, made again: {', '.join(names)}")


def hashes(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file of the run in `folder`, by name, as recorded."""
    return {name: str(entry["sha256"]) for name, entry in _entries(folder / RECORD).items()}


def _entries(path: Path) -> Mapping[str, Any]:
    """What is recorded of the files beside `path`; nothing if the record itself is damaged."""
    entries = read_object(path.with_name(RECORD)).items()
    return {name: each for name, each in entries if isinstance(each, dict) and "sha256" in each}


def _stat(path: Path) -> dict[str, int]:
    return {"bytes": path.stat().st_size, "mtime_ns": path.stat().st_mtime_ns}


def is_blend(run: Path) -> bool:
    return run.name.startswith(("blend-", "concat-"))


def again(folder: Path, stage: str) -> str:
    """What to run, so that `stage` makes again what is missing or damaged in `folder`."""
    if is_blend(folder):
        return "blend the same RUNS by the same METHOD again (an ensemble: `make predict`)"
    return f"run `make {stage}` with the same RECIPE and SET"


def read_intact(path: Path, parse: Callable[[Path], Parsed], stage: str) -> Parsed:
    """`path` as parsed; StaleError if it is missing, not as `stage` wrote it, or not parsable."""
    run, remedy = path.parent.name, again(path.parent, stage)
    if not path.exists():
        raise StaleError(f"the run {run} has no {path.name}: {remedy}")
    try:
        if not is_intact(path):
            raise ValueError("it is not as it was written")
        return parse(path)
    except (ValueError, KeyError, RecipeError) as error:  # pandas raises ValueErrors
        cause = " ".join(str(error).split())
        raise StaleError(
            f"{run}/{path.name} is damaged ({cause}): delete it and {remedy}"
        ) from None


def read_table(path: Path, finite: Sequence[str], stage: str) -> pd.DataFrame:
    """The table at `path`: `id` as text, all else as float64, bit for bit.

    StaleError, as by `read_intact`, also unless ids are unique and the columns `finite` are that.
    """

    def parse(path: Path) -> pd.DataFrame:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
        numbers = table.columns.drop("id", errors="ignore")
        table[numbers] = table[numbers].replace("", "nan").astype(np.float64)
        n_bad = int((~np.isfinite(table[list(finite)])).any(axis=1).sum())
        if n_bad:
            raise ValueError(f"no finite {' or '.join(finite)} in {n_bad:,} of {len(table):,} rows")
        if "id" in table and table["id"].duplicated().any():
            raise ValueError("an id is there twice")
        return table

    return read_intact(path, parse, stage)


def check_name(folder: Path) -> None:
    """StaleError if `folder` has the intact run.json of another run."""
    origin = read_object(folder / "run.json") if is_intact(folder / "run.json") else {}
    name = f"{origin.get('name')}-{origin.get('fingerprint')}"
    if origin and folder.name != name:
        raise StaleError(
            f"the folder {folder.name} contains the run {name}: rename it back, or delete it"
        )


def checkpoint_origin(path: Path) -> Mapping[str, Any]:
    """What a checkpoint says of itself; nothing if it is missing, cut or of another kind."""
    try:
        with safe_open(path, "numpy") as file:
            origin = json.loads((file.metadata() or {}).get(ORIGIN, "{}"))
    except (OSError, SafetensorError, ValueError):
        return {}
    return origin if isinstance(origin, dict) else {}
