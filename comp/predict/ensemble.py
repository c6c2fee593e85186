"""Several recipes to one run: each is predicted, and their runs are blended."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from comp.competition import Competition
from comp.errors import StaleError
from comp.predict.blend import Weighing, blend
from comp.predict.calibrate import settings_of
from comp.predict.finished import read_run
from comp.progress import Reporter
from comp.recipe import Recipe
from comp.store import Workspace, read_json
from comp.train.run import trained_run

if TYPE_CHECKING:
    from comp.train.device import Device

METHOD: Weighing = "simplex"


def predict_all(
    workspace: Workspace,
    competition: Competition,
    recipes: Sequence[Recipe],
    device: "Device",
    reporter: Reporter,
) -> Path:
    """The folder of the run that `recipes`, which are trained, end in: of one its own, of several that of their blend."""
    from comp.predict.stage import (
        predict,
    )  # it takes torch, which takes seconds to load, and `made_of` has no use for it

    runs = [predict(workspace, competition, recipe, device, reporter) for recipe in recipes]
    if len(runs) == 1:
        return runs[0].folder
    wanted = recipes[0].prediction
    settings = [
        f"prediction.{knob}={getattr(wanted, knob)}"
        for knob in ("calibration", "noise_rate", "clip")
    ]
    return blend(workspace, competition, [run.name for run in runs], METHOD, settings, reporter)


def made_of(workspace: Workspace, competition: Competition, recipes: Sequence[Recipe]) -> Path:
    """The folder of the run that `recipes` end in, which is there; StaleError if it is not."""
    names = [trained_run(workspace, recipe).name for recipe in recipes]
    if len(names) == 1:
        return workspace.runs / names[0]
    for origin in sorted(workspace.runs.glob("blend-*/run.json")):
        made, settings = read_json(origin), settings_of(recipes[0].prediction, competition)
        is_wanted = made["method"] == METHOD and set(made["members"]) == set(names)
        if is_wanted and read_run(origin.parent).settings == settings:
            return origin.parent
    raise StaleError(
        f"{', '.join(names)} are not blended yet: run `make predict` with the same RECIPE and SET first"
    )
