"""Stop a node or a command by signals."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Callable

#: s within which a second SIGINT is the same Ctrl-C: a terminal sends it to all its processes, and a launcher also
#: forwards it.
_SAME = 1.0


#: Set by the launch files for the nodes that they start.
WITH_PARENT = "M2DISTILL_END_WITH_PARENT"
#: Linux: option for the signal that a process gets when its parent ends (prctl(2)).
_PR_SET_PDEATHSIG = 1


def _end_with_launcher() -> None:
    """Request SIGTERM for this process when its parent ends, if a launch file has set that.

    Otherwise a killed ``ros2 launch`` would leave its nodes running, and one of them would continue to drive an arm. On
    systems without such a signal nothing happens.
    """
    if not os.environ.get(WITH_PARENT):
        return
    parent = os.getppid()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it has ended meanwhile
            os.kill(os.getpid(), signal.SIGTERM)


def stop_on_signals(stop: Callable[[str], None], grace: float = _SAME) -> None:
    """Call ``stop`` with a reason at the first SIGTERM or SIGINT.

    Further signals are ignored for ``grace`` s, because they would end what ``stop`` began, such as a ramp to a halt.
    After that, SIGINT interrupts as usual. SIGKILL ends the process at any time, without a ramp.

    If a launch file started the process, ``stop`` is also called when the launcher has ended.

    Args:
        stop: Requests an orderly end and returns at once.
        grace: Seconds that this end may take.
    """
    first: float | None = None

    def terminate(number: int, frame: object) -> None:
        nonlocal first
        now = time.monotonic()
        if first is None:
            first = now
            stop(f"the process got {signal.Signals(number).name}")
        elif now - first <= grace:
            if now - first > _SAME:
                _print_error(f"ending already; Ctrl-C interrupts in {first + grace - now:.0f} s, SIGKILL at once")
        elif number == signal.SIGINT:
            signal.default_int_handler(number, frame)  # type: ignore[arg-type]

    signal.signal(signal.SIGTERM, terminate)
    signal.signal(signal.SIGINT, terminate)
    _end_with_launcher()


def _print_error(text: str) -> None:
    """Write to standard error in a signal handler, without the stream's buffer, which may be in use."""
    with contextlib.suppress(OSError):
        os.write(2, f"{text}\n".encode())
