"""A fold that was stopped in training goes on at its last step and ends the same."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from crashes import results
from heard import Heard
from tiny import TINY

from comp.__main__ import main
from comp.errors import StaleError
from comp.options import override
from comp.store import Workspace
from comp.train import finetune, resume
from comp.train.checkpoints import resume_file
from comp.train.run import Run, open_run
from comp.train.stage import train

RECIPE = override(
    TINY.replace(model=TINY.model.replace(drop_path=0.3)),
    ["folds.n=2", "folds.fit=1", "training.epochs=2", "training.first.epochs=1"],
)


def stopped_at(
    n_steps: int,
    number: int,
    workspace: Workspace,
    monkeypatch: pytest.MonkeyPatch,
    device: str = "cpu",
) -> tuple[Run, str]:
    """A run that gets the signal `number` in a step, and what it says."""
    taken, take = list[int](), finetune.Step.__call__

    def interrupted(self: finetune.Step, *batch: Any) -> torch.Tensor:
        taken.append(1)
        if len(taken) == n_steps:
            signal.raise_signal(number)
        return take(self, *batch)

    with monkeypatch.context() as patched:
        patched.setattr(finetune.Step, "__call__", interrupted)
        with pytest.raises(KeyboardInterrupt) as stop:
            train(workspace, RECIPE, device, Heard())
    assert stop.value.args[1] == number
    return open_run(workspace, RECIPE), stop.value.args[0]


def test_processes_killed_at_random_moments_of_every_stage_end_with_the_same_files(
    tmp_path: Path,
) -> None:
    words = [sys.executable, "-m", "tests.crashes", "6"]
    env = {**os.environ, "TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    root = Path(__file__).parents[1]
    done = subprocess.run(words, cwd=root, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("number", "n_steps", "step"), [(signal.SIGINT, 3, 3), (signal.SIGTERM, 9, 5)]
)
def test_after_ctrl_c_or_sigterm_the_fold_goes_on_after_the_step_it_was_in(
    number: int, n_steps: int, step: int, drawn_copy: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train(drawn_copy, RECIPE, "cpu", Heard())
    expected = results(drawn_copy.root)
    shutil.rmtree(run.folder)
    _, said = stopped_at(n_steps, number, drawn_copy, monkeypatch)
    assert said == f"stopped in fold 0 after step {step}; the same command resumes there"
    heard = Heard()
    train(drawn_copy, RECIPE, "cpu", heard)
    assert f"fold 0 goes on after step {step}" in str(heard)
    assert results(drawn_copy.root) == expected


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_after_the_last_step_stops_the_run_too(
    number: int, drawn_copy: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = finetune._Average.store

    def interrupted(self: finetune._Average) -> None:
        store(self)
        signal.raise_signal(number)

    monkeypatch.setattr(finetune._Average, "store", interrupted)
    says = r"stopped in fold 0; .* at the last saved step"
    with pytest.raises(KeyboardInterrupt, match=says) as stop:
        train(drawn_copy, RECIPE, "cpu", Heard())
    assert stop.value.args[1] == number


def test_a_damaged_resume_file_is_named_and_ignored(
    drawn_copy: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = stopped_at(3, signal.SIGINT, drawn_copy, monkeypatch)
    path = resume_file(run.checkpoint(0))
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    for damaged in (content, content[:1000], content[:20], b""):
        run.folder.joinpath(path.name).write_bytes(damaged)
        book = Heard()
        resume.Bookmark(run, 0, "random", "CPU", book)
        assert f"{path.name} is damaged: fold 0 begins anew" in str(book)


def test_a_resume_file_of_other_libraries_or_code_is_refused_and_named(
    drawn_copy: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = stopped_at(3, signal.SIGINT, drawn_copy, monkeypatch)
    real = resume.version
    monkeypatch.setattr(resume, "version", lambda name: "9" if name == "timm" else real(name))
    says = rf"with another timm \({real('timm')}, now 9\): .*delete the file"
    with pytest.raises(StaleError, match=says):
        train(drawn_copy, RECIPE, "cpu", Heard())
    resume_file(run.checkpoint(0)).unlink()
    train(drawn_copy, RECIPE, "cpu", Heard())


def test_the_command_line_ends_a_stopped_fold_in_one_line_and_with_the_signals_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt("stopped in fold 1", signal.SIGTERM)

    monkeypatch.setattr("comp.train.stage.train", stop)
    assert main(["train", "--recipe", "lite0_head", "--workspace", str(tmp_path)]) == 143
    assert capsys.readouterr().err == "error: stopped in fold 1\n"
