"""Limits of the commands while the policy drives, and a ramp to a halt.

Limits are in physical units, as in an arm's data sheet. The velocity of an action is given by the contract's response,
so the set-point and the twist of one action obey the same limits.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2distill_policy.contract import ACTION_AXES, Contract, VelocityResponse
from m2distill_policy.errors import ConfigError
from m2distill_policy.ranges import require_within
from m2distill_policy.runtime.mixture import PolicyOutputError

_MOTION = slice(0, 6)
_AXES = ACTION_AXES[_MOTION]
#: Smallest and largest value of each limit, and its unit. Beyond them Ruckig's steps cannot be computed.
LIMIT_RANGES: Mapping[str, tuple[float, float, str]] = {
    "speed": (1e-4, 100.0, "m/s or rad/s"),
    "acceleration": (0.01, 1000.0, "m/s2 or rad/s2"),
    "jerk": (0.1, 1e5, "m/s3 or rad/s3"),
}
#: Largest distance of a corner of the workspace from the origin, on each axis, m.
LARGEST_WORKSPACE = 100.0


@dataclass(frozen=True)
class SafetyLimits:
    """Limits of an arm.

    Speed, acceleration and jerk have six entries: x, y, z in m/s, m/s2, m/s3, and rx, ry, rz in rad/s, rad/s2, rad/s3.

    Attributes:
        speed: Largest speed of each axis. None takes the top speed of the bundle with which the policy was started.
        acceleration, jerk: Largest value of each axis, or None for no limit. They apply while the policy drives. A ramp
            to a halt ignores them and takes ``halt_time``.
        workspace_low, workspace_high: Corners (x, y, z in m, contract's frame) of the box that a set-point may not
            leave, or None. If the end effector is outside the box, only motion back is allowed. This limit needs the
            end effector's pose.
        halt_time: Seconds from the decision to halt until the command is zero, 0 to 5.
        allow_faster_bundle: Whether a bundle may replace the first one if its top speed is more than 25 % higher. Its
            commands are limited to the same speed.
    """

    speed: tuple[float, ...] | None = None
    acceleration: tuple[float, ...] | None = None
    jerk: tuple[float, ...] | None = None
    workspace_low: tuple[float, ...] | None = None
    workspace_high: tuple[float, ...] | None = None
    halt_time: float = 0.25
    allow_faster_bundle: bool = False

    def __post_init__(self) -> None:
        for name, (least, greatest, unit) in LIMIT_RANGES.items():
            values = getattr(self, name)
            if values is None:
                continue
            if len(values) != len(_AXES):
                raise ConfigError(f"safety limit '{name}' has {len(values)} entries; one is needed for each of {_AXES}")
            for axis, value in zip(_AXES, values, strict=True):
                require_within(f"safety limit '{name}' of '{axis}'", value, least, greatest, unit)
        self._check_workspace()
        require_within("safety limit 'halt_time'", self.halt_time, 0.0, 5.0, "s")

    def _check_workspace(self) -> None:
        low, high = self.workspace_low, self.workspace_high
        if (low is None) != (high is None):
            raise ConfigError("safety limits 'workspace_low' and 'workspace_high' belong together; set both or neither")
        if low is None or high is None:
            return
        if len(low) != 3 or len(high) != 3 or not np.isfinite([*low, *high]).all() or not np.less(low, high).all():
            raise ConfigError(
                f"the workspace is from {list(low)} to {list(high)} m; three numbers each, the first below the second, "
                "are needed"
            )
        for value in (*low, *high):
            require_within("a corner of the workspace", value, -LARGEST_WORKSPACE, LARGEST_WORKSPACE, "m")

    @property
    def needs_pose(self) -> bool:
        """Whether the limits need the end effector's pose."""
        return self.workspace_low is not None

    @property
    def smooth(self) -> bool:
        """Whether acceleration or jerk is limited."""
        return self.acceleration is not None or self.jerk is not None


def set_point_inside(
    target: NDArray[np.float64], pose: NDArray[np.floating[Any]], limits: SafetyLimits, contract: Contract
) -> NDArray[np.float64] | None:
    """Return the set-point (6,) nearest to ``target`` (6,) inside the workspace.

    Returns:
        The set-point; None if ``pose`` (6,) is so far outside that no action reaches the workspace. With a set-point
        inside, the arm would jump there.
    """
    if limits.workspace_low is None or limits.workspace_high is None:
        return target
    inside = target.copy()
    reach = contract.action.translation_scale * (1 + 1e-9)
    for i, (low, high) in enumerate(zip(limits.workspace_low, limits.workspace_high, strict=True)):
        inside[i] = min(max(float(target[i]), low), high)
        if abs(inside[i] - pose[i]) > reach:
            return None
    return inside


class Motion(enum.Enum):
    """What the arm does under the governor."""

    RUNNING = "running"
    HALTING = "halting"
    HALTED = "halted"


class Governor:
    """Limits every command, and ramps to a halt.

    States: ``running`` --halt--> ``halting`` --after halt_time--> ``halted`` --resume--> ``running``. It starts halted.
    While halting, the six motion entries fall linearly to zero. The gripper keeps its last command, so that an object
    in the hand is not dropped.

    Acceleration and jerk are limited by Ruckig's velocity interface (Berscheid and Kroeger 2021, "Jerk-limited
    Real-time Trajectory Generation with Arbitrary Target States", https://arxiv.org/abs/2105.04830).

    Args:
        limits: Safety limits.
        contract: Contract of the bundle that drives.
    """

    def __init__(self, limits: SafetyLimits, contract: Contract) -> None:
        self.limits = limits
        self.motion = Motion.HALTED
        self._contract = contract
        #: Speeds (6,) in m/s and rad/s that no command exceeds, with any bundle.
        self.speeds = tuple(float(v) for v in limits.speed or contract.action.response.top_speeds)
        #: Current speed limit (6,) of the commands, which :meth:`prepare_contract` may lower.
        self._ceiling = self.speeds
        self._cycles = max(1, math.ceil(limits.halt_time / contract.period - 1e-9))
        self._smoother = _Smoother(limits, contract.period) if limits.smooth else None
        self._last = np.zeros(len(ACTION_AXES))
        self._ramp_from = self._last
        self._ramp_left = 0

    def set_contract(self, contract: Contract) -> None:
        """Use the velocity response of another bundle's contract, which is otherwise the same.

        The arm keeps its velocity: the newest command, from which a ramp and the next command start, is replaced by the
        one that has the same velocity under the new response.
        """
        self._ceiling = self.speeds
        before, self._contract = self._contract.action.response, contract
        if contract.action.response != before:
            self._last, self._ramp_from = self._meaning(self._last, before), self._meaning(self._ramp_from, before)

    def prepare_contract(self, contract: Contract | None) -> bool:
        """Prepare :meth:`set_contract` so that acceleration and jerk stay within their limits.

        Args:
            contract: The next contract, or None if there is none.

        Returns:
            Whether the current velocity is possible under the next response too. If not, the next commands slow down
            until it is.
        """
        self._ceiling = self.speeds
        if contract is None or not self.limits.smooth or self.motion is Motion.HALTED:
            return True
        tops = contract.action.response.top_speeds
        sent = np.abs(self._contract.action.response.twist(self._last)).tolist()
        if all(speed <= top * (1 + 1e-9) + 1e-12 for speed, top in zip(sent, tops, strict=True)):
            return True
        self._ceiling = tuple(min(limit, top) for limit, top in zip(self.speeds, tops, strict=True))
        return False

    def _meaning(self, action: NDArray[np.float64], before: VelocityResponse) -> NDArray[np.float64]:
        """Return the action (7,) with the velocity that ``action`` (7,) had under the response ``before``."""
        response = self._contract.action.response
        sent = np.clip(before.twist(action), -np.asarray(self.speeds), self.speeds)
        found = action.copy()
        for axis, velocity in enumerate(sent.tolist()):
            if response.levels != before.levels or response.velocities[axis] != before.velocities[axis]:
                found[axis] = math.copysign(response.size_for(axis, abs(velocity)), velocity)
        return found

    @property
    def last(self) -> NDArray[np.float64]:
        """The newest command (7,)."""
        return self._last.copy()

    def limit(
        self, action: NDArray[np.floating[Any]], pose: NDArray[np.floating[Any]] | None = None
    ) -> NDArray[np.float64]:
        """Return the command (7,) within the limits that is nearest to ``action``. Also resumes from a halt.

        Args:
            action: The policy's action (7,).
            pose: Pose (6,) of the end effector in m and rad, in the contract's frame; needed only for a workspace.

        Raises:
            PolicyOutputError: The action is not finite or has another shape.
        """
        values = np.asarray(action, dtype=np.float64)
        if values.shape != self._last.shape or not all(map(math.isfinite, values.tolist())):
            raise PolicyOutputError(
                f"the policy's action is {np.array2string(values, precision=3)}; "
                f"{len(ACTION_AXES)} finite entries are needed"
            )
        command = self._within_walls(np.clip(values, -1.0, 1.0), pose)
        if self._faster() or self._smoother is not None:
            slowed = self._slowed(command)
            # The workspace is applied last, because a smoothed command may still lead outwards.
            command = self._within_walls(slowed, pose)
            if self._smoother is not None and not np.array_equal(command, slowed):
                self._smoother.rest()
        self.motion = Motion.RUNNING
        self._last = command
        return self._last.copy()

    def _within_walls(self, action: NDArray[np.float64], pose: NDArray[np.floating[Any]] | None) -> NDArray[np.float64]:
        if self.limits.workspace_low is None or pose is None:
            return action
        place = np.asarray(pose, dtype=np.float64)[:3]
        scale = self._contract.action.translation_scale
        outward_low = np.minimum((np.asarray(self.limits.workspace_low) - place) / scale, 0.0)
        outward_high = np.maximum((np.asarray(self.limits.workspace_high) - place) / scale, 0.0)
        walled = action.copy()
        walled[:3] = np.clip(action[:3], outward_low, outward_high)
        return walled

    def _slowed(self, action: NDArray[np.float64]) -> NDArray[np.float64]:
        response = self._contract.action.response
        wanted = response.twist(action)
        allowed = wanted
        if self._faster():
            allowed = np.clip(wanted, -np.asarray(self._ceiling), self._ceiling)
        if self._smoother is not None:
            allowed = self._smoother.towards(allowed, response.twist(self._last))
        return self._for_velocity(action, wanted, allowed)

    def _faster(self) -> bool:
        """Return whether an action within [-1, 1] can exceed the speed limit."""
        tops = self._contract.action.response.top_speeds
        return any(top > limit for top, limit in zip(tops, self._ceiling, strict=True))

    def _for_velocity(
        self, action: NDArray[np.float64], wanted: NDArray[np.float64], allowed: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Change ``action`` (7,) so that its velocity is ``allowed`` (6,) and not ``wanted`` (6,)."""
        response = self._contract.action.response
        slowed = action.copy()
        # Entries that are not limited stay bit-identical; converting to velocity and back would round them.
        for axis in np.flatnonzero(np.abs(allowed - wanted) > 1e-12):
            slowed[axis] = math.copysign(response.size_for(int(axis), abs(allowed[axis])), allowed[axis])
        return slowed

    def halt(self, pose: NDArray[np.floating[Any]] | None = None) -> NDArray[np.float64]:
        """Return the next command (7,) of the ramp to a halt. Call it once a cycle, also when halted.

        Args:
            pose: Current pose (6,) of the end effector; None if unknown. With a pose, the ramp respects the workspace
                too.
        """
        if self.motion is Motion.RUNNING:
            self.motion = Motion.HALTING
            self._ramp_from = self._last
            self._ramp_left = self._cycles
        if self.motion is Motion.HALTING:
            self._ramp_left -= 1
            command = self._ramp_from.copy()
            command[_MOTION] *= self._ramp_left / self._cycles
            command = self._within_walls(command, pose)
            # The workspace may have limited the command, and may limit it less as the arm moves. A ramp must not speed
            # up then.
            most = np.abs(self._last[_MOTION])
            command[_MOTION] = np.clip(command[_MOTION], -most, most)
            self._last = command
            if self._ramp_left == 0:
                self.motion = Motion.HALTED
        if self._smoother is not None:
            self._smoother.rest()
        return self._last.copy()

    def stop(self) -> NDArray[np.float64]:
        """Stop at once, without a ramp, because the last command cannot be trusted. Return the zero command (7,).

        Zeros are sent for the length of a ramp, because a message may be lost. The gripper keeps its last command.
        """
        gripper, stopped = self._last[6], self.motion is not Motion.RUNNING and not self._ramp_from[_MOTION].any()
        self._last = np.zeros(len(ACTION_AXES))
        self._last[6] = gripper if abs(gripper) <= 1 else 0.0
        self._ramp_from = self._last
        if not stopped:  # repeated calls must not prolong the halt
            self._ramp_left, self.motion = self._cycles, Motion.HALTING
        if self._smoother is not None:
            self._smoother.rest()
        return self._last.copy()

    def reset(self) -> None:
        """Clear the last command and be halted at once. For a simulation that was reset, never for a moving arm."""
        self.motion = Motion.HALTED
        self._last = np.zeros(len(ACTION_AXES))
        if self._smoother is not None:
            self._smoother.rest()


class _Smoother:
    """Computes velocities (6,) whose changes stay within the limits."""

    def __init__(self, limits: SafetyLimits, period: float) -> None:
        # Imported here, because only arms with such limits need the library.
        import ruckig

        self._generator = ruckig.Ruckig(len(_AXES), period)
        self._next = ruckig.OutputParameter(len(_AXES))
        self._input = ruckig.InputParameter(len(_AXES))
        self._input.control_interface = ruckig.ControlInterface.Velocity
        self._input.synchronization = ruckig.Synchronization.No
        unlimited = (math.inf,) * len(_AXES)
        self._input.max_acceleration = list(limits.acceleration or unlimited)
        self._input.max_jerk = list(limits.jerk or unlimited)
        self._input.current_position = self._input.target_acceleration = [0.0] * len(_AXES)
        self._acceptable = (ruckig.Result.Working, ruckig.Result.Finished)
        # ValueError is raised by Ruckig's Python binding for a result that it does not know.
        self._errors = (ruckig.RuckigError, ValueError)
        self._acceleration = [0.0] * len(_AXES)

    def rest(self) -> None:
        """Set the acceleration to zero, so that the next command starts without the acceleration of the last one."""
        self._acceleration = [0.0] * len(_AXES)

    def towards(self, wanted: NDArray[np.float64], present: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the velocity (6,) after one period, on the fastest allowed change from ``present`` to ``wanted``."""
        if not (np.isfinite(present).all() and np.isfinite(wanted).all()):  # Ruckig would raise its own error
            raise PolicyOutputError(f"no smooth change of velocity from {present.tolist()} to {wanted.tolist()} exists")
        self._input.current_velocity = present.tolist()
        self._input.current_acceleration = self._acceleration
        self._input.target_velocity = wanted.tolist()
        try:
            result = self._generator.update(self._input, self._next)
            velocity = np.asarray(self._next.new_velocity, dtype=np.float64)
            found = result in self._acceptable and bool(np.isfinite(velocity).all())
        except self._errors as error:
            result, found = f"{type(error).__name__}: {error}", False
        if not found:
            self.rest()
            raise PolicyOutputError(
                f"no smooth change of velocity from {present.tolist()} to {wanted.tolist()} was found ({result})"
            )
        self._acceleration = list(self._next.new_acceleration)
        return velocity
