"""`make remote` against a twin of Kaggle that really runs what is pushed."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from finished_run import TINY_HEAD
from heard import Heard
from kaggle_stand import HASTE
from tiny import TINY, random_network
from twin.server import Twin

from comp.competition import COMPETITION
from comp.data.origin import account_home, mark_rehearsal
from comp.kaggle import Kaggle
from comp.options import override
from comp.predict.stage import predict
from comp.recipes import chosen
from comp.remote import stage
from comp.remote.estimate import FIXED_S, PASSES, SPEED, estimated_hours
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


def test_the_estimate_counts_epochs_folds_and_passes() -> None:
    fixed = FIXED_S / 3600
    tuned = [
        estimated_hours(override(TINY, [f"training.epochs={n}", *more]), 1000, 0) - fixed
        for n, more in ((1, []), (2, []), (2, ["folds.fit=1"]), (2, ["prediction.views=none"]))
    ]
    per_epoch = tuned[1] - tuned[0]
    assert per_epoch == pytest.approx(5 * 0.8 * 1000 * PASSES * operations(32) / SPEED / 3600)
    assert tuned[1] - tuned[3] == pytest.approx(1000 * operations(32) / SPEED / 3600)
    assert tuned[2] == pytest.approx((tuned[1] - 2 * per_epoch) + 2 * per_epoch / 5)
    heads = [estimated_hours(TINY_HEAD, n, 0) - fixed for n in (1000, 3000)]
    assert heads[1] == pytest.approx(3 * heads[0])


def operations(size_px: int) -> float:
    """Of a forward pass of the tiny recipe's network: a sum over its layers, by hand."""
    network, sizes = random_network("mobilenetv3_small_050", size_px), []

    def count(layer: Any, given: Any, made: Any) -> None:
        per_output = layer.weight[0].numel()
        sizes.append(2 * per_output * made.numel())

    for layer in network.modules():
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
            layer.register_forward_hook(count)
    with torch.no_grad():
        network(torch.zeros(1, 3, size_px, size_px))
    return float(sum(sizes))
