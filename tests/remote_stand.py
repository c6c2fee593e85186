"""`make remote` against the twin with stages that only pretend: a session takes a moment."""

import shutil
from dataclasses import dataclass, field
from pathlib import Path

from finished_run import TINY_HEAD, make_trained_run, make_workspace
from heard import Heard
from kaggle_stand import HASTE
from twin.server import Twin

from comp.competition import COMPETITION
from comp.kaggle import Kaggle
from comp.recipe import Recipe
from comp.remote import job, stage
from comp.store import Workspace, file_sha256
from comp.train.files import record
from comp.train.run import open_run

STAGES = """
import os, pathlib, shutil, signal, sys, time
finished, stage = pathlib.Path({finished!r}), sys.argv[1]
workspace = pathlib.Path(sys.argv[sys.argv.index("--workspace") + 1])
runs = workspace / "runs"
def finish():
    shutil.copytree(finished / "runs", runs, dirs_exist_ok=True)
if stage == "data":
    assert pathlib.Path(sys.argv[sys.argv.index("--archive") + 1], "test.zip").exists()
    shutil.copytree(finished / "data", workspace / "data", dirs_exist_ok=True)
print(f"this is {{stage}}")
{behaviour}
"""
NAMING = {"options": ["--recipe", "tiny"], "seeds": 1, "own_recipes": ""}
FINISH = "if stage == 'train': finish()"


@dataclass
class RemoteStand:
    """A workspace with data, a twin, and what a session does on it."""

    twin: Twin
    root: Path
    recipe: Recipe = TINY_HEAD
    heard: Heard = field(default_factory=Heard)

    def __post_init__(self) -> None:
        self.finished = make_workspace(self.root / "finished")
        self.run_folder = make_trained_run(self.finished, self.recipe)
        key = file_sha256(self.finished.manifest("test"))[:10]
        for fold in range(5):
            path = self.run_folder / f"fold-{fold}-test-{key}.csv"
            path.write_text("id,logit\n")
            record(path)
        self.home = Workspace(self.root / "home")
        shutil.copytree(self.finished.data, self.home.data)
        self.code = self.root / "code"
        for name in ("__init__.py", "competition.py", "remote/__init__.py", "remote/job.py"):
            path = self.code / "comp" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(job.CODE / "comp" / name, path)
        self.behave(FINISH)

    def behave(self, behaviour: str) -> None:
        """What the stages do in sessions that are pushed from now on."""
        text = STAGES.format(finished=str(self.finished.root), behaviour=behaviour)
        (self.code / "comp" / "__main__.py").write_text(text)

    def remote(self, *faults: str) -> str:
        """`make remote` while `faults` are armed; what it said."""
        self.heard.lines.clear()
        self.twin.arm(faults)
        env = self.twin.environment(self.root / "account")
        kaggle = Kaggle(COMPETITION, self.heard, env, HASTE)
        stage.run_remotely(self.home, [self.recipe], NAMING, kaggle)
        return str(self.heard)

    @property
    def is_home(self) -> bool:
        return open_run(self.home, self.recipe).is_trained()
