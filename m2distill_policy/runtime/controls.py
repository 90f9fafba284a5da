"""State and controls of a policy server: what other threads read and set between two cycles."""

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
from m2distill_policy.runtime.frozen_motion import FrozenMotionCheck
from m2distill_policy.runtime.interlock import Interlock, Resume
from m2distill_policy.runtime.mixture import Sampling, check_sampling
from m2distill_policy.runtime.probe import ProbeLimits, mark_proved
from m2distill_policy.runtime.safety import Governor, Motion, SafetyLimits
from m2distill_policy.runtime.status import StatusCode, SwapReport
from m2distill_policy.runtime.watchdog import Fault, Watchdog, WatchLimits
from m2distill_policy.runtime.window import TokenWindow


class PolicyControls:
    """State and controls of a policy server: all but its cycle. Thread-safe: each call is atomic.

    Args:
        bundle: An opened bundle. The caller checks its signature.
        provider, threads: See :class:`Engine`.
        sampling, temperature: See :meth:`Mixture.sample`.
        seed: Random seed, at least 0.
        limits: Safety limits.
        watch: Limits for late, early and frozen observations.
        enabled: Whether commands are sent. False starts in shadow mode.
        resume: ``auto`` drives on when a fault has passed (with an empty window), ``enable`` waits for :meth:`enable`.
        swap_when: ``now`` switches to a new bundle between any two cycles, ``idle`` only while the arm is halted.
        clock: Returns seconds; used to measure latency.
        probe: Time and memory that a new bundle may use until its first answer.
        public_key: Key with which new bundles must be signed; None accepts any bundle.

    Raises:
        ConfigError: An argument is not allowed.
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
            raise ConfigError(f"seed is {seed}; whole numbers of at least 0 are allowed")
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
        self._frozen_check = FrozenMotionCheck(contract, self._watchdog.limits)
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
        """The bundle in use."""
        return self._policy.bundle

    @property
    def engine(self) -> Engine:
        """The engine in use."""
        return self._policy.engine

    @property
    def contract(self) -> Contract:
        """The contract of the bundle in use. A hot swap can change only its velocity response."""
        return self._policy.contract

    @property
    def instruction(self) -> str | None:
        """The current instruction, or None."""
        return self._policy.instruction

    @property
    def _has_instruction(self) -> bool:
        return self._policy.instruction is not None

    @property
    def enabled(self) -> bool:
        """Whether commands are sent; False in shadow mode."""
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
        """Speeds (6,) in m/s and rad/s that no command exceeds, with any bundle; see :class:`SpeedLimit`."""
        return self._governor.speeds

    @property
    def window(self) -> TokenWindow:
        """The window of earlier steps' tokens. Do not change it."""
        return self._policy.window

    @property
    def episode(self) -> tuple[int, int]:
        """(seed, episode) of the random stream in use."""
        return self._seed, self._episode

    @property
    def watch(self) -> WatchLimits:
        """Limits for late, early, missing and frozen observations."""
        return self._watchdog.limits

    # --- hot swap ----------------------------------------------------------------------------------------------------

    @property
    def swap(self) -> SwapReport:
        """State of the latest hot swap."""
        return self._policy.swap.report

    @property
    def swap_pending(self) -> bool:
        """Whether a bundle is being loaded, or is ready and not in use yet."""
        return self._policy.swap.pending

    def load(self, path: str | Path) -> None:
        """Start a hot swap to the bundle at ``path``. Returns at once; progress is in :attr:`swap` and the status."""
        self._policy.load(Path(path))

    def rollback(self) -> None:
        """Start a swap back to the previous bundle.

        Raises:
            SwapError: There is no previous bundle.
        """
        self._policy.rollback()

    def wait_for_swap(self, timeout: float) -> SwapReport:
        """Wait until the current swap is refused or ready, and switch at once if ``swap_when`` allows it.

        Call it between two cycles, from the thread that calls ``step``. In lockstep this makes the switch reproducible.

        Args:
            timeout: Seconds.

        Raises:
            SwapError: The timeout has passed.
        """
        self._policy.swap.wait_ready(timeout)
        with self._lock:
            self._policy.switch_if_ready(wait=True)
            return self._policy.swap.report

    def close(self) -> None:
        """End the background threads. The server must not be used afterwards."""
        self._policy.swap.cancel()

    # --- instruction and episode -------------------------------------------------------------------------------------

    def require_known(self, instruction: str) -> None:
        """Check that :meth:`set_instruction` would accept ``instruction``. Changes nothing.

        Raises:
            UnknownInstructionError: The bundle does not know the instruction; the message lists the known ones.
            EngineError: The network failed on the instruction.
        """
        with self._lock:
            if instruction and not self._is_current(instruction):
                self.engine.condition(instruction)

    def _is_current(self, instruction: str) -> bool:
        return instruction == self._policy.instruction and self._interlock.refused_instruction is None

    def set_instruction(self, instruction: str, *, keep_on_refusal: bool = False) -> None:
        """Set the instruction. A new one clears the window and ends a requested halt.

        Setting the current one again changes nothing: a publisher that repeats it must not restart a halted arm.

        Args:
            instruction: An empty string removes the instruction, and the arm halts.
            keep_on_refusal: Keep the old instruction if the new one is refused; for callers that handle the error.
                Otherwise the arm halts, because the old task is no longer wanted.

        Raises:
            UnknownInstructionError: The bundle does not know the instruction; the message lists the known ones.
            EngineError: The network failed on the instruction.
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
        """Begin an episode: clear the window and the earlier stamps and images, and start a new random stream.

        A requested halt and a latched fault stay.

        Args:
            reason: Why the window is cleared, for the status.
            seed: Restart at episode 0 of this seed. None continues with the next episode of the current seed, or
                repeats the current episode if it has no answer yet.
            episode: Number of the random stream; None uses the episode that is described for ``seed``.
            is_stationary: Whether the arm is known to be stationary, because a simulation was reset. The last command
                is then cleared too.
        """
        with self._lock:
            self._policy.clear(reason)
            self._watchdog.reset()
            self._frozen_check.reset()
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
        """Clear a latched fault and the window, and send commands from the next observation on."""
        with self._lock:
            self._interlock.enable()
            self._frozen_check.reset()
            self._policy.clear("enable")

    def disable(self) -> None:
        """Ramp to a halt, then continue in shadow mode: answers, but no commands."""
        with self._lock:
            self._interlock.enabled = False

    def refusal_to_enable(self, monotonic: float) -> str:
        """Return why :meth:`enable` would have no effect now, or "" if it would have one.

        It has no effect while the emergency stop is pressed. With ``resume`` "enable", it also has none while a fault
        lasts.

        Args:
            monotonic: As in :meth:`step`.
        """
        with self._lock:
            return self._interlock.refusal_to_enable(monotonic, has_instruction=self._has_instruction)

    @property
    def blocking_fault(self) -> Fault | None:
        """See :attr:`Interlock.blocking_fault`."""
        with self._lock:
            return self._interlock.blocking_fault

    def obstacles(self, monotonic: float) -> tuple[Fault, ...]:
        """Return every known reason why the policy does not drive now, the most severe first. Changes nothing.

        Reasons that depend on observations are those of the newest cycle.

        Args:
            monotonic: As in :meth:`step`.
        """
        with self._lock:
            return tuple(self._interlock.obstacles(monotonic, has_instruction=self._has_instruction))

    def halt(self, reason: str) -> None:
        """Ramp to a halt and stay halted until :meth:`enable`, :meth:`release_halt` or a new instruction.

        It does not replace a latched fault, which only :meth:`enable` clears.
        """
        with self._lock:
            self._interlock.request_halt(reason)

    def release_halt(self) -> None:
        """End a halt requested by :meth:`halt`. A latched fault stays."""
        with self._lock:
            self._interlock.release_halt()

    def halt_after_enable(self, reason: str) -> None:
        """Halt as :meth:`halt` does, once the latched fault is cleared."""
        with self._lock:
            self._interlock.request_halt_after_enable(reason)

    def set_not_ready(self, message: str | None) -> None:
        """Send no commands while something about the observations, such as a camera's rate, is not known yet.

        None ends this. The arm is then driven at once, without :meth:`enable`.
        """
        with self._lock:
            self._interlock.not_ready = None if message is None else Fault(StatusCode.WAITING, message)

    def set_other_publisher(self, message: str | None) -> None:
        """Halt while another node publishes commands to the same arm. None means that there is no such node."""
        with self._lock:
            fault = None if message is None else Fault(StatusCode.OTHER_PUBLISHER, message)
            self._interlock.other_publisher = fault

    def report_pose_jump(self, message: str) -> None:
        """If the policy drives, halt until :meth:`enable`, because the end effector's pose has jumped."""
        with self._lock:
            self._interlock.latch_pose_jump(message, has_instruction=self._has_instruction)

    def set_emergency_stop(self, pressed: bool) -> None:
        """Set the emergency stop.

        If it is pressed, ramp to a halt. Once it is released, stay halted until :meth:`enable`, whatever ``resume`` is.
        """
        with self._lock:
            self._interlock.set_emergency_stop(pressed)

    def set_dead_man(self, held: bool, *, monotonic: float) -> None:
        """Set the dead-man switch. Without ``watch.dead_man`` no switch is needed.

        It must be set repeatedly: a switch that sends nothing counts as released.

        Args:
            held: Whether the switch is held.
            monotonic: As in :meth:`step`.
        """
        with self._lock:
            self._watchdog.set_dead_man(held, monotonic)
