"""Flush standard output and error without failing if they cannot be written."""

from __future__ import annotations

import os
import sys


def flush_or_discard() -> None:
    """Flush standard output and error. Redirect a stream that fails (full disk, closed pipe) to the null device.

    Without this, Python would flush the stream again at exit, fail again, and change the exit status.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
