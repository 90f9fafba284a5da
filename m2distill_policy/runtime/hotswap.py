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
from m2distill_policy.errors import M2DistillError
from m2distill_policy.runtime.engine import Conditioning, Engine
from m2distill_policy.runtime.speed_limit import SpeedLimit
from m2distill_policy.runtime.status import SwapReport, SwapState
from m2distill_policy.runtime.window import RawStep, TokenWindow

logger = logging.getLogger(__name__)

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


class HotSwap:
    """At most one swap at a time: ``begin`` starts its thread, ``take`` hands over a candidate that is ready.

    look: returns what the server has seen; called from the thread, must be quick and thread-safe.

    Keys (instruction, generation, number of the newest step) never come back once the server has moved on, which is
    why a candidate whose key equals the server's is at rest: the thread feeds only candidates that lag behind.
    """

    def __init__(self, look: Callable[[], Seen]) -> None:
        self._look = look
        self._changed = threading.Condition()
        self._report = SwapReport()
        self._candidate: Candidate | None = None
        self._thread: threading.Thread | None = None
        self._cancelled = threading.Event()
        self._cycle_ended = threading.Event()

    @property
    def report(self) -> SwapReport:
        """Where the latest swap stands."""
        return self._report

    def begin(self, what: str, prepare: Callable[[], Engine]) -> None:
        """Start preparing ``what`` (for sentences); a swap under way is dropped, the newest wish counts.

        prepare: opens, verifies and loads, in the thread; every error it raises becomes a refusal. Returns at once.
        """
        with self._changed:
            self._cancelled.set()
            self._cancelled = cancelled = threading.Event()
            self._candidate = None
            self._report = SwapReport(SwapState.LOADING, f"{what} is being verified and loaded.")
            self._changed.notify_all()
            self._thread = threading.Thread(
                target=self._run, args=(what, prepare, cancelled, self._thread), name="hot-swap", daemon=True
            )
            self._thread.start()

    def notice(self) -> None:
        """Tell the thread that a cycle has ended and there may be something new to feed."""
        self._cycle_ended.set()
        if self._candidate is not None:
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
            candidate = self._candidate
            if candidate is None or candidate.key != key:
                return None
            identifier = candidate.engine.bundle.identifier
            self._candidate = None
            self._report = SwapReport(SwapState.SWITCHED, f"Bundle {identifier} drives now.", identifier)
            self._changed.notify_all()
            return candidate
        finally:
            self._changed.release()

    def wait_ready(self, timeout: float) -> SwapReport:
        """Block until the candidate has seen what the server has, or no swap is under way.

        Raises :class:`SwapError` after ``timeout`` s.
        """
        deadline = time.monotonic() + timeout
        while True:
            key = self._look().key  # takes the server's lock, so never inside our own
            with self._changed:
                candidate = self._candidate
                if self._report.state not in (SwapState.LOADING, SwapState.READY):
                    return self._report
                if candidate is not None and candidate.key == key:
                    return self._report
                left = deadline - time.monotonic()
                if left <= 0:
                    raise SwapError(
                        f"the hot swap was not ready within {timeout:g} s ({self._report.sentence}); "
                        "wait longer or ask for it again"
                    )
                self._changed.wait(min(left, _POLL))

    def cancel(self, timeout: float = 60.0) -> None:
        """Drop a swap under way and wait for its thread; raises :class:`SwapError` after ``timeout`` s."""
        with self._changed:
            self._cancelled.set()
            self._candidate = None
            if self._report.state in (SwapState.LOADING, SwapState.READY):
                self._report = SwapReport(SwapState.NONE, "The hot swap was dropped.")
            self._changed.notify_all()
            thread, self._thread = self._thread, None
        if thread is not None:
            thread.join(timeout)
            if thread.is_alive():
                raise SwapError(f"the thread of the last hot swap did not end within {timeout:g} s")

    def _run(
        self, what: str, prepare: Callable[[], Engine], cancelled: threading.Event, before: threading.Thread | None
    ) -> None:
        if before is not None:
            before.join()  # it was cancelled and ends by itself; two networks at once in the background are too many
        if cancelled.is_set():
            return
        identifier = ""
        try:
            candidate = Candidate(prepare())
            # Feeding gives way to the control loop. Loading does not: a slow parser would keep the interpreter's lock.
            with contextlib.suppress(AttributeError, OSError):  # not on every system
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
            identifier = candidate.engine.bundle.identifier
            with self._changed:
                if not cancelled.is_set():
                    # It stays so while the machine is too busy to feed it faster than steps come: worth saying.
                    self._report = SwapReport(
                        SwapState.LOADING, f"Bundle {identifier} is loaded and catches up with the window.", identifier
                    )
            while True:
                seen = self._look()
                with self._changed:
                    taken = self._report.state is SwapState.SWITCHED
                    if cancelled.is_set() or taken:
                        return
                    if seen.key == candidate.key:
                        if self._candidate is None:
                            self._candidate = candidate
                            self._report = SwapReport(
                                SwapState.READY, f"Bundle {identifier} is ready to take over.", identifier
                            )
                        self._changed.notify_all()
                        self._changed.wait(_POLL)
                        continue
                # The server is ahead of the candidate, so it cannot be taken before this is done.
                candidate.catch_up(seen)
        except Exception as error:  # whatever goes wrong here must become a refusal, or the swap would hang for ever
            sentence = str(error) if isinstance(error, M2DistillError) else f"{type(error).__name__}: {error}"
            logger.warning("%s was refused: %s", what, sentence, exc_info=not isinstance(error, M2DistillError))
            with self._changed:
                if not cancelled.is_set():
                    self._candidate = None
                    self._report = SwapReport(SwapState.REFUSED, f"{what} was refused: {sentence}", identifier)
                    self._changed.notify_all()


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
) -> Engine:
    """Open, verify, compare and warm up the bundle at ``path``; the options are those of :class:`Engine`."""
    bundle = open_bundle(path)
    require_compatible(present, bundle, instruction(), speed)
    return Engine(bundle, provider=provider, threads=threads, before_parse=before_parse)
