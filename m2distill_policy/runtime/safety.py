"""Limits for the commands while the policy drives, and a ramp to a halt.

Limits are in physical units, because those are what an arm's data sheet has. The velocity that an action stands for is
the contract's response, so the set-point and the twist made from one action obey the same limits.
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
#: What each limit of an axis may be, and its unit. Beyond, Ruckig's steps cannot be computed; for no limit, set none.
LIMIT_RANGES: Mapping[str, tuple[float, float, str]] = {
    "speed": (1e-4, 100.0, "m/s or rad/s"),
    "acceleration": (0.01, 1000.0, "m/s2 or rad/s2"),
    "jerk": (0.1, 1e5, "m/s3 or rad/s3"),
}
#: m; how far a corner of the workspace may be from the origin, on each axis.
LARGEST_WORKSPACE = 100.0


@dataclass(frozen=True)
class SafetyLimits:
    """speed, acceleration, jerk: largest size an axis (x, y, z in m/s, rx, ry, rz in rad/s, and so on), None for none.
    They bind while the policy drives; a ramp to a halt takes ``halt_time`` whatever they say. Without ``speed`` the
    top speed of the bundle that the policy was started with is the limit.

    allow_faster_bundle: whether a bundle whose top speed is more than 25 % above that one's may take over; its
    commands stay within the limit.

    workspace_low, workspace_high: corners (x, y, z in m, contract's frame) of the box that a set-point may not leave,
    None for none. Beyond a wall only motion back is let through. Needs the end effector's pose.
    halt_time: s from the decision to halt until the command is zero.
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
        """Whether the limits cannot be kept without the end effector's pose."""
        return self.workspace_low is not None

    @property
    def smooth(self) -> bool:
        """Whether the change of the command is limited."""
        return self.acceleration is not None or self.jerk is not None


def set_point_inside(
    target: NDArray[np.float64], pose: NDArray[np.floating[Any]], limits: SafetyLimits, contract: Contract
) -> NDArray[np.float64] | None:
    """The set-point (6,) nearest to ``target`` (6,) in the workspace; None where ``pose`` (6,) is so far outside that
    no action reaches it: sent there at once, the arm would jump."""
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
    """What the governor lets the arm do."""

    RUNNING = "running"
    HALTING = "halting"
    HALTED = "halted"


class Governor:
    """Limits every command, and ramps to a halt.

    ``running`` --halt--> ``halting`` --after halt_time--> ``halted`` --resume--> ``running``. Begins halted. While
    halting, the six motion entries fall in equal parts to zero; the gripper keeps its last command, so that an object
    in the hand is not dropped.

    Acceleration and jerk are limited by Ruckig's velocity interface (Berscheid and Kroeger 2021, "Jerk-limited
    Real-time Trajectory Generation with Arbitrary Target States", https://arxiv.org/abs/2105.04830).
    """

    def __init__(self, limits: SafetyLimits, contract: Contract) -> None:
        self.limits = limits
        self.motion = Motion.HALTED
        self._contract = contract
        #: (6,) m/s and rad/s that no command exceeds, whichever bundle drives.
        self.speeds = tuple(float(v) for v in limits.speed or contract.action.response.top_speeds)
        #: (6,) that commands are brought below for now, see :meth:`prepare_contract`.
        self._ceiling = self.speeds
        self._cycles = max(1, math.ceil(limits.halt_time / contract.period - 1e-9))
        self._smoother = _Smoother(limits, contract.period) if limits.smooth else None
        self._last = np.zeros(len(ACTION_AXES))
        self._ramp_from = self._last
        self._ramp_left = 0

    def set_contract(self, contract: Contract) -> None:
        """Take over the velocity response of a contract that is otherwise the same: another bundle's.

        The arm goes on with the velocity that was sent: the newest command, from which a ramp and the next command
        begin, is the one that means the same velocity from now on.
        """
        self._ceiling = self.speeds
        before, self._contract = self._contract.action.response, contract
        if contract.action.response != before:
            self._last, self._ramp_from = self._meaning(self._last, before), self._meaning(self._ramp_from, before)

    def prepare_contract(self, contract: Contract | None) -> bool:
        """Whether :meth:`set_contract` would keep the limits of acceleration and jerk now: the velocity that was sent
        last can be sent under the other response too. Where it cannot, the next commands slow down to what can. None:
        no other response is to be followed (any more)."""
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
        """The action (7,) that means now what ``action`` (7,) meant under the response ``before``."""
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
        """The command (7,) for a policy's action (7,): the nearest to it within limits.

        pose: (6,) of the end effector, m and rad, contract's frame; only the workspace needs it. Also resumes from a
        halt. Raises :class:`PolicyOutputError` for an action that is not finite.
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
            # The walls have the last word: what slows down smoothly may still be on its way out.
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
        """Whether an action within [-1, 1] can mean more than the speed limit."""
        tops = self._contract.action.response.top_speeds
        return any(top > limit for top, limit in zip(tops, self._ceiling, strict=True))

    def _for_velocity(
        self, action: NDArray[np.float64], wanted: NDArray[np.float64], allowed: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """``action`` (7,), which means the velocity ``wanted`` (6,), changed to mean ``allowed`` (6,)."""
        response = self._contract.action.response
        slowed = action.copy()
        # What is not limited stays the very same, bit for bit: a response and back would round.
        for axis in np.flatnonzero(np.abs(allowed - wanted) > 1e-12):
            slowed[axis] = math.copysign(response.size_for(int(axis), abs(allowed[axis])), allowed[axis])
        return slowed

    def halt(self, pose: NDArray[np.floating[Any]] | None = None) -> NDArray[np.float64]:
        """The next command (7,) of the ramp to a halt; call once a cycle, also when halted.

        pose: (6,) of the end effector now, where it is known: then the ramp ends at the workspace's walls too.
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
            # Where a wall held the command back, and now holds it less, a ramp must not speed up.
            most = np.abs(self._last[_MOTION])
            command[_MOTION] = np.clip(command[_MOTION], -most, most)
            self._last = command
            if self._ramp_left == 0:
                self.motion = Motion.HALTED
        if self._smoother is not None:
            self._smoother.rest()
        return self._last.copy()

    def stop(self) -> NDArray[np.float64]:
        """Zero motion (7,) from now on, without a ramp: what would have been sent is not to be trusted.

        Zeros are sent for as long as a ramp takes, because one message may be lost. The gripper keeps its last
        command.
        """
        gripper, stopped = self._last[6], self.motion is not Motion.RUNNING and not self._ramp_from[_MOTION].any()
        self._last = np.zeros(len(ACTION_AXES))
        self._last[6] = gripper if abs(gripper) <= 1 else 0.0
        self._ramp_from = self._last
        if not stopped:  # asked again and again, it still ends
            self._ramp_left, self.motion = self._cycles, Motion.HALTING
        if self._smoother is not None:
            self._smoother.rest()
        return self._last.copy()

    def reset(self) -> None:
        """Halted at once and without memory: for a new episode in a world that was reset, never for a moving arm."""
        self.motion = Motion.HALTED
        self._last = np.zeros(len(ACTION_AXES))
        if self._smoother is not None:
            self._smoother.rest()


class _Smoother:
    """Velocities (6,) that change no faster than the limits let them."""

    def __init__(self, limits: SafetyLimits, period: float) -> None:
        # Only an arm with such limits needs the library.
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
        # The second is what its binding raises for a result that it does not know.
        self._errors = (ruckig.RuckigError, ValueError)
        self._acceleration = [0.0] * len(_AXES)

    def rest(self) -> None:
        """Forget the present acceleration: the next command does not go on from the last one."""
        self._acceleration = [0.0] * len(_AXES)

    def towards(self, wanted: NDArray[np.float64], present: NDArray[np.float64]) -> NDArray[np.float64]:
        """The velocity one period from now, on the fastest way from ``present`` to ``wanted``."""
        if not (np.isfinite(present).all() and np.isfinite(wanted).all()):  # the library raises an error of its own
            raise PolicyOutputError(f"no smooth way from {present.tolist()} to {wanted.tolist()} is possible")
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
            raise PolicyOutputError(f"no smooth way from {present.tolist()} to {wanted.tolist()} was found ({result})")
        self._acceleration = list(self._next.new_acceleration)
        return velocity
