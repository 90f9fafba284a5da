"""How a node is told to stop from outside."""

from __future__ import annotations

import signal
from collections.abc import Callable


def stop_on_signals(stop: Callable[[str], None]) -> None:
    """Call ``stop`` with a reason at SIGTERM and at the first SIGINT; a second SIGINT interrupts as usual."""

    def terminate(number: int, frame: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        stop(f"the process got {signal.Signals(number).name}")

    signal.signal(signal.SIGTERM, terminate)
    signal.signal(signal.SIGINT, terminate)
