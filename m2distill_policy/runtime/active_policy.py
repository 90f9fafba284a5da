"""The bundle in use, its window and instruction, and the hot swap to another bundle."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Literal

from m2distill_policy.bundle import Bundle
from m2distill_policy.bundle_signature import PublicKey
from m2distill_policy.contract import Contract
from m2distill_policy.errors import UnknownInstructionError, shorten
from m2distill_policy.runtime.candidate import AnsweredWindow
from m2distill_policy.runtime.engine import Conditioning, Engine, EngineError
from m2distill_policy.runtime.hotswap import HotSwap, SwapError, load_for_swap, longest_load, require_compatible
from m2distill_policy.runtime.probe import ProbeLimits
from m2distill_policy.runtime.safety import Governor, Motion
from m2distill_policy.runtime.speed_limit import SpeedLimit
from m2distill_policy.runtime.watchdog import WatchLimits
from m2distill_policy.runtime.window import RawHistory, TokenWindow

logger = logging.getLogger(__name__)

SwapWhen = Literal["idle", "now"]


class ActivePolicy:
    """The engine in use, with its window and instruction. A hot swap replaces all three together.

    Args:
        engine: Engine to start with.
        lock: Lock of the policy server. The caller of a method must hold it, unless the docstring says otherwise.
        governor: Limits the commands. A hot swap gives it the contract of the new bundle.
        watch: Limits from which the longest time of an answer follows.
        provider, threads, public_key: Used for bundles that are loaded later, see :class:`PolicyControls`.
        swap_when: "now" switches between any two cycles, "idle" only while the arm is halted.
        probe: Time and memory that a new bundle may use until its first answer.
    """

    def __init__(
        self,
        engine: Engine,
        lock: threading.RLock,
        governor: Governor,
        watch: WatchLimits,
        *,
        provider: str,
        threads: int,
        public_key: PublicKey | None,
        swap_when: SwapWhen,
        probe: ProbeLimits,
    ) -> None:
        self.engine = engine
        self.window: TokenWindow = engine.window()
        self.conditioning: Conditioning | None = None
        self.instruction: str | None = None
        self.history = RawHistory(engine.contract.history, engine.contract.period)
        self.swap = HotSwap(self.answered, timeout=longest_load(provider, probe))
        #: Warning that the speed of the bundle in use is limited, or "".
        self.speed_warning = ""
        self._lock = lock
        self._governor = governor
        self._watch = watch
        self._provider, self._threads, self._public_key = provider, threads, public_key
        self._swap_when = swap_when
        self._probe = probe
        self._previous: Engine | None = None
        self._speed = SpeedLimit.of(governor.limits, engine.bundle)
        self._limit_answers(engine)

    @property
    def bundle(self) -> Bundle:
        """The bundle in use."""
        return self.engine.bundle

    @property
    def contract(self) -> Contract:
        """The contract of the bundle in use. A hot swap can change only its velocity response."""
        return self.engine.contract

    def _limit_answers(self, engine: Engine) -> None:
        engine.limit_answers(self._watch.longest_answer(engine.contract.period))

    def clear(self, reason: str) -> None:
        """Clear the window. ``reason`` is reported in the status."""
        self.window.clear()
        self.history.clear(reason)
        self.swap.notice()

    def clear_instruction(self) -> None:
        """Remove the instruction. No observation is answered until a new one is set."""
        self.instruction = self.conditioning = None

    def set_instruction(self, instruction: str) -> None:
        """Set the instruction. If this fails, there is no instruction afterwards.

        Raises:
            UnknownInstructionError: The bundle does not know the instruction.
            EngineError: The network failed on the instruction.
        """
        try:
            self.conditioning = self.engine.condition(instruction)
        except (UnknownInstructionError, EngineError):
            self.clear_instruction()
            raise
        self.instruction = instruction

    def answered(self) -> AnsweredWindow:
        """Return the instruction and the steps in the current window. Takes the lock."""
        with self._lock:
            generation, steps = self.history.snapshot()
            return AnsweredWindow(self.instruction, generation, steps)

    def load(self, path: Path) -> None:
        """Start a hot swap to the bundle at ``path``. Takes the lock."""
        with self._lock:
            present = self.bundle
        self.swap.begin(
            f"Bundle '{shorten(path.name)}'",
            lambda cancelled: load_for_swap(
                path,
                present,
                lambda: self.instruction,
                speed=self._speed,
                provider=self._provider,
                threads=self._threads,
                before_parse=self.swap.wait_for_cycle,
                limits=self._probe,
                public_key=self._public_key,
                cancelled=cancelled,
            ),
        )

    def rollback(self) -> None:
        """Start a swap back to the previous bundle. Takes the lock.

        Raises:
            SwapError: There is no previous bundle.
        """
        with self._lock:
            previous, present = self._previous, self.bundle
        if previous is None:
            raise SwapError("there is no previous bundle: no bundle has been replaced since the start")

        def prepare(cancelled: threading.Event) -> Engine:
            require_compatible(present, previous.bundle, self.instruction, self._speed)
            return previous

        self.swap.begin(f"Bundle {previous.bundle.identifier} (rollback)", prepare)

    def switch_if_ready(self, wait: bool = False) -> None:
        """Switch to a bundle that is ready, if the arm's motion allows it. Call it between two cycles.

        Args:
            wait: Whether to wait for the lock of the thread that prepares the bundle.
        """
        may_switch = self.swap.ready and (self._swap_when == "now" or self._governor.motion is Motion.HALTED)
        contract = self.swap.next_contract if may_switch else None
        if not self._governor.prepare_contract(contract) or contract is None:
            return
        candidate = self.swap.take(self.answered().key, wait=wait)
        if candidate is None:
            return
        self._previous = self.engine
        self._limit_answers(candidate.engine)
        self.engine, self.window, self.conditioning = candidate.engine, candidate.window, candidate.conditioning
        self._governor.set_contract(self.contract)
        self.speed_warning = self._speed.warning(self.bundle)
        logger.info("switched from bundle %s to %s", self._previous.bundle.identifier, self.bundle.identifier)
        if self.speed_warning:
            logger.warning("%s", self.speed_warning)
