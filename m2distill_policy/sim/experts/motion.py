"""From where the hand should be to the action that moves it there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from m2distill_policy.contract import Action
from m2distill_policy.sim.osc import vector_from_rotation

#: The grip site's rotation when the hand points straight down with its fingers along y.
DOWN = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])

#: Set-point ahead of the arm for a distance to go; the arm then closes in without overshoot.
_GAIN = 1.5
_TURN_GAIN = 0.8


@dataclass(frozen=True)
class Target:
    """Where the hand should be: grip site (3,) m and rotation (3, 3), world frame; gripper -1 open to 1 closed.

    speed, turn: largest sizes of the action's translation and rotation.
    free: the open hand meets nothing here, so that it may be pushed aside for practice. care: share of the disturbance
    that is taken off, 0 to 1, where the hand has to be exact.
    """

    position: NDArray[np.float64]
    rotation: NDArray[np.float64]
    gripper: float
    speed: float = 0.95
    turn: float = 0.5
    free: bool = False
    care: float = 0.0


def towards(
    target: Target, position: NDArray[np.float64], rotation: NDArray[np.float64], scale: Action
) -> NDArray[np.float64]:
    """The action (7,) in [-1, 1] that moves a hand at ``position``, ``rotation`` (world frame) to ``target``."""
    action = np.zeros(7)
    action[:3] = limit(_GAIN * (target.position - position) / scale.translation_scale, target.speed)
    turn = vector_from_rotation(target.rotation @ rotation.T)
    action[3:6] = limit(_TURN_GAIN * turn / scale.rotation_scale, target.turn)
    action[6] = target.gripper
    return action


def limit(vector: NDArray[np.float64], top: float) -> NDArray[np.float64]:
    """Shorten ``vector`` to a length of at most ``top``."""
    length = float(np.linalg.norm(vector))
    return vector if length <= top else np.asarray(vector * (top / length))
