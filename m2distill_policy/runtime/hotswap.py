"""Change the network while the robot moves: a background thread prepares it, the server switches between two cycles."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from m2distill_policy.bundle import Bundle, open_bundle
from m2distill_policy.bundle_signature import PublicKey
from m2distill_policy.contract import Contract
from m2distill_policy.errors import M2DistillError, shorten
from m2distill_policy.runtime.candidate import AnsweredWindow, Candidate
from m2distill_policy.runtime.engine import Engine
from m2distill_policy.runtime.probe import ProbeLimits, prove
from m2distill_policy.runtime.speed_limit import SpeedLimit
from m2distill_policy.runtime.status import SwapReport, SwapState

logger = logging.getLogger(__name__)

#: Seconds after which the loading of a bundle is aborted, in addition to the time of its probe; the first value is for
#: TensorRT, which compiles while it loads.
_LONGEST_COMPILATION = 3600.0
_LONGEST_LOAD = 60.0
#: Largest number of bundles that are loaded at the same time.
MOST_LOADS = 3
#: Largest number of characters of a refusal's reason, which is sent with every status.
LONGEST_REASON = 1000
#: Seconds between two checks of a waiting thread, in case it missed a notification.
_POLL = 0.05
#: Longest wait in seconds for the end of a control cycle before a graph is parsed. It is limited, because a server that
#: is not called has no cycles.
_CYCLE = 0.1
#: Seconds after a cycle that are left for publishing its decision.
_PUBLISHING = 0.002
#: Niceness (Unix) of the thread that fills a candidate's window, so that the control loop comes first.
_NICENESS = 10


class SwapError(M2DistillError):
    """A hot swap cannot be started now, or took too long."""


class _Attempt:
    """A request for another bundle, and its progress.

    Attributes:
        number: Larger for later requests.
        what: Name of the bundle in messages.
        cancelled: Set once the bundle is no longer wanted.
        candidate: None until the bundle is loaded.
        ready: Whether the candidate's window has been up to date at least once.
        identifier: Identifier of the bundle; empty until it is loaded.
    """

    def __init__(self, number: int, what: str) -> None:
        self.number = number
        self.what = what
        self.cancelled = threading.Event()
        self.candidate: Candidate | None = None
        self.ready = False
        self.identifier = ""


class HotSwap:
    """Prepares bundles in background threads.

    :meth:`begin` starts to prepare a bundle; :meth:`take` returns one that is ready.

    A later request replaces an earlier one only once the later bundle is loaded, so a bundle that is refused changes
    only the report. If several bundles are loaded, the latest request wins.

    A key (instruction, generation, newest step) never repeats, so a candidate with the server's key is up to date. The
    thread changes only candidates that are not up to date.

    Args:
        answered: Returns the server's window. It is called from the thread, and must be quick and thread-safe.
        timeout: Seconds after which a bundle that is not loaded is refused.
    """

    def __init__(self, answered: Callable[[], AnsweredWindow], *, timeout: float) -> None:
        self._answered = answered
        self._timeout = timeout
        self._changed = threading.Condition()
        self._report = SwapReport()
        self._count = 0
        #: The latest request; the loaded request that may be taken; and the largest number of a request that was
        #: loaded.
        self._latest: _Attempt | None = None
        self._valid: _Attempt | None = None
        self._latest_valid = 0
        self._threads: dict[_Attempt, threading.Thread] = {}
        self._cycle_ended = threading.Event()

    @property
    def report(self) -> SwapReport:
        """State of the latest swap."""
        return self._report

    @property
    def ready(self) -> bool:
        """Whether a candidate is ready to be taken. It may belong to an earlier request than the report."""
        valid = self._valid
        return valid is not None and valid.ready

    @property
    def next_contract(self) -> Contract | None:
        """The contract of the candidate that is ready, or None."""
        valid = self._valid
        return valid.candidate.engine.contract if valid is not None and valid.candidate is not None else None

    @property
    def pending(self) -> bool:
        """Whether a bundle is being loaded, or is ready and not in use yet."""
        return self._valid is not None or self._report.state in (SwapState.LOADING, SwapState.READY)

    def begin(self, what: str, prepare: Callable[[threading.Event], Engine]) -> None:
        """Start to prepare a bundle. Returns at once; the report describes the progress.

        Args:
            what: Name of the bundle in messages.
            prepare: Opens, verifies and loads the bundle, in the thread; any error becomes a refusal. Its argument is
                an event. Once that is set, it should end soon.
        """
        with self._changed:
            self._count += 1
            self._latest = attempt = _Attempt(self._count, what)
            self._threads = {one: thread for one, thread in self._threads.items() if thread.is_alive()}
            loading = sum(one.candidate is None for one in self._threads)
            if loading >= MOST_LOADS:
                self._refuse(attempt, f"{loading} bundles are being loaded already; wait until they are loaded")
                return
            self._report = SwapReport(SwapState.LOADING, f"{what} is being verified and loaded.")
            self._changed.notify_all()
            late = threading.Timer(self._timeout, self._give_up, (attempt,))
            thread = threading.Thread(target=self._run, args=(attempt, prepare, late), name="hot-swap", daemon=True)
            late.daemon = True
            self._threads[attempt] = thread
            late.start()
            thread.start()

    def notice(self) -> None:
        """Notify the thread that a cycle has ended, so that there may be a new step."""
        self._cycle_ended.set()
        if self.ready:
            with self._changed:
                self._changed.notify_all()

    def wait_for_cycle(self) -> None:
        """Wait in the background thread until a control cycle has just ended, at most 0.1 s.

        Work that holds the interpreter's lock for long starts then, in the free part of the period.
        """
        self._cycle_ended.clear()
        if self._cycle_ended.wait(_CYCLE):
            time.sleep(_PUBLISHING)

    def take(self, key: tuple[str | None, int, int], *, wait: bool = False) -> Candidate | None:
        """Remove and return the candidate if its key is ``key``, else return None.

        Args:
            key: Key of what the server has seen.
            wait: Whether to wait for the thread's lock. A control cycle does not wait; it tries again in the next one.
        """
        if not self._changed.acquire(blocking=wait):
            return None
        try:
            attempt = self._valid
            if attempt is None or attempt.candidate is None or not attempt.ready or attempt.candidate.key != key:
                return None
            self._valid = None
            if attempt is self._latest or self._report.state is not SwapState.LOADING:
                self._report = SwapReport(
                    SwapState.SWITCHED, f"Bundle {attempt.identifier} is in use now.", attempt.identifier
                )
            self._changed.notify_all()
            return attempt.candidate
        finally:
            self._changed.release()

    def wait_ready(self, timeout: float) -> SwapReport:
        """Wait until the latest request is refused, or its bundle is loaded and up to date with the server.

        Raises:
            SwapError: Neither has happened within ``timeout`` s.
        """
        deadline = time.monotonic() + timeout
        while True:
            key = self._answered().key  # takes the server's lock, so it must not be called while ours is held
            with self._changed:
                valid = self._valid
                settled = self._report.state is not SwapState.LOADING
                if settled and (valid is None or (valid.ready and valid.candidate and valid.candidate.key == key)):
                    return self._report
                left = deadline - time.monotonic()
                if left <= 0:
                    raise SwapError(
                        f"the hot swap was not ready within {timeout:g} s ({self._report.message}); "
                        "wait longer or request it again"
                    )
                self._changed.wait(min(left, _POLL))

    def cancel(self, timeout: float = 2.0) -> None:
        """Cancel everything in progress, and wait at most ``timeout`` s for the threads to end.

        A thread that does not end, for example because a disk hangs, is left running, with a warning. Stopping the
        arm or the process never waits for it.
        """
        with self._changed:
            for attempt in self._threads:
                # The engine of a request that was taken is in use and must continue to answer.
                if attempt.candidate is None or attempt is self._valid:
                    attempt.cancelled.set()
            self._valid = None
            if self._report.state in (SwapState.LOADING, SwapState.READY):
                self._report = SwapReport(SwapState.NONE, "The hot swap was cancelled.")
            self._changed.notify_all()
            threads, self._threads = list(self._threads.values()), {}
        deadline = time.monotonic() + timeout
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                logger.warning("a thread that loads a bundle did not end within %g s; it is left running", timeout)

    def _run(self, attempt: _Attempt, prepare: Callable[[threading.Event], Engine], late: threading.Timer) -> None:
        try:
            try:
                candidate = Candidate(prepare(attempt.cancelled))
            finally:
                late.cancel()
            if not self._admit(attempt, candidate):
                return
            # From here on, the thread has a lower priority than the control loop. The priority is not lowered earlier,
            # because slow parsing would hold the interpreter's lock longer.
            with contextlib.suppress(AttributeError, OSError):  # not possible on every system
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
            while True:
                window = self._answered()
                with self._changed:
                    if self._valid is not attempt:  # taken, replaced or cancelled
                        return
                    if window.key == candidate.key:
                        if not attempt.ready:
                            attempt.ready = True
                            if attempt is self._latest:
                                self._report = SwapReport(
                                    SwapState.READY,
                                    f"Bundle {attempt.identifier} is ready.",
                                    attempt.identifier,
                                )
                        self._changed.notify_all()
                        self._changed.wait(_POLL)
                        continue
                # The keys differ, so nobody can take the candidate while it changes.
                candidate.catch_up(window)
        except Exception as error:  # without a refusal, the swap would never end
            ours = isinstance(error, M2DistillError)
            if not attempt.cancelled.is_set():
                logger.warning("%s was refused: %s", attempt.what, error, exc_info=not ours)
            with self._changed:
                if not attempt.cancelled.is_set():
                    self._refuse(attempt, str(error) if ours else f"{type(error).__name__}: {error}")

    def _admit(self, attempt: _Attempt, candidate: Candidate) -> bool:
        """Replace every earlier request by this loaded bundle, and return True.

        Return False if this request is cancelled, or if a later request was loaded first.
        """
        with self._changed:
            if attempt.cancelled.is_set() or attempt.number < self._latest_valid:
                return False
            for earlier in self._threads:
                if earlier.number < attempt.number and (earlier.candidate is None or earlier is self._valid):
                    earlier.cancelled.set()
            attempt.candidate = candidate
            attempt.identifier = candidate.engine.bundle.identifier
            self._valid, self._latest_valid = attempt, attempt.number
            if attempt is self._latest:
                # On a busy machine this state may last, so it has its own message.
                self._report = SwapReport(
                    SwapState.LOADING,
                    f"Bundle {attempt.identifier} is loaded; its window is being filled.",
                    attempt.identifier,
                )
            self._changed.notify_all()
            return True

    def _refuse(self, attempt: _Attempt, reason: str) -> None:
        """Report why a bundle was refused; a candidate of an earlier request stays ready. The caller holds the lock."""
        if self._valid is attempt:
            self._valid = None
        # If a later request is in progress, the report describes that one.
        if attempt is self._latest or self._report.state is SwapState.REFUSED:
            message = f"{attempt.what} was refused: {shorten(reason, LONGEST_REASON)}"
            if self._valid is not None:
                message = f"{message.removesuffix('.')}. Bundle {self._valid.identifier} is still ready."
            self._report = SwapReport(SwapState.REFUSED, message, attempt.identifier)
        self._changed.notify_all()

    def _give_up(self, attempt: _Attempt) -> None:
        """Refuse a bundle that takes too long to load, because its disk or its graph hangs."""
        with self._changed:
            if attempt.candidate is None and not attempt.cancelled.is_set():
                attempt.cancelled.set()
                reason = f"it was not loaded within {self._timeout:g} s; check whether its disk answers"
                logger.warning("%s was refused: %s", attempt.what, reason)
                self._refuse(attempt, reason)


def longest_load(provider: str, limits: ProbeLimits) -> float:
    """Return the seconds after which the loading of a bundle with ``provider`` is aborted."""
    return limits.timeout + (_LONGEST_COMPILATION if provider == "tensorrt" else _LONGEST_LOAD)


def require_compatible(present: Bundle, new: Bundle, instruction: str | None, speed: SpeedLimit) -> None:
    """Check that ``new`` may replace ``present`` under ``instruction``.

    Raises:
        ContractError: The contracts differ in more than the velocity response.
        SpeedError: The new bundle is much faster than ``speed``.
        UnknownInstructionError: The new bundle does not know the instruction.
    """
    present.contract.require_same(
        new.contract, f"bundle {present.identifier}", f"bundle {new.identifier}", ignore=("action.response",)
    )
    speed.require(new)
    if instruction is not None:
        new.embedding(instruction)


def load_for_swap(
    path: Path,
    present: Bundle,
    instruction: Callable[[], str | None],
    *,
    speed: SpeedLimit,
    provider: str,
    threads: int,
    before_parse: Callable[[], object],
    limits: ProbeLimits,
    public_key: PublicKey | None,
    cancelled: threading.Event,
) -> Engine:
    """Open, verify, compare, probe and load the bundle at ``path``. Other arguments are those of :class:`Engine`.

    Args:
        present: The bundle in use, with which the new one must be compatible.
        instruction: Returns the current instruction.
        speed: Speed limit that the new bundle must fit, see :func:`require_compatible`.
        limits: Time and memory that the new bundle may use until its first answer, in a separate process.
        public_key: Key with which the new bundle must be signed; None accepts any bundle.
    """
    bundle = open_bundle(path) if public_key is None else open_bundle(path, public_key=public_key)
    require_compatible(present, bundle, instruction(), speed)
    before_parse()  # starting a process also holds the interpreter's lock for a moment
    prove(bundle, limits, threads=threads, cancelled=cancelled)
    return Engine(bundle, provider=provider, threads=threads, before_parse=before_parse, cancelled=cancelled)
