"""Backbones from timm: their weights, their input and their learning rates."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from tiny import numbers, random_network, vary_batch_norms

from comp.errors import RecipeError, WeightsError
from comp.network.backbone import PACKAGED, build, embed, parameter_groups, timm_config
from comp.network.batchnorm import fuse_batch_norm
from comp.network.preprocessing import KNOWN, Preprocessing
from comp.recipe import Model
from comp.recipes import RECIPES, named

VARIED = (
    "tf_efficientnet_lite0",
    "convnext_atto",
    "vit_tiny_patch16_224",
    "resnet18",
    "mobilenetv3_small_050",
)


def loaded(path: Path, backbone: str = "resnet18") -> Any:
    return build(Model(backbone=backbone, weights=str(path)))


@pytest.mark.parametrize("name", sorted(PACKAGED))
def test_packaged_weights_fill_every_tensor_but_the_head(name: str) -> None:
    packaged, fresh = build(Model(backbone=name)), random_network(name).state_dict()
    pairs = packaged.state_dict().items()
    same = [key for key, value in pairs if value.numel() > 1 and torch.equal(value, fresh[key])]
    assert same == ["classifier.weight"]


def test_packaged_weights_give_features_of_a_sensible_size() -> None:
    with torch.inference_mode():
        features = embed(build(Model(backbone="tf_efficientnet_lite0")), numbers(4, 3, 224, 224))
    assert features.shape == (4, 1280)
    assert 0.01 < float(features.std()) < 2
    assert float(features.min()) >= 0  # ReLU6 comes last


def test_a_new_head_predicts_one_half() -> None:
    network = random_network("resnet18")
    assert torch.equal(network(numbers(2, 3, 32, 32)), torch.zeros(2, 1))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_local_file_fills_the_backbone_whatever_head_it_has(tmp_path: Path, suffix: str) -> None:
    source, path = random_network("resnet18"), tmp_path / f"w{suffix}"
    state = {key: value + 0.01 for key, value in source.state_dict().items()}
    source.load_state_dict(state)
    state |= {"fc.weight": torch.ones(1000, 512), "fc.bias": torch.ones(1000)}
    if suffix == ".safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save({"state_dict": state}, path)
    images = numbers(2, 3, 64, 64)
    torch.testing.assert_close(embed(loaded(path), images), embed(source, images))


def test_weights_that_are_missing_damaged_or_of_another_backbone_are_refused_in_one_line(
    tmp_path: Path,
) -> None:
    part, broken = tmp_path / "part.safetensors", tmp_path / "broken.pth"
    other = tmp_path / "other.safetensors"
    safetensors.torch.save_file(random_network("resnet18").state_dict(), other)
    safetensors.torch.save_file({"conv1.weight": torch.zeros(64, 3, 7, 7)}, part)
    broken.write_bytes(b"not weights")
    for path, backbone, says in (
        (tmp_path / "none.pth", "resnet18", "no weights at"),
        (broken, "resnet18", "cannot be read"),
        (part, "resnet18", "lacks"),
        (other, "convnext_atto", "gives no weights"),
    ):
        with pytest.raises(WeightsError, match=says) as caught:
            loaded(path, backbone)
        assert "\n" not in str(caught.value)


def test_a_pickle_that_runs_code_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str, str]]:
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"x": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(WeightsError):
        loaded(tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()


def test_without_a_hub_in_reach_the_message_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("comp.network.backbone._is_reachable", lambda endpoint: False)
    monkeypatch.setattr("comp.network.backbone.try_to_load_from_cache", lambda repo, file: None)
    says = r"cannot be reached; name a file by SET=model.weights=PATH"
    with pytest.raises(WeightsError, match=says):
        build(Model(backbone="convnext_tiny.in12k_ft_in1k"))


def test_an_unknown_backbone_is_refused_with_near_names() -> None:
    with pytest.raises(RecipeError, match="resnet"):
        build(Model(backbone="resnet19x"))


def test_the_input_of_a_backbone_is_timms_also_where_timm_is_not_loaded() -> None:
    assert timm_config("tf_efficientnet_lite2")["size_px"] == 260
    assert timm_config("legacy_xception")["crop_pct"] == 0.8975
    assert timm_config("vgg16")["interpolation"] == "bilinear"
    assert {named(name).model.backbone for name in RECIPES} == set(KNOWN)
    for name, known in KNOWN.items():
        assert known == Preprocessing(**timm_config(name)), name
    code = (
        "import sys; from comp.network.preprocessing import geometry_of; from comp.recipes import"
        " RECIPES, named; [geometry_of(named(name)) for name in RECIPES];"
        " sys.exit(bool({'torch', 'timm'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_only_a_missing_drop_path_is_reported_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match="vgg11 has no drop_path_rate"):
        random_network("vgg11", drop_path=0.1)

    def create(*_: object, **__: object) -> None:
        raise TypeError("something else")

    monkeypatch.setattr("timm.create_model", create)
    with pytest.raises(TypeError, match="something else"):
        random_network("resnet18", 32, drop_path=0.1)


@pytest.mark.parametrize("backbone", VARIED)
def test_learning_rates_fall_from_the_head_down_and_vectors_do_not_decay(backbone: str) -> None:
    network = random_network(backbone)
    groups = parameter_groups(network, weight_decay=0.05, layer_decay=0.5)
    assert sum(len(group["params"]) for group in groups) == len(list(network.parameters()))
    scale = {id(parameter): group["lr_scale"] for group in groups for parameter in group["params"]}
    assert scale[id(network.get_classifier().weight)] == max(scale.values()) == 1.0
    assert scale[id(next(network.parameters()))] == min(scale.values()) < 0.1
    for group in groups:
        has_vectors = any(parameter.ndim <= 1 for parameter in group["params"])
        assert group["weight_decay"] == 0 or not has_vectors


@pytest.mark.parametrize(
    ("backbone", "layer"),
    [
        ("tf_efficientnet_lite0", None),
        ("tf_efficientnet_lite0", "blocks.4"),
        ("resnet18", None),
        ("mobilenetv3_small_050", None),
        ("legacy_xception", None),
        ("densenet121", None),
    ],
)
def test_fusing_batch_norms_leaves_the_features_as_they_were(
    backbone: str, layer: str | None
) -> None:
    network, images = random_network(backbone, 96, layer=layer), numbers(4, 3, 96, 96)
    vary_batch_norms(network)
    n_norms = sum(isinstance(module, torch.nn.BatchNorm2d) for module in network.modules())
    with torch.inference_mode():
        before = embed(network, images)
        n_fused = fuse_batch_norm(network, lambda: network(images[:1]))
        after = embed(network, images)
    assert 0 < n_fused <= n_norms
    torch.testing.assert_close(after, before, atol=1e-3 * float(before.abs().max()), rtol=1e-3)
