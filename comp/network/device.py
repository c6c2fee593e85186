"""Where the arithmetic happens, and the settings that make it fast there."""

import contextlib
import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

from comp.data.photos import n_cores
from comp.errors import UserError, is_without_memory

# M_MMAP_THRESHOLD, M_TRIM_THRESHOLD and M_TOP_PAD of glibc's malloc.h, in bytes
_MALLOPT = {-3: 2**31 - 1, -1: 2**31 - 1, -2: 256 * 2**20}
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A torch device and the precision to train in on it."""

    where: torch.device
    name: str  # as people call it
    train_dtype: torch.dtype  # of activations under autocast in training; float32: no autocast

    @property
    def is_cuda(self) -> bool:
        return self.where.type == "cuda"

    @property
    def is_cpu(self) -> bool:
        return self.where.type == "cpu"


def find_device(wanted: str | None = None) -> Device:
    """The device called `wanted`, else the best there is: cuda, mps, cpu.

    UserError if it is not there. On a CPU the process's memory allocator is tuned too.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    here = [kind for kind, is_available in available.items() if is_available] + ["cpu"]
    kind = wanted or here[0]
    if kind.partition(":")[0] not in here:
        raise UserError(f"no device {kind!r} on this machine; there is {', '.join(here)}")
    try:
        device = torch.device(kind)
    except RuntimeError as error:
        raise UserError(f"no device {kind!r}: {str(error).splitlines()[0]}") from error
    if device.type == "cuda":
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        dtype = torch.bfloat16 if has_bf16 else torch.float16
        return Device(where=device, name=torch.cuda.get_device_name(device), train_dtype=dtype)
    tune_malloc()
    # autocast halves the speed of small convolutional nets (LOG.md); cpu.py is faster in bfloat16
    name = f"CPU ({n_cores()} core{'s' * (n_cores() != 1)})"
    return Device(where=device, name=name, train_dtype=torch.float32)


class Room:
    """How many photos are computed at once: halved whenever memory runs out."""

    def __init__(self, n_photos: int) -> None:
        self.n_photos = n_photos

    def run(self, work: Callable[[int], Result]) -> Result:
        """`work(n_photos)`, with as many photos as fit; UserError if a single one does not."""
        while True:
            try:
                return work(self.n_photos)
            except (RuntimeError, MemoryError) as error:
                if not is_without_memory(error):
                    raise
                if self.n_photos == 1:
                    raise UserError(
                        "a single photo does not fit into the device's memory: lower pixels.size_px"
                    ) from error
            self.n_photos = (self.n_photos + 1) // 2
            torch.cuda.empty_cache()  # does nothing where CUDA is not used


def tune_malloc() -> None:
    """Tell glibc, where there is one, to keep large freed blocks in its heap.

    By default every large tensor is mapped and unmapped, and the kernel zeroes its pages each time.
    In virtual machines that dominates: 3 x in a forward pass of EfficientNet-Lite0. The price is
    memory that is not returned to the system. Call it before allocating.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        for setting, n_bytes in _MALLOPT.items():
            libc.mallopt(setting, n_bytes)


def has_fast_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware, so that it is worth a try."""
    return bool(torch.cpu._is_avx512_bf16_supported())
