"""A run on disk: what it is made from, which folds are done, their logits. Needs no torch."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from comp.errors import DataError, StaleError
from comp.recipe import Recipe
from comp.store import (
    Workspace,
    code_commit,
    file_sha256,
    fingerprint,
    link,
    read_json,
    write_json,
    write_table,
)
from comp.train.labels import chosen_label_fixes

FORMAT = 2  # of the files of a run: one more when their meaning changes
LIBRARIES = ("torch", "torchvision", "timm", "albumentations", "numpy")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The folder `runs/<recipe>-<fingerprint>/` of one recipe on one set of photos."""

    workspace: Workspace
    recipe: Recipe
    data_key: str  # fingerprint of the training manifest and of the label fixes that are applied

    @property
    def fingerprint(self) -> str:
        """Of everything that affects the predictions."""
        return fingerprint(FORMAT, self.recipe.key(), self.data_key)

    @property
    def fit_fingerprint(self) -> str:
        """Of everything that affects fitting; runs that share it share their checkpoints."""
        return fingerprint(FORMAT, self.recipe.fit_key(), self.data_key)

    @property
    def name(self) -> str:
        return f"{self.recipe.name}-{self.fingerprint}"

    @property
    def folder(self) -> Path:
        return self.workspace.runs / self.name

    @property
    def origin(self) -> Path:
        return self.folder / "run.json"

    @property
    def oof(self) -> Path:
        return self.folder / "oof.csv"

    @property
    def folds(self) -> range:
        """The folds that the recipe fits; a split has one, which holds out both of its parts."""
        folds = self.recipe.folds
        return range(1 if folds.split is not None else folds.fit or folds.n)

    def checkpoint(self, fold: int) -> Path:
        """The fitted weights of a fold, as safetensors."""
        return self.folder / f"fold-{fold}.safetensors"

    def scores(self, fold: int) -> Path:
        """The out-of-fold logits of a fold, as CSV."""
        return self.folder / f"fold-{fold}-oof.csv"

    def history(self, fold: int) -> Path:
        """The training curve of a fold, as CSV."""
        return self.folder / f"fold-{fold}-history.csv"

    def is_trained(self) -> bool:
        return self.oof.exists() and all(self.checkpoint(fold).exists() for fold in self.folds)


def open_run(workspace: Workspace, recipe: Recipe) -> Run:
    """The run of `recipe` on today's training photos; DataError if there are none."""
    manifest = workspace.manifest("train")
    if not manifest.exists():
        raise DataError(f"no {manifest}: run `make data` first")
    key = file_sha256(manifest)[:10]
    if recipe.folds.label_fixes is not None:
        fixes = chosen_label_fixes(workspace.verdicts, recipe.folds.label_fixes)
        key = fingerprint(key, fixes)
    return Run(workspace=workspace, recipe=recipe, data_key=key)


def trained_run(workspace: Workspace, recipe: Recipe) -> Run:
    """The run of `recipe` if its folds are fitted, else StaleError, which names runs like it."""
    run = open_run(workspace, recipe)
    if run.is_trained():
        return run
    alike = sorted(path.parent.name for path in workspace.runs.glob(f"{recipe.name}-*/oof.csv"))
    hint = f"; {', '.join(alike[:3])} used other photos or settings" if alike else ""
    raise StaleError(
        f"run {run.name} has no fitted folds{hint}: run `make train` with the same RECIPE and SET"
        " first"
    )


def start(run: Run, weights_key: str, device_name: str) -> None:
    """Write run.json when a run begins. StaleError if it began with other weights."""
    check_weights(run, weights_key)
    if run.origin.exists():
        return
    origin = {
        "name": run.recipe.name,
        "fingerprint": run.fingerprint,
        "fit_fingerprint": run.fit_fingerprint,
        "data": run.data_key,
        "weights": weights_key,
        "recipe": run.recipe,
        "device": device_name,
        "versions": {name: version(name) for name in LIBRARIES},
        "commit": code_commit(Path(__file__).parents[1]),
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_json(run.origin, origin)


def check_weights(run: Run, weights_key: str) -> None:
    """StaleError if `run` began with other backbone weights: all folds must have the same."""
    if run.origin.exists() and read_json(run.origin)["weights"] != weights_key:
        now = run.recipe.model.weights or "those found now"
        raise StaleError(
            f"{run.folder} began with other weights than {now}: delete it, or name the old file"
        )


@contextmanager
def timed(run: Run, work: str, n_photos: int) -> Iterator[None]:
    """Add what `work` on `n_photos` took, s, to run.json, for the run's report."""
    began = time.perf_counter()
    yield
    took = {"work": work, "photos": n_photos, "seconds": round(time.perf_counter() - began, 2)}
    origin = read_json(run.origin)
    write_json(run.origin, {**origin, "times": [*origin.get("times", []), took]})


def adopt(run: Run, weights_key: str) -> list[int]:
    """Link the checkpoints that other runs with the same fit have; of which folds."""
    adopted, same = [], {"fit_fingerprint": run.fit_fingerprint, "weights": weights_key}
    for other in sorted(run.workspace.runs.glob("*/run.json")):
        if other.parent == run.folder or not same.items() <= read_json(other).items():
            continue
        for fold in run.folds:
            source = other.parent / run.checkpoint(fold).name
            if source.exists() and not run.checkpoint(fold).exists():
                link(source, run.checkpoint(fold))
                adopted.append(fold)
    return adopted


def forget_scores(run: Run, fold: int) -> None:
    """Delete the logits of an earlier fit of `fold`, before there is another."""
    for path in (run.oof, run.scores(fold), *run.folder.glob(f"fold-{fold}-test-*.csv")):
        path.unlink(missing_ok=True)


def write_scores(
    run: Run, fold: int, ids: Sequence[str], by_view: Mapping[str, NDArray[np.float64]]
) -> None:
    """The mean over views as `logit`; with several, each in its own column beside it.

    StaleError if a logit is not finite.
    """
    logits = np.mean(list(by_view.values()), axis=0)
    n_bad = int((~np.isfinite(logits)).sum())
    if n_bad:
        raise StaleError(
            f"{n_bad} of {len(ids)} out-of-fold logits of fold {fold} are not finite: delete"
            f" {run.checkpoint(fold)} and train again"
        )
    views = by_view if len(by_view) > 1 else {}
    write_table(run.scores(fold), pd.DataFrame({"id": ids, "logit": logits, **views}))


def collect_oof(run: Run, photos: pd.DataFrame) -> None:
    """Write oof.csv: id, label, fold, logit and views of all held-out photos, in their order.

    A split's fold is 0 in its validation part and 1 in its test part, so that cross-fitting fits on
    one and scores the other. StaleError unless each photo has one row.
    """
    scored = pd.concat([read_scores(run.scores(fold)) for fold in run.folds])
    held_out = photos[photos["fold"].isin(list(run.folds))]
    if sorted(scored["id"]) != sorted(held_out["id"]):
        n_off = len(set(scored["id"]) ^ set(held_out["id"]))
        raise StaleError(
            f"{n_off:,} out-of-fold logits in {run.folder} are missing, double or of other photos:"
            " delete its fold-*-oof.csv and train again"
        )
    table = held_out[["id", "label", "part"]].rename(columns={"part": "fold"})
    write_table(run.oof, table.merge(scored, on="id", how="left", validate="1:1"))


def read_scores(path: Path) -> pd.DataFrame:
    """A table of id (text) and numbers."""
    return pd.read_csv(path, dtype={"id": str})
