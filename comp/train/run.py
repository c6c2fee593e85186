"""A run on disk: what it is made from, which folds are done, what they said."""

from collections.abc import Mapping, Sequence
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
    read_json,
    write_json,
    write_table,
)
from comp.train.verdicts import chosen_verdicts

FORMAT = 1  # of the files of a run; one more when what they mean changes
LIBRARIES = ("torch", "torchvision", "timm", "albumentations", "numpy")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The folder `runs/<recipe>-<fingerprint>/` of one recipe on one set of photos."""

    workspace: Workspace
    recipe: Recipe
    data_key: (
        str  # changes with the training manifest, and with the verdicts that the recipe asks for
    )

    @property
    def fingerprint(self) -> str:
        """Told apart: everything that changes the predictions."""
        return fingerprint(FORMAT, self.recipe.key(), self.data_key)

    @property
    def fit_fingerprint(self) -> str:
        """Told apart: everything that changes the fitted folds; runs that share it share their checkpoints."""
        return fingerprint(FORMAT, self.recipe.fit_key(), self.data_key)

    @property
    def name(self) -> str:
        return f"{self.recipe.name}-{self.fingerprint}"

    @property
    def folder(self) -> Path:
        return self.workspace.runs / self.name

    @property
    def folds(self) -> range:
        """The folds that the recipe fits; of a split the one that holds out both of its parts."""
        folds = self.recipe.folds
        return range(1 if folds.split is not None else folds.fit or folds.n)

    def checkpoint(self, fold: int) -> Path:
        """The fitted weights of a fold, as safetensors."""
        return self.folder / f"fold-{fold}.safetensors"

    def scores(self, fold: int) -> Path:
        """The out-of-fold logits of a fold, as CSV."""
        return self.folder / f"fold-{fold}-oof.csv"

    @property
    def oof(self) -> Path:
        return self.folder / "oof.csv"

    def is_trained(self) -> bool:
        return self.oof.exists() and all(self.checkpoint(fold).exists() for fold in self.folds)


def open_run(workspace: Workspace, recipe: Recipe) -> Run:
    """The run of `recipe` on the training photos that are there now; DataError if there are none."""
    manifest = workspace.manifest("train")
    if not manifest.exists():
        raise DataError(f"no {manifest}: run `make data` first")
    key = file_sha256(manifest)[:10]
    if recipe.folds.label_fixes is not None:
        key = fingerprint(key, chosen_verdicts(workspace.verdicts, recipe.folds.label_fixes))
    return Run(workspace=workspace, recipe=recipe, data_key=key)


def trained_run(workspace: Workspace, recipe: Recipe) -> Run:
    """The run of `recipe` if its folds are fitted. StaleError tells a run of other photos from one that was never made."""
    run = open_run(workspace, recipe)
    if run.is_trained():
        return run
    others = sorted(
        path.name for path in workspace.runs.glob(f"{recipe.name}-*") if (path / "oof.csv").exists()
    )
    seen = f"; there is {', '.join(others[:3])}, of other photos or settings" if others else ""
    raise StaleError(
        f"run {run.name} has no fitted folds{seen}: run `make train` with the same RECIPE and SET first"
    )


def start(run: Run, weights_key: str, device_name: str) -> None:
    """Write run.json, where a run begins. StaleError if it began with other weights: a fold must not differ from the next one."""
    refuse_other_weights(run, weights_key)
    origin = run.folder / "run.json"
    if origin.exists():
        return
    write_json(
        origin,
        {
            "name": run.recipe.name,
            "fingerprint": run.fingerprint,
            "fit_fingerprint": run.fit_fingerprint,
            "data": run.data_key,
            "weights": weights_key,
            "recipe": run.recipe.model_dump(mode="json"),
            "device": device_name,
            "versions": {name: version(name) for name in LIBRARIES},
            "commit": code_commit(Path(__file__).parents[1]),
            "began": datetime.now(UTC).isoformat(timespec="seconds"),
        },
    )


def refuse_other_weights(run: Run, weights_key: str) -> None:
    """StaleError where `run` began with a backbone of other weights than `weights_key` tells of."""
    origin = run.folder / "run.json"
    if origin.exists() and read_json(origin)["weights"] != weights_key:
        now = run.recipe.model.weights or "those found now"
        raise StaleError(
            f"{run.folder} began with other weights than {now}: delete it, or name the old file"
        )


def adopt(run: Run, weights_key: str) -> list[int]:
    """Take over the checkpoints that other runs with the same fit of the same weights have already, and say of which folds."""
    taken, same = [], {"fit_fingerprint": run.fit_fingerprint, "weights": weights_key}
    for other in sorted(run.workspace.runs.glob("*/run.json")):
        if other.parent == run.folder or not same.items() <= read_json(other).items():
            continue
        for fold in run.folds:
            source = other.parent / run.checkpoint(fold).name
            if source.exists() and not run.checkpoint(fold).exists():
                run.checkpoint(fold).hardlink_to(source)
                taken.append(fold)
    return taken


def forget_scores(run: Run, fold: int) -> None:
    """Delete what an earlier fit of `fold` said, before there is another."""
    for path in (run.oof, run.scores(fold), *run.folder.glob(f"fold-{fold}-test-*.csv")):
        path.unlink(missing_ok=True)


def write_scores(
    run: Run, fold: int, ids: Sequence[str], by_view: Mapping[str, NDArray[np.float64]]
) -> None:
    """The mean over views as `logit`; with several, each in a column of its own beside it."""
    views = by_view if len(by_view) > 1 else {}
    write_table(
        run.scores(fold),
        pd.DataFrame({"id": ids, "logit": np.mean(list(by_view.values()), axis=0), **views}),
    )


def collect_oof(run: Run, photos: pd.DataFrame) -> None:
    """Write oof.csv: id, label, fold, logit and its views of every photo of the fitted folds, in the order of `photos`.

    The fold of a split is 0 in its validation part and 1 in its test part: whoever cross-fits, fits on the one and scores the other.
    StaleError if a fold lacks a photo, or has one twice: then its file is not of this run.
    """
    parts = [read_scores(run.scores(fold)) for fold in run.folds]
    scored = pd.concat(parts)
    held_out = photos[photos["fold"].isin(list(run.folds))]
    if sorted(scored["id"]) != sorted(held_out["id"]):
        n_off = len(set(scored["id"]) ^ set(held_out["id"]))
        raise StaleError(
            f"{n_off:,} out-of-fold logits in {run.folder} are missing, double or of others: delete its fold-*-oof.csv and train again"
        )
    table = (
        held_out[["id", "label", "part"]]
        .rename(columns={"part": "fold"})
        .merge(scored, on="id", how="left", validate="1:1")
    )
    write_table(run.oof, table)


def read_scores(path: Path) -> pd.DataFrame:
    """A table of id (text) and numbers, as this project writes them."""
    return pd.read_csv(path, dtype={"id": str})
