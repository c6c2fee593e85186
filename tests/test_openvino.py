"""OpenVINO, where it is installed, makes the same features, and torch makes them where it cannot."""

import numpy as np
import pytest
import torch

from comp.recipe import Model
from comp.train import openvino
from comp.train.backbone import build, input_of
from comp.train.device import find_device
from comp.train.features import Embedder, make_embedder
from comp.train.views import View

CPU = find_device("cpu")
MODEL = Model(backbone="resnet10t", weights="random")
SQUARES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (6, 64, 64, 3), dtype=np.uint8))


def embedder(*, many: bool) -> tuple[Embedder, str]:
    return make_embedder(build(MODEL), input_of(MODEL), 64, CPU, SQUARES, many=many)


@pytest.mark.parametrize("view", [View(name="centre"), View(name="flip", flip=True)])
def test_features_are_those_of_torch_for_any_number_of_photos_and_kept_under_another_key(view: View) -> None:
    pytest.importorskip("openvino")
    ours, _ = embedder(many=False)
    theirs, why = embedder(many=True)
    assert why.startswith("OpenVINO: features move by")
    for n_photos in (6, 1):
        expected, made = (one.embed(SQUARES[:n_photos], view).detach().float() for one in (ours, theirs))
        assert float((made - expected).norm() / expected.norm()) < 0.03
    assert ours.key != theirs.key
    assert not torch.allclose(theirs.embed(SQUARES, View(name="centre")), theirs.embed(SQUARES, View(name="flip", flip=True)), rtol=1e-3)


@pytest.mark.parametrize(
    ("fault", "line"), [("raises", "OpenVINO cannot take it: no such operation"), ("zeros", "with OpenVINO features would move by 100.00%")]
)
def test_torch_makes_them_and_a_line_says_why_where_openvino_cannot(monkeypatch: pytest.MonkeyPatch, fault: str, line: str) -> None:
    def compiled(*_: object) -> object:
        if fault == "raises":
            raise RuntimeError("no such operation\nand much more")
        return lambda squares: torch.zeros(len(squares), 512)

    monkeypatch.setattr(openvino, "is_here", lambda: True)
    monkeypatch.setattr(openvino, "compiled", compiled)
    made, why = embedder(many=True)
    assert line in why
    assert "and much more" not in why
    assert made.compiled is None
    assert made.key == embedder(many=False)[0].key
