"""The stage `ablate`: two finished runs, photo by photo. Nothing is trained; a run that is missing is named."""

import numpy as np

from comp.competition import Competition
from comp.errors import RecipeError
from comp.metric import Gain, gain, per_photo_logit_loss, per_photo_loss
from comp.predict.calibrate import board_losses
from comp.predict.finished import find_run, groups_of, read_run, side_by_side
from comp.progress import Reporter
from comp.store import Workspace


def ablate(
    workspace: Workspace, competition: Competition, name: str, against: str, reporter: Reporter
) -> Gain:
    """What the run called `name` gains over the run `against` on the board that is expected; shown with its parts."""
    runs = [read_run(find_run(workspace, each)) for each in (name, against)]
    if runs[0].folder == runs[1].folder:
        raise RecipeError(f"{name} and {against} are the same run: name another RECIPE or AGAINST")
    photos, logits = side_by_side({run.folder: run.oof for run in runs})
    labels, groups = photos["label"].to_numpy(np.float64), groups_of(workspace, photos)
    probs = [run.out_of_fold_probs().loc[photos["id"]].to_numpy(np.float64) for run in runs]
    board = [board_losses(labels, p, competition.noise_rate) for p in probs]
    everyone = np.ones(labels.size, bool)
    parts = [
        ("raw", [per_photo_logit_loss(labels, column) for column in logits.T], everyone),
        ("as submitted", [per_photo_loss(labels, p) for p in probs], everyone),
        (f"on a board with {competition.noise_rate:.2%} flipped", board, everyone),
        *(
            (f"- fold {fold:.0f}", board, (photos["fold"] == fold).to_numpy())
            for fold in np.unique(photos["fold"])
        ),
    ]
    rows = []
    for title, (ours, theirs), part in parts:
        saved = gain(theirs[part], ours[part], groups[part])
        rows.append(
            (title, f"{part.sum():,}", float(ours[part].mean()), float(theirs[part].mean()), saved)
        )
    reporter.table(
        f"{runs[0].folder} against {runs[1].folder}",
        ("", "photos", "ours", "theirs", "gain, 95 %"),
        rows,
    )
    found = gain(board[1], board[0], groups)
    reporter.say(f"{runs[0].folder} {_verdict(found)} {runs[1].folder}: {found} on the board")
    return found


def _verdict(found: Gain) -> str:
    if found.low <= 0 <= found.high:
        return "cannot be told from"
    return "is better than" if found.low > 0 else "is worse than"
