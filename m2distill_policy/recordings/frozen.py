"""Find frozen views, joints and poses in a recording, with the checks of the live node."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from m2distill_policy.contract import Contract
from m2distill_policy.observation import Observation
from m2distill_policy.runtime import drive
from m2distill_policy.runtime.frozen_motion import FrozenMotionCheck
from m2distill_policy.runtime.watchdog import Fault, Watchdog, WatchLimits


class FrozenCheck:
    """Check for frozen views, joints and poses, called for one step of a recording after another."""

    def __init__(self, contract: Contract, limits: WatchLimits) -> None:
        self._views, self._motion = Watchdog(contract, limits), FrozenMotionCheck(contract, limits)

    def check(
        self, observation: Observation, pose: NDArray[np.float64] | None, commanded: NDArray[np.float64]
    ) -> Fault | None:
        """Check the next step, and return its fault or None.

        Args:
            observation: Observation of the step.
            pose: Pose (6,) of the end effector; None if it was not recorded.
            commanded: Twist (6,) that was commanded during the step, m/s and rad/s.
        """
        fault = self._views.check_frozen(observation) or self._motion.check(observation, pose)
        self._motion.add_command(commanded)
        return fault


class SetPointWay:
    """The speed at which a sequence of set-points commands the arm to move.

    The pose of a stationary arm usually differs from its set-point, because the arm sags or touches something. So a
    set-point that does not change counts as zero speed, unless it is farther from the arm than the largest action.
    """

    def __init__(self, contract: Contract) -> None:
        self._contract = contract
        self._last: NDArray[np.float64] | None = None

    def to(self, target: NDArray[np.float64], action: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the twist (6,) that the next set-point commands, in m/s and rad/s, within the contract's top speeds.

        Args:
            target: Set-point (6,).
            action: Action (7,) that corresponds to the set-point, not clipped to [-1, 1].
        """
        last, self._last = target if self._last is None else self._last, target
        if np.abs(action[:6]).max() > 1:
            return drive.twist(np.clip(action, -1.0, 1.0), self._contract)
        scale, top = self._contract.action, self._contract.action.response.top_speeds
        way = drive.motion_to(target, last, self._contract)
        way *= np.repeat([scale.translation_scale, scale.rotation_scale], 3)
        return np.clip(way / self._contract.period, np.negative(top), top)
