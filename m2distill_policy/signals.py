"""Stop a node or a command by signals."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Callable

#: Time within which a second SIGINT counts as the same Ctrl-C, s. One Ctrl-C can arrive twice, because the terminal
#: sends it to all its processes and a launcher forwards it.
_SAME = 1.0


#: Environment variable that the launch files set for the nodes that they start.
WITH_PARENT = "M2DISTILL_END_WITH_PARENT"
#: Option of prctl(2) on Linux: set the signal that this process gets when its parent ends.
_PR_SET_PDEATHSIG = 1


def _end_with_launcher() -> None:
    """If a launch file started this process, have the system send it SIGTERM when its parent ends.

    Otherwise, after ``ros2 launch`` is killed, its nodes would keep running, and the policy node would continue to
    drive the arm. On systems without prctl(2), this function does nothing.
    """
    if not os.environ.get(WITH_PARENT):
        return
    parent = os.getppid()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # the parent ended before prctl was called
            os.kill(os.getpid(), signal.SIGTERM)


def stop_on_signals(stop: Callable[[str], None], grace: float = _SAME) -> None:
    """Call ``stop`` with a reason at the first SIGTERM or SIGINT.

    Further signals are ignored for ``grace`` s, because they would interrupt what ``stop`` began, such as a ramp to a
    halt.
    After that, SIGINT interrupts as usual. SIGKILL ends the process at any time, without a ramp.

    If a launch file started the process, ``stop`` is also called when the launcher has ended.

    Args:
        stop: Function that requests an orderly end and returns at once.
        grace: Time that the orderly end may take, s.
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
    """Write to standard error in a signal handler. The stream's buffer is not used, because it may be locked."""
    with contextlib.suppress(OSError):
        os.write(2, f"{text}\n".encode())
