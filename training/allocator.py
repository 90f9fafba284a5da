"""Memory of a training process: measure what is free, and keep freed memory for reuse.

A training step allocates and frees gigabytes of feature maps. By default the C library returns this memory to the
operating system, which zeroes every page before it hands it out again. On a CPU this took about a tenth of a step's
time.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
from pathlib import Path

import torch

#: glibc's mallopt parameters (malloc.h).
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
#: Default values of these two parameters.
_TRIM_THRESHOLD, _MMAP_MAX = 2**17, 2**16
_kept = False


def keep_freed_memory(keep: bool = True) -> None:
    """Let malloc keep freed memory instead of returning it to the operating system; no effect without glibc.

    Args:
        keep: Whether to keep freed memory. False restores the default and returns it to the operating system.
    """
    global _kept
    if keep == _kept:
        return
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL("libc.so.6")
        library.mallopt(_M_MMAP_MAX, 0 if keep else _MMAP_MAX)
        library.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1 if keep else _TRIM_THRESHOLD)
        if not keep:
            library.malloc_trim(0)
        _kept = keep


@functools.cache
def free_bytes(device: torch.device, root: Path = Path("/")) -> int | None:
    """Return the free memory of a device in bytes, within the limit of a container; None if it is unknown.

    The memory of a device is measured in the first call. Later calls return the same number, because memory that this
    process keeps for reuse would otherwise count as used.

    Args:
        device: Device whose memory is measured.
        root: Folder that holds ``proc`` and ``sys``.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = []
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = (root / "proc/meminfo").read_text().splitlines()
        free.append(1024 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]))
    group = root / "sys/fs/cgroup"
    with contextlib.suppress(OSError, ValueError):  # without a limit the file says 'max', which is not a number
        free.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    return min(free) if free else None
