"""What a run needs of this machine, of Kaggle and of the archive: each line fine, or what to do."""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, NamedTuple

from packaging.requirements import Requirement

from comp.competition import Competition
from comp.errors import UserError
from comp.kaggle import Kaggle, Patience
from comp.kaggle.download import MB, Archive
from comp.progress import Reporter
from comp.recipes import DEFAULT, ON_CPU
from comp.store import Workspace

ROOT = Path(__file__).resolve().parents[1]
FIX = "delete .venv and run any make target, which installs the lock"
PATIENCE = Patience(connect_s=5.0, read_s=20.0, n_tries=2, retry_s=20.0)  # someone is waiting
PROBE_S = 300.0  # for torch to load, which takes half a minute on a busy machine
MAX_SKEW_S = 60.0  # of the clock, beyond which dates mislead; certificates fail only at days
GB = 10**9
PIXEL_BYTES = 256 * 256 * 3  # of a decoded photo, in the default recipe
RUN_BYTES = 600_000_000  # of the default recipe with five folds
# torch with timm takes 0.8 GB before any work, the features of 37,500 photos 0.2, their fit in
# float64 0.4; the rest is for batches on a CPU. Decoded photos are mapped and need none.
MEMORY_BYTES = 4 * GB
PREREQUISITES = {"device": "torch", "authentication": "credentials"} | dict.fromkeys(
    ("competition", "rules", "phone", "submissions", "clock"), "authentication"
)
Probes = dict[str, Callable[[], str]]


class Doubt(Exception):  # noqa: N818 - not an error: a run would work
    """Raised by a probe for what is worth a look, and UserError where a run would not work."""


class Check(NamedTuple):
    """One line of the doctor. BAD: a run would not work."""

    name: str
    level: Literal["ok", "look", "BAD"]
    text: str


class Quiet(Reporter):
    """Prints nothing: the doctor's own lines say what the calls to Kaggle would say."""

    def say(self, line: str) -> None: ...

    def warn(self, line: str) -> None: ...


def examine(
    workspace: Workspace, competition: Competition, kaggle: Kaggle, reporter: Reporter
) -> list[Check]:
    """All checks, each printed as soon as it is known. UserError if a run would not work."""
    checks = []
    probes = machine_probes(workspace, competition) | account_probes(kaggle, competition)
    probes["archive"] = lambda: find_archive(workspace.raw, competition)
    for check in run_probes(probes):
        reporter.say(f"{check.level:4}  {check.name:14}  {check.text}")
        checks.append(check)
    bad = [check.name for check in checks if check.level == "BAD"]
    if bad:
        n, names = f"{len(bad)} of {len(checks)}", ", ".join(bad)
        raise UserError(f"a run would not work: {n} checks are bad ({names}), see above")
    return checks


def run_probes(probes: Probes) -> Iterator[Check]:
    """Each probe once; a failure is one line like any other, and so is what depends on it."""
    failed: set[str | None] = set()
    for name, probe in probes.items():
        if (need := PREREQUISITES.get(name)) in failed:
            failed.add(name)
            yield Check(name, "look", f"unknown without {need}")
            continue
        try:
            check = Check(name, "ok", probe())
        except Doubt as doubt:
            check = Check(name, "look", str(doubt))
        except (UserError, OSError) as error:
            failed.add(name)
            check = Check(name, "BAD", str(error))
        yield check


def machine_probes(workspace: Workspace, competition: Competition) -> Probes:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lock = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    torch: dict[str, Any] = {}
    return {
        "Python": lambda: f"{platform.python_version()} in {sys.prefix}",
        "packages": lambda: find_packages(project["dependencies"], lock),
        "torch": lambda: find_torch(torch),
        "device": lambda: describe_device(torch, shutil.which("nvidia-smi") is not None),
        "disk": lambda: find_disk(workspace, competition),
        "memory": find_memory,
        "data/": lambda: check_writable(workspace.data),
        "runs/": lambda: check_writable(workspace.runs),
        "submissions/": lambda: check_writable(workspace.submissions),
    }


def find_packages(wanted: Sequence[str], lock: str) -> str:
    """Whether the packages `wanted` are installed, and all as in `lock`, a requirements.txt."""
    pinned = map(Requirement, re.findall(r"^\w[^\\#\n]*==[^\\#\n]*", lock, re.MULTILINE))
    locked = [need for need in pinned if not need.marker or need.marker.evaluate()]
    unmet = [need for need in map(Requirement, wanted) if not _is_met(need)]
    other = [need for need in locked if not _is_met(need)]
    first = ", ".join(f"{need.name}{need.specifier}" for need in (unmet or other)[:3])
    if unmet:
        raise UserError(f"{len(unmet)} of {len(wanted)} are missing or too old ({first}): {FIX}")
    if other:
        raise Doubt(f"{len(other)} of {len(locked)} are not as locked ({first}): {FIX}")
    return f"{len(locked)} are as locked"


def _is_met(need: Requirement) -> bool:
    try:
        return need.specifier.contains(version(need.name), prereleases=True)
    except PackageNotFoundError:
        return False


def find_torch(found: dict[str, Any]) -> str:
    """Fills `found` with what `print_torch` prints, in a process that a bad pair may crash."""
    command = [sys.executable, "-m", "comp.doctor"]
    options: Any = {"cwd": ROOT, "capture_output": True, "text": True, "timeout": PROBE_S}
    try:
        found |= json.loads(subprocess.run(command, **options, check=True).stdout)
    except subprocess.CalledProcessError as error:
        lines = [line for line in error.stderr.splitlines() if "Error" in line]
        cause = lines[-1] if lines else f"status {error.returncode}"
        raise UserError(f"torch and torchvision do not work ({cause}): {FIX}") from None
    except subprocess.TimeoutExpired:
        raise UserError(f"no answer in {PROBE_S:.0f} s: is this machine busy?") from None
    return f"torch {found['torch']} and torchvision {found['torchvision']} work together"


def print_torch() -> None:
    """Versions and device as JSON, once torch and torchvision have worked on it."""
    import torch
    import torchvision

    from comp.network.device import find_device

    # nms is compiled for one version of torch; a GPU without kernels in this torch cannot add.
    torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
    device = find_device()
    torch.ones(2, device=device.where).sum().item()
    n_bytes = torch.cuda.get_device_properties(device.where).total_memory if device.is_cuda else 0
    found = {"kind": device.where.type, "name": device.name, "n_bytes": n_bytes}
    found |= {"torch": torch.__version__, "torchvision": torchvision.__version__}
    json.dump(found | {"cuda": torch.version.cuda}, sys.stdout)


def describe_device(torch: Mapping[str, Any], has_driver: bool) -> str:
    """The device that `torch` found; `has_driver`: NVIDIA's driver is installed."""
    name, built = torch["name"], f"for CUDA {torch['cuda']}" if torch["cuda"] else "without CUDA"
    if torch["kind"] == "cuda":
        return f"{name}, {torch['n_bytes'] / GB:.0f} GB, torch {built}"
    if torch["kind"] != "cpu":
        return f"{name} ({torch['kind']})"
    text = f"only the CPU, {name}: use RECIPE={ON_CPU}; the default, {DEFAULT}, needs a GPU"
    if has_driver:
        text += f"; NVIDIA's driver is installed, but this is a torch {built}"
        text += " that finds no GPU: update the driver, or install a torch that fits it"
    raise Doubt(text)


def find_disk(workspace: Workspace, competition: Competition) -> str:
    """Room for the default recipe on all photos; what is here of them already counts."""
    photos = competition.archive_bytes  # JPEGs do not shrink in a zip
    pixels = PIXEL_BYTES * (competition.n_train + competition.n_test)
    need = RUN_BYTES
    for folder, n_bytes in {"raw": photos, "photos": photos, "pixels": pixels}.items():
        files = (path for path in (workspace.data / folder).rglob("*") if path.is_file())
        need += max(0, n_bytes - sum(path.stat().st_size for path in files))
    free = shutil.disk_usage(_nearest(workspace.data)).free
    text = f"{free / GB:.1f} GB are free; the whole competition takes {need / GB:.1f} GB more"
    if free <= need:
        raise UserError(f"{text}: make room, or use another --home")
    return text


def find_memory(
    meminfo: Path = Path("/proc/meminfo"), limit: Path = Path("/sys/fs/cgroup/memory.max")
) -> str:
    """What Linux calls available, or the container's limit if that is less."""
    text = meminfo.read_text() if meminfo.exists() else ""
    found = [1024 * int(kib) for kib in re.findall(r"MemAvailable:\s+(\d+) kB", text)]
    if limit.exists() and (most := limit.read_text().strip()) != "max":
        found.append(int(most))
    need = f"{MEMORY_BYTES / GB:.0f} GB are needed for all photos"
    if not found:
        raise Doubt(f"how much is available is unknown; {need}")
    available = f"{min(found) / GB:.1f} GB are available"
    if min(found) < MEMORY_BYTES:
        raise Doubt(f"{available}, {need}: end other programs, or use fewer photos")
    return available


def check_writable(folder: Path) -> str:
    place = _nearest(folder)
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise UserError(f"{folder} is not writable: change its owner, or use another --home")
    return "writable"


def _nearest(folder: Path) -> Path:
    """`folder`, or the nearest folder above it that exists."""
    return next(path for path in (folder, *folder.parents) if path.exists())


def account_probes(kaggle: Kaggle, competition: Competition) -> Probes:
    """Everything that only Kaggle knows."""
    return {
        "credentials": lambda: find_credentials(kaggle),
        "authentication": lambda: f"Kaggle knows you as {kaggle.whoami()}",
        "competition": lambda: f"{competition.slug} has {len(kaggle.files()):,} files",
        "rules": lambda: find_rules(kaggle),
        "phone": lambda: find_phone(len(kaggle.submissions())),
        "submissions": lambda: find_limits(kaggle),
        "clock": lambda: compare_clock(kaggle.clock_skew_s()),
    }


def find_credentials(kaggle: Kaggle) -> str:
    found = kaggle.credentials
    stand_in = "KAGGLE_API_ENVIRONMENT=LOCALHOST sends them to a stand-in, not to Kaggle"
    warnings = [*found.warnings, *([] if kaggle.is_real else [stand_in])]
    text = "; ".join([f"the {found.kind} from {found.source}", *warnings])
    if warnings:
        raise Doubt(text)
    return text


def find_rules(kaggle: Kaggle) -> str:
    kaggle.check_rules()
    return "accepted: the archive may be downloaded"


def find_phone(n_submissions: int) -> str:
    if not n_submissions:
        settings = "https://www.kaggle.com/settings"
        raise Doubt(f"Kaggle's API does not say if it is verified: if submit fails, see {settings}")
    return f"verified or not needed: Kaggle has accepted {n_submissions:,} submissions"


def find_limits(kaggle: Kaggle) -> str:
    limits = kaggle.limits()
    text = f"{limits.n_allowed_now:,} left today, {limits.n_today:,} made"
    if limits.n_allowed_now < 1:
        raise UserError(f"{text}: try again after midnight UTC")
    return text


def compare_clock(skew_s: float | None) -> str:
    """By how many seconds Kaggle's clock is ahead of ours, None if unknown."""
    if skew_s is None:
        raise Doubt("Kaggle's answers had no date")
    if abs(skew_s) > MAX_SKEW_S:
        late = "behind" if skew_s > 0 else "ahead of"
        raise Doubt(f"{abs(skew_s):,.0f} s {late} Kaggle's: set this machine's clock")
    return f"within {MAX_SKEW_S:.0f} s of Kaggle's"


def find_archive(folder: Path, competition: Competition) -> str:
    """Absent, partial and resumable, or complete and checked."""
    archive = Archive(folder / f"{competition.slug}.zip")
    if archive.path.exists():
        size = f"{archive.path.stat().st_size / MB:,.1f} MB"
        if archive.is_checked():
            return f"complete and checked, {size}"
        raise Doubt(f"{size}, not from `make data` or changed since: it will check them")
    part = archive.part
    if not part.path.exists():
        return "absent: `make data` downloads it"
    have = f"{part.n_bytes / MB:,.1f} MB"
    if part.resume_at():
        return f"partial and resumable, {have}: `make data` resumes there"
    return f"partial, {have} of an unknown version: `make data` starts over"


if __name__ == "__main__":
    print_torch()
