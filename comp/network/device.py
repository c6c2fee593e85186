"""Where the arithmetic happens, and the settings that make it fast there."""

import contextlib
import ctypes
import platform
import sys
from dataclasses import dataclass

import torch

from comp.errors import UserError

# glibc's mallopt parameters, from malloc.h
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_TOP_PAD_BYTES = 256 * 2**20


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
    # bfloat16 autocast halves the speed of small convolutional nets on a CPU (LOG.md); cpu.py has a
    # faster way to train in bfloat16.
    name = platform.processor() or platform.machine()
    return Device(where=device, name=name, train_dtype=torch.float32)


def tune_malloc() -> bool:
    """Tell glibc to keep large freed blocks in its heap; True if it agreed. Call before allocating.

    By default every large tensor is mapped and unmapped, and the kernel zeroes its pages each time.
    In virtual machines that dominates: 3 x in a forward pass of EfficientNet-Lite0. The price is
    memory that is not returned to the system. Does nothing where there is no glibc.
    """
    if sys.platform != "linux":
        return False
    settings = {
        _M_MMAP_THRESHOLD: 2**31 - 1,
        _M_TRIM_THRESHOLD: 2**31 - 1,
        _M_TOP_PAD: _TOP_PAD_BYTES,
    }
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        return all(libc.mallopt(key, value) == 1 for key, value in settings.items())
    return False


def has_fast_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware, so that it is worth a try."""
    return bool(torch.cpu._is_avx512_bf16_supported())
