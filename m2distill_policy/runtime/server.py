"""The policy server: observations and time in, decisions out. Knows no transport, no clock and no robot."""

from __future__ import annotations

import dataclasses
import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from m2distill_policy.bundle import Bundle
from m2distill_policy.bundle_signature import PublicKey
from m2distill_policy.contract import Contract
from m2distill_policy.errors import ConfigError, UnknownInstructionError, shorten
from m2distill_policy.observation import Observation
from m2distill_policy.runtime.engine import Conditioning, Engine, EngineError
from m2distill_policy.runtime.hotswap import HotSwap, Seen, SwapError, load_for_swap, longest_load, require_compatible
from m2distill_policy.runtime.mixture import Mixture, PolicyOutputError, Sampling, check_sampling
from m2distill_policy.runtime.motion_check import MotionCheck
from m2distill_policy.runtime.probe import ProbeLimits, mark_proved
from m2distill_policy.runtime.safety import Governor, Motion, SafetyLimits
from m2distill_policy.runtime.speed_limit import SpeedLimit
from m2distill_policy.runtime.status import Status, StatusCode, SwapReport
from m2distill_policy.runtime.watchdog import Fault, Watchdog, WatchLimits
from m2distill_policy.runtime.window import RawHistory, TokenWindow

logger = logging.getLogger(__name__)

SwapWhen = Literal["idle", "now"]
Resume = Literal["auto", "enable"]

_UNTOLD = Fault(StatusCode.NO_INSTRUCTION, "No instruction has been given; send one.")
_EMERGENCY = Fault(StatusCode.EMERGENCY_STOP, "The emergency stop is pressed; let it go, then enable the policy.")
_NO_POSE = Fault(
    StatusCode.NO_POSE,
    "The workspace is limited and no pose of the end effector belongs to this observation; see whether it comes.",
)
_SHADOW = Fault(StatusCode.DISABLED, "The policy is not enabled: it answers, but sends no command.")
#: Faults of what is observed and answered: each cycle finds them anew.
_OF_OBSERVATIONS = frozenset(StatusCode) - {
    StatusCode.RUNNING,
    StatusCode.DISABLED,
    StatusCode.NO_INSTRUCTION,
    StatusCode.UNKNOWN_INSTRUCTION,
    StatusCode.WAITING,
    StatusCode.MISSING_OBSERVATION,
    StatusCode.HALT_REQUESTED,
    StatusCode.HELD,
    StatusCode.EMERGENCY_STOP,
    StatusCode.DEAD_MAN,
    StatusCode.DEADLINE_MISSED,
    StatusCode.FROZEN_JOINTS,
    StatusCode.OTHER_PUBLISHER,
    StatusCode.BAD_COMMAND,
    StatusCode.BAD_POSE,
}


@dataclass(frozen=True)
class Decision:
    """What to do this cycle, and why.

    action: (7,) float64, the command in the contract's units ([-1, 1]), within the limits; zero motion when halted.
    command: whether ``action`` is to be sent to the arm; False in shadow mode, and while nothing new is known.
    sample: (7,) the policy's own answer before any limit, or None when it gave none this cycle.
    mixture: the mixture it was drawn from, or None.
    status: code, sentence and the rest. bundle: identifier of the network that answered.
    stamp: of the observation answered (s), None for a cycle without one.
    """

    action: NDArray[np.float64]
    command: bool
    sample: NDArray[np.float64] | None
    mixture: Mixture | None
    status: Status
    bundle: str
    stamp: float | None


def _finite(pose: NDArray[np.floating[Any]] | None) -> NDArray[np.floating[Any]] | None:
    """``pose``, or None where it is none."""
    return pose if pose is not None and all(map(math.isfinite, pose.tolist())) else None


@dataclass
class _Active:
    """The network that drives, and its memory. Replaced as a whole by a hot swap."""

    engine: Engine
    window: TokenWindow
    conditioning: Conditioning | None = field(default=None)


class PolicyServer:
    """Serves one bundle at a time. Methods may be called from several threads; each call is a whole.

    provider, threads: see :class:`Engine`. sampling, temperature: see :meth:`Mixture.draw`. limits: safety;
    watch: what is too late, early or frozen. enabled: False begins in shadow mode. resume: ``auto`` drives on when a
    fault has passed (with an empty window), ``enable`` waits for :meth:`enable`. swap_when: ``now`` switches between
    any two cycles, ``idle`` only while the arm is not driven. probe: what a bundle that is to be swapped in may take
    until its first answer. public_key: what it must be signed with; the caller opens ``bundle`` itself by it too.

    Random numbers: episode ``e`` of seed ``s`` draws from ``numpy.random.default_rng([s, e])``; the first episode is
    0, and every :meth:`reset` after at least one answer begins the next.
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
        self._provider, self._threads = provider, threads
        self._sampling, self._temperature = sampling, temperature
        self._resume, self._swap_when = resume, swap_when
        self._clock = clock
        self._lock = threading.RLock()
        engine = Engine(bundle, provider=provider, threads=threads)
        engine.limit_answers((watch or WatchLimits()).longest_answer(bundle.contract.period))
        mark_proved(bundle)
        self._active = _Active(engine, engine.window())
        self._previous: Engine | None = None
        self._instruction: str | None = None
        self._enabled = enabled
        #: Set by a fault that must be cleared (or a requested halt): the server stays halted while it is there.
        self._held: Fault | None = None
        #: What takes its place when it is cleared.
        self._held_next: Fault | None = None
        self._refused_instruction: Fault | None = None
        self._not_yet: Fault | None = None
        self._history = RawHistory(self.contract.history, self.contract.period)
        self._governor = Governor(limits or SafetyLimits(), self.contract)
        self._speed = SpeedLimit.of(self._governor.limits, bundle)
        self._speed_warning = ""
        self._watchdog = Watchdog(self.contract, watch or WatchLimits())
        self._motion_check = MotionCheck(self.contract, self._watchdog.limits)
        self._seed, self._episode, self._answers = seed, 0, 0
        self._rng = np.random.default_rng([seed, 0])
        self._overruns = self._overruns_in_a_row = 0
        self._emergency = False
        #: Why another publisher of the commands keeps this policy from driving, or None.
        self._other_publisher: Fault | None = None
        #: What the newest cycle said, what it found missing, and whether a pose belonged to the newest observation.
        self._newest_fault: Fault | None = None
        self._silence: Fault | None = None
        self._pose_known: bool | None = None
        self._public_key = public_key
        self._probe = probe or ProbeLimits()
        self._swap = HotSwap(self._seen, timeout=longest_load(provider, self._probe))

    # --- what it is --------------------------------------------------------------------------------------------------

    @property
    def bundle(self) -> Bundle:
        """The bundle that drives now."""
        return self._active.engine.bundle

    @property
    def engine(self) -> Engine:
        """The engine that drives now."""
        return self._active.engine

    @property
    def contract(self) -> Contract:
        """The contract; only its velocity response may change with a hot swap."""
        return self._active.engine.contract

    @property
    def instruction(self) -> str | None:
        """The present instruction."""
        return self._instruction

    @property
    def enabled(self) -> bool:
        """Whether commands are to be sent."""
        return self._enabled

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
        return self._active.window

    @property
    def episode(self) -> tuple[int, int]:
        """(seed, episode) of the random stream in use."""
        return self._seed, self._episode

    @property
    def swap_pending(self) -> bool:
        """Whether a bundle is being loaded or waits to take over."""
        return self._swap.pending

    @property
    def watch(self) -> WatchLimits:
        """What counts as late, early, silent or frozen."""
        return self._watchdog.limits

    @property
    def swap(self) -> SwapReport:
        """Where the latest hot swap stands."""
        return self._swap.report

    # --- what it is told ---------------------------------------------------------------------------------------------

    def require_known(self, instruction: str) -> None:
        """Check that :meth:`set_instruction` would take ``instruction``; changes nothing.

        Raises:
            UnknownInstructionError: the bundle does not know it; lists those that it knows.
            EngineError: the network fails on it.
        """
        with self._lock:
            if instruction and (instruction != self._instruction or self._refused_instruction is not None):
                self._active.engine.condition(instruction)

    def set_instruction(self, instruction: str, *, keep_on_refusal: bool = False) -> None:
        """Tell the policy what to do. A new text clears the window and ends a requested halt; the present one again
        changes nothing: a publisher that repeats itself must not set a halted arm going.

        An empty text takes the instruction back: the arm halts. Raises :class:`UnknownInstructionError`, listing the
        known ones, for a text that the bundle does not know, and :class:`EngineError` where the network fails. Then
        the arm halts, because going on with the old task is not what was asked for; with ``keep_on_refusal``, for a
        caller who hears of the refusal, nothing changes.
        """
        with self._lock:
            if instruction and instruction == self._instruction and self._refused_instruction is None:
                return
            if keep_on_refusal:
                self.require_known(instruction)
            self._clear("a new instruction")
            self._refused_instruction = None
            self.release_halt()
            if not instruction:
                self._instruction = self._active.conditioning = None
                return
            try:
                self._active.conditioning = self._active.engine.condition(instruction)
            except UnknownInstructionError as error:
                self._instruction = self._active.conditioning = None
                self._refused_instruction = Fault(
                    StatusCode.UNKNOWN_INSTRUCTION, f"The instruction was refused: {error}"
                )
                raise
            except EngineError as error:
                self._instruction = self._active.conditioning = None
                self._refused_instruction = Fault(
                    StatusCode.ENGINE_FAILED, f"The instruction could not be taken: {error}. Give it again."
                )
                raise
            self._instruction = instruction

    def reset(
        self, reason: str = "reset", *, seed: int | None = None, episode: int | None = None, still: bool = False
    ) -> None:
        """Begin an episode: an empty window, stamps and pictures compared with nothing, a fresh random stream.

        seed: begin again at episode 0 of this seed; without it the next episode of the present one (the same one
        when it has not been answered yet). episode: this very episode. still: the arm is known to stand still (a
        world was reset), so the last command is forgotten too. A halt that was requested, or is held, stays.
        """
        with self._lock:
            self._clear(reason)
            self._watchdog.forget()
            self._motion_check.forget()
            if still:
                self._governor.forget()
            if seed is not None:
                self._seed, self._episode = seed, 0
            elif self._answers:
                self._episode += 1
            if episode is not None:
                self._episode = episode
            self._answers = 0
            self._rng = np.random.default_rng([self._seed, self._episode])

    def enable(self) -> None:
        """Send commands from the next observation on, with an empty window; also clears a held fault."""
        with self._lock:
            self._enabled = True
            self._held, self._held_next = self._held_next, None
            self._motion_check.forget()
            self._clear("enable")

    def refusal_to_enable(self, steady: float) -> str:
        """Why :meth:`enable` would be in vain now, because it would have to be called again; "" where it would not.

        That is so with the emergency stop pressed, and with ``resume`` "enable" while a fault lasts. steady: as in
        :meth:`step`.
        """
        with self._lock:
            if self._emergency:
                return _EMERGENCY.sentence
            found = next((fault for fault in self._obstacles(steady) if fault.code.is_fault), None)
            if self._resume == "enable" and self._instruction is not None and found is not None:
                return f"{found.sentence} Then enable the policy."
            return ""

    @property
    def held(self) -> Fault | None:
        """What keeps the arm halted until :meth:`enable`, the pressed emergency stop included, or None. A halt that was
        only requested is not meant: another instruction ends it too."""
        with self._lock:
            if self._emergency:
                return _EMERGENCY
            weak = self._held is None or self._held.code is StatusCode.HALT_REQUESTED
            return None if weak else self._held

    def obstacles(self, steady: float) -> tuple[Fault, ...]:
        """Everything that keeps the policy from driving now, what weighs most first; empty where nothing is known to.

        steady: as in :meth:`step`. What depends on observations is what the newest cycle found. Changes nothing.
        """
        with self._lock:
            found = self._obstacles(steady)
            if self._held is not None:
                found.insert(0, self._held)
            if not self._enabled:
                found.append(_SHADOW)
            return tuple(found)

    def _obstacles(self, steady: float) -> list[Fault]:
        """:meth:`obstacles` but for what :meth:`enable` ends."""
        found = [_EMERGENCY] if self._emergency else []
        operator = self._watchdog.operator(steady)
        found += [fault for fault in (operator, self._other_publisher) if fault is not None]
        if self._refused_instruction is not None:
            found.append(self._refused_instruction)
        elif self._instruction is None:
            found.append(_UNTOLD)
        newest = self._newest_fault
        if self._silence is not None:
            found.append(self._silence)
        elif newest is not None and newest.code in _OF_OBSERVATIONS:
            found.append(newest)
        elif self._governor.limits.needs_pose and self._pose_known is False:
            found.append(_NO_POSE)
        if self._not_yet is not None:
            found.append(self._not_yet)
        return found

    def disable(self) -> None:
        """Ramp to a halt, then go on answering without commands (shadow mode)."""
        with self._lock:
            self._enabled = False

    def halt(self, reason: str) -> None:
        """Ramp to a halt and stay there until :meth:`enable`, :meth:`release_halt` or another instruction.

        What holds the arm already, and :meth:`enable` alone may end, is not replaced by this weaker halt.
        """
        with self._lock:
            if self._held is None or self._held.code is StatusCode.HALT_REQUESTED:
                self._held = Fault(StatusCode.HALT_REQUESTED, f"Halted: {reason}.")

    def release_halt(self) -> None:
        """End what :meth:`halt` began; what only :meth:`enable` may end goes on."""
        with self._lock:
            self._held_next = None
            if self._held is not None and self._held.code is StatusCode.HALT_REQUESTED:
                self._held = None

    def halt_when_enabled(self, reason: str) -> None:
        """After what holds the arm now, and :meth:`enable` ends, comes a halt as of :meth:`halt`."""
        with self._lock:
            halt = Fault(StatusCode.HALT_REQUESTED, f"Halted: {reason}.")
            if self._held is None and not self._emergency:
                self._held = halt
            else:
                self._held_next = halt

    def not_yet(self, sentence: str | None) -> None:
        """Why answers are not sent yet, None for no reason: what must be known of the observations is not known yet.
        The arm is not driven meanwhile; once the reason is gone it is, without being asked."""
        with self._lock:
            self._not_yet = None if sentence is None else Fault(StatusCode.WAITING, sentence)

    def other_publisher(self, sentence: str | None) -> None:
        """Another publisher sends commands to the same arm: halt while that lasts. None: there is none (any more)."""
        with self._lock:
            self._other_publisher = None if sentence is None else Fault(StatusCode.OTHER_PUBLISHER, sentence)

    def pose_jumped(self, sentence: str) -> None:
        """The end effector is where it cannot have got to: halt until :meth:`enable`, where the policy drives."""
        with self._lock:
            weak = self._held is None or self._held.code is StatusCode.HALT_REQUESTED
            if self._enabled and self._instruction is not None and weak:
                self._held = Fault(StatusCode.BAD_POSE, sentence)

    def emergency_stop(self, pressed: bool) -> None:
        """The emergency stop is pressed or let go. Pressed: ramp to a halt. Let go: stay halted until :meth:`enable`,
        whatever ``resume`` says: nobody must be surprised by an arm that moves again."""
        with self._lock:
            if pressed and not self._emergency:
                logger.warning("emergency stop")
            if self._emergency and not pressed:
                self._held = Fault(StatusCode.HELD, "The emergency stop was let go. Enable the policy to go on.")
            self._emergency = pressed

    def dead_man(self, held: bool, *, steady: float) -> None:
        """The dead-man switch says whether it is held; ``steady`` as in :meth:`step`. Told again and again: silence
        counts as letting go. Without ``watch.dead_man`` it is not asked for."""
        with self._lock:
            self._watchdog.dead_man_held(held, steady)

    # --- one cycle ---------------------------------------------------------------------------------------------------

    def step(
        self,
        observation: Observation,
        now: float,
        *,
        steady: float | None = None,
        pose: NDArray[np.floating[Any]] | None = None,
        newest: NDArray[np.floating[Any]] | None = None,
        fault: Fault | None = None,
        no_pose: Fault | None = None,
        pose_place: Callable[[], str] | None = None,
    ) -> Decision:
        """Answer one observation.

        now: s, in the clock of the observation's stamp. steady: s, a monotonic clock for arrival ages; ``now`` when
        not given. pose: (6,) of the end effector at the observation's stamp, where it is known; a workspace needs it.
        newest: (6,) where it is now, for a ramp to a halt within the workspace. fault: what is wrong with the streams
        that the observation was made of, None for nothing. no_pose: why there is no ``pose``, where that is known.
        pose_place: where poses come from, for messages.
        Never raises for what an observation or the network may do: the status says it and the arm halts.
        """
        with self._lock:
            begin = self._clock()
            self._switch_if_ready()
            steady = now if steady is None else steady
            stamp = observation.stamp
            pose, newest = _finite(pose), _finite(newest)
            self._silence, self._pose_known = None, pose is not None
            judged = self._watchdog.judge(observation, now, steady)
            frozen = None
            if judged is None:
                frozen = self._motion_check.check(observation, pose, driven=self._enabled, place=pose_place)
            fault = fault or judged or frozen or self._forbidden(steady)
            if fault is None and pose is None and self._governor.limits.needs_pose and self._enabled:
                fault = no_pose or _NO_POSE
            if fault is not None:
                return self._halted(fault, stamp, begin, newest)
            if self._refused_instruction is not None:
                return self._halted(self._refused_instruction, stamp, begin, newest)
            conditioning = self._active.conditioning
            if conditioning is None:
                return self._halted(_UNTOLD, stamp, begin, newest)
            driving = self._enabled and self._held is None and self._not_yet is None
            if driving and self._governor.motion is not Motion.RUNNING and len(self._history):
                self._clear("resume after a halt")
            if self._history.gap(stamp):
                self._clear("a gap between two stamps")
            active = self._active
            try:
                mixture, tokens = active.engine.step(conditioning, observation, active.window)
                mixture.check()
                sample = mixture.draw(self._sampling, self._rng, self._temperature)
                # In shadow mode no command is made of it, and it is published.
                if not all(map(math.isfinite, sample.tolist())):
                    raise PolicyOutputError(f"the action drawn is {np.array2string(sample, precision=3)}")
                self._answers += 1
                # Late is judged first: what is not sent must not be what the ramp begins with.
                late = self._late(begin) or self._watchdog.stale(stamp, now + self._clock() - begin)
                if late is not None and driving:
                    return self._halted(late, stamp, begin, newest)
                if driving:
                    action = self._governor.admit(sample, pose)
            except (EngineError, PolicyOutputError) as error:
                code = StatusCode.ENGINE_FAILED if isinstance(error, EngineError) else StatusCode.BAD_OUTPUT
                return self._halted(Fault(code, f"No action: {error}."), stamp, begin, newest)
            used = active.window.count + 1
            active.window.push(tokens)
            self._history.push(observation)
            self._swap.notice()
            if driving:
                fault = Fault(StatusCode.RUNNING, f"Told to {conditioning.instruction}.")
                command = True
            else:
                fault = self._held or (self._not_yet if self._enabled else None) or _SHADOW
                command = self._governor.motion is not Motion.HALTED
                action = self._governor.halt(newest)
            return self._decision(action, command, sample, mixture, fault, stamp, used, begin)

    def refuse_command(self, decision: Decision, why: str) -> Decision:
        """What to do instead of ``decision``, whose command failed the last check before it would have been sent.

        Zero motion at once and until :meth:`enable`. why: what is wrong with the command.
        """
        with self._lock:
            self._held = Fault(
                StatusCode.BAD_COMMAND,
                f"A command was not sent: {why}. This is a fault of the bundle or the software; report it, then enable "
                "the policy to go on.",
            )
            action = self._governor.stop()
            status = dataclasses.replace(
                decision.status,
                code=self._held.code,
                sentence=self._held.sentence,
                motion=self._governor.motion.value,
            )
            return dataclasses.replace(decision, action=action, status=status)

    def tick_without_observation(
        self,
        now: float,
        *,
        steady: float | None = None,
        newest: NDArray[np.floating[Any]] | None = None,
        fault: Fault | None = None,
        why: Callable[[], Fault | None] | None = None,
    ) -> Decision:
        """A cycle in which no new observation came: nothing to send at first, a ramp to a halt when it lasts.

        now, steady, newest, fault: as in :meth:`step`. why: see :meth:`Watchdog.silence`.
        """
        with self._lock:
            begin = self._clock()
            self._switch_if_ready()
            steady = now if steady is None else steady
            newest = _finite(newest)
            silence = self._watchdog.silence(steady, why)
            self._silence = fault or (silence if silence.code is not StatusCode.WAITING else None)
            stopped = self._held or self._refused_instruction
            if stopped is None and self._instruction is None:
                stopped = _UNTOLD
            if stopped is None and not self._enabled:
                stopped = _SHADOW
            forbidden = self._forbidden(steady)
            if forbidden is not None:
                return self._halted(forbidden, None, begin, newest)
            if self._held is not None:  # why it halts, rather than what has been missing since
                return self._halted(self._held, None, begin, newest)
            if fault is not None or silence.code is not StatusCode.WAITING:
                return self._halted(fault or silence, None, begin, newest)
            if stopped is not None:
                return self._halted(stopped, None, begin, newest)
            if self._governor.motion is Motion.RUNNING:
                return self._decision(self._governor.last, False, None, None, silence, None, 0, begin)
            return self._halted(silence, None, begin, newest)

    def _forbidden(self, steady: float) -> Fault | None:
        """What the operator's switches, and another publisher, say against moving; in shadow mode nobody has to hold
        one, and another may drive."""
        if self._emergency:
            return _EMERGENCY
        moves = self._enabled or self._governor.motion is not Motion.HALTED
        return (self._watchdog.operator(steady) or self._other_publisher) if moves else None

    def _late(self, begin: float) -> Fault | None:
        """Count a decision that took over one period; a fault, held until the policy is enabled, where it is one of
        several in a row."""
        most = self._watchdog.limits.overruns_in_a_row
        if self._clock() - begin <= self.contract.period:
            self._overruns_in_a_row = 0
            return None
        self._overruns += 1
        self._overruns_in_a_row += 1
        if most is None or self._overruns_in_a_row < most:
            return None
        sentence = (
            f"{self._overruns_in_a_row} decisions in a row took longer than {self.contract.period:g} s; free the "
            "processor or choose a faster provider, then enable the policy."
        )
        self._overruns_in_a_row = 0
        self._held = Fault(StatusCode.DEADLINE_MISSED, sentence)
        return self._held

    # --- hot swap ----------------------------------------------------------------------------------------------------

    def load(self, path: str | Path) -> None:
        """Ask for a hot swap to the bundle at ``path``; returns at once, :attr:`swap` and the status tell its fate."""
        path = Path(path)
        with self._lock:
            present = self.bundle
        self._swap.begin(
            f"Bundle '{shorten(path.name)}'",
            lambda cancelled: load_for_swap(
                path,
                present,
                lambda: self._instruction,
                speed=self._speed,
                provider=self._provider,
                threads=self._threads,
                before_parse=self._swap.wait_for_cycle,
                limits=self._probe,
                public_key=self._public_key,
                cancelled=cancelled,
            ),
        )

    def rollback(self) -> None:
        """Ask for a swap back to the network before the last switch; raises :class:`SwapError` when there is none."""
        with self._lock:
            previous, present = self._previous, self.bundle
        if previous is None:
            raise SwapError("there is no earlier bundle to go back to: none has been replaced since the start")

        def prepare(cancelled: threading.Event) -> Engine:
            require_compatible(present, previous.bundle, self._instruction, self._speed)
            return previous

        self._swap.begin(f"Bundle {previous.bundle.identifier} (rollback)", prepare)

    def wait_for_swap(self, timeout: float) -> SwapReport:
        """Block until the swap under way is refused or ready, and switch at once if ``swap_when`` allows it now.

        Call it between two cycles from the thread that steps: in lockstep this makes the moment of the switch
        reproducible. timeout: s; raises :class:`SwapError` when it passes.
        """
        self._swap.wait_ready(timeout)
        with self._lock:
            self._switch_if_ready(wait=True)
            return self._swap.report

    def close(self) -> None:
        """End the background thread; the server must not be used afterwards."""
        self._swap.cancel()

    def _seen(self) -> Seen:
        with self._lock:
            generation, steps = self._history.snapshot()
            return Seen(self._instruction, generation, steps)

    def _switch_if_ready(self, wait: bool = False) -> None:
        waits = self._swap.ready and (self._swap_when == "now" or self._governor.motion is Motion.HALTED)
        contract = self._swap.next_contract if waits else None
        if not self._governor.approach(contract) or contract is None:
            return
        candidate = self._swap.take(self._seen().key, wait=wait)
        if candidate is None:
            return
        self._previous = self._active.engine
        candidate.engine.limit_answers(self._watchdog.limits.longest_answer(self.contract.period))
        self._active = _Active(candidate.engine, candidate.window, candidate.conditioning)
        self._governor.follow(self.contract)
        self._speed_warning = self._speed.warning(self.bundle)
        logger.info("bundle %s took over from %s", self.bundle.identifier, self._previous.bundle.identifier)
        if self._speed_warning:
            logger.warning("%s", self._speed_warning)

    # --- inside ------------------------------------------------------------------------------------------------------

    def _clear(self, reason: str) -> None:
        self._active.window.clear()
        self._history.clear(reason)
        self._swap.notice()

    def _halted(
        self, fault: Fault, stamp: float | None, begin: float, newest: NDArray[np.floating[Any]] | None
    ) -> Decision:
        driving = self._enabled and self._instruction is not None and self._held is None
        if self._resume == "enable" and driving and fault.code.is_fault:
            self._held = Fault(StatusCode.HELD, f"{fault.sentence} Enable the policy to go on.")
        # The ramp is always sent to its end. Zeros follow it only while the arm is ours: enabled, told something, and
        # commanded by nobody else, whatever fault is named first.
        ours = self._enabled and self._instruction is not None and fault.code is not StatusCode.WAITING
        ours = ours and self._other_publisher is None
        command = ours or self._governor.motion is not Motion.HALTED
        return self._decision(self._governor.halt(newest), command, None, None, fault, stamp, 0, begin)

    def _decision(
        self,
        action: NDArray[np.float64],
        command: bool,
        sample: NDArray[np.float64] | None,
        mixture: Mixture | None,
        fault: Fault,
        stamp: float | None,
        used: int,
        begin: float,
    ) -> Decision:
        bundle = self.bundle
        self._newest_fault = fault
        if command:
            self._motion_check.commanded(self.contract.action.response.twist(action))
        latency = self._clock() - begin
        status = Status(
            code=fault.code,
            sentence=fault.sentence,
            stamp=stamp,
            motion=self._governor.motion.value,
            bundle=bundle.identifier,
            tasks=bundle.task_names,
            instruction=self._instruction or "",
            window=used,
            latency=latency,
            overruns=self._overruns,
            window_cleared=self._history.cleared_because,
            swap=self._swap.report,
            warning=" ".join(text for text in (self._active.engine.fallback, self._speed_warning) if text),
        )
        return Decision(action, command, sample, mixture, status, bundle.identifier, stamp)
