"""The stage `errors`: the photos that cost a run most, for a person who looks at their labels."""

import csv
import io
from pathlib import Path

import numpy as np

from comp.competition import Competition
from comp.data.manifest import SPLITS, read_manifest
from comp.metric import per_photo_logit_loss, sigmoid
from comp.predict.runs import read_oof
from comp.progress import Reporter, counted
from comp.store import Workspace
from comp.train.labels import read_label_fixes

N_WORST = 20


def print_worst(
    workspace: Workspace, competition: Competition, folder: Path, reporter: Reporter
) -> None:
    """Print the worst out-of-fold photos of the run in `folder`, and lines for label fixes."""
    oof, label_fixes = read_oof(folder), read_label_fixes(workspace.verdicts)
    oof = oof.assign(loss=per_photo_logit_loss(oof["label"], oof["logit"]))
    worst = oof.nlargest(N_WORST, "loss", keep="first")
    shares = worst["loss"].cumsum() / (oof["loss"].sum() or 1.0)
    alike = _near_duplicates(workspace)
    rows, lines = [], io.StringIO()
    columns = ["id", "label", "logit", "loss", "fold"]
    cells = worst[columns].itertuples(index=False)
    for (id, label, logit, loss, fold), share in zip(cells, shares, strict=True):
        name, prob = competition.classes[int(label)], float(sigmoid(logit if label else -logit))
        others = alike.get(id, [])
        near = f"{others[0]}{f' +{len(others) - 1}' * (len(others) > 1)}" if others else ""
        numbers = (f"{prob:.4f}", f"{loss:.4f}", f"{share:.0%}", f"{fold:.0f}")
        rows.append((id, name, *numbers, near, label_fixes.get(id, "")))
        reason = f"P({name}) {prob:.4f} out of fold in {folder.name}"
        csv.writer(lines, lineterminator="\n").writerow([id, "drop", reason, ""])
    heads = ("photo", "label", "P(label)", "loss", "share of all", "fold", "near", "label fix")
    reporter.table(f"{folder.name}: log loss, out of fold", heads, rows)
    tenth = min(10, len(rows))
    share = float(shares.iloc[tenth - 1]) if tenth else np.nan
    worst_ones = "the worst photo carries" if tenth == 1 else f"the {tenth} worst photos carry"
    reporter.say(f"{worst_ones} {share:.0%} of the log loss of {counted(len(oof), 'photo')}")
    reporter.say(f"look at each; if its label is wrong, copy its line to {workspace.verdicts}:")
    for line in ["id,verdict,reason,by", *lines.getvalue().splitlines()]:
        reporter.say(line)


def _near_duplicates(workspace: Workspace) -> dict[str, list[str]]:
    """By training photo, the other photos of its group; a test photo as "test 7"."""
    groups: dict[int, list[str]] = {}
    for split in SPLITS:
        table = read_manifest(workspace.manifest(split))
        table = table.assign(id="test " + table["id"]) if split == "test" else table
        for id, group in zip(table["id"], table["group"], strict=True):
            groups.setdefault(group, []).append(id)
    return {id: [x for x in ids if x != id] for ids in groups.values() for id in ids}
