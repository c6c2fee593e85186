"""Kill real processes at random moments of every stage; each run must end as an unstopped one.

    python -m tests.crashes N_KILLS [SEED]

Each stage runs in a process of its own, forked from this one so that torch is loaded once. It is
killed at a random time or, every third time, between the write and the rename of a random file;
then the same stage runs again on what is left. In the end the files with results must be equal,
byte for byte, to those of a run that nothing stopped.
"""

import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import albumentations  # noqa: F401  # so that each fork has it
import torch

import comp.report.stage
import comp.train.augment
import comp.train.fits
import comp.train.tuning  # noqa: F401
from comp.competition import COMPETITION
from comp.data.stage import prepare
from comp.options import override
from comp.predict.stage import predict
from comp.progress import Reporter
from comp.recipe import FineTune, Head, Model, Pixels, Recipe
from comp.rehearsal.drawing import write_edition
from comp.store import Workspace
from comp.train import checkpoints, resume
from comp.train import run as runs
from comp.train.stage import train

TUNE = Recipe(
    name="tune",
    model=Model(backbone="mobilenetv3_small_050", weights="random", drop_path=0.3),
    pixels=Pixels(size_px=32, canvas=1.25),
    training=FineTune(epochs=2, batch_size=8, head_start=False, peak_lr=1e-3, clip_norm=1.0),
)
HOW = {
    "tune": ["training.first.epochs=1", "training.wise_ft=0.5", "training.micro_batch=4"],
    "tail": ["training.trainable=from:blocks.4", "training.cached_views=2"],
    "layers": [
        *("training.trainable=head", "training.head.widths=[16]", "training.head.dropout=0.5"),
        *("training.augment.crop=center-crop", "training.augment.flip=false"),
    ],
    "head": [],
}
RESULTS = ("data/*.csv", "submissions/*.csv", "runs/*/fold-*", "runs/*/oof.csv", "runs/*/test.csv")
LIMIT_S = 120


def recipe_of(name: str) -> Recipe:
    recipe = TUNE.replace(name=name)
    if name == "head":
        return recipe.replace(training=Head())
    return override(recipe, [*HOW[name], "folds.n=2"])


def stages(archive: Path) -> dict[str, Callable[[Workspace], object]]:
    said = Reporter()
    found: dict[str, Callable[[Workspace], object]] = {
        "data": lambda w: prepare(w, COMPETITION, archive, False, None, said)
    }
    for name in HOW:
        recipe = recipe_of(name)
        found[f"train {name}"] = lambda w, r=recipe: train(w, r, "cpu", said)  # type: ignore[misc]
        found[f"predict {name}"] = lambda w, r=recipe: predict(w, COMPETITION, r, "cpu", said)  # type: ignore[misc]
    return found


def forked(work: Callable[[], object], wait_s: float = LIMIT_S, n_renames: int = 0) -> bool:
    """Whether `work` ended in a process that is killed after `wait_s`, or at a rename."""
    child = os.fork()
    if not child:
        status, replace, left = 1, Path.replace, [n_renames]

        def dying(path: Path, target: Path) -> Path:
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            return replace(path, target)

        Path.replace = dying  # type: ignore[method-assign, assignment]
        for module in (checkpoints, runs):
            module.code_commit = module.commit = lambda _: "none"  # type: ignore[attr-defined]
        try:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            if wait_s < LIMIT_S or n_renames:
                os.dup2(null, 2)
            work()
            status = 0
        finally:
            if status:
                import traceback

                traceback.print_exc()
            os._exit(status)
    end = time.monotonic() + wait_s
    while time.monotonic() < end:
        pid, how = os.waitpid(child, os.WNOHANG)
        if pid:
            assert how in (0, signal.SIGKILL), f"a process ended with {how}"
            return how == 0
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1] == 0


def results(root: Path) -> dict[str, bytes]:
    paths = [path for pattern in RESULTS for path in root.glob(pattern)]
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(paths)}


def crash(n_kills: int, seed: int, folder: Path) -> None:
    """AssertionError if a run that was killed ends otherwise than one that was not."""
    rng, n_done, n_resumed = random.Random(seed), 0, 0
    archive, _ = write_edition(folder / "edition", seed=2, n_train=80, n_test=20)
    reference, killed = Workspace(folder / "reference"), Workspace(folder / "killed")
    took, todo = {}, stages(archive)
    for name, work in todo.items():
        began = time.monotonic()
        assert forked(lambda: work(reference))  # noqa: B023
        took[name] = time.monotonic() - began
        print(f"{name}: {took[name]:.2f} s", flush=True)
    assert (len(results(reference.root)), n_kills > 0) > (20, False)
    resume.EVERY_S, resume.PAUSE = 0.0, 0  # after each step
    names = [name for name in todo if not name.startswith("predict ")] + ["predict tune"]
    goal = {
        name: n_kills // len(names) + (at < n_kills % len(names)) for at, name in enumerate(names)
    }
    for name, work in todo.items():
        before, n_left = folder / "before", goal.get(name, 0)
        killed.root.mkdir(exist_ok=True)
        shutil.copytree(killed.root, before)
        while n_left:
            at_rename = n_left % 3 == 0
            wait_s = LIMIT_S if at_rename else rng.uniform(0, took[name])
            n_renames = rng.randint(1, 20 if name.startswith("train t") else 4) if at_rename else 0
            if forked(lambda: work(killed), wait_s, n_renames):  # noqa: B023
                shutil.rmtree(killed.root)  # it was faster: from the start of the stage again
                shutil.copytree(before, killed.root)
                continue
            n_left, n_done = n_left - 1, n_done + 1
            n_resumed += bool(list(killed.runs.glob("*/fold-*.resume.safetensors")))
            how = f"at rename {n_renames}" if at_rename else f"after {wait_s:.2f} s"
            print(f"killed {name} {how}", flush=True)
        assert forked(lambda: work(killed))  # noqa: B023
        shutil.rmtree(before)
    expected, found = results(reference.root), results(killed.root)
    assert found.keys() == expected.keys(), found.keys() ^ expected.keys()
    differing = [name for name in found if found[name] != expected[name]]
    assert not differing, differing
    assert not list(killed.root.rglob("*.resume.*"))
    print(f"seed {seed}: {n_done} kills, {n_resumed} left a resume file; {len(found)} files equal")


if __name__ == "__main__":
    torch.set_num_threads(1)
    given = [int(word) for word in sys.argv[1:]]
    the_seed = given[1] if len(given) > 1 else random.SystemRandom().randrange(10**6)
    print(f"seed {the_seed}", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        crash(given[0], the_seed, Path(scratch))
