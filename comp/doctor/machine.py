"""What a run needs of this machine."""

import json
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from comp.doctor.check import Check
from comp.recipes import DEFAULT, ON_CPU
from comp.store import Workspace

HERE = Path(__file__).resolve().parents[2]
RENEW = "delete .venv and run any make target, which sets it up from the lock"
PROBE_S = 300.0  # for torch to load, which takes half a minute where disk and cores are busy
GB = 10**9
# The archive has 0.85 GB and its photos as much; all of them as squash-256 pixels, the default recipe's, 7.4 GB; its five folds 0.6 GB.
DISK_GB = {"raw": 0.85, "photos": 0.85, "pixels": 7.4}
DISK_BYTES = int((sum(DISK_GB.values()) + 0.6) * GB)
# torch with timm takes 0.8 GB before any work; features of all photos 0.2 (37,500 x 1280 floats), and 0.4 in the float64 of a fit; the rest
# is for batches on the CPU. Pixels are mapped, and need none of their own.
MEMORY_BYTES = 4 * GB


def machine(workspace: Workspace) -> Iterator[Check]:
    """All that can be told without Kaggle."""
    project = tomllib.loads((HERE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    yield python(project["requires-python"])
    yield packages(project["dependencies"])
    yield lock((HERE / "requirements.txt").read_text(encoding="utf-8"))
    yield from torch_and_device()
    yield disk(workspace)
    yield memory()
    yield from (
        writable(folder) for folder in (workspace.data, workspace.runs, workspace.submissions)
    )


def python(wanted: str) -> Check:
    here = f"{platform.python_version()} in {sys.prefix}"
    if SpecifierSet(wanted).contains(platform.python_version(), prereleases=True):
        return Check("Python", "ok", here)
    return Check("Python", "bad", f"{here}, and {wanted} is needed: install it, then {RENEW}")


def packages(wanted: Sequence[str]) -> Check:
    """Whether what we need is installed, and what that needs, and so on, in versions that fit together."""
    todo, seen, wrong = [(text, "comp") for text in wanted], set(), []
    while todo:
        text, by = todo.pop()
        need = Requirement(text)
        if need.marker and not need.marker.evaluate({"extra": ""}):
            continue
        here = installed(need.name)
        if here is None or not need.specifier.contains(here, prereleases=True):
            wrong.append(f"{by} needs {need.name}{need.specifier} and finds {here or 'none'}")
        elif need.name not in seen:
            seen.add(need.name)
            todo += [(below, f"{need.name} {here}") for below in requires(need.name) or []]
    if wrong:
        return Check("packages", "bad", f"{some(wrong)}: {RENEW}")
    return Check("packages", "ok", f"{len(seen)} are here and fit together")


def lock(text: str) -> Check:
    """What is installed against `text`, a requirements.txt with one version of each package."""
    lines = [
        re.split(r"\s+--hash|\s+#", line)[0] for line in text.replace("\\\n", " ").splitlines()
    ]
    pinned = [
        Requirement(line) for line in lines if line.strip() and not line.startswith(("#", "-"))
    ]
    pinned = [need for need in pinned if not need.marker or need.marker.evaluate()]
    found = [(need, installed(need.name)) for need in pinned]
    other = [
        f"{need.name} {here or 'is missing'}"
        for need, here in found
        if here is None or not need.specifier.contains(here, prereleases=True)
    ]
    if other:
        return Check(
            "lock",
            "warn",
            f"{len(other)} of {len(pinned)} packages are not as locked, {some(other)}: {RENEW}",
        )
    return Check("lock", "ok", f"{len(pinned)} packages are as locked")


def installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def some(items: Sequence[str]) -> str:
    return "; ".join(items[:3]) + (f"; and {len(items) - 3} more" if len(items) > 3 else "")


def torch_and_device() -> Iterator[Check]:
    """Whether torch and torchvision work together, and what they would run on."""
    command = [sys.executable, "-m", "comp.doctor.probe"]
    try:
        done = subprocess.run(
            command, cwd=HERE, capture_output=True, text=True, timeout=PROBE_S, check=True
        )
    except subprocess.CalledProcessError as error:
        said = [line for line in error.stderr.splitlines() if "Error" in line] or [
            f"status {error.returncode}"
        ]
        yield Check(
            "torch",
            "bad",
            f"torch {installed('torch')} and torchvision {installed('torchvision')} do not work ({said[-1]}): {RENEW}",
        )
    except subprocess.TimeoutExpired:
        yield Check(
            "torch",
            "bad",
            f"torch does not answer within {PROBE_S:.0f} s: see what keeps this machine busy",
        )
    else:
        found = json.loads(done.stdout)
        yield Check(
            "torch",
            "ok",
            f"torch {found['torch']} and torchvision {found['torchvision']} work together",
        )
        yield device(driver=driver(), **found)
        return
    yield Check("device", "warn", "not known without torch")


def device(
    *,
    kind: str,
    name: str,
    n_bytes: int,
    cuda: str | None,
    torch: str,
    driver: str | None,
    **_: object,
) -> Check:
    if kind == "cuda":
        return Check(
            "device",
            "ok",
            f"{name}, {n_bytes / GB:.0f} GB, driver {driver or 'unknown'}, torch for CUDA {cuda}",
        )
    if kind != "cpu":
        return Check("device", "ok", f"{name} ({kind})")
    slow = (
        f"only the CPU, {name}: RECIPE={ON_CPU} is made for it, the default, {DEFAULT}, wants a GPU"
    )
    if driver:
        built = (
            f"torch {torch} is built for CUDA {cuda}"
            if cuda
            else f"torch {torch} is built without CUDA"
        )
        return Check(
            "device",
            "warn",
            f"{slow}; the NVIDIA driver {driver} is here but {built}: update the driver, or install a torch for it",
        )
    return Check("device", "warn", slow)


def driver() -> str | None:
    """The version of NVIDIA's driver, where there is one."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return next(iter(done.stdout.split()), None)


def disk(workspace: Workspace) -> Check:
    parts = {
        workspace.data / name: n_gb * GB for name, n_gb in DISK_GB.items()
    }  # what else is there, such as features, saves nothing
    have = sum(
        min(most, sum(n_bytes(path) for path in part.rglob("*"))) for part, most in parts.items()
    )
    free, need = shutil.disk_usage(nearest(workspace.data)).free, DISK_BYTES - have
    text = f"{free / GB:.1f} GB are free; the whole competition takes {need / GB:.1f} GB more"
    return (
        Check("disk", "ok", text)
        if free > need
        else Check("disk", "bad", f"{text}: make room, or name another folder by --home")
    )


def n_bytes(path: Path) -> int:
    """Of a file; 0 for anything else, and for a file that another run has just taken away."""
    try:
        return path.stat().st_size if path.is_file() else 0
    except OSError:
        return 0


def memory() -> Check:
    available = available_bytes()
    if available is None:
        return Check(
            "memory",
            "warn",
            f"how much is free is not known; {MEMORY_BYTES / GB:.0f} GB are needed",
        )
    text = f"{available / GB:.1f} GB are available"
    if available < MEMORY_BYTES:
        return Check(
            "memory",
            "warn",
            f"{text}, {MEMORY_BYTES / GB:.0f} GB are needed for all photos: end other programs, or take fewer photos",
        )
    return Check("memory", "ok", text)


def available_bytes(
    meminfo: Path = Path("/proc/meminfo"), limit: Path = Path("/sys/fs/cgroup/memory.max")
) -> int | None:
    """Memory that this process could have: what Linux counts as available, or a container's limit if that is less."""
    try:
        kib = re.search(r"^MemAvailable:\s+(\d+) kB", meminfo.read_text(), re.MULTILINE)
    except OSError:
        return None
    found = [int(kib[1]) * 1024] if kib else []
    if limit.exists() and (text := limit.read_text().strip()).isdigit():
        found.append(int(text))
    return min(found, default=None)


def writable(folder: Path) -> Check:
    name = f"{folder.name}/"
    try:
        with tempfile.TemporaryFile(dir=nearest(folder)):
            return Check(name, "ok", "can be written to")
    except OSError as error:
        return Check(
            name,
            "bad",
            f"{folder} cannot be written to ({error.strerror}): change its owner, or name another folder by --home",
        )


def nearest(folder: Path) -> Path:
    """`folder`, or the nearest above it that exists."""
    return next(path for path in (folder, *folder.parents) if path.exists())
