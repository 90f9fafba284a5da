"""How a node is told to stop from outside."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

#: s within which a second SIGINT is the same Ctrl-C: a terminal sends it to every process there, and a launcher that
#: got it too sends it on.
_SAME = 1.0


def stop_on_signals(stop: Callable[[str], None]) -> None:
    """Call ``stop`` with a reason at SIGTERM and at the first SIGINT; a SIGINT after that interrupts as usual."""
    first: float | None = None

    def terminate(number: int, frame: object) -> None:
        nonlocal first
        now = time.monotonic()
        if first is None:
            first = now
            stop(f"the process got {signal.Signals(number).name}")
        elif number == signal.SIGINT and now - first > _SAME:
            signal.default_int_handler(number, frame)  # type: ignore[arg-type]

    signal.signal(signal.SIGTERM, terminate)
    signal.signal(signal.SIGINT, terminate)
