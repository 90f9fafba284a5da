"""Flush standard output and error without failing if they cannot be written."""

from __future__ import annotations

import os
import sys


def flush_or_discard() -> None:
    """Flush both streams. A stream that cannot be written (full disk, closed pipe) is redirected to the null device.

    Otherwise the rest of its buffer would raise again when the interpreter ends, and change the exit status.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
