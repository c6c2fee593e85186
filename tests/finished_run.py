"""A small synthetic workspace with manifests and finished runs, for tests of what follows them."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from comp.competition import COMPETITION
from comp.data.manifest import SPLITS, read_manifest, write_manifest
from comp.data.origin import RULES, ArchiveStamp, Origin, origin_path
from comp.predict.calibrate import Settings
from comp.predict.runs import write_predictions
from comp.predict.stage import predict
from comp.progress import Reporter
from comp.recipe import Head, Model, Pixels, Recipe
from comp.store import Workspace, file_sha256, write_json, write_table
from comp.submit.ledger import LedgerRow, write_row
from comp.train.files import record
from comp.train.run import open_run
from comp.train.stage import train

CLIP = 0.005
HOSTILE = "cat.\"'><script>alert(1)"  # a photo's name has neither spaces nor slashes
TRAIN_IDS = [f"{kind}.{n}" for n in range(40) for kind in ("cat", "dog")]
# in an order that no sorting gives
SAMPLE_IDS = ["1", "10", "2", "40", *map(str, range(3, 10)), *map(str, range(11, 40))]
TINY_HEAD = Recipe(  # a run of drawn photos takes a second
    name="tiny",
    model=Model(backbone="mobilenetv3_small_050", weights="random"),
    pixels=Pixels(size_px=32, canvas=1.0),
    training=Head(views="none", n_inner=2, penalties=(1e-2,)),
)


def make_workspace(root: Path) -> Workspace:
    """80 training photos and 40 test photos.

    The first twelve ids of the sample submission are near-duplicates of training photos.
    """
    workspace = Workspace(root)
    train, test = _manifest(TRAIN_IDS), _manifest(SAMPLE_IDS)
    labels, folds = np.tile([0, 1], 40), np.arange(80) % 5
    train = train.assign(label=labels, fold=folds, group=range(80))
    test = test.assign(label=pd.NA, fold=pd.NA, group=[*range(12), *range(1012, 1040)])
    write_manifest(workspace.manifest("train"), train)
    write_manifest(workspace.manifest("test"), test)
    sample = "".join(f"{name},0.5\n" for name in SAMPLE_IDS)
    (workspace.data / COMPETITION.sample).write_bytes(f"id,label\n{sample}".encode())
    origin = Origin(
        archive=ArchiveStamp(path="data/raw", sha256="", n_bytes=0, mtime_ns=0),
        slug=COMPETITION.slug,
        rules=RULES,
        is_real=False,
        sample=file_sha256(workspace.data / COMPETITION.sample),
        manifests={split: file_sha256(workspace.manifest(split)) for split in SPLITS},
        pixels={},
    )
    write_json(origin_path(workspace), origin)
    return workspace


def _manifest(ids: list[str]) -> pd.DataFrame:
    table = pd.DataFrame({"id": ids, "width": 4, "height": 3, "phash": "0" * 16, "verdict": "ok"})
    return table.assign(sha256=[hashlib.sha256(id.encode()).hexdigest() for id in ids])


def make_run(
    workspace: Workspace, name: str = "lite0_head", fingerprint: str = "0123456789", seed: int = 0
) -> Path:
    """A run that is right about most photos, and about the near-duplicates in the test set."""
    folder = workspace.runs / f"{name}-{fingerprint}"
    rng = np.random.default_rng(seed)
    oof = pd.DataFrame({"id": TRAIN_IDS, "label": np.tile([0, 1], 40), "fold": np.arange(80) % 5})
    oof["logit"] = (2 * oof["label"] - 1) * 2.0 + rng.normal(0, 1.5, 80)
    logits = (2 * (np.arange(40) % 2) - 1) * 4.0 + rng.normal(0, 1.5, 40)
    origin = {"recipe": {"name": name}, "name": name, "fingerprint": fingerprint}
    write_json(folder / "run.json", origin)
    write_table(folder / "oof.csv", oof)
    record(folder / "run.json", folder / "oof.csv")
    settings, by_id = Settings(noise_rate=0.004, clip=CLIP), pd.Series(logits, index=SAMPLE_IDS)
    write_predictions(workspace, folder, oof, by_id, settings, Reporter())
    return folder


def make_trained_run(workspace: Workspace, recipe: Recipe, seed: int = 0) -> Path:
    """A finished run of `recipe` with empty checkpoints."""
    run = open_run(workspace, recipe)
    folder = make_run(workspace, recipe.name, run.fingerprint, seed)
    for fold in run.folds:
        run.checkpoint(fold).touch()
        record(run.checkpoint(fold))
    return folder


def edit_json(path: Path, **changes: object) -> None:
    """Change a file of a run, as if its stage had written it so."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    record(path)


def edit_table(path: Path, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    """Change a table of a run, as if its stage had written it so."""
    change(pd.read_csv(path, dtype={"id": str})).to_csv(path, index=False)
    record(path)


def run_with_a_hostile_name(drawn: Workspace, root: Path) -> tuple[Workspace, Path]:
    """A copy of `drawn` with a predicted run of its photos, one of them named HOSTILE."""
    shutil.copytree(drawn.root, root)
    workspace = Workspace(root)
    manifest = read_manifest(workspace.manifest("train"))
    old = str(manifest["id"][0])
    photo = workspace.photos / "train" / f"{old}.jpg"
    photo.rename(photo.with_name(f"{HOSTILE}.jpg"))
    write_manifest(workspace.manifest("train"), manifest.replace({"id": {old: HOSTILE}}))
    train(workspace, TINY_HEAD, "cpu", Reporter())
    return workspace, predict(workspace, COMPETITION, TINY_HEAD, "cpu", Reporter()).folder


def add_score(
    workspace: Workspace, run: str, score: float | None, ref: int, private: float | None = None
) -> None:
    """A row in the ledger for the run in the folder `run`; None: its score is pending."""
    recipe, _, fingerprint = run.rpartition("-")
    row = LedgerRow(
        when="2026-01-01T00:00:00Z",
        file=f"{run}.csv",
        sha256=f"{ref:064d}",
        recipe=recipe,
        fingerprint=fingerprint,
        commit="none",
        **dict.fromkeys(("cv_raw", "cv_calibrated", "cv_clipped")),
        public_score=score,
        private_score=private,
        status="pending" if score is None else "complete",
        ref=ref,
        message="",
    )
    write_row(workspace.ledger, row, Reporter())
