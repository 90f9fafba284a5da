"""Standard output and error of a process that must not fail because of them."""

from __future__ import annotations

import os
import sys


def flush_or_discard() -> None:
    """Flush standard output and error, and discard what a full disk or a closed pipe does not take.

    What stayed in a buffer would raise again when the interpreter exits, and change the exit code.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
