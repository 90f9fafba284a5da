"""Compare commanded with measured motion: joints or a pose that do not change while motion is commanded are frozen.

A dead driver that republishes its last state gives fresh stamps and frozen values. The joint positions of a real arm
change in their last digits even while it is blocked or presses on a table, so only values that do not change at all
count. The gripper is left out, because a stationary gripper is normal.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2distill_policy.contract import Contract
from m2distill_policy.observation import Observation
from m2distill_policy.runtime.status import StatusCode
from m2distill_policy.runtime.watchdog import Fault, WatchLimits

#: Seconds of commanded motion that are summed up.
WINDOW = 2.0
#: A value counts as unchanged if it differs from the first one by less than this, in rad or m, because interpolation
#: and float32 round.
SAME = 1e-6
#: The contract's proprioception group that is left out.
_GRIPPER = "gripper_states"


class _Frozen:
    """Values that have not changed, and the commands that were sent since their last change."""

    def __init__(self, commands_kept: int) -> None:
        self.ways: deque[tuple[float, float]] = deque(maxlen=commands_kept)
        self.commands = 0
        self.fault: Fault | None = None
        self._bytes = b""
        self._first: list[float] | None = None

    def take(self, values: NDArray[np.floating[Any]]) -> bool:
        """Return whether ``values`` are unchanged. If they have changed, later values are compared with them."""
        data = values.tobytes()
        if data == self._bytes and self._first is not None:
            return True
        self._bytes, found = data, values.tolist()
        first = self._first
        if first is not None and all(abs(a - b) < SAME for a, b in zip(found, first, strict=True)):
            return True
        self.begin()
        self._first = found
        return False

    def begin(self) -> None:
        """Forget the values, so that the next ones are compared with nothing."""
        self._first = None
        self.ways.clear()
        self.commands = 0
        self.fault = None

    def moved(self) -> tuple[float, float]:
        """Return the m and rad by which the newest commands would have moved the arm."""
        return sum(way[0] for way in self.ways), sum(way[1] for way in self.ways)


class FrozenMotionCheck:
    """Checks each observation against the commands before it.

    The joints, or the end effector's pose, are frozen if both of these hold:

    * no value has changed by :data:`SAME` or more during at least ``frozen_after`` commands to move;
    * the commands of the last :data:`WINDOW` s would have moved the arm by more than ``frozen_motion`` along its path
      (m of translation, or rad of rotation). For the pose, it is also enough that a joint has moved by more than
      ``frozen_motion``.

    The fault lasts until a value changes.
    """

    def __init__(self, contract: Contract, limits: WatchLimits) -> None:
        self._limits = limits
        self._names = [group.name for group in contract.proprioception if group.name != _GRIPPER]
        self._period = contract.period
        kept = max(1, math.ceil(WINDOW / contract.period))
        self._joints, self._pose = _Frozen(kept), _Frozen(kept)
        #: Number of observations with the same pose, and the joint positions at the first of them.
        self._same_pose = 0
        self._positions: list[float] = []

    def reset(self) -> None:
        """Forget the joints and the pose, so that the next ones are compared with nothing."""
        self._joints.begin()
        self._pose.begin()
        self._same_pose = 0

    def add_command(self, twist: NDArray[np.float64]) -> None:
        """Count a twist (6,) in m/s and rad/s that was sent for one period."""
        if self._limits.frozen_after is None or not twist.any():
            return
        x, y, z, rx, ry, rz = twist.tolist()
        way = math.hypot(x, y, z) * self._period, math.hypot(rx, ry, rz) * self._period
        for frozen in (self._joints, self._pose):
            frozen.commands += 1
            frozen.ways.append(way)

    def check(
        self,
        observation: Observation,
        pose: NDArray[np.floating[Any]] | None = None,
        *,
        driven: bool = True,
        place: Callable[[], str] | None = None,
    ) -> Fault | None:
        """Return the current fault, or None. Call once for each observation, before the command that answers it.

        Args:
            observation: Observation, whose proprioception is compared.
            pose: Pose (6,) of the end effector. None if unknown; then the result for the pose does not change.
            driven: Whether the policy is enabled. In shadow mode the pose is not checked.
            place: Returns where poses come from, for messages.
        """
        after = self._limits.frozen_after
        if after is None:
            return None
        found = [observation.proprioception[name] for name in self._names if name in observation.proprioception]
        positions = found[0] if len(found) == 1 else np.concatenate(found) if found else np.zeros(0)
        self._check_joints(positions, after)
        if pose is not None:
            self._check_pose(pose, positions, after, driven, place)
        return self._joints.fault or self._pose.fault

    def _check_joints(self, positions: NDArray[np.floating[Any]], after: int) -> None:
        joints = self._joints
        if not joints.take(positions) or not positions.size or joints.fault is not None or joints.commands < after:
            return
        translation, rotation = joints.moved()
        if max(translation, rotation) > self._limits.frozen_motion:
            joints.fault = Fault(
                StatusCode.FROZEN_JOINTS,
                f"The values of {', '.join(self._names)} did not change during {joints.commands} commands to move "
                f"({self._describe(joints)}): check that the arm's driver runs and the arm follows.",
            )

    def _check_pose(
        self,
        pose: NDArray[np.floating[Any]],
        positions: NDArray[np.floating[Any]],
        after: int,
        driven: bool,
        place: Callable[[], str] | None,
    ) -> None:
        frozen = self._pose
        if not frozen.take(pose) or not driven:
            frozen.fault = None
            self._same_pose, self._positions = 0, positions.tolist()
            return
        self._same_pose += 1
        if frozen.fault is not None or min(self._same_pose, frozen.commands) < after:
            return
        what = ""
        if max(frozen.moved()) > self._limits.frozen_motion:
            what = f"{frozen.commands} commands to move ({self._describe(frozen)})"
        elif len(self._positions) == positions.size:
            motion = max((abs(a - b) for a, b in zip(positions.tolist(), self._positions, strict=True)), default=0.0)
            if motion > self._limits.frozen_motion:
                what = (
                    f"{frozen.commands} commands while a joint moved by {motion:.3f} (watch.frozen_after is {after}"
                    f", watch.frozen_motion {self._limits.frozen_motion:g})"
                )
        if what:
            frozen.fault = Fault(
                StatusCode.BAD_POSE,
                f"The pose on {place() if place is not None else 'its topic'} did not change during {what}: check that "
                "its publisher runs.",
            )

    def _describe(self, frozen: _Frozen) -> str:
        translation, rotation = frozen.moved()
        return (
            f"{translation:.3f} m and {rotation:.3f} rad in the last {len(frozen.ways) * self._period:.1f} s; "
            f"watch.frozen_after is {self._limits.frozen_after}, watch.frozen_motion {self._limits.frozen_motion:g}"
        )
