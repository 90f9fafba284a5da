"""Stop training on a signal after saving a partial checkpoint."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from m2distill_policy.errors import TrainingError


class StoppedError(TrainingError):
    """Training was stopped by a signal, and its progress was saved.

    Attributes:
        exit_code: 128 plus the number of the signal.
    """

    def __init__(self, number: int, run: Path, stage: int, step: int) -> None:
        super().__init__(
            f"stopped by {signal.Signals(number).name}; stage {stage + 1} of {run} is saved after step {step}"
        )
        self.exit_code = 128 + number


class StopRequest:
    """The request to stop training.

    Attributes:
        number: Number of the signal that requests it; 0 until a signal arrives.
    """

    number = 0


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Record the first SIGINT or SIGTERM within the block instead of ending the process.

    A second signal acts as usual. Outside the main thread, where no signals arrive, nothing is changed.
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
