"""Training that is asked to stop saves what it has learned first."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from m2distill_policy.errors import TrainingError


class StoppedError(TrainingError):
    """Training was stopped by a signal, and what it had learned was saved. exit_code: 128 and the signal's number."""

    def __init__(self, number: int, run: Path, stage: int, step: int) -> None:
        super().__init__(
            f"stopped by {signal.Signals(number).name}; stage {stage + 1} of {run} is saved after step {step}"
        )
        self.exit_code = 128 + number


class StopRequest:
    """The signal that asked training to stop: ``number`` is 0 until there was one."""

    number = 0


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """While training steps are made, SIGINT and SIGTERM only set ``number``; a second one ends the process as usual.

    Outside the main thread, which alone gets signals, nothing is changed.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, frame: FrameType | None) -> None:
        request.number = number
        for each, handler in before.items():
            signal.signal(each, handler)

    for number in before:
        signal.signal(number, ask)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
