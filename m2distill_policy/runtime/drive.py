"""Convert a normalised action to what an arm accepts: a set-point pose, or a velocity."""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from m2distill_policy.contract import Contract


def set_point_delta(action: NDArray[np.floating[Any]], contract: Contract) -> NDArray[np.float64]:
    """Return the set-point relative to the current pose (6,): translation in m, rotation vector in rad.

    It is in the contract's frame, and is what a Cartesian impedance controller needs. The arm does not necessarily
    travel this distance in one step.

    Args:
        action: Action (7,) in [-1, 1].
    """
    values = np.asarray(action, dtype=np.float64)
    scale = contract.action
    return np.concatenate([values[:3] * scale.translation_scale, values[3:6] * scale.rotation_scale])


def set_point(
    pose: NDArray[np.floating[Any]], action: NDArray[np.floating[Any]], contract: Contract
) -> NDArray[np.float64]:
    """Return the set-point pose (6,): position in m and rotation vector in rad, in the frame of ``pose``.

    The rotation is applied in the frame's axes (from the left), as robosuite's OSC does.

    Args:
        action: Action (7,) in [-1, 1].
        pose: Current pose (6,) of the end effector.

    Raises:
        ValueError: The pose or the action is not finite. From such values, OpenCV would compute a meaningless rotation.
    """
    delta = set_point_delta(action, contract)
    present = np.asarray(pose, dtype=np.float64)
    if not all(map(math.isfinite, (*delta.tolist(), *present.tolist()))):
        raise ValueError(f"the set-point is {delta.tolist()} from {present.tolist()}; finite numbers are needed")
    rotation = cv2.Rodrigues(delta[3:])[0] @ cv2.Rodrigues(present[3:6])[0]
    return np.concatenate([present[:3] + delta[:3], cv2.Rodrigues(rotation)[0].ravel()])


def motion_to(
    target: NDArray[np.floating[Any]], pose: NDArray[np.floating[Any]], contract: Contract
) -> NDArray[np.float64]:
    """Return the motion entries (6,) of the action whose set-point from ``pose`` (6,) is ``target`` (6,).

    This is the inverse of :func:`set_point`.
    """
    rotation = cv2.Rodrigues(np.asarray(target[3:6], dtype=np.float64))[0]
    present = cv2.Rodrigues(np.asarray(pose[3:6], dtype=np.float64))[0]
    turn = cv2.Rodrigues(rotation @ present.T)[0].ravel()
    # A controller keeps its orientation goal while the commanded rotation is exactly zero, so rounding is removed.
    turn[np.abs(turn) < 1e-9] = 0.0
    scale = contract.action
    return np.concatenate([(target[:3] - pose[:3]) / scale.translation_scale, turn / scale.rotation_scale])


def twist(action: NDArray[np.floating[Any]], contract: Contract) -> NDArray[np.float64]:
    """Return the velocity (6,) in m/s and rad/s that the arm in the demonstrations reached for ``action`` (7,)."""
    return contract.action.response.twist(action)


def gripper(action: NDArray[np.floating[Any]]) -> float:
    """Return the gripper's entry of ``action`` (7,), from -1 (open) to +1 (closed)."""
    return float(action[6])
