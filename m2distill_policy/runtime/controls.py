"""State and controls of a policy server: what others read and set between two cycles."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from m2distill_policy.bundle import Bundle
from m2distill_policy.bundle_signature import PublicKey
from m2distill_policy.contract import Contract
from m2distill_policy.errors import ConfigError, UnknownInstructionError
from m2distill_policy.runtime.active_policy import ActivePolicy, SwapWhen
from m2distill_policy.runtime.engine import Engine, EngineError
from m2distill_policy.runtime.interlock import Interlock, Resume
from m2distill_policy.runtime.mixture import Sampling, check_sampling
from m2distill_policy.runtime.motion_check import MotionCheck
from m2distill_policy.runtime.probe import ProbeLimits, mark_proved
from m2distill_policy.runtime.safety import Governor, Motion, SafetyLimits
from m2distill_policy.runtime.status import StatusCode, SwapReport
from m2distill_policy.runtime.watchdog import Fault, Watchdog, WatchLimits
from m2distill_policy.runtime.window import TokenWindow


class PolicyControls:
    """Everything of a policy server but its cycle. Methods may be called from several threads; each call is atomic.

    Args:
        bundle: an opened bundle; the caller checks its signature.
        provider, threads: see :class:`Engine`.
        sampling, temperature: see :meth:`Mixture.draw`.
        seed: of the random numbers.
        limits: safety limits.
        watch: what is too late, too early or frozen.
        enabled: whether commands are sent; False begins in shadow mode.
        resume: ``auto`` drives on when a fault has passed (with an empty window), ``enable`` waits for :meth:`enable`.
        swap_when: ``now`` switches to a new bundle between any two cycles, ``idle`` only while the arm is halted.
        clock: s, measures latency.
        probe: what a new bundle may use until its first answer.
        public_key: the key that a new bundle must be signed with; None for any bundle.

    Raises:
        ConfigError: an argument is not allowed.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        provider: str = "cpu",
        threads: int = 1,
        sampling: Sampling = "low_noise",
        temperature: float = 1.0,
        seed: int = 0,
        limits: SafetyLimits | None = None,
        watch: WatchLimits | None = None,
        enabled: bool = True,
        resume: Resume = "auto",
        swap_when: SwapWhen = "now",
        clock: Callable[[], float] = time.perf_counter,
        probe: ProbeLimits | None = None,
        public_key: PublicKey | None = None,
    ) -> None:
        check_sampling(sampling, temperature)
        if seed < 0:
            raise ConfigError(f"seed is {seed}; whole numbers from 0 on are allowed")
        if resume not in ("auto", "enable"):
            raise ConfigError(f"resume is '{resume}'; choose 'auto' or 'enable'")
        if swap_when not in ("idle", "now"):
            raise ConfigError(f"swap_when is '{swap_when}'; choose 'idle' or 'now'")
        self._sampling, self._temperature = sampling, temperature
        self._clock = clock
        self._lock = threading.RLock()
        engine = Engine(bundle, provider=provider, threads=threads)
        mark_proved(bundle)
        contract = engine.contract
        self._governor = Governor(limits or SafetyLimits(), contract)
        self._watchdog = Watchdog(contract, watch or WatchLimits())
        self._motion_check = MotionCheck(contract, self._watchdog.limits)
        self._policy = ActivePolicy(
            engine,
            self._lock,
            self._governor,
            self._watchdog.limits,
            provider=provider,
            threads=threads,
            public_key=public_key,
            swap_when=swap_when,
            probe=probe or ProbeLimits(),
        )
        self._interlock = Interlock(
            self._watchdog, enabled=enabled, resume=resume, needs_pose=self._governor.limits.needs_pose
        )
        self._seed, self._episode, self._answers = seed, 0, 0
        self._rng = np.random.default_rng([seed, 0])
        self._overruns = self._overruns_in_a_row = 0

    # --- state -------------------------------------------------------------------------------------------------------

    @property
    def bundle(self) -> Bundle:
        """The bundle that drives."""
        return self._policy.bundle

    @property
    def engine(self) -> Engine:
        """The engine that drives."""
        return self._policy.engine

    @property
    def contract(self) -> Contract:
        """The contract; only its velocity response may change with a hot swap."""
        return self._policy.contract

    @property
    def instruction(self) -> str | None:
        """The current instruction."""
        return self._policy.instruction

    @property
    def _has_instruction(self) -> bool:
        return self._policy.instruction is not None

    @property
    def enabled(self) -> bool:
        """Whether commands are sent."""
        return self._interlock.enabled

    @property
    def motion(self) -> Motion:
        """Running, halting or halted."""
        return self._governor.motion

    @property
    def limits(self) -> SafetyLimits:
        """The safety limits."""
        return self._governor.limits

    @property
    def speeds(self) -> tuple[float, ...]:
        """(6,) m/s and rad/s that no command exceeds, whichever bundle drives; see :class:`SpeedLimit`."""
        return self._governor.speeds

    @property
    def window(self) -> TokenWindow:
        """The tokens kept of earlier steps; to be read only."""
        return self._policy.window

    @property
    def episode(self) -> tuple[int, int]:
        """(seed, episode) of the random stream in use."""
        return self._seed, self._episode

    @property
    def watch(self) -> WatchLimits:
        """What counts as late, early, silent or frozen."""
        return self._watchdog.limits

    # --- hot swap ----------------------------------------------------------------------------------------------------

    @property
    def swap(self) -> SwapReport:
        """State of the latest hot swap."""
        return self._policy.swap.report

    @property
    def swap_pending(self) -> bool:
        """Whether a bundle is being loaded or waits to take over."""
        return self._policy.swap.pending

    def load(self, path: str | Path) -> None:
        """Begin a hot swap to the bundle at ``path``. Returns at once; :attr:`swap` and the status report the rest."""
        self._policy.load(Path(path))

    def rollback(self) -> None:
        """Begin a swap back to the bundle before the last switch.

        Raises:
            SwapError: there is none.
        """
        self._policy.rollback()

    def wait_for_swap(self, timeout: float) -> SwapReport:
        """Block until the swap under way is refused or ready, and switch at once if ``swap_when`` allows it now.

        Call it between two cycles from the thread that steps: in lockstep this makes the moment of the switch
        reproducible.

        Args:
            timeout: s.

        Raises:
            SwapError: the timeout has passed.
        """
        self._policy.swap.wait_ready(timeout)
        with self._lock:
            self._policy.switch_if_ready(wait=True)
            return self._policy.swap.report

    def close(self) -> None:
        """End the background thread; the server must not be used afterwards."""
        self._policy.swap.cancel()

    # --- instruction and episode -------------------------------------------------------------------------------------

    def require_known(self, instruction: str) -> None:
        """Check that :meth:`set_instruction` would accept ``instruction``; changes nothing.

        Raises:
            UnknownInstructionError: the bundle does not know it; lists those that it knows.
            EngineError: the network fails on it.
        """
        with self._lock:
            if instruction and not self._is_current(instruction):
                self.engine.condition(instruction)

    def _is_current(self, instruction: str) -> bool:
        return instruction == self._policy.instruction and self._interlock.refused_instruction is None

    def set_instruction(self, instruction: str, *, keep_on_refusal: bool = False) -> None:
        """Set the instruction. A new one clears the window and ends a requested halt. The current one again changes
        nothing: a publisher that repeats itself must not start a halted arm again.

        Args:
            instruction: an empty one removes the instruction, and the arm halts.
            keep_on_refusal: change nothing where the instruction is refused, for a caller who handles the error.
                Otherwise the arm halts, because the old task is no longer wanted.

        Raises:
            UnknownInstructionError: the bundle does not know it; lists those that it knows.
            EngineError: the network fails on it.
        """
        with self._lock:
            policy, interlock = self._policy, self._interlock
            if instruction and self._is_current(instruction):
                return
            if keep_on_refusal:
                self.require_known(instruction)
            policy.clear("a new instruction")
            interlock.refused_instruction = None
            interlock.release_halt()
            if not instruction:
                policy.clear_instruction()
                return
            try:
                policy.set_instruction(instruction)
            except UnknownInstructionError as error:
                message = f"The instruction was refused: {error}"
                interlock.refused_instruction = Fault(StatusCode.UNKNOWN_INSTRUCTION, message)
                raise
            except EngineError as error:
                message = f"The instruction could not be set: {error}. Send it again."
                interlock.refused_instruction = Fault(StatusCode.ENGINE_FAILED, message)
                raise

    def reset(
        self, reason: str = "reset", *, seed: int | None = None, episode: int | None = None, is_stationary: bool = False
    ) -> None:
        """Begin an episode: an empty window, no earlier stamps and images to compare with, a new random stream.

        A requested halt and a latched fault stay.

        Args:
            reason: why the window is cleared, for the status.
            seed: begin again at episode 0 of this seed; None for the next episode of the current seed (the same one,
                where it has no answer yet).
            episode: number of the random stream; None as for ``seed``.
            is_stationary: whether the arm is known to be stationary (a simulation was reset): then the last command is
                forgotten too.
        """
        with self._lock:
            self._policy.clear(reason)
            self._watchdog.reset()
            self._motion_check.reset()
            if is_stationary:
                self._governor.reset()
            if seed is not None:
                self._seed, self._episode = seed, 0
            elif self._answers:
                self._episode += 1
            if episode is not None:
                self._episode = episode
            self._answers = 0
            self._rng = np.random.default_rng([self._seed, self._episode])

    # --- operator ----------------------------------------------------------------------------------------------------

    def enable(self) -> None:
        """Send commands from the next observation on, with an empty window; also clears a latched fault."""
        with self._lock:
            self._interlock.enable()
            self._motion_check.reset()
            self._policy.clear("enable")

    def disable(self) -> None:
        """Ramp to a halt, then go on answering without commands (shadow mode)."""
        with self._lock:
            self._interlock.enabled = False

    def refusal_to_enable(self, monotonic: float) -> str:
        """Why :meth:`enable` would have no effect now, because it would have to be called again; "" where it would.

        That is so with the emergency stop pressed, and with ``resume`` "enable" while a fault lasts. monotonic: as in
        :meth:`step`.
        """
        with self._lock:
            return self._interlock.refusal_to_enable(monotonic, has_instruction=self._has_instruction)

    @property
    def blocking_fault(self) -> Fault | None:
        """See :attr:`Interlock.blocking_fault`."""
        with self._lock:
            return self._interlock.blocking_fault

    def obstacles(self, monotonic: float) -> tuple[Fault, ...]:
        """Everything that keeps the policy from driving now, the strictest first; empty where nothing is known to.

        monotonic: as in :meth:`step`. What depends on observations is from the newest cycle. Changes nothing.
        """
        with self._lock:
            return tuple(self._interlock.obstacles(monotonic, has_instruction=self._has_instruction))

    def halt(self, reason: str) -> None:
        """Ramp to a halt and stay there until :meth:`enable`, :meth:`release_halt` or a new instruction.

        A latched fault, which only :meth:`enable` clears, is not replaced by this weaker halt.
        """
        with self._lock:
            self._interlock.request_halt(reason)

    def release_halt(self) -> None:
        """End what :meth:`halt` began; a latched fault stays."""
        with self._lock:
            self._interlock.release_halt()

    def halt_after_enable(self, reason: str) -> None:
        """Halt, as by :meth:`halt`, once the latched fault is cleared."""
        with self._lock:
            self._interlock.request_halt_after_enable(reason)

    def set_not_ready(self, message: str | None) -> None:
        """Send no answers yet; None: send them. Something about the observations is not known yet. The arm is driven as
        soon as the reason is gone, without :meth:`enable`."""
        with self._lock:
            self._interlock.not_ready = None if message is None else Fault(StatusCode.WAITING, message)

    def set_other_publisher(self, message: str | None) -> None:
        """Halt while another node publishes commands to the same arm. None: there is none (any more)."""
        with self._lock:
            fault = None if message is None else Fault(StatusCode.OTHER_PUBLISHER, message)
            self._interlock.other_publisher = fault

    def report_pose_jump(self, message: str) -> None:
        """Halt until :meth:`enable`, where the policy drives: the end effector's pose has jumped."""
        with self._lock:
            self._interlock.latch_pose_jump(message, has_instruction=self._has_instruction)

    def set_emergency_stop(self, pressed: bool) -> None:
        """Set the emergency stop. Pressed: ramp to a halt. Released: stay halted until :meth:`enable`, whatever
        ``resume`` says."""
        with self._lock:
            self._interlock.set_emergency_stop(pressed)

    def set_dead_man(self, held: bool, *, monotonic: float) -> None:
        """Set the dead-man switch; ``monotonic`` as in :meth:`step`. It must be set again and again: a switch that
        sends nothing counts as released. Without ``watch.dead_man`` it is not needed."""
        with self._lock:
            self._watchdog.set_dead_man(held, monotonic)
