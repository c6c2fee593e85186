"""Backbones from timm: their weights, what of them trains, and batch norms folded away."""

import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from comp.errors import RecipeError, WeightsError
from comp.network.backbone import PACKAGED, build, embed, parameter_groups, timm_config
from comp.network.batchnorm import fuse_batch_norm
from comp.network.preprocessing import KNOWN, Preprocessing
from comp.recipe import Model
from comp.recipes import RECIPES, named

RANDOM = "random"
VARIED = [
    "tf_efficientnet_lite0",
    "convnext_atto",
    "vit_tiny_patch16_224",
    "resnet18",
    "mobilenetv3_small_050",
]


def noise(n: int, size_px: int) -> torch.Tensor:
    return torch.randn(n, 3, size_px, size_px, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", sorted(PACKAGED))
def test_packaged_weights_fill_every_tensor_but_the_head(name: str) -> None:
    packaged, fresh = build(Model(backbone=name)), build(Model(backbone=name, weights=RANDOM))
    same = [
        key
        for key, value in packaged.state_dict().items()
        if value.numel() > 1 and torch.equal(value, fresh.state_dict()[key])
    ]
    assert same == ["classifier.weight"]


def test_packaged_weights_tell_what_they_were_trained_to_tell() -> None:
    network = build(Model(backbone="tf_efficientnet_lite0"))
    with torch.inference_mode():
        features = embed(network, noise(4, 224))
    assert features.shape == (4, 1280)
    assert 0.01 < float(features.std()) < 2
    assert float(features.min()) >= 0  # ReLU6 comes last


def test_a_new_head_says_one_half(tmp_path: Path) -> None:
    network = build(Model(backbone="resnet18", weights=RANDOM))
    assert torch.equal(network(noise(2, 32)), torch.zeros(2, 1))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_local_file_fills_the_backbone_whatever_head_it_has(tmp_path: Path, suffix: str) -> None:
    source = build(Model(backbone="resnet18", weights=RANDOM))
    state = {
        key: value for key, value in source.state_dict().items() if not key.startswith("fc.")
    } | {"fc.weight": torch.ones(1000, 512)}
    path = tmp_path / f"w{suffix}"
    safetensors.torch.save_file(state, path) if suffix == ".safetensors" else torch.save(
        {"state_dict": state}, path
    )
    loaded = build(Model(backbone="resnet18", weights=str(path)))
    torch.testing.assert_close(embed(loaded, noise(2, 64)), embed(source, noise(2, 64)))


def test_weights_that_are_missing_damaged_or_of_another_backbone_are_refused_in_one_line(
    tmp_path: Path,
) -> None:
    other = tmp_path / "other.safetensors"
    safetensors.torch.save_file(
        build(Model(backbone="resnet18", weights=RANDOM)).state_dict(), other
    )
    part = tmp_path / "part.safetensors"
    safetensors.torch.save_file({"conv1.weight": torch.zeros(64, 3, 7, 7)}, part)
    broken = tmp_path / "broken.pth"
    broken.write_bytes(b"not weights")
    for path, says in (
        (tmp_path / "none.pth", "no weights at"),
        (broken, "cannot be read"),
        (part, "lacks"),
        (other, "gives no weights"),
    ):
        backbone = "convnext_atto" if path == other else "resnet18"
        with pytest.raises(WeightsError, match=says) as caught:
            build(Model(backbone=backbone, weights=str(path)))
        assert "\n" not in str(caught.value)


def test_a_pickle_that_runs_code_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (open, (str(tmp_path / "ran"), "w"))  # type: ignore[return-value]

    torch.save({"x": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(WeightsError):
        build(Model(backbone="resnet18", weights=str(tmp_path / "evil.pth")))
    assert not (tmp_path / "ran").exists()


def test_with_no_hub_in_reach_the_message_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("comp.network.backbone._is_reachable", lambda endpoint: False)
    monkeypatch.setattr("comp.network.backbone.try_to_load_from_cache", lambda repo, file: None)
    with pytest.raises(
        WeightsError, match=r"cannot be reached; name a file by SET=model.weights=PATH"
    ):
        build(Model(backbone="convnext_tiny.in12k_ft_in1k"))


def test_an_unknown_backbone_is_refused_with_its_neighbours() -> None:
    with pytest.raises(RecipeError, match="resnet"):
        build(Model(backbone="resnet19x"))


def test_the_input_of_a_backbone_comes_from_its_own_config() -> None:
    assert timm_config("tf_efficientnet_lite2")["size_px"] == 260
    assert timm_config("legacy_xception")["crop_pct"] == 0.8975
    assert timm_config("vgg16")["interpolation"] == "bilinear"


def test_preprocessing_known_without_timm_is_timms_own_and_covers_every_recipe() -> None:
    assert {named(name).model.backbone for name in RECIPES} == set(KNOWN)
    for name, known in KNOWN.items():
        assert known == Preprocessing(**timm_config(name)), name


def test_the_canvas_of_a_recipe_is_known_without_torch() -> None:
    code = (
        "import sys; from comp.network.preprocessing import geometry_of; from comp.recipes import"
        " RECIPES, named; [geometry_of(named(name)) for name in RECIPES];"
        " sys.exit(bool({'torch', 'timm'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_only_a_backbone_without_drop_path_is_told_that_it_has_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(RecipeError, match="vgg11 has no drop_path_rate"):
        build(Model(backbone="vgg11", weights=RANDOM, drop_path=0.1))

    def create(*_: object, **__: object) -> None:
        raise TypeError("something else")

    monkeypatch.setattr("timm.create_model", create)
    with pytest.raises(TypeError, match="something else"):
        build(Model(backbone="resnet18", weights=RANDOM, drop_path=0.1), size_px=32)


@pytest.mark.parametrize("backbone", VARIED)
def test_learning_rates_fall_from_the_head_down_and_vectors_do_not_decay(backbone: str) -> None:
    network = build(Model(backbone=backbone, weights=RANDOM))
    groups = parameter_groups(network, weight_decay=0.05, layer_decay=0.5)
    assert sum(len(group["params"]) for group in groups) == len(list(network.parameters()))
    scale = {id(parameter): group["lr_scale"] for group in groups for parameter in group["params"]}
    assert scale[id(network.get_classifier().weight)] == max(scale.values()) == 1.0
    assert scale[id(next(network.parameters()))] == min(scale.values()) < 0.1
    for group in groups:
        assert all(
            group["weight_decay"] == 0 for parameter in group["params"] if parameter.ndim <= 1
        )


@pytest.mark.parametrize(
    "backbone",
    [
        "tf_efficientnet_lite0",
        "resnet18",
        "mobilenetv3_small_050",
        "legacy_xception",
        "densenet121",
    ],
)
def test_folding_batch_norms_leaves_the_features_as_they_were(backbone: str) -> None:
    network = build(Model(backbone=backbone, weights=RANDOM))
    images = noise(4, 96)
    for module in network.modules():  # statistics as training leaves them, not the fresh 0 and 1
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.5, 0.5)
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    with torch.inference_mode():
        before = embed(network, images)
    n_norms = sum(isinstance(module, torch.nn.BatchNorm2d) for module in network.modules())
    n_folded = fuse_batch_norm(network, lambda: network(images[:1]))
    with torch.inference_mode():
        after = embed(network, images)
    assert 0 < n_folded <= n_norms
    torch.testing.assert_close(after, before, atol=1e-3 * float(before.abs().max()), rtol=1e-3)
