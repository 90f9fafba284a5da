"""How a node is told to stop from outside."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Callable

#: s within which a second SIGINT is the same Ctrl-C: a terminal sends it to every process there, and a launcher that
#: got it too sends it on.
_SAME = 1.0


#: Set by the launch files for the nodes that they start.
WITH_PARENT = "M2DISTILL_END_WITH_PARENT"
#: Linux: the signal that a process gets when its parent ends (prctl(2)).
_PR_SET_PDEATHSIG = 1


def _end_with_launcher() -> None:
    """Be sent SIGTERM when the process that started this one ends, where a launch file asks for it.

    ``ros2 launch`` that is killed or gets SIGTERM leaves its nodes behind, and one of them would go on driving an arm.
    Nothing happens where the system has no such signal.
    """
    if not os.environ.get(WITH_PARENT):
        return
    parent = os.getppid()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it ended in the meantime
            os.kill(os.getpid(), signal.SIGTERM)


def stop_on_signals(stop: Callable[[str], None], patience: float = _SAME) -> None:
    """Call ``stop`` with a reason at the first SIGTERM or SIGINT.

    Later ones are ignored for ``patience`` s, because they would cut what ``stop`` began, such as a ramp to a halt. A
    SIGINT after that interrupts as usual. SIGKILL ends the process at any time, without a ramp.

    Started by a launch file, ``stop`` is also called when the launcher has ended.

    Args:
        stop: asks for an orderly end and returns at once.
        patience: s that the end may take.
    """
    first: float | None = None

    def terminate(number: int, frame: object) -> None:
        nonlocal first
        now = time.monotonic()
        if first is None:
            first = now
            stop(f"the process got {signal.Signals(number).name}")
        elif now - first <= patience:
            if now - first > _SAME:
                _say(f"ending already; Ctrl-C interrupts in {first + patience - now:.0f} s, SIGKILL at once")
        elif number == signal.SIGINT:
            signal.default_int_handler(number, frame)  # type: ignore[arg-type]

    signal.signal(signal.SIGTERM, terminate)
    signal.signal(signal.SIGINT, terminate)
    _end_with_launcher()


def _say(text: str) -> None:
    """To standard error, from within a signal's handler, where a stream's own buffer may be in use."""
    with contextlib.suppress(OSError):
        os.write(2, f"{text}\n".encode())
