"""What a benchmark found, as tables and as JSON."""

import os
import platform
import re
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import torch

from comp.progress import Reporter
from comp.store import code_commit
from tests.bench.rows import Measured, Rounds, Row
from tests.bench.targets import TARGETS

# what decides a CPU's speed, and the settings in the environment that affect it
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_int8")
SETTINGS = ("OMP_", "MKL_", "KMP_", "GOMP_", "MALLOC_", "GLIBC_", "LD_PRELOAD", "TORCH", "ONEDNN")
LIBRARIES = ("torch", "torchvision", "timm", "fastai", "albumentations", "numpy", "pillow")


def origin() -> dict[str, Any]:
    """Everything known to affect speed, other than what is measured."""
    path = Path("/proc/cpuinfo")
    cpu = path.read_text(encoding="utf-8") if path.exists() else ""
    model, flags = (re.search(rf"{name}\s*: (.*)", cpu) for name in ("model name", "flags"))
    hardware = {
        "cpu": model[1] if model else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "flags": [flag for flag in FLAGS if flags and flag in flags[1].split()],
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.platform(),
        "environment": {key: os.environ[key] for key in os.environ if key.startswith(SETTINGS)},
        "load": os.getloadavg(),  # of the machine when the benchmark began
    }
    versions = {"python": platform.python_version()} | {name: _version(name) for name in LIBRARIES}
    commit = code_commit(Path(__file__).parents[2])
    return {"hardware": hardware, "versions": versions, "commit": commit}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def figures_of(rounds: Rounds) -> list[dict[str, Any]]:
    """The targets that were measured, each met or not by wall time."""
    figures = []
    for target in TARGETS:
        wall, core = (target.median(rounds, unit) for unit in ("wall_s", "core_s"))
        if wall is not None:
            asked, is_met = " ".join(map(str, target.asked or ())), target.is_met(wall)
            figure = {"target": target.text, "asked": asked, "wall": wall, "core": core}
            figures.append(figure | {"is_met": is_met})
    return figures


def print_tables(rows: Sequence[Row], rounds: Rounds, reporter: Reporter) -> None:
    reporter.table(
        f"median of {len(rounds)} rounds; n: photos, or views of them",
        ("row", "seconds", "least-most", "core-s", "n/s", "n/core-s"),
        [_rates(row.name, [one[row.name] for one in rounds]) for row in rows],
    )
    for row in rows:
        last = rounds[-1][row.name]
        found = [f"{name} {value:,.5g}" for name, value in last.figures.items()]
        found += [
            f"log loss {one.log_loss:.4f} after {one.spent.wall_s:.1f} s"
            for one in last.evaluations
        ]
        if found:
            reporter.say(f"{row.name}: {', '.join(found)}")
    words = {True: "met", False: "not met", None: ""}
    lines = [
        (target, asked, f"{wall:.3g}", f"{core:.3g}", words[is_met])
        for target, asked, wall, core, is_met in map(dict.values, figures_of(rounds))
    ]
    if lines:
        title = "targets, met or not by wall time"
        reporter.table(title, ("", "asked", "wall", "core-s", ""), lines)


def _rates(name: str, measured: Sequence[Measured]) -> tuple[str, ...]:
    wall, core = ([getattr(one.spent, unit) for one in measured] for unit in ("wall_s", "core_s"))
    n_photos = measured[0].n_photos  # the same in each round
    return (
        name,
        f"{median(wall):.2f}",
        f"{min(wall):.2f}-{max(wall):.2f}",
        f"{median(core):.2f}",
        f"{n_photos / median(wall):,.1f}",
        f"{n_photos / median(core):,.1f}",
    )
