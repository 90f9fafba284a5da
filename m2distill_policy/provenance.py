"""Describe where a result comes from: commit, versions, machine. Stored with every result."""

from __future__ import annotations

import datetime
import functools
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from m2distill_policy import __version__

#: Packages whose version can change a result.
PACKAGES = (
    "numpy",
    "torch",
    "onnxruntime",
    "onnxruntime-gpu",
    "mujoco",
    "robosuite",
    "hf-libero",
    "cyclonedds",
    "transformers",
    "opencv-python-headless",
    "opencv-python",
)


def versions() -> dict[str, str]:
    """Return the versions of this package, of Python, and of the installed packages among :data:`PACKAGES`."""
    found = {"m2distill_policy": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


@functools.cache
def commit() -> str:
    """Return the commit of the source tree, with ``+changes`` if it was edited; ``unknown`` outside a checkout.

    The result is cached, because the process keeps running the code that it loaded at its start.
    """
    root = Path(__file__).resolve().parent.parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    top = git("rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != root:  # installed inside another repository
        return "unknown"
    head = git("rev-parse", "--short=12", "HEAD")
    if head is None:
        return "unknown"
    return head + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")


def machine() -> dict[str, Any]:
    """Return processor, cores that this process may use, memory in GiB, and operating system.

    A processor's name ("AMD EPYC") can stand for several generations. They may round differently, so that training
    gives different weights. So the processor's family and model are included if the system reports them.
    """
    model = platform.processor() or platform.machine()
    try:
        first = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n", 1)[0]
    except OSError:
        first = ""  # not Linux: platform.processor() is used
    known = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}
    model = known.get("model name", model)
    if "cpu family" in known and "model" in known:
        model += f", family {known['cpu family']} model {known['model']}"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {"processor": model, "cores": cores, "memory_gib": round(memory, 1), "system": platform.platform()}


def describe() -> dict[str, Any]:
    """Return commit, versions, machine and the present time in UTC."""
    return {
        "commit": commit(),
        "versions": versions(),
        "machine": machine(),
        "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
