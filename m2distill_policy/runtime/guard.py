"""Ends a run of ONNX Runtime that takes too long, or whose answer is no longer needed."""

from __future__ import annotations

import threading
import time
import weakref
from typing import Any

import onnxruntime
from numpy.typing import NDArray

#: s that one answer may take before it is given up. The first one may take longer; the second one shows whether a
#: bundle can be driven with.
LONGEST_ANSWER = 2.0
#: s between two looks of the thread that ends runs.
_POLL = 0.1

_guards: weakref.WeakSet[RunGuard] = weakref.WeakSet()
_lock = threading.Lock()
_thread: threading.Thread | None = None


class OverdueError(Exception):
    """A run was ended before it answered; ``reason`` says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class RunGuard:
    """Runs sessions of one engine, one at a time, and ends a run that is overdue.

    ONNX Runtime looks at its terminate flag between two operators, also inside a loop of the graph. One thread of the
    process looks after all guards, so a run costs two time stamps more.

    Args:
        longest: s that a run may take; may be changed at any time.
        cancelled: set once nobody waits for an answer any more; ends the present run and every later one.
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
        """Run ``session``. Raises :class:`OverdueError`, and whatever ONNX Runtime raises."""
        if self._cancelled is not None and self._cancelled.is_set():
            raise OverdueError("nobody waits for its answer any more")
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
                if self._reason:  # the flag belongs to the run that is over
                    self._reason, self._options = "", onnxruntime.RunOptions()

    def look(self) -> None:
        """End the present run if it is overdue; called by the thread that looks after all guards."""
        with self._lock:
            if self._begun is None or self._reason:
                return
            if self._cancelled is not None and self._cancelled.is_set():
                self._reason = "nobody waits for its answer any more"
            elif time.monotonic() - self._begun > self.longest:
                self._reason = f"it gave no answer within {self.longest:g} s"
            else:
                return
            self._options.terminate = True


def _look_after(guard: RunGuard) -> None:
    global _thread
    with _lock:
        _guards.add(guard)
        if _thread is None or not _thread.is_alive():  # a process that was forked has the guards and not the thread
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
