"""Compute the action that moves the hand to a target."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from m2distill_policy.contract import Action
from m2distill_policy.sim.osc import vector_from_rotation

#: Rotation of the grip site when the hand points straight down with its fingers along y, world frame.
DOWN = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])

#: Distance of the set-point from the arm, as a multiple of the remaining distance to the target. With this value the
#: arm stops without overshoot. ``_TURN_GAIN`` is the same for rotation.
_GAIN = 1.5
_TURN_GAIN = 0.8


@dataclass(frozen=True)
class Target:
    """A target of the hand: a pose, the gripper command and limits of the motion.

    Attributes:
        position: Position (3,) of the grip site in m, world frame.
        rotation: Rotation (3, 3) of the grip site, world frame.
        gripper: Gripper command, -1 (open) to 1 (closed).
        speed: Largest length of the action's translation, in action units.
        turn: Largest length of the action's rotation, in action units.
        can_push: Whether the noise may push the hand aside. True only where the hand would hit nothing.
        noise_reduction: Share of the noise that is removed, 0 to 1. It is large where the hand must be exact.
    """

    position: NDArray[np.float64]
    rotation: NDArray[np.float64]
    gripper: float
    speed: float = 0.95
    turn: float = 0.5
    can_push: bool = False
    noise_reduction: float = 0.0


def action_towards(
    target: Target, position: NDArray[np.float64], rotation: NDArray[np.float64], scale: Action
) -> NDArray[np.float64]:
    """Return the action that moves the hand to a target.

    Args:
        target: The target.
        position: Position (3,) of the grip site in m, world frame.
        rotation: Rotation (3, 3) of the grip site, world frame.
        scale: Scales of the contract's action.

    Returns:
        The action (7,) in [-1, 1].
    """
    action = np.zeros(7)
    action[:3] = limit_length(_GAIN * (target.position - position) / scale.translation_scale, target.speed)
    turn = vector_from_rotation(target.rotation @ rotation.T)
    action[3:6] = limit_length(_TURN_GAIN * turn / scale.rotation_scale, target.turn)
    action[6] = target.gripper
    return action


def limit_length(vector: NDArray[np.float64], top: float) -> NDArray[np.float64]:
    """Return ``vector``, shortened to a length of at most ``top``."""
    length = float(np.linalg.norm(vector))
    return vector if length <= top else np.asarray(vector * (top / length))
