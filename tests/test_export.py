"""Exported files say what the run says, without this project."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pandas as pd
import pytest
import timm
from finished_run import TINY_HEAD
from heard import Heard
from PIL import Image
from tiny import TINY

from comp.competition import COMPETITION
from comp.data.photos import decode
from comp.errors import DataError, RecipeError
from comp.options import override
from comp.predict.blend import blend_runs
from comp.predict.export import export
from comp.predict.portable import Portable
from comp.predict.stage import predict
from comp.progress import Reporter
from comp.recipe import FineTune, Recipe
from comp.store import Workspace
from comp.train.stage import train

pytestmark = pytest.mark.slow
README = Path(__file__).parents[1] / "README.md"
SETTINGS = ["folds.n=2", "prediction.noise_rate=0", "prediction.clip=1e-9"]
SHORTER = ["pixels.fit=shorter", "pixels.canvas=1.3", "prediction.views=five_crop"]
TUNED = TINY.replace(
    training=FineTune(epochs=2, batch_size=8, head_start=False, peak_lr=1e-2),
    pixels=TINY.pixels.replace(normalise="measured"),
)


def finish(workspace: Workspace, recipe: Recipe, *settings: str) -> Path:
    recipe = override(recipe, [*SETTINGS, "model.backbone=test_resnet", *settings])  # fast to trace
    train(workspace, recipe, "cpu", Reporter())
    return predict(workspace, COMPETITION, recipe, "cpu", Reporter()).folder


def by_onnx(path: Path, photos: np.ndarray) -> np.ndarray:
    return onnxruntime.InferenceSession(path).run(None, {"photos": photos})[0]


def by_readme(file: Path) -> Any:
    """The network that the three lines in README make."""
    found = re.search(r"(?m)^    import json, safetensors.*\n.*\n.*$", README.read_text())
    assert found
    names = {"file": file}
    exec("\n".join(line.strip() for line in found[0].splitlines()), names)
    return names["network"]


def test_photos(workspace: Workspace, folder: Path) -> dict[Path, float]:
    """The test photos that can be decoded, and their probabilities by the run."""
    table = pd.read_csv(folder / "test.csv", dtype={"id": str}).dropna()
    paths = [workspace.photos / "test" / f"{id}.jpg" for id in table["id"]]
    return dict(zip(paths, table["prob"], strict=True))


test_photos.__test__ = False  # type: ignore[attr-defined]


@pytest.mark.parametrize("settings", [SHORTER, ["prediction.views=multi_scale"]])
def test_a_head_becomes_one_network_in_onnx_with_views_and_sizes_of_all_kinds(
    drawn_copy: Workspace, settings: list[str]
) -> None:
    settings = [*settings, "pixels.canvas=1.3", "prediction.calibration=platt"]
    folder, heard = finish(drawn_copy, TINY_HEAD, *settings), Heard()
    target = export(drawn_copy, COMPETITION, folder, heard)
    assert sorted(path.name for path in target.iterdir()) == ["model.onnx", "model.safetensors"]
    assert "model.onnx: as torch within" in str(heard)
    for path, prob in test_photos(drawn_copy, folder).items():
        photo = decode(path.read_bytes()).pixels
        assert photo is not None
        found = by_onnx(target / "model.onnx", np.stack([photo] * 3))
        np.testing.assert_allclose(found, [prob] * 3, atol=0.01)


def test_the_lines_in_readme_load_each_fold_and_timm_s_own_transform_feeds_it(
    drawn_copy: Workspace,
) -> None:
    folder = finish(
        drawn_copy, TUNED, "prediction.views=none", "prediction.calibration=temperature"
    )
    target = export(drawn_copy, COMPETITION, folder, Heard())
    networks = [by_readme(target / f"model-fold-{fold}.safetensors") for fold in (0, 1)]
    assert len(list(target.iterdir())) == 3
    found, wanted = [], []
    configs = [timm.data.resolve_model_data_config(network) for network in networks]
    transforms = [timm.data.create_transform(**config) for config in configs]
    for path, prob in test_photos(drawn_copy, folder).items():
        photo = decode(path.read_bytes()).pixels
        assert photo is not None
        pairs = zip(networks, transforms, strict=True)
        images = [(network, make(Image.fromarray(photo))) for network, make in pairs]
        logits = [float(network(image[None]).detach()) for network, image in images]
        found.append(1 / (1 + np.exp(-np.mean(logits))))
        wanted.append(prob)
        assert by_onnx(target / "model.onnx", photo[None]).item() == pytest.approx(prob, abs=2e-3)
    assert np.std(wanted) > 1e-4
    np.testing.assert_allclose(found, wanted, atol=np.std(wanted) / 3)


def test_a_blend_is_one_onnx_file_and_none_for_timm(drawn_copy: Workspace) -> None:
    runs = [finish(drawn_copy, TINY_HEAD), finish(drawn_copy, TINY_HEAD.replace(name="b", seed=5))]
    how = (["prediction.clip=1e-9", "prediction.noise_rate=0"], "cpu", Reporter())
    folder, heard = blend_runs(drawn_copy, COMPETITION, runs, "equal", *how), Heard()
    target = export(drawn_copy, COMPETITION, folder, heard)
    assert [path.name for path in target.iterdir()] == ["model.onnx"]
    assert "no file for timm: a blend of 2 runs" in str(heard)
    for path, prob in test_photos(drawn_copy, folder).items():
        photo = decode(path.read_bytes()).pixels
        assert photo is not None
        assert by_onnx(target / "model.onnx", photo[None]).item() == pytest.approx(prob, abs=0.01)


def test_a_file_that_differs_from_torch_does_not_appear(
    drawn_copy: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = finish(drawn_copy, TINY_HEAD)
    prob = Portable.prob
    monkeypatch.setattr(Portable, "prob", lambda self, photo: prob(self, photo) * 0.9)
    with pytest.raises(DataError, match=r"model.onnx differs from torch by .* on 16 photos"):
        export(drawn_copy, COMPETITION, folder, Heard())
    assert list((folder / "export").iterdir()) == []


def test_what_no_layer_can_do_is_refused_before_anything_is_written(drawn_copy: Workspace) -> None:
    for settings, says in (
        (["prediction.calibration=isotonic"], "calibrated by steps"),
        (["pixels.fit=letterbox"], "pixels.fit=letterbox is not exported"),
    ):
        folder = finish(drawn_copy, TINY_HEAD, *settings)
        with pytest.raises(RecipeError, match=says):
            export(drawn_copy, COMPETITION, folder, Heard())
        assert not (folder / "export").exists()
