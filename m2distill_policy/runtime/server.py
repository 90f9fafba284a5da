"""The policy server: turns observations and time into decisions. It knows no transport, clock or robot."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2distill_policy.observation import Observation
from m2distill_policy.runtime.controls import PolicyControls
from m2distill_policy.runtime.decision import Decision
from m2distill_policy.runtime.engine import EngineError
from m2distill_policy.runtime.interlock import NO_INSTRUCTION, NO_POSE, SHADOW
from m2distill_policy.runtime.mixture import Mixture, PolicyOutputError
from m2distill_policy.runtime.safety import Motion
from m2distill_policy.runtime.status import Status, StatusCode
from m2distill_policy.runtime.watchdog import Fault


class PolicyServer(PolicyControls):
    """Serves one bundle at a time. Thread-safe: each call is atomic.

    Call :meth:`step` for each observation, and :meth:`tick_without_observation` if none has arrived in time. For the
    arguments and all other controls see :class:`PolicyControls`.

    Episode ``e`` of seed ``s`` uses the random stream ``numpy.random.default_rng([s, e])``. The first episode is 0.
    Each :meth:`reset` after at least one answer begins the next episode.
    """

    def step(
        self,
        observation: Observation,
        now: float,
        *,
        monotonic: float | None = None,
        pose: NDArray[np.floating[Any]] | None = None,
        newest: NDArray[np.floating[Any]] | None = None,
        fault: Fault | None = None,
        no_pose: Fault | None = None,
        pose_place: Callable[[], str] | None = None,
    ) -> Decision:
        """Answer one observation.

        Errors of the observation or the network are not raised: the arm halts, and the status says why.

        Args:
            observation: Images, proprioception and stamp.
            now: Seconds, in the clock of the observation's stamp.
            monotonic: Seconds of a monotonic clock, for the age of arrivals; None uses ``now``.
            pose: Pose (6,) of the end effector at the observation's stamp, in m and rad; None if unknown. A workspace
                needs it.
            newest: Current pose (6,) of the end effector, so that a ramp to a halt stays in the workspace; None if
                unknown.
            fault: Fault of the streams from which the observation was made, or None.
            no_pose: Fault that says why there is no ``pose``; None if unknown.
            pose_place: Returns where poses come from, for messages.

        Returns:
            The action, whether to send it, and the status.
        """
        with self._lock:
            begin, policy, interlock = self._clock(), self._policy, self._interlock
            policy.switch_if_ready()
            monotonic = now if monotonic is None else monotonic
            stamp = observation.stamp
            pose, newest = _finite(pose), _finite(newest)
            interlock.missing, interlock.has_pose = None, pose is not None
            unfit = self._watchdog.check_observation(observation, now, monotonic)
            frozen = None
            if unfit is None:
                frozen = self._frozen_check.check(observation, pose, driven=interlock.enabled, place=pose_place)
            fault = fault or unfit or frozen or self._check_switches(monotonic)
            if fault is None and pose is None and self._governor.limits.needs_pose and interlock.enabled:
                fault = no_pose or NO_POSE
            if fault is not None:
                return self._halted(fault, stamp, begin, newest)
            if interlock.refused_instruction is not None:
                return self._halted(interlock.refused_instruction, stamp, begin, newest)
            conditioning = policy.conditioning
            if conditioning is None:
                return self._halted(NO_INSTRUCTION, stamp, begin, newest)
            driving = interlock.enabled and interlock.latched is None and interlock.not_ready is None
            if driving and self._governor.motion is not Motion.RUNNING and len(policy.history):
                policy.clear("resume after a halt")
            if policy.history.gap(stamp):
                policy.clear("a gap between two stamps")
            try:
                mixture, tokens = policy.engine.step(conditioning, observation, policy.window)
                mixture.check()
                sample = mixture.sample(self._sampling, self._rng, self._temperature)
                # Checked also in shadow mode, where the sample is published but not limited.
                if not all(map(math.isfinite, sample.tolist())):
                    raise PolicyOutputError(f"the sampled action is {np.array2string(sample, precision=3)}")
                self._answers += 1
                # Checked before the limits, because a ramp must not start from a command that was not sent.
                late = self._late(begin) or self._watchdog.check_age(stamp, now + self._clock() - begin)
                if late is not None and driving:
                    return self._halted(late, stamp, begin, newest)
                if driving:
                    action = self._governor.limit(sample, pose)
            except (EngineError, PolicyOutputError) as error:
                code = StatusCode.ENGINE_FAILED if isinstance(error, EngineError) else StatusCode.BAD_OUTPUT
                return self._halted(Fault(code, f"No action: {error}."), stamp, begin, newest)
            used = policy.window.count + 1
            policy.window.push(tokens)
            policy.history.push(observation)
            policy.swap.notice()
            if driving:
                fault = Fault(StatusCode.RUNNING, f"Driving with the instruction '{conditioning.instruction}'.")
                command = interlock.has_driven = True
            else:
                fault = interlock.latched or (interlock.not_ready if interlock.enabled else None) or SHADOW
                command = self._governor.motion is not Motion.HALTED
                action = self._governor.halt(newest)
            return self._decision(action, command, sample, mixture, fault, stamp, used, begin)

    def refuse_command(self, decision: Decision, why: str) -> Decision:
        """Replace ``decision`` because its command failed the check before sending: zero motion until :meth:`enable`.

        Args:
            decision: The newest decision.
            why: What is wrong with its command.
        """
        with self._lock:
            fault = self._interlock.latched = Fault(
                StatusCode.BAD_COMMAND,
                f"A command was not sent: {why}. This is an error of the bundle or the software: report it, then enable"
                " the policy to go on.",
            )
            action = self._governor.stop()
            status = dataclasses.replace(
                decision.status,
                code=fault.code,
                message=fault.message,
                motion=self._governor.motion.value,
            )
            return dataclasses.replace(decision, action=action, status=status)

    def tick_without_observation(
        self,
        now: float,
        *,
        monotonic: float | None = None,
        newest: NDArray[np.floating[Any]] | None = None,
        fault: Fault | None = None,
        why: Callable[[], Fault | None] | None = None,
    ) -> Decision:
        """Run a cycle without a new observation: send nothing at first, then ramp to a halt.

        Args:
            now, monotonic, newest, fault: As in :meth:`step`.
            why: See :meth:`Watchdog.check_timeout`.
        """
        with self._lock:
            begin, interlock = self._clock(), self._interlock
            self._policy.switch_if_ready()
            monotonic = now if monotonic is None else monotonic
            newest = _finite(newest)
            silence = self._watchdog.check_timeout(monotonic, why)
            interlock.missing = fault or (silence if silence.code is not StatusCode.WAITING else None)
            # A latched fault is reported before a missing observation, because it is why the arm halts.
            found = (
                self._check_switches(monotonic)
                or interlock.latched
                or interlock.missing
                or interlock.check_task(has_instruction=self._has_instruction)
            )
            if found is not None:
                return self._halted(found, None, begin, newest)
            if self._governor.motion is Motion.RUNNING:
                return self._decision(self._governor.last, False, None, None, silence, None, 0, begin)
            return self._halted(silence, None, begin, newest)

    def _check_switches(self, monotonic: float) -> Fault | None:
        return self._interlock.check_switches(monotonic, is_halted=self._governor.motion is Motion.HALTED)

    def _late(self, begin: float) -> Fault | None:
        """Count a decision that took longer than a period. Return the fault if there were too many in a row."""
        most = self._watchdog.limits.overruns_in_a_row
        if self._clock() - begin <= self.contract.period:
            self._overruns_in_a_row = 0
            return None
        self._overruns += 1
        self._overruns_in_a_row += 1
        if most is None or self._overruns_in_a_row < most:
            return None
        message = (
            f"{self._overruns_in_a_row} decisions in a row took longer than {self.contract.period:g} s; free the "
            "processor or choose a faster provider, then enable the policy."
        )
        self._overruns_in_a_row = 0
        self._interlock.latched = Fault(StatusCode.DEADLINE_MISSED, message)
        return self._interlock.latched

    def _halted(
        self, fault: Fault, stamp: float | None, begin: float, newest: NDArray[np.floating[Any]] | None
    ) -> Decision:
        interlock, has_instruction = self._interlock, self._has_instruction
        interlock.latch_for_resume(fault, has_instruction=has_instruction)
        # The ramp is always sent completely. Zeros follow it only while this policy commands the arm: it is enabled and
        # has driven since, has an instruction, and no other node sends commands, whichever fault is reported. Zeros of
        # a policy that has not driven yet would halt another policy that drives.
        is_in_command = interlock.enabled and interlock.has_driven and has_instruction
        is_in_command = is_in_command and interlock.other_publisher is None
        is_in_command = is_in_command and fault.code is not StatusCode.WAITING
        command = is_in_command or self._governor.motion is not Motion.HALTED
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
        self._interlock.newest_fault = fault
        if command:
            self._frozen_check.add_command(self.contract.action.response.twist(action))
        latency = self._clock() - begin
        status = Status(
            code=fault.code,
            message=fault.message,
            stamp=stamp,
            motion=self._governor.motion.value,
            bundle=bundle.identifier,
            tasks=bundle.task_names,
            instruction=self._policy.instruction or "",
            window=used,
            latency=latency,
            overruns=self._overruns,
            window_cleared=self._policy.history.cleared_because,
            swap=self._policy.swap.report,
            warning=" ".join(text for text in (self.engine.fallback, self._policy.speed_warning) if text),
        )
        return Decision(action, command, sample, mixture, status, bundle.identifier, stamp)


def _finite(pose: NDArray[np.floating[Any]] | None) -> NDArray[np.floating[Any]] | None:
    """Return ``pose``, or None if a value is not finite."""
    return pose if pose is not None and all(map(math.isfinite, pose.tolist())) else None
