"""What a run needs of this machine, of Kaggle and of the archive: each line fine, or what to do."""

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal, NamedTuple

from packaging.requirements import Requirement

from comp.competition import Competition
from comp.errors import UserError
from comp.kaggle import Kaggle, Patience
from comp.kaggle.download import MB, Archive
from comp.progress import Reporter
from comp.recipes import DEFAULT, ON_CPU
from comp.store import Workspace, free_memory

ROOT = Path(__file__).resolve().parents[1]
FIX = "delete .venv and run any make target, which installs the lock"
PATIENCE = Patience(connect_s=5.0, read_s=20.0, n_tries=2, retry_s=20.0)  # someone is waiting
# torchvision's nms is compiled for one version of torch.
USE_TORCH = """
import torch, torchvision
torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
print(f"torch {torch.__version__} and torchvision {torchvision.__version__} work together")
"""
GB = 10**9
PIXEL_BYTES = 256 * 256 * 3  # of a decoded photo, in the default recipe
RUN_BYTES = 600_000_000  # of the default recipe with five folds
# torch with timm takes 0.8 GB before any work, the features of 37,500 photos 0.2, their fit in
# float64 0.4; the rest is for batches on a CPU. Decoded photos are mapped and need none.
MEMORY_BYTES = 4 * GB
PREREQUISITES = {
    "device": "torch",
    "authentication": "credentials",
    **dict.fromkeys(("competition", "rules", "submissions"), "authentication"),
}
Probes = dict[str, Callable[[], str | None]]


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
    probes["archive"] = lambda: describe_archive(workspace.raw, competition)
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
            yield Check(name, "ok", probe() or "fine")
        except Doubt as doubt:
            yield Check(name, "look", str(doubt))
        except (UserError, OSError) as error:
            failed.add(name)
            yield Check(name, "BAD", str(error))


def machine_probes(workspace: Workspace, competition: Competition) -> Probes:
    return {
        "Python": lambda: f"{platform.python_version()} in {sys.prefix}",
        "packages": find_packages,
        "disk": lambda: find_disk(workspace, competition),
        "memory": find_memory,
        "folders": lambda: check_writable(workspace),
        "torch": find_torch,
        "device": lambda: find_accelerator(shutil.which("nvidia-smi") is not None),
    }


def find_packages(lock: Path = ROOT / "requirements.txt") -> str:
    """Whether the packages of `lock` are installed in its versions."""
    if not lock.exists():
        raise Doubt(f"not compared: {lock} is not there, so this is no checkout")
    pinned = re.findall(r"^\w[^\\#\n]*==[^\\#\n]*", lock.read_text(encoding="utf-8"), re.MULTILINE)
    needs = [need for need in map(Requirement, pinned) if not need.marker or need.marker.evaluate()]
    unmet = [f"{need.name}{need.specifier}" for need in needs if not _is_met(need)]
    if unmet:
        text = f"{len(unmet)} of {len(needs)} are missing or not as locked"
        raise Doubt(f"{text} ({', '.join(unmet[:3])}): {FIX}")
    return f"{len(needs)} are as locked"


def _is_met(need: Requirement) -> bool:
    try:
        return need.specifier.contains(version(need.name), prereleases=True)
    except PackageNotFoundError:
        return False


def find_torch() -> str:
    """Versions, once torch and torchvision have worked in a process that a bad pair may crash."""
    command = [sys.executable, "-c", USE_TORCH]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if "Error" in line]
        cause = errors[-1] if errors else f"status {done.returncode}"
        raise UserError(f"torch and torchvision do not work ({cause}): {FIX}")
    return done.stdout.strip()


def find_accelerator(has_driver: bool) -> str:
    """The device that a run takes by default; `has_driver`: NVIDIA's driver is installed."""
    import torch

    from comp.network.device import find_device

    device, cuda = find_device(), torch.version.cuda
    built = f"torch for CUDA {cuda}" if cuda else "torch without CUDA"
    if device.is_cpu:
        remedy = "update the driver, or install a torch that fits it"
        driver = f"NVIDIA's driver is installed, but this {built} finds no GPU: {remedy}"
        text = f"only the {device.name}: use RECIPE={ON_CPU}; {DEFAULT} needs a GPU"
        raise Doubt(f"{text}; {driver}" if has_driver else text)
    try:
        torch.ones(2, device=device.where).sum().item()
    except RuntimeError as error:
        cause = str(error).partition("\n")[0]
        raise UserError(f"{device.name} does not work with this {built} ({cause}): {FIX}") from None
    if not device.is_cuda:
        return f"{device.name} ({device.where.type})"
    n_bytes = torch.cuda.get_device_properties(device.where).total_memory
    return f"{device.name}, {n_bytes / GB:.0f} GB, {built}"


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
        raise UserError(f"{text}: make room, or use another --workspace")
    return text


def find_memory() -> str:
    free = free_memory()
    available = f"{free / GB:.1f} GB are available" if free else "unknown"
    if not free or free < MEMORY_BYTES:
        need = f"{MEMORY_BYTES / GB:.0f} GB are needed for all photos"
        raise Doubt(f"{available}, {need}: end other programs, or use fewer photos")
    return available


def check_writable(workspace: Workspace) -> str:
    for folder in (workspace.data, workspace.runs, workspace.submissions):
        place = _nearest(folder)
        if not place.is_dir() or not os.access(place, os.W_OK):
            raise UserError(f"{folder} is not writable: change its owner, or use another WORKSPACE")
    return "data/, runs/ and submissions/ are writable"


def _nearest(folder: Path) -> Path:
    """`folder`, or the nearest above it that exists, be it a link that leads nowhere."""
    return next(path for path in (folder, *folder.parents) if os.path.lexists(path))


def account_probes(kaggle: Kaggle, competition: Competition) -> Probes:
    """Everything that only Kaggle knows."""
    return {
        "credentials": lambda: find_credentials(kaggle),
        "authentication": lambda: f"Kaggle knows you as {kaggle.whoami()}",
        "competition": lambda: f"{competition.slug} has {len(kaggle.files()):,} files",
        "rules": kaggle.check_rules,
        "submissions": lambda: find_limits(kaggle),
    }


def find_credentials(kaggle: Kaggle) -> str:
    found = kaggle.credentials
    text = f"the {found.kind} from {found.source}"
    doubts = list(found.warnings)
    if not kaggle.is_real:
        doubts.append("KAGGLE_API_ENVIRONMENT=LOCALHOST sends them to a stand-in, not to Kaggle")
    if doubts:
        raise Doubt("; ".join([text, *doubts]))
    return text


def find_limits(kaggle: Kaggle) -> str:
    limits = kaggle.limits()
    text = f"{limits.n_allowed_now:,} left today, {limits.n_today:,} made"
    if limits.n_allowed_now < 1:
        raise UserError(f"{text}: try again after midnight UTC")
    return text


def describe_archive(folder: Path, competition: Competition) -> str:
    """Absent, partial and resumable, or complete and checked."""
    archive = Archive(folder / f"{competition.slug}.zip")
    have = f"{(archive.n_bytes or archive.part.n_bytes) / MB:,.1f} MB"
    if archive.path.exists():
        if archive.is_checked():
            return f"complete and checked, {have}"
        raise Doubt(f"{have}, not from `make data` or changed since: it will check them")
    if archive.part.resume_at():
        return f"partial and resumable, {have}: `make data` resumes there"
    if archive.part.path.exists():
        return f"partial, {have} of an unknown version: `make data` starts over"
    return "absent: `make data` downloads it"
