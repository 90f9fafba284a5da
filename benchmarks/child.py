"""Processes that are measured."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from m2distill_policy.errors import TransportError

_PATIENCE = 20.0


@contextlib.contextmanager
def child(
    command: Sequence[object], log: Path, *, end: signal.Signals = signal.SIGTERM
) -> Iterator[subprocess.Popen[bytes]]:
    """``command`` in a process of its own, of one thread a library, its output in ``log``; ended by ``end``.

    Raises :class:`TransportError` with the end of its output where it then ends with another status than 0, or not at
    all. One that has ended before is left alone.
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
    """Wait for the end that was asked for."""
    try:
        status = process.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        raise TransportError(f"{process.args!r} did not end within {_PATIENCE:g} s: {_tail(log)}") from None
    if status != 0:
        raise TransportError(f"{process.args!r} ended with {status}: {_tail(log)}")


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-2000:]
