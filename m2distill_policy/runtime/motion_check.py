"""Compare commanded with measured motion: joint readings that stay bit-identical while the arm is told to move.

A dead driver that keeps republishing its last state gives fresh stamps and frozen values. A real arm's readings change
in their last bits even where it is blocked or presses on a table, so only readings that do not change at all count. The
gripper's readings are left out: a gripper that holds still is no fault.
"""

from __future__ import annotations

import math
from collections import deque

import numpy as np
from numpy.typing import NDArray

from m2distill_policy.contract import Contract
from m2distill_policy.observation import Observation
from m2distill_policy.runtime.status import StatusCode
from m2distill_policy.runtime.watchdog import Fault, WatchLimits

#: s of commanded motion that is added up.
WINDOW = 2.0
#: The contract's group of readings that does not count.
_GRIPPER = "gripper_states"


class MotionCheck:
    """Judge each observation by the commands before it.

    A fault begins when, with all of the arm's readings bit-identical, at least ``frozen_after`` commands to move were
    sent and those of the last :data:`WINDOW` s would have moved the arm by more than ``frozen_motion`` (m of
    translation, or rad of rotation, along its way). It lasts until a reading changes.
    """

    def __init__(self, contract: Contract, limits: WatchLimits) -> None:
        self._limits = limits
        self._names = [group.name for group in contract.proprioception if group.name != _GRIPPER]
        self._period = contract.period
        self._ways: deque[tuple[float, float]] = deque(maxlen=max(1, math.ceil(WINDOW / contract.period)))
        self._commands = 0
        self._previous: bytes | None = None
        self._fault: Fault | None = None

    def forget(self) -> None:
        """The next reading is compared with nothing."""
        self._previous = None
        self._changed()

    def _changed(self) -> None:
        self._ways.clear()
        self._commands = 0
        self._fault = None

    def commanded(self, twist: NDArray[np.float64]) -> None:
        """A twist (6,) in m/s and rad/s was sent for one period."""
        if self._limits.frozen_after is None or not twist.any():
            return
        self._commands += 1
        x, y, z, rx, ry, rz = twist.tolist()
        translation, rotation = math.hypot(x, y, z), math.hypot(rx, ry, rz)
        self._ways.append((translation * self._period, rotation * self._period))

    def check(self, observation: Observation) -> Fault | None:
        """The fault that lasts, or None. Call once for each observation, before the command that answers it."""
        after = self._limits.frozen_after
        if after is None:
            return None
        readings = b"".join(
            observation.proprioception[name].tobytes() for name in self._names if name in observation.proprioception
        )
        if readings != self._previous:
            self._previous = readings
            self._changed()
        elif readings and self._fault is None and self._commands >= after:
            translation, rotation = (sum(way) for way in zip(*self._ways, strict=True))
            if max(translation, rotation) > self._limits.frozen_motion:
                names = ", ".join(self._names)
                self._fault = Fault(
                    StatusCode.FROZEN_JOINTS,
                    f"The readings of {names} stayed bit-identical during {self._commands} commands to move "
                    f"({translation:.3f} m and {rotation:.3f} rad in the last {len(self._ways) * self._period:.1f} s; "
                    f"watch.frozen_after is {after}, watch.frozen_motion {self._limits.frozen_motion:g}): see whether "
                    "the arm's driver is alive and the arm follows.",
                )
        return self._fault
