"""Abort a run of ONNX Runtime that takes too long, or whose answer is no longer needed."""

from __future__ import annotations

import threading
import time
import weakref
from typing import Any

import onnxruntime
from numpy.typing import NDArray

#: Seconds after which a run is aborted. The first run of a bundle may take longer; the second shows whether the bundle
#: is fast enough to drive.
LONGEST_ANSWER = 2.0
#: Seconds between two checks by the thread that aborts runs.
_POLL = 0.1

_guards: weakref.WeakSet[RunGuard] = weakref.WeakSet()
_lock = threading.Lock()
_thread: threading.Thread | None = None


class OverdueError(Exception):
    """A run was aborted before it answered; ``reason`` says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class RunGuard:
    """Runs the sessions of one engine, one at a time, and aborts a run that is overdue.

    ONNX Runtime checks its terminate flag between two operators, also inside a loop of the graph. One thread checks the
    runs of all engines in the process, so a run costs only two more time stamps.

    Args:
        longest: Seconds that a run may take. The value may be changed at any time.
        cancelled: Once set, the current run is aborted and later ones are refused.
    """

    def __init__(self, longest: float, cancelled: threading.Event | None = None) -> None:
        self.longest = longest
        self._cancelled = cancelled
        self._options = onnxruntime.RunOptions()
        self._lock = threading.Lock()
        self._begun: float | None = None
        self._reason = ""
        _look_after(self)

    def run(
        self, session: onnxruntime.InferenceSession, outputs: tuple[str, ...], feed: dict[str, NDArray[Any]]
    ) -> list[NDArray[Any]]:
        """Run ``session`` and return its outputs.

        Raises:
            OverdueError: The run was aborted.
            Exception: Whatever ONNX Runtime raises.
        """
        if self._cancelled is not None and self._cancelled.is_set():
            raise OverdueError("its answer is no longer needed")
        self._begun = time.monotonic()
        try:
            found: list[NDArray[Any]] = session.run(outputs, feed, self._options)
            return found
        except Exception as error:
            if self._reason:
                raise OverdueError(self._reason) from error
            raise
        finally:
            with self._lock:
                self._begun = None
                if self._reason:  # the terminate flag belongs to the run that has ended
                    self._reason, self._options = "", onnxruntime.RunOptions()

    def look(self) -> None:
        """Abort the current run if it is overdue. Called by the thread that checks all run timeouts."""
        with self._lock:
            if self._begun is None or self._reason:
                return
            if self._cancelled is not None and self._cancelled.is_set():
                self._reason = "its answer is no longer needed"
            elif time.monotonic() - self._begun > self.longest:
                self._reason = f"it gave no answer within {self.longest:g} s"
            else:
                return
            self._options.terminate = True


def _look_after(guard: RunGuard) -> None:
    global _thread
    with _lock:
        _guards.add(guard)
        if _thread is None or not _thread.is_alive():  # a forked process has the guards but not the thread
            _thread = threading.Thread(target=_watch, name="engine-guard", daemon=True)
            _thread.start()


def _watch() -> None:
    while True:
        time.sleep(_POLL)
        with _lock:
            guards = list(_guards)
        for guard in guards:
            guard.look()
        guards.clear()
