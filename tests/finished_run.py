"""A workspace with manifests and one finished run, small and synthetic, for tests of what comes after it."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd

from comp.competition import COMPETITION
from comp.data.manifest import write_manifest
from comp.predict.calibrate import Settings, calibrate, out_of_fold_losses
from comp.progress import Reporter
from comp.store import Workspace, file_sha256, write_json, write_table
from comp.submit.ledger import LedgerRow, write_row

CLIP = 0.005
SAMPLE_IDS = [
    "1",
    "10",
    "2",
    "40",
    *map(str, range(3, 10)),
    *map(str, range(11, 40)),
]  # an order that no sorting gives


def make_workspace(root: Path) -> Workspace:
    """80 training photos, and 40 test photos of which the first twelve ids of the sample are near-duplicates of training photos."""
    workspace = Workspace(root)
    write_manifest(
        workspace.manifest("train"),
        _manifest([f"{kind}.{n}" for n in range(40) for kind in ("cat", "dog")], first_group=0),
    )
    write_manifest(workspace.manifest("test"), _manifest(SAMPLE_IDS, first_group=1000, twins=12))
    sample = "".join(f"{name},0.5\n" for name in SAMPLE_IDS)
    (workspace.data / COMPETITION.sample).write_bytes(("id,label\n" + sample).encode())
    return workspace


def _manifest(ids: list[str], first_group: int, twins: int = 0) -> pd.DataFrame:
    """The first `twins` photos share the groups 0, 1, ...: cats and dogs in turn."""
    labels = [int(name.startswith("dog")) for name in ids]
    table = pd.DataFrame({"id": ids, "width": 4, "height": 3, "phash": "0" * 16, "verdict": "ok"})
    table["label"] = labels if ids[0].startswith("cat") else [pd.NA] * len(ids)
    table["fold"] = (
        [n % 5 for n in range(len(ids))] if ids[0].startswith("cat") else [pd.NA] * len(ids)
    )
    table["sha256"] = [hashlib.sha256(name.encode()).hexdigest() for name in ids]
    table["group"] = [n if n < twins else first_group + n for n in range(len(ids))]
    return table


def make_run(
    workspace: Workspace, name: str = "lite0_head", fingerprint: str = "0123456789", seed: int = 0
) -> Path:
    """A run that is right about most photos, and about the twins in the test set."""
    folder = workspace.runs / f"{name}-{fingerprint}"
    rng = np.random.default_rng(seed)
    labels, folds = np.tile([0, 1], 40), np.arange(80) % 5
    logits = (2 * labels - 1) * 2.0 + rng.normal(0, 1.5, 80)
    settings = Settings(noise_rate=0.004, clip=CLIP)
    made, losses = (
        calibrate(logits, labels, settings),
        out_of_fold_losses(logits, labels, folds, settings),
    )
    ids = [f"{kind}.{n}" for n in range(40) for kind in ("cat", "dog")]
    test_logits = (2 * (np.arange(40) % 2) - 1) * 4.0 + rng.normal(0, 1.5, 40)
    test = pd.DataFrame({"id": SAMPLE_IDS, "logit": test_logits, "prob": made.apply(test_logits)})
    write_json(
        folder / "run.json", {"recipe": {"name": name}, "name": name, "fingerprint": fingerprint}
    )
    write_table(
        folder / "oof.csv",
        pd.DataFrame({"id": ids, "label": labels, "fold": folds, "logit": logits}),
    )
    write_table(folder / "test.csv", test.sort_values("id"))
    cv = {"cv_raw": losses.raw, "cv_calibrated": losses.calibrated, "cv_clipped": losses.clipped}
    made_from = {
        "test": file_sha256(workspace.manifest("test"))[:10],
        "oof": file_sha256(folder / "oof.csv")[:10],
    }
    calibration = {"noise_rate": 0.004, "clip": CLIP, "of": made_from}
    write_json(folder / "calibration.json", calibration | cv)
    return folder


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def add_score(workspace: Workspace, run: str, score: float | None, ref: int) -> None:
    """A row in the ledger for the run in the folder `run`; None: its score is pending."""
    recipe, _, fingerprint = run.rpartition("-")
    row = LedgerRow(
        when="2026-01-01T00:00:00Z",
        file=f"{run}.csv",
        sha256=f"{ref:064d}",
        recipe=recipe,
        fingerprint=fingerprint,
        commit="none",
        cv_raw=None,
        cv_calibrated=None,
        cv_clipped=None,
        public_score=score,
        status="pending" if score is None else "complete",
        ref=ref,
        message="",
    )
    write_row(workspace.ledger, row, Reporter())
