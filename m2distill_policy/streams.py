"""Standard output and error of a process that must not fail for them."""

from __future__ import annotations

import os
import sys


def give_up_what_cannot_be_written() -> None:
    """Flush both streams; one that takes nothing any more, on a full disk or into a pipe that nobody reads, goes to the
    null device: what is still in its buffer would raise again when the interpreter ends, and change the exit code."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
