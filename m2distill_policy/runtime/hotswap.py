"""Changing the network while the robot moves: a background thread prepares, the server switches between two cycles."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from m2distill_policy.bundle import Bundle, open_bundle
from m2distill_policy.bundle_signature import PublicKey
from m2distill_policy.contract import Contract
from m2distill_policy.errors import M2DistillError, shorten
from m2distill_policy.runtime.engine import Conditioning, Engine
from m2distill_policy.runtime.probe import ProbeLimits, prove
from m2distill_policy.runtime.speed_limit import SpeedLimit
from m2distill_policy.runtime.status import SwapReport, SwapState
from m2distill_policy.runtime.window import RawStep, TokenWindow

logger = logging.getLogger(__name__)

#: s after which a bundle that is not loaded is given up, whatever holds it up, beside what its probe may take; with
#: TensorRT, which compiles while it loads, and without.
_LONGEST_COMPILATION = 3600.0
_LONGEST_LOAD = 60.0
#: Bundles that may be loaded at a time.
MOST_LOADS = 3
#: Characters of a refusal's reason; it goes out with every status.
LONGEST_REASON = 1000
#: s between two looks of a waiting thread, in case a notice was missed.
_POLL = 0.05
#: s to wait for the end of a control cycle before a graph is parsed; a server that is not driven has none.
_CYCLE = 0.1
#: s after a decision that are left to whoever publishes it.
_PUBLISHING = 0.002
#: How much the feeding of a candidate gives way to the control loop (Unix niceness).
_NICENESS = 10


class SwapError(M2DistillError):
    """A hot swap cannot be asked for now, or took too long."""


@dataclass(frozen=True)
class Seen:
    """What the server has answered in the present window: a candidate must have seen exactly this before the switch."""

    instruction: str | None
    generation: int
    steps: tuple[RawStep, ...]

    @property
    def key(self) -> tuple[str | None, int, int]:
        """Equal keys mean equal windows."""
        return self.instruction, self.generation, self.steps[-1].number if self.steps else 0


class Candidate:
    """A loaded network that is being fed what the present one has seen."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.window: TokenWindow = engine.window()
        self.conditioning: Conditioning | None = None
        self.key: tuple[str | None, int, int] | None = None

    def catch_up(self, seen: Seen) -> None:
        """Bring the window up to ``seen``; raises what the engine raises, and :class:`UnknownInstructionError`."""
        instruction = self.conditioning.instruction if self.conditioning else None
        if seen.instruction != instruction:
            self.conditioning = None if seen.instruction is None else self.engine.condition(seen.instruction)
        same_window = self.key is not None and self.key[:2] == (seen.instruction, seen.generation)
        fed = self.key[2] if same_window and self.key is not None else 0
        # After a pause longer than the history there is a hole; the kept steps alone make the window then.
        if not same_window or (seen.steps and seen.steps[0].number > fed + 1):
            self.window.clear()
            fed = 0
        if self.conditioning is not None:
            # One step less than is kept: the window holds what came before the step that is answered.
            for step in seen.steps[-max(1, self.window.past_tokens.shape[1]) :]:
                if step.number > fed:
                    _, tokens = self.engine.step(self.conditioning, step.observation, self.window)
                    self.window.push(tokens)
        self.key = seen.key


class _Attempt:
    """One wish for another bundle: what it is called in messages, and how far it is.

    number: a later wish has a larger one. cancelled: set once it is not wanted any more. candidate: None while it is
    loaded. ready: whether the candidate has seen what the server had seen, at least once.
    """

    def __init__(self, number: int, what: str) -> None:
        self.number = number
        self.what = what
        self.cancelled = threading.Event()
        self.candidate: Candidate | None = None
        self.ready = False
        self.identifier = ""


class HotSwap:
    """Prepares bundles in threads of their own: ``begin`` starts one, ``take`` hands over a candidate that is ready.

    A later wish replaces an earlier one once its bundle is loaded, and not before: a bundle that is refused, or never
    answers, changes nothing, and the report says so. Of several that are loaded the latest wish counts.

    look: returns what the server has seen; called from the thread, must be quick and thread-safe. timeout: s after
    which a bundle that is not loaded is refused, whatever holds it up.

    Keys (instruction, generation, number of the newest step) never come back once the server has moved on, which is
    why a candidate whose key equals the server's is at rest: the thread feeds only candidates that lag behind.
    """

    def __init__(self, look: Callable[[], Seen], *, timeout: float) -> None:
        self._look = look
        self._timeout = timeout
        self._changed = threading.Condition()
        self._report = SwapReport()
        self._count = 0
        #: The latest wish, whose fate the report tells.
        self._latest: _Attempt | None = None
        #: The one that is loaded and may take over, and the number of the latest that ever was.
        self._valid: _Attempt | None = None
        self._latest_valid = 0
        self._threads: dict[_Attempt, threading.Thread] = {}
        self._cycle_ended = threading.Event()

    @property
    def report(self) -> SwapReport:
        """Where the latest swap stands."""
        return self._report

    @property
    def ready(self) -> bool:
        """Whether a candidate waits to take over; it may be that of an earlier wish than the report's."""
        valid = self._valid
        return valid is not None and valid.ready

    @property
    def next_contract(self) -> Contract | None:
        """The contract of the candidate that waits to take over, or None."""
        valid = self._valid
        return valid.candidate.engine.contract if valid is not None and valid.candidate is not None else None

    @property
    def pending(self) -> bool:
        """Whether a bundle is being loaded or waits to take over."""
        return self._valid is not None or self._report.state in (SwapState.LOADING, SwapState.READY)

    def begin(self, what: str, prepare: Callable[[threading.Event], Engine]) -> None:
        """Start preparing ``what`` (for messages). Returns at once; the report tells its fate.

        prepare: opens, verifies and loads, in the thread; every error it raises becomes a refusal. It is given an
        event that is set once the bundle is not wanted any more, and then should end soon.
        """
        with self._changed:
            self._count += 1
            self._latest = attempt = _Attempt(self._count, what)
            self._threads = {one: thread for one, thread in self._threads.items() if thread.is_alive()}
            loading = sum(one.candidate is None for one in self._threads)
            if loading >= MOST_LOADS:
                self._refuse(attempt, f"{loading} bundles are being loaded already; wait until they are")
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
        """Tell the thread that a cycle has ended and there may be something new to feed."""
        self._cycle_ended.set()
        if self.ready:
            with self._changed:
                self._changed.notify_all()

    def wait_for_cycle(self) -> None:
        """Called from the thread: return when a control cycle has just ended, or after 0.1 s.

        What must hold the interpreter's lock for long is begun then, so that it falls into the free part of the period.
        """
        self._cycle_ended.clear()
        if self._cycle_ended.wait(_CYCLE):
            time.sleep(_PUBLISHING)

    def take(self, key: tuple[str | None, int, int], *, wait: bool = False) -> Candidate | None:
        """The candidate, if it has seen exactly what ``key`` names; it is then no longer here.

        wait: whether to wait for the thread's lock; a control cycle does not, the next one will do as well.
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
                    SwapState.SWITCHED, f"Bundle {attempt.identifier} drives now.", attempt.identifier
                )
            self._changed.notify_all()
            return attempt.candidate
        finally:
            self._changed.release()

    def wait_ready(self, timeout: float) -> SwapReport:
        """Block until the latest wish is refused or loaded, and what is loaded has seen what the server has.

        Raises :class:`SwapError` after ``timeout`` s.
        """
        deadline = time.monotonic() + timeout
        while True:
            key = self._look().key  # takes the server's lock, so never inside our own
            with self._changed:
                valid = self._valid
                settled = self._report.state is not SwapState.LOADING
                if settled and (valid is None or (valid.ready and valid.candidate and valid.candidate.key == key)):
                    return self._report
                left = deadline - time.monotonic()
                if left <= 0:
                    raise SwapError(
                        f"the hot swap was not ready within {timeout:g} s ({self._report.message}); "
                        "wait longer or ask for it again"
                    )
                self._changed.wait(min(left, _POLL))

    def cancel(self, timeout: float = 2.0) -> None:
        """Drop whatever is under way, and wait at most ``timeout`` s for the threads to end.

        A thread that does not end (a disk that hangs) is left behind, with a warning: nobody waits for it to stop the
        arm or the process.
        """
        with self._changed:
            for attempt in self._threads:
                # One that was taken drives: its engine must go on answering.
                if attempt.candidate is None or attempt is self._valid:
                    attempt.cancelled.set()
            self._valid = None
            if self._report.state in (SwapState.LOADING, SwapState.READY):
                self._report = SwapReport(SwapState.NONE, "The hot swap was dropped.")
            self._changed.notify_all()
            threads, self._threads = list(self._threads.values()), {}
        deadline = time.monotonic() + timeout
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                logger.warning("a bundle that was being loaded is left behind: it did not end within %g s", timeout)

    def _run(self, attempt: _Attempt, prepare: Callable[[threading.Event], Engine], late: threading.Timer) -> None:
        try:
            try:
                candidate = Candidate(prepare(attempt.cancelled))
            finally:
                late.cancel()
            if not self._admit(attempt, candidate):
                return
            # Feeding gives way to the control loop. Loading does not: a slow parser would keep the interpreter's lock.
            with contextlib.suppress(AttributeError, OSError):  # not on every system
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
            while True:
                seen = self._look()
                with self._changed:
                    if self._valid is not attempt:  # taken, replaced or dropped
                        return
                    if seen.key == candidate.key:
                        if not attempt.ready:
                            attempt.ready = True
                            if attempt is self._latest:
                                self._report = SwapReport(
                                    SwapState.READY,
                                    f"Bundle {attempt.identifier} is ready to take over.",
                                    attempt.identifier,
                                )
                        self._changed.notify_all()
                        self._changed.wait(_POLL)
                        continue
                # The server is ahead of the candidate, so it cannot be taken before this is done.
                candidate.catch_up(seen)
        except Exception as error:  # whatever goes wrong here must become a refusal, or the swap would hang for ever
            ours = isinstance(error, M2DistillError)
            if not attempt.cancelled.is_set():
                logger.warning("%s was refused: %s", attempt.what, error, exc_info=not ours)
            with self._changed:
                if not attempt.cancelled.is_set():
                    self._refuse(attempt, str(error) if ours else f"{type(error).__name__}: {error}")

    def _admit(self, attempt: _Attempt, candidate: Candidate) -> bool:
        """Replace every earlier wish by a bundle that is loaded; False where a later wish was quicker."""
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
                # It stays so while the machine is too busy to feed it faster than steps come: worth saying.
                self._report = SwapReport(
                    SwapState.LOADING,
                    f"Bundle {attempt.identifier} is loaded and catches up with the window.",
                    attempt.identifier,
                )
            self._changed.notify_all()
            return True

    def _refuse(self, attempt: _Attempt, reason: str) -> None:
        """Say why a bundle does not take over; what an earlier wish has made ready stays. The lock is held."""
        if self._valid is attempt:
            self._valid = None
        # While a later wish is looked at, the report is that one's.
        if attempt is self._latest or self._report.state is SwapState.REFUSED:
            message = f"{attempt.what} was refused: {shorten(reason, LONGEST_REASON)}"
            if self._valid is not None:
                message = f"{message.removesuffix('.')}. Bundle {self._valid.identifier} still waits to take over."
            self._report = SwapReport(SwapState.REFUSED, message, attempt.identifier)
        self._changed.notify_all()

    def _give_up(self, attempt: _Attempt) -> None:
        """Refuse a bundle whose loading has not ended: its disk or its graph hangs."""
        with self._changed:
            if attempt.candidate is None and not attempt.cancelled.is_set():
                attempt.cancelled.set()
                reason = f"it was not loaded within {self._timeout:g} s; see whether its disk answers"
                logger.warning("%s was refused: %s", attempt.what, reason)
                self._refuse(attempt, reason)


def longest_load(provider: str, limits: ProbeLimits) -> float:
    """Seconds after which a bundle that is not loaded with ``provider`` is given up."""
    return limits.timeout + (_LONGEST_COMPILATION if provider == "tensorrt" else _LONGEST_LOAD)


def require_compatible(present: Bundle, new: Bundle, instruction: str | None, speed: SpeedLimit) -> None:
    """Raise unless ``new`` may take over from ``present`` under ``instruction``.

    The contracts must agree (the velocity response may differ): :class:`ContractError`. It may not be much faster than
    ``speed``: :class:`SpeedError`. The present instruction must be known: :class:`UnknownInstructionError`.
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
    """Open, verify, compare, prove and warm up the bundle at ``path``.

    limits: what it may take until its first answer, in a process of its own. public_key: what it must be signed with.
    The other options are those of
    :class:`Engine`.
    """
    bundle = open_bundle(path) if public_key is None else open_bundle(path, public_key=public_key)
    require_compatible(present, bundle, instruction(), speed)
    before_parse()  # starting a process holds the interpreter's lock for a moment
    prove(bundle, limits, threads=threads, cancelled=cancelled)
    return Engine(bundle, provider=provider, threads=threads, before_parse=before_parse, cancelled=cancelled)
