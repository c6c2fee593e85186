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
    """A torch device and what is known to be right on it."""

    where: torch.device
    name: str  # as people call it
    train_dtype: torch.dtype  # of activations under autocast in training; float32: no autocast

    @property
    def is_cuda(self) -> bool:
        return self.where.type == "cuda"


def find_device(wanted: str | None = None) -> Device:
    """The device called `wanted`, else the best there is: cuda, mps, cpu. UserError if it is not there."""
    here = [
        kind
        for kind, there in (
            ("cuda", torch.cuda.is_available()),
            ("mps", torch.backends.mps.is_available()),
            ("cpu", True),
        )
        if there
    ]
    kind = wanted or here[0]
    if kind.partition(":")[0] not in here:
        raise UserError(f"no device {kind!r} on this machine; there is {', '.join(here)}")
    try:
        device = torch.device(kind)
    except RuntimeError as error:
        raise UserError(f"no device {kind!r}: {str(error).splitlines()[0]}") from error
    if device.type == "cuda":
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return Device(
            where=device,
            name=torch.cuda.get_device_name(device),
            train_dtype=torch.bfloat16 if bf16 else torch.float16,
        )
    # bf16 autocast halves the speed of CPU training of small convolutional nets (README, "Speed"); comp/train/fusing.py has another way.
    return Device(
        where=device, name=platform.processor() or platform.machine(), train_dtype=torch.float32
    )


def keep_big_blocks() -> bool:
    """Tell glibc to keep large blocks in its heap; True if it did. Call before torch allocates.

    By default every large tensor is mapped and unmapped, and the kernel zeroes its pages each time, which dominates CPU runs in virtual
    machines: 3 x in a forward pass of EfficientNet-Lite0. Costs memory that is not given back. Does nothing where there is no glibc.
    """
    if sys.platform != "linux":
        return False
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        settings = (
            (_M_MMAP_THRESHOLD, 2**31 - 1),
            (_M_TRIM_THRESHOLD, 2**31 - 1),
            (_M_TOP_PAD, _TOP_PAD_BYTES),
        )
        return bool(sum(libc.mallopt(key, value) for key, value in settings) == len(settings))
    return False


def has_fast_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware, so that inference in it is worth a trial."""
    return bool(torch.cpu._is_avx512_bf16_supported())
