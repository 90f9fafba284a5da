"""Allow only one process at a time to write to a folder, because two would damage each other's files."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from m2distill_policy.errors import StorageError

_NAME = ".lock"


@contextlib.contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Create ``folder`` if needed and lock it for this process. The lock also ends if the process is killed.

    Raises:
        StorageError: Another process has the lock.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / _NAME, os.O_CREAT | os.O_RDWR, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(handle, 100, 0).decode(errors="replace").strip() or "an unknown process"
            raise StorageError(
                f"{folder} is being written by {holder}, which may be left over from a killed command; wait for it or "
                "stop it, then run the same command again"
            ) from None
        except OSError as error:  # a file system without locks
            print(f"{folder} cannot be locked ({error}): do not run two commands on it at once", file=sys.stderr)
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()} on {os.uname().nodename}\n".encode(), 0)
        yield
    finally:
        os.close(handle)
