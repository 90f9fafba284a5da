"""Memory of a training process: how much is free, and keeping what is freed.

A training step frees and takes gigabytes of feature maps. By default the C library gives each back to the operating
system, which hands it out again page by page, zeroed: about a tenth of a step on a CPU went there.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
from pathlib import Path

import torch

#: glibc's mallopt parameters (malloc.h).
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
#: Their values by default.
_TRIM_THRESHOLD, _MMAP_MAX = 2**17, 2**16
_kept = False


def keep_freed_memory(keep: bool = True) -> None:
    """Have malloc take from and return to the heap alone, and keep its top; does nothing where there is no glibc.

    keep: False undoes it, and gives back what is free.
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
    """Memory that ``device`` can give, a container's limit included; None where the system does not say.

    As it was at the first call: later, what this process has freed and keeps would count as taken.

    root: where ``proc`` and ``sys`` are found.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = []
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = (root / "proc/meminfo").read_text().splitlines()
        free.append(1024 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]))
    group = root / "sys/fs/cgroup"
    with contextlib.suppress(OSError, ValueError):  # 'max' is no number: no limit
        free.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    return min(free) if free else None
