"""The stage `errors`: the photos that cost a run most, for a person who looks at their labels."""

import csv
import io
from itertools import islice
from pathlib import Path

from comp.competition import Competition
from comp.metric import per_photo_logit_loss
from comp.predict.runs import read_oof
from comp.progress import Reporter, counted
from comp.report.gallery import Photos, largest_losses
from comp.store import Workspace

N_WORST = 20


def print_worst(
    workspace: Workspace, competition: Competition, folder: Path, reporter: Reporter
) -> None:
    """Print the worst out-of-fold photos of the run in `folder`, and a line for each label."""
    oof, photos = read_oof(folder), Photos(workspace, competition)
    oof = oof.assign(loss=per_photo_logit_loss(oof["label"], oof["logit"]))
    rows, lines, share = list[tuple[object, ...]](), io.StringIO(), 0.0
    for card in islice(largest_losses(photos, oof, folder.name, {}), N_WORST):
        share += (card.loss or 0.0) / (oof["loss"].sum() or 1.0)
        near = photos.alike.get(card.id, ())
        others = f"{near[0]}{f' +{len(near) - 1}' * (len(near) > 1)}" if near else ""
        fold = card.notes[0].removeprefix("fold ")
        numbers = (f"{card.prob:.4f}", f"{card.loss:.4f}", f"{share:.0%}", fold)
        rows.append((card.id, card.label, *numbers, others, card.label_fix))
        csv.writer(lines, lineterminator="\n").writerow([card.id, "drop", card.reason, ""])
    columns = ("photo", "label", "P(label)", "loss", "share", "fold", "near-duplicate", "label fix")
    reporter.table(f"{folder.name}: log loss, out of fold", columns, rows)
    worst = oof["loss"].nlargest(10)
    carry = "photo carries" if len(worst) == 1 else f"{len(worst)} photos carry"
    part = worst.sum() / (oof["loss"].sum() or 1.0)
    reporter.say(f"the worst {carry} {part:.0%} of the log loss of {counted(len(oof), 'photo')}")
    reporter.say(f"look at each; where a label is wrong, copy the line to {workspace.verdicts}:")
    for line in ["id,verdict,reason,by", *lines.getvalue().splitlines()]:
        reporter.say(line)
