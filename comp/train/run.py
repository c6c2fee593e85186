"""A run on disk: what it is made from, which folds are done, their logits. Needs no torch."""

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from comp.errors import DataError, StaleError
from comp.progress import Reporter
from comp.recipe import Recipe
from comp.store import (
    Workspace,
    code_commit,
    file_sha256,
    fingerprint,
    link,
    write_table,
)
from comp.train.files import (
    again,
    check_name,
    checkpoint_origin,
    damaged,
    is_intact,
    read_table,
    record,
    warn_of_damage,
    write_recorded,
)
from comp.train.labels import chosen_label_fixes

COMP = Path(__file__).parents[1]
FORMAT = 3  # of the files of a run: one more when their meaning changes
LIBRARIES = ("torch", "torchvision", "timm", "albumentations", "numpy")
NAME = re.compile(r"[^.].*-[0-9a-f]{10}")  # of a run's folder: <recipe>-<fingerprint>
IMPORT = re.compile(r"(?m)^\s*(?:from|import) (comp[\w.]*)(?: import (\([^)]*|.*))?")
WORDS = ("comp.errors", "comp.progress", "comp.recipes")  # what is said, and names of recipes


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

    def is_fitted(self, fold: int) -> bool:
        return is_intact(self.checkpoint(fold))

    def is_scored(self, fold: int) -> bool:
        return is_intact(self.scores(fold))

    def is_trained(self) -> bool:
        """Whether all that later stages read is there and as it was written."""
        return all(map(is_intact, (self.origin, self.oof))) and all(map(self.is_fitted, self.folds))

    def origin_of(self, fold: int, weights_key: str) -> dict[str, Any]:
        """What a checkpoint of `fold` says of itself, other than the code that fitted it."""
        return {"fit": self.fit_fingerprint, "fold": fold, "weights": weights_key}


def run_folders(workspace: Workspace, having: str = "") -> list[Path]:
    """The folders of all runs that have the file `having`; nothing else that lies in runs/."""
    found = [path for path in workspace.runs.glob("*-*/") if NAME.fullmatch(path.name)]
    return sorted(path for path in found if (path / having).exists())


def open_run(workspace: Workspace, recipe: Recipe) -> Run:
    """The run of `recipe` on today's training photos; DataError if there are none."""
    manifest = workspace.manifest("train")
    if not manifest.exists():
        raise DataError(f"no {manifest}: run `make data` first")
    key = file_sha256(manifest)[:10]
    if recipe.folds.label_fixes is not None:
        key = fingerprint(key, chosen_label_fixes(workspace.verdicts, recipe.folds.label_fixes))
    run = Run(workspace=workspace, recipe=recipe, data_key=key)
    check_name(run.folder)
    return run


def trained_run(workspace: Workspace, recipe: Recipe) -> Run:
    """The run of `recipe` if its folds are fitted, else StaleError, which names runs like it."""
    run = open_run(workspace, recipe)
    if run.is_trained():
        return run
    names = [path.name for path in run_folders(workspace, run.oof.name) if path != run.folder]
    alike = [name for name in names if name.rpartition("-")[0] == recipe.name]
    hint = f"; {', '.join(alike[:3])} used other photos or settings" if alike else ""
    what = "files that are missing or damaged" if run.oof.exists() else "no fitted folds"
    raise StaleError(f"run {run.name} has {what}{hint}: {again(run.folder, 'train')} first")


def code_digest(package: Path = COMP) -> str:
    """Fingerprint of the modules of `package` that fitting imports, directly or not."""
    texts, found = dict[str, str](), {"comp.train.fits"}
    while found:
        module = found.pop()
        path = package.joinpath(*module.split(".")[1:]).with_suffix(".py")
        if module in (*texts, *WORDS) or not path.is_file():
            continue
        texts[module] = path.read_text(encoding="utf-8")
        for source, names in IMPORT.findall(texts[module]):
            found |= {source, *(f"{source}.{name}" for name in re.findall(r"\w+", names))}
    return fingerprint(texts)


def folds_of_other_code(run: Run) -> list[int]:
    """The folds that were fitted by other code than there is now."""
    now = code_digest()
    origins = {fold: checkpoint_origin(run.checkpoint(fold)) for fold in run.folds}
    return [fold for fold, origin in origins.items() if origin.get("code") != now]


def start(run: Run, weights_key: str, device_name: str, code: str, reporter: Reporter) -> None:
    """Write run.json when a run begins, and name what is made again.

    StaleError if folds of it have other weights.
    """
    files = (*map(run.checkpoint, run.folds), *map(run.scores, run.folds), run.oof, run.origin)
    warn_of_damage(files, reporter)
    check_weights(run, weights_key)
    origin = {
        "name": run.recipe.name,
        "fingerprint": run.fingerprint,
        "fit_fingerprint": run.fit_fingerprint,
        "data": run.data_key,
        "weights": weights_key,
        "recipe": run.recipe,
        "device": device_name,
        "versions": {name: version(name) for name in LIBRARIES},
        "code": code,
        "commit": code_commit(COMP),
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_recorded(run.origin, lambda now: None if now.get("weights") == weights_key else origin)


def check_weights(run: Run, weights_key: str) -> None:
    """StaleError if `run` has folds with other backbone weights: all must have the same."""
    for fold in filter(run.is_fitted, run.folds):
        if checkpoint_origin(run.checkpoint(fold)).get("weights", weights_key) != weights_key:
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
    write_recorded(run.origin, lambda now: {**now, "times": [*now.get("times", []), took]})


def adopt(run: Run, weights_key: str, code: str | None, folds: Sequence[int]) -> list[int]:
    """Take over checkpoints of `folds` that fit: links to other runs', and unrecorded ones here.

    Of which folds there are links now. `code`: by which `run` began, if it did: that of all folds.
    """
    adopted, same_code = [], {"code": code} if code else {}
    for fold in folds:
        target, origin = run.checkpoint(fold), run.origin_of(fold, weights_key) | same_code
        for folder in () if run.is_fitted(fold) else (run.folder, *run_folders(run.workspace)):
            source = folder / target.name
            if damaged([source]) or not origin.items() <= checkpoint_origin(source).items():
                continue
            if folder != run.folder:
                forget_scores(run, fold)
                for path in (target, run.history(fold)):
                    if (folder / path.name).exists():
                        path.unlink(missing_ok=True)
                        link(folder / path.name, path)
                adopted.append(fold)
            record_fit(run, fold)
            break
    return adopted


def set_aside(run: Run) -> Path:
    """Rename the folder of `run`, which is then fitted anew, to `<run>.before-N`; its new path."""
    n = max(set_aside_before(run), default=0) + 1
    return run.folder.rename(run.folder.with_name(f"{run.name}.before-{n}"))


def set_aside_before(run: Run) -> dict[int, Path]:
    """What `set_aside` made of `run`, by number."""
    found = run.workspace.runs.glob(f"{run.name}.before-*")
    numbers = {path.name.rpartition("-")[2]: path for path in found}
    return {int(n): path for n, path in numbers.items() if n.isdecimal()}


def record_fit(run: Run, fold: int) -> None:
    """Record the checkpoint of `fold`, and its history if there is one."""
    record(*filter(Path.exists, (run.checkpoint(fold), run.history(fold))))


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
    record(run.scores(fold))


def collect_oof(run: Run, photos: pd.DataFrame) -> None:
    """Write oof.csv: id, label, fold, logit and views of all held-out photos, in their order.

    A split's fold is 0 in its validation part and 1 in its test part, so that cross-fitting fits on
    one and scores the other.
    """
    scored = pd.concat([read_scores(run.scores(fold)) for fold in run.folds])
    held_out = photos[photos["fold"].isin(list(run.folds))]
    table = held_out[["id", "label", "part"]].rename(columns={"part": "fold"})
    write_table(run.oof, table.merge(scored, on="id", how="left", validate="1:1"))
    record(run.oof)


def read_scores(path: Path) -> pd.DataFrame:
    """A table of id (text), logit (finite) and other numbers."""
    return read_table(path, ["logit"], "train")
