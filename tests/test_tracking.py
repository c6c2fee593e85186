"""What is kept of a run's progress: its log, and curves in TensorBoard."""

import re
import sys
from pathlib import Path

import pytest
from finished_run import TINY_HEAD
from heard import Heard
from tensorboardX.proto.event_pb2 import Event
from tiny import TINY

from comp.competition import COMPETITION
from comp.errors import UserError
from comp.options import override
from comp.predict.stage import predict
from comp.progress import LOG, Reporter
from comp.recipe import FineTune
from comp.store import Workspace
from comp.train.fits import HeadFit
from comp.train.stage import train

TUNED = TINY.replace(training=FineTune(epochs=2, batch_size=8, head_start=False))


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """By name and step, from TensorBoard's files: records of length, checksum, bytes, checksum."""
    found: dict[str, dict[int, float]] = {}
    for path in folder.glob("events.*"):
        data, start = path.read_bytes(), 0
        while start < len(data):
            n_bytes = int.from_bytes(data[start : start + 8], "little")
            event = Event.FromString(data[start + 12 : start + 12 + n_bytes])
            for value in event.summary.value:
                found.setdefault(value.tag, {})[event.step] = value.simple_value
            start += n_bytes + 16
    return found


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_gets_the_curves_that_the_run_keeps_and_its_folds_scores(
    drawn_copy: Workspace,
) -> None:
    run = train(drawn_copy, override(TUNED, ["folds.n=2"]), "cpu", Heard(), track="tensorboard")
    found = scalars(run.folder / "curves")
    for fold in run.folds:
        lines = run.history(fold).read_text().splitlines()[1:]
        kept = {int(step): float(loss) for step, loss, _ in (line.split(",") for line in lines)}
        assert found[f"fold-{fold}/loss"] == pytest.approx(kept)
        assert len(kept) > 2
    assert {"out-of-fold/fold-0", "out-of-fold/all", "fold-1/learning-rate"} <= found.keys()


def test_without_the_option_no_tracker_is_loaded_and_an_unknown_one_is_one_line(
    drawn_copy: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = override(TINY_HEAD, ["folds.n=2"])
    with pytest.raises(UserError, match=r"no tracker 'wandb' is installed, but .*tensorboard"):
        train(drawn_copy, recipe, "cpu", Heard(), track="wandb")
    monkeypatch.setitem(sys.modules, "accelerate.tracking", None)
    with pytest.raises(UserError, match="pip install accelerate"):
        train(drawn_copy, recipe, "cpu", Heard(), track="tensorboard")
    run = train(drawn_copy, recipe, "cpu", Heard())
    assert not (run.folder / "curves").exists()


def full(*_: object) -> None:
    raise OSError("no space")


def test_a_run_has_one_log_with_the_time_of_all_that_was_shown_and_of_what_stopped_it(
    drawn_copy: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, reporter = override(TINY_HEAD, ["folds.n=2"]), Reporter()
    with monkeypatch.context() as patch:
        patch.setattr(HeadFit, "fit", full)
        with pytest.raises(OSError, match="no space"):
            train(drawn_copy, recipe, "cpu", reporter)
    run = train(drawn_copy, recipe, "cpu", reporter)
    predict(drawn_copy, COMPETITION, recipe, "cpu", reporter)
    shown, log = capsys.readouterr(), (run.folder / LOG).read_text()
    assert all(re.match(r"20\d\d-\d\d-\d\d \d\d:\d\d:\d\d\+00:00 ", x) for x in log.splitlines())
    lines = [line[26:] for line in log.splitlines()]
    assert "stopped by OSError: no space" in lines
    assert next(line for line in lines if line.startswith("fitting: 2 folds in"))
    assert next(line for line in lines if line.startswith("log loss"))
    assert {*shown.out.splitlines()} <= {*lines}
    for stage in (train, lambda *words: predict(words[0], COMPETITION, *words[1:])):
        stage(drawn_copy, recipe, "cpu", reporter)  # done: nothing to do, nothing to note
    assert (run.folder / LOG).read_text() == log
