"""`make remote` against a twin of Kaggle that really runs what is pushed."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from heard import Heard
from kaggle_stand import HASTE
from twin.server import Twin

from comp.competition import COMPETITION
from comp.data.origin import account_home, mark_rehearsal
from comp.kaggle import Kaggle
from comp.predict.stage import predict
from comp.recipes import chosen
from comp.remote import stage
from comp.store import Workspace
from comp.train.fits import HeadFit
from comp.train.run import open_run

OPTIONS = ["pixels.size_px=64", "folds.n=2"]
SLOW = replace(HASTE, read_s=20.0, poll_s=0.2)  # two cores are shared with the twin's session


@pytest.fixture
def twin(edition: tuple[Path, Path]) -> Iterator[Twin]:
    with Twin(*edition) as running:
        yield running


def test_a_run_is_fitted_on_kaggle_and_predicting_goes_on_here(
    twin: Twin, drawn_copy: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "DEVICE", "cpu")
    mark_rehearsal(drawn_copy, COMPETITION)
    heard, recipe = Heard(), chosen("lite0_head", OPTIONS)[0]
    env = twin.environment(account_home(drawn_copy))
    kaggle = Kaggle(COMPETITION, heard, env, SLOW)
    words = ["--recipe", "lite0_head", "--set", *OPTIONS]
    stage.run_remotely(drawn_copy, [recipe], words, kaggle)
    (session,) = twin.sessions
    fields = session.fields
    assert (fields["isPrivate"], fields["enableGpu"], fields["kernelType"]) == (
        True,
        True,
        "script",
    )
    assert fields["competitionDataSources"] == [COMPETITION.slug]
    assert fields["machineShape"] == "NvidiaTeslaT4"
    assert len(fields["text"]) < 400_000
    assert "2 folds in" in str(heard)  # of the session's log
    assert "1.3 used, 28.7 left" in str(heard)
    assert open_run(drawn_copy, recipe).is_trained()
    monkeypatch.setattr(HeadFit, "logits", lambda *_: pytest.fail("photos were predicted here"))
    run = predict(drawn_copy, COMPETITION, recipe, "cpu", heard)
    assert (run.folder / "test.csv").exists()
    stage.run_remotely(drawn_copy, [recipe], words, kaggle)
    assert "nothing to do" in heard.lines[-1]
    assert len(twin.sessions) == 1
