"""The last step before a publisher: is this command finite, and inside the limits? Whatever made it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2distill_policy.contract import ACTION_AXES, Contract
from m2distill_policy.runtime.safety import SafetyLimits

#: What rounding may add, as a factor and in m, rad, m/s or rad/s.
_ROUNDING, _TINY = 1e-6, 1e-9


@dataclass(frozen=True)
class CommandCheck:
    """What a command must keep.

    limits: the workspace among them. speeds: (6,) m/s and rad/s, see :class:`SpeedLimit`. contract: how far an action
    may put the set-point ahead of the arm. gripper: the two positions that it is told, in its own unit.
    """

    limits: SafetyLimits
    speeds: tuple[float, ...]
    contract: Contract
    gripper: tuple[float, float]

    def trouble(
        self,
        action: NDArray[np.floating[Any]],
        twist: NDArray[np.floating[Any]] | None,
        target: NDArray[np.floating[Any]] | None,
        gripper: float | None,
        pose: NDArray[np.floating[Any]] | None,
    ) -> str | None:
        """Why the command must not be sent, or None.

        Args:
            action: (7,), [-1, 1].
            twist: (6,) m/s and rad/s; None where none is sent, as for the others.
            target: (6,) set-point: m and a rotation vector in rad.
            gripper: position.
            pose: (6,) of the end effector that ``target`` is made from.
        """
        return (
            self._action(action)
            or (self._twist(twist) if twist is not None else None)
            or (self._target(target, pose) if target is not None else None)
            or (self._gripper(gripper) if gripper is not None else None)
        )

    def _action(self, action: NDArray[np.floating[Any]]) -> str | None:
        values = np.asarray(action)
        if values.shape != (len(ACTION_AXES),):
            return f"the action has the shape {values.shape}; ({len(ACTION_AXES)},) is needed"
        return _beyond("the action", values, np.ones(len(ACTION_AXES)), "")

    def _twist(self, twist: NDArray[np.floating[Any]]) -> str | None:
        return _beyond("the twist", np.asarray(twist), np.asarray(self.speeds), "m/s or rad/s")

    def _target(self, target: NDArray[np.floating[Any]], pose: NDArray[np.floating[Any]] | None) -> str | None:
        values = np.asarray(target)
        if values.shape != (6,) or not np.isfinite(values).all():
            return f"the set-point is {values.tolist()}; six finite numbers are needed"
        if math.sqrt(float(values[3:] @ values[3:])) > math.pi * (1 + _ROUNDING):
            return f"the set-point is turned by the vector {values[3:].tolist()}; at most pi rad are possible"
        if pose is None:
            return "the set-point was made without the end effector's pose"
        scale = self.contract.action.translation_scale
        ahead = _beyond("the set-point's distance from the arm", values[:3] - np.asarray(pose)[:3], [scale] * 3, "m")
        if ahead is not None:
            return ahead
        low, high = self.limits.workspace_low, self.limits.workspace_high
        if low is not None and high is not None:
            for axis, value, least, most in zip("xyz", values, low, high, strict=False):
                if not least - _TINY <= value <= most + _TINY:
                    return f"the set-point's {axis} is {value:.4g} m; the workspace is {least:g} to {most:g} m"
        return None

    def _gripper(self, position: float) -> str | None:
        if not min(self.gripper) <= position <= max(self.gripper):
            return f"the gripper's position is {position}; {min(self.gripper):g} to {max(self.gripper):g} is allowed"
        return None


def _beyond(what: str, values: NDArray[np.floating[Any]], most: Any, unit: str) -> str | None:
    """Why one of ``values`` is not finite, or larger than its entry of ``most``; None where all are inside."""
    limits = np.asarray(most, dtype=np.float64)
    if values.shape != limits.shape:
        return f"{what} has the shape {values.shape}; {limits.shape} is needed"
    inside = np.abs(values) <= limits * (1 + _ROUNDING) + _TINY  # not so for NaN
    if inside.all():
        return None
    i = int(np.flatnonzero(~inside)[0])
    return f"{what} is {values[i]:.4g} in '{ACTION_AXES[i]}'; at most {limits[i]:.4g} {unit}".rstrip() + " is allowed"
