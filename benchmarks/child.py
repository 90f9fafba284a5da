"""Start and end the processes that a benchmark measures."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from m2distill_policy.errors import TransportError

#: Longest time, in seconds, that a process may take to end.
_TIMEOUT_S = 20.0


@contextlib.contextmanager
def child(
    command: Sequence[object], log: Path, *, end: signal.Signals = signal.SIGTERM
) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``command`` in its own process for the duration of the block, with one thread for each library.

    Args:
        command: Program and its arguments.
        log: File for the output of the process.
        end: Signal that is sent to end the process, unless it has already ended.

    Raises:
        TransportError: After the signal, the process did not end, or it ended with a status other than 0.
    """
    with log.open("wb") as file:
        process = subprocess.Popen(
            [str(word) for word in command],
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    try:
        yield process
        if process.poll() is None:
            process.send_signal(end)
            finish(process, log)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(10)


def finish(process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until a process has ended after its signal."""
    try:
        status = process.wait(_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise TransportError(f"{process.args!r} did not end within {_TIMEOUT_S:g} s: {_tail(log)}") from None
    if status != 0:
        raise TransportError(f"{process.args!r} ended with {status}: {_tail(log)}")


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-2000:]
