"""What a bench ran on: the machine, the versions, the commit."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from comp.data.photos import n_cores
from comp.store import code_commit

FLAGS = (
    "avx2",
    "avx512f",
    "avx512_bf16",
    "amx_bf16",
    "amx_int8",
)  # that decide how fast a network runs on a CPU
LIBRARIES = (
    "torch",
    "torchvision",
    "timm",
    "fastai",
    "albumentations",
    "numpy",
    "pillow",
    "kaggle",
)
SETTINGS = (
    "OMP_",
    "MKL_",
    "KMP_",
    "GOMP_",
    "MALLOC_",
    "GLIBC_",
    "LD_PRELOAD",
    "TORCH",
    "ONEDNN",
)  # of the environment, that matter


def origin() -> dict[str, Any]:
    """Everything that speed is known to hang on, but for what is measured."""
    cpu = _cpu()
    hardware = {
        "cpu": cpu.get("model name", platform.processor() or platform.machine()),
        "cores": n_cores(),
        "flags": [flag for flag in FLAGS if flag in cpu.get("flags", "").split()],
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "environment": {
            name: value for name, value in sorted(os.environ.items()) if name.startswith(SETTINGS)
        },
        "load": os.getloadavg(),  # when the bench began: what neighbours asked for
    }
    versions = {"python": platform.python_version(), **{name: _version(name) for name in LIBRARIES}}
    return {
        "hardware": hardware,
        "versions": versions,
        "commit": code_commit(Path(__file__).parents[1]),
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _cpu() -> dict[str, str]:
    """The first core of /proc/cpuinfo; nothing where there is none."""
    path = Path("/proc/cpuinfo")
    first = path.read_text(encoding="utf-8").partition("\n\n")[0] if path.exists() else ""
    return {
        key.strip(): value.strip()
        for key, _, value in (line.partition(":") for line in first.splitlines())
    }
