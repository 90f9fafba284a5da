"""The last check before a command is published: it must be finite and within the limits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2distill_policy.contract import ACTION_AXES, Contract
from m2distill_policy.runtime.safety import SafetyLimits

#: Tolerance for rounding: a factor, and an amount in m, rad, m/s or rad/s.
_ROUNDING, _TINY = 1e-6, 1e-9
_ONES = (1.0,) * len(ACTION_AXES)


@dataclass(frozen=True)
class CommandCheck:
    """The limits of a command that is about to be sent.

    Attributes:
        limits: Safety limits, of which the workspace is checked.
        speeds: Largest speeds (6,), m/s and rad/s, see :class:`SpeedLimit`.
        contract: Gives the largest distance between the set-point and the arm.
        gripper: Position of the open and of the closed gripper, m or rad.
    """

    limits: SafetyLimits
    speeds: tuple[float, ...]
    contract: Contract
    gripper: tuple[float, float]

    def problem(
        self,
        action: NDArray[np.floating[Any]],
        twist: NDArray[np.floating[Any]] | None,
        target: NDArray[np.floating[Any]] | None,
        gripper: float | None,
        pose: NDArray[np.floating[Any]] | None,
    ) -> str | None:
        """Return why the command must not be sent, or None.

        Args:
            action: Action (7,) in [-1, 1].
            twist: Twist (6,) in m/s and rad/s; None if none is sent.
            target: Set-point (6,): position in m and rotation vector in rad; None if none is sent.
            gripper: Position in m or rad; None if none is sent.
            pose: Pose (6,) of the end effector from which ``target`` was computed.
        """
        return (
            self._action(action)
            or (self._twist(twist) if twist is not None else None)
            or (self._target(target, pose) if target is not None else None)
            or (self._gripper(gripper) if gripper is not None else None)
        )

    def _action(self, action: NDArray[np.floating[Any]]) -> str | None:
        return _beyond("the action", action, _ONES, "")

    def _twist(self, twist: NDArray[np.floating[Any]]) -> str | None:
        return _beyond("the twist", twist, self.speeds, "m/s or rad/s")

    def _target(self, target: NDArray[np.floating[Any]], pose: NDArray[np.floating[Any]] | None) -> str | None:
        values = np.asarray(target).tolist()
        if len(values) != 6 or not all(map(math.isfinite, values)):
            return f"the set-point is {values}; six finite numbers are needed"
        if math.hypot(*values[3:]) > math.pi * (1 + _ROUNDING):
            return f"the set-point's rotation vector is {values[3:]}; its length may be at most pi rad"
        if pose is None:
            return "the set-point was computed without the end effector's pose"
        most = self.contract.action.translation_scale * (1 + _ROUNDING) + _TINY
        for axis, value, here in zip("xyz", values, np.asarray(pose).tolist(), strict=False):
            if not abs(value - here) <= most:  # written so that NaN fails
                return f"the set-point's {axis} is {value:.4g} m and the arm's {here:.4g} m; at most {most:.4g} m apart"
        low, high = self.limits.workspace_low, self.limits.workspace_high
        if low is not None and high is not None:
            for axis, value, least, greatest in zip("xyz", values, low, high, strict=False):
                if not least - _TINY <= value <= greatest + _TINY:
                    return f"the set-point's {axis} is {value:.4g} m; the workspace is {least:g} to {greatest:g} m"
        return None

    def _gripper(self, position: float) -> str | None:
        if not min(self.gripper) <= position <= max(self.gripper):
            return f"the gripper's position is {position}; {min(self.gripper):g} to {max(self.gripper):g} is allowed"
        return None


def _beyond(what: str, values: NDArray[np.floating[Any]], most: Sequence[float], unit: str) -> str | None:
    """Return a message if a value is not finite or its absolute value exceeds its entry in ``most``, else None."""
    found = np.asarray(values).tolist()  # for so few values, plain floats are faster than NumPy
    if not isinstance(found, list) or len(found) != len(most):
        return f"{what} has the shape {np.shape(values)}; ({len(most)},) is needed"
    for axis, value, limit in zip(ACTION_AXES, found, most, strict=False):
        if not abs(value) <= limit * (1 + _ROUNDING) + _TINY:  # written so that NaN fails
            return f"{what} is {value:.4g} in '{axis}'; at most {limit:.4g} {unit}".rstrip() + " is allowed"
    return None
