"""Backbones from timm: their weights, their input and their learning rates."""

import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from tiny import numbers, random_network, vary_batch_norms

from comp.errors import RecipeError, WeightsError
from comp.network.backbone import build, embed, parameter_groups, timm_config
from comp.network.batchnorm import fuse_batch_norm
from comp.network.preprocessing import KNOWN, Preprocessing
from comp.network.weights import PACKAGED
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


def prefixed(tensors: dict[str, Any], *prefixes: str) -> dict[str, Any]:
    return {".".join([*prefixes, name]): value for name, value in tensors.items()}


HEAD = {"fc.weight": torch.ones(1000, 512), "fc.bias": torch.ones(1000)}
ZEROS = {"conv1.weight": torch.zeros(64, 3, 7, 7)}
WRAPPED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "bare": lambda state: state,
    "with an old head": lambda state: state | HEAD,
    "with a deeper head": lambda state: state | {"head.0.weight": torch.ones(3, 4)},
    "half": lambda state: {name: value.half() for name, value in state.items()},
    "DataParallel": lambda state: prefixed(state, "module"),
    "compiled": lambda state: prefixed(state, "module", "_orig_mod", "model"),
    "timm": lambda state: {"args": Namespace(lr=1), "epoch": 3, "state_dict": state},
    "averaged": lambda state: {"state_dict": ZEROS, "state_dict_ema": state},
    "AveragedModel": lambda state: prefixed(state, "module") | {"n_averaged": torch.tensor(3)},
    "nested": lambda state: {"model": {"model_state_dict": prefixed(state, "backbone")}},
    "net": lambda state: {"net": state, "optimizer": {"state": {0: torch.ones(2)}}},
    "one entry of any name": lambda state: {"best": state, "optimizer": {"param_groups": []}},
    "one prefix of any name": lambda state: prefixed(state, "0", "model"),
    "flat": lambda state: prefixed(state, "state_dict", "net"),
}


@pytest.mark.parametrize("how", WRAPPED)
def test_a_file_fills_the_backbone_whatever_its_weights_are_wrapped_in(
    how: str, tmp_path: Path
) -> None:
    source, path = random_network("resnet18"), tmp_path / "w.pth"
    source.load_state_dict({key: value + 0.01 for key, value in source.state_dict().items()})
    state = {key: value for key, value in source.state_dict().items() if not key.startswith("fc.")}
    torch.save(WRAPPED[how](state), path)
    images = numbers(2, 3, 64, 64)
    torch.testing.assert_close(
        embed(loaded(path), images), embed(source, images), atol=0.02, rtol=0.02
    )


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ""])
def test_the_form_of_a_file_is_read_from_its_bytes(suffix: str, tmp_path: Path) -> None:
    source, path = random_network("resnet18"), tmp_path / f"w{suffix}"
    for save in (torch.save, safetensors.torch.save_file):
        save(prefixed(source.state_dict(), "model"), path)
        assert torch.equal(loaded(path).conv1.weight, source.conv1.weight)


class Holder:
    """A class of somebody's own."""


def recursive() -> dict[str, Any]:
    found: dict[str, Any] = {}
    return found | {"model": found}


@pytest.mark.parametrize(
    "content",
    [
        *({}, [], [torch.ones(2)], torch.ones(2), "text", None, 3, {1, 2}, recursive()),
        *({0: torch.ones(2)}, {"a": {"b": {"c": 1}}}, {"one": ZEROS, "other": ZEROS}),
        *(ZEROS, {"model.conv1.weight": 1}, prefixed(ZEROS, "model") | prefixed(ZEROS, "net")),
        *({"x": Holder()}, {"conv1.weight": np.ones(3)}, {"state": {0: {}}, "param_groups": []}),
    ],
)
def test_a_pickle_of_anything_but_one_network_is_refused_in_one_line(
    content: object, tmp_path: Path
) -> None:
    torch.save(content, tmp_path / "w.pth")
    refused(tmp_path / "w.pth")


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"not weights", b"<!DOCTYPE html>\n<p>\xc3\xa9</p>", b"\xef\xbb\xbf<html>"),
        *(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n", bytes(range(256))),
        *(b"PK\x03\x04" + bytes(99), b"\x80\x02}q\x00.", b"\x10" + bytes(7) + b'{"a": 1}'),
    ],
)
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_file_that_is_no_weights_is_refused_in_one_line(
    data: bytes, suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"w{suffix}"
    path.write_bytes(data)
    refused(path)


@pytest.mark.parametrize("save", [torch.save, safetensors.torch.save_file])
def test_damaged_files_folders_and_missing_files_are_refused_in_one_line(
    save: Callable[..., None], tmp_path: Path
) -> None:
    path, state = tmp_path / "w.pth", random_network("resnet18").state_dict()
    save(state | {"conv1.weight": np.nan * state["conv1.weight"]}, path)
    assert "not finite: 1 (conv1.weight)" in refused(path)
    save(state, path)
    for n_bytes in (-1000, 100, 9):
        path.write_bytes(path.read_bytes()[:n_bytes])
        refused(path)
    assert "a folder" in refused(tmp_path)
    assert "no file" in refused(Path("~nobody-of-that-name/w.pth"))


@pytest.mark.parametrize(
    ("backbone", "other", "says"),
    [
        ("resnet18", "resnet34", "not used: 80 (layer1.2.bn1.bias, "),
        ("resnet34", "resnet18", "missing: 80 (layer1.2.bn1.bias, "),
        ("tf_efficientnet_lite0", "tf_efficientnet_lite1", "not used: 75 ("),
        ("vit_tiny_patch16_224", "vit_small_patch16_224", "of another shape or type: 150 ("),
    ],
)
def test_the_weights_of_another_backbone_are_refused_though_most_names_fit(
    backbone: str, other: str, says: str, tmp_path: Path
) -> None:
    torch.save(random_network(other).state_dict(), tmp_path / "w.pth")
    assert says in refused(tmp_path / "w.pth", backbone)


def refused(path: Path, backbone: str = "resnet18") -> str:
    """The one short line that refuses the weights at `path`."""
    with pytest.raises(WeightsError) as caught:
        loaded(path, backbone)
    line = str(caught.value)
    assert "\n" not in line
    assert len(line) < 400 + len(str(path))
    return line


def test_a_pickle_that_runs_code_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str, str]]:
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"x": Evil()}, tmp_path / "evil.pth")
    assert "may run code" in refused(tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()


def test_without_a_hub_in_reach_the_message_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("comp.network.backbone._is_reachable", lambda endpoint: False)
    monkeypatch.setattr("comp.network.backbone.try_to_load_from_cache", lambda repo, file: None)
    says = r"cannot be reached; name a file by SET=model.weights=PATH"
    with pytest.raises(WeightsError, match=says):
        build(Model(backbone="convnext_tiny.in12k_ft_in1k"))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("resnet19x", "near it are resnet"),
        ("", "timm knows no backbone ''"),
        ("jx_nest_tiny", "near it are .*nest_tiny_jx"),  # a name of old versions
        ("resnet18.a1_in2k", "no tag 'a1_in2k' of resnet18; near it are a1_in1k"),
        ("resnet18.", "no tag '' of resnet18; there are 7"),
        ("levit_128", "not in one linear layer"),
    ],
)
def test_unknown_backbones_and_tags_are_refused_with_near_names(name: str, says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        random_network(name)


@pytest.mark.parametrize(
    ("backbone", "size_px", "works"),
    [
        ("vgg11", 20, 32),
        ("inception_v3", 64, 80),
        ("maxvit_tiny_tf_224", 250, 256),
        ("coatnet_nano_rw_224", 200, 192),
        ("mvitv2_tiny", 250, 256),  # only arithmetic notices
        ("xcit_nano_12_p16_224", 250, 256),
        ("nest_tiny", 200, 192),
        ("gcvit_xxtiny", 200, 192),
        ("botnet26t_256", 200, 192),
    ],
)
def test_a_size_that_a_network_cannot_take_is_refused_with_the_nearest_that_it_can(
    backbone: str, size_px: int, works: int
) -> None:
    says = rf"{backbone} takes no images of {size_px} px \(.+\): set pixels\.size_px={works}$"
    with pytest.raises(RecipeError, match=says):
        random_network(backbone, size_px)
    random_network(backbone, works)


def test_the_nearest_size_may_be_one_of_patches_of_14_px(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "comp.network.backbone._refusal", lambda model, size_px, where: "no" * (size_px % 14 > 0)
    )
    with pytest.raises(RecipeError, match=r"set pixels\.size_px=252"):
        random_network("resnet18", 256)


def test_a_backbone_is_not_blamed_for_a_machine_without_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def create(*_: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr("comp.network.backbone._create", create)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        random_network("resnet18", 24)


def test_a_cut_network_is_tried_only_up_to_its_layer() -> None:
    with pytest.raises(RecipeError, match=r"set pixels\.size_px=32"):
        random_network("vgg11", 24, layer="features.20")
    random_network("vgg11", 24, layer="features.10")


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
    with pytest.raises(RecipeError, match=r"resnet18 does not work \(something else\)"):
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
