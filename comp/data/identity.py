"""Which competition a workspace belongs to: Kaggle's own, or the stand-in of one rehearsal.

A rehearsal writes `rehearsal.json` before anything else. What it makes is never submitted to
Kaggle, and what comes from Kaggle is never submitted to a stand-in.
"""

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comp.competition import Competition
from comp.data.origin import origin_path
from comp.errors import DataError
from comp.store import Workspace, read_json, read_object, write_json

if TYPE_CHECKING:
    from comp.kaggle import Kaggle

REHEARSAL = "rehearsal.json"  # at the root of a workspace: it is a rehearsal's; its noise rate
CLEAR = "take another WORKSPACE, or delete its data/, runs/ and submissions/"


def mark_rehearsal(workspace: Workspace, competition: Competition) -> Competition:
    """`workspace` is a rehearsal's from now on; `competition` as rehearsed: no label is flipped."""
    write_json(workspace.root / REHEARSAL, {"noise_rate": 0.0})
    return competition_of(workspace, competition)


def account_home(workspace: Workspace) -> Path:
    """The home of a rehearsal's account, by which its own stand-in is known."""
    return workspace.root / "home"


def competition_of(workspace: Workspace, competition: Competition) -> Competition:
    """`competition` with the noise rate of `workspace`, which is exactly known in a rehearsal.

    DataError if the data there are another competition's.
    """
    slug, mark = _origin(workspace).get("slug", competition.slug), workspace.root / REHEARSAL
    if slug != competition.slug:
        raise DataError(
            f"{workspace.data} has the data of {slug}, not of {competition.slug}: {CLEAR}"
        )
    if not mark.exists():
        return competition
    try:
        rate = float(read_json(mark)["noise_rate"])
        if not 0 <= rate < 0.5:
            raise ValueError
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{mark} is damaged: run `make rehearsal` again, which writes it") from None
    return replace(competition, noise_rate=rate, noise_spread=0.0)


def check_server(workspace: Workspace, kaggle: "Kaggle") -> None:
    """DataError unless `kaggle` is where the data of `workspace` come from."""
    root, is_real = workspace.root, _origin(workspace).get("is_real")
    if (root / REHEARSAL).exists():
        home = Path(kaggle.env.get("HOME", "")).resolve()
        if kaggle.is_real or home != account_home(workspace).resolve():
            raise DataError(
                f"{root} is the workspace of a rehearsal: its runs are submitted by `make"
                " rehearsal`, never to Kaggle; without WORKSPACE you are in the real one"
            )
    elif is_real and not kaggle.is_real:
        raise DataError(
            f"{root} has Kaggle's data, but KAGGLE_API_ENVIRONMENT=LOCALHOST names a stand-in for"
            " Kaggle: unset it"
        )
    elif is_real is False and kaggle.is_real:
        raise DataError(f"the data in {root} are not those of Kaggle's competition: {CLEAR}")


def _origin(workspace: Workspace) -> dict[str, Any]:
    """What is known of the data; nothing if they are not there, or to be made again."""
    with suppress(OSError):
        return read_object(origin_path(workspace))
    return {}
