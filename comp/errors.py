"""Every failure that a user can act on: a tree of errors under UserError.

Each message is one line: what, how many, what to do. `__main__` prints it, or what `explain` says
of a failure of the machine, and exits with status 1. Any other exception is a bug with a traceback.
"""

import errno
import os
import re
from pathlib import Path

_MEMORY = "end other programs, or use fewer photos (folds.n_photos) or a smaller pixels.size_px"
_REMEDIES = {
    "make room there, then run this again": "ENOSPC EDQUOT",
    "raise the limit (ulimit -f), or use a WORKSPACE whose file system has none (FAT)": "EFBIG",
    "use another WORKSPACE, or mount it for writing": "EROFS",
    "allow writing there (chown, chmod), or use another WORKSPACE": "EACCES EPERM",
    "use a WORKSPACE with a shorter path": "ENAMETOOLONG",
    "raise the limit (ulimit -n, ulimit -u), or end other programs": "EMFILE ENFILE EAGAIN",
    "a file is in the place of a folder, or the other way: move it": "ENOTDIR EISDIR EEXIST ELOOP",
    "put it back, or delete what was made from it and run the stages again": "ENOENT",
    "repair the disk or network folder, or use another WORKSPACE": (
        "EIO ESTALE ENOTCONN ENODEV ETIMEDOUT EHOSTDOWN ENOTSUP ENOSYS"
    ),
    _MEMORY: "ENOMEM",
}
_REMEDY_OF = {
    getattr(errno, name): remedy for remedy, names in _REMEDIES.items() for name in names.split()
}
# how CUDA, Metal, cuBLAS, oneDNN, the CPU's allocator, the loader of libraries and torch say it
_NO_MEMORY = re.compile(
    r"out of (shared )?memory|(can't|cannot) allocate memory|alloc_failed|not enough memory"
    r"|bad_alloc|create a primitive$|failed to map segment|DataLoader worker \(pid",
    re.IGNORECASE,
)


class UserError(Exception):
    """A failure with a cause and a remedy that fit on one line."""


class RecipeError(UserError):
    """An unknown recipe or option, or a value that an option refuses."""


class DataError(UserError):
    """Photos or a manifest that a stage cannot work with."""


class ArchiveError(DataError):
    """An archive that is cut, corrupt, incomplete or hostile."""


class StaleError(UserError):
    """An artefact made from something other than what is here now."""


class StoreError(UserError):
    """A folder that another run is using, or whose file system cannot hold locks."""


class WeightsError(UserError):
    """No weights found, or weights that do not fit the backbone."""


class TrainingError(UserError):
    """A loss that is not finite, or that explodes."""


class SubmissionError(UserError):
    """Probabilities or a CSV that must not be uploaded."""


class KaggleError(UserError):
    """Kaggle, or its stand-in, refused or failed."""


class CredentialsError(KaggleError):
    """No credentials, or credentials that Kaggle refuses."""


class RulesError(KaggleError):
    """This account has not accepted the competition's rules."""


class NotFoundError(KaggleError):
    """No such competition, file, submission, kernel or dataset."""


class BusyError(KaggleError):
    """As many sessions run on Kaggle as this account may have: the next one has to wait."""


class NotAttachedError(KaggleError):
    """A kernel was accepted without something that it needs, and deleted again."""

    def __init__(self, message: str, kind: str) -> None:
        super().__init__(message)
        self.kind = kind  # Dataset, Kernel, ...


class UnavailableError(KaggleError):
    """Busy, broken or unreachable: the same call may work later."""

    def __init__(
        self,
        message: str,
        *,
        retry_after_s: float | None = None,  # as the server asks
        not_done: bool = False,  # it is certain that the call has had no effect
        link_refused: bool = False,  # a new signed link may help
    ) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.not_done = not_done
        self.link_refused = link_refused


def is_without_memory(error: BaseException) -> bool:
    if isinstance(error, (RuntimeError, ImportError)):
        return bool(_NO_MEMORY.search(str(error)))
    return isinstance(error, MemoryError)


def explain(error: BaseException, workspace: Path) -> str | None:
    """One line on a failure of the machine: where, `workspace` if it does not say, and what to do.

    None if `error` is a bug.
    """
    text = str(error).partition("\n")[0]
    if isinstance(error, OSError) and (remedy := _REMEDY_OF.get(error.errno or 0)):
        name = error.filename
        path = Path(os.fsdecode(name)) if name and not isinstance(name, int) else workspace
        for link in (path, *path.parents):  # os.path never raises, Path does for a name too long
            if os.path.islink(link) and not os.path.exists(link):
                where = f"{link} is a link to {os.readlink(link)}, which is not there"
                return f"{where}: make that folder, or delete the link"
        return f"{path}: {os.strerror(error.errno or 0)}: {remedy}"
    if is_without_memory(error):
        remedy = _MEMORY
        if re.match("CUDA|MPS|HIP", text):
            remedy = "set a smaller training.micro_batch or pixels.size_px, or use DEVICE=cpu"
        if "DataLoader worker" in text:
            remedy = f"start a container with --shm-size=2g, or {_MEMORY}"
        return f"not enough memory ({text or 'unknown how much'}): {remedy}"
    return None
