"""The scripted expert of the suite ``tabletop``.

The expert has no memory: its action depends on the present scene alone. So the action can be predicted from the images
and joints, a dropped object is picked up again, and a policy with a short history can imitate it. The expert sees the
true positions of the objects, which a policy does not.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from m2distill_policy.errors import SimulationError
from m2distill_policy.sim.experts.motion import DOWN, Target
from m2distill_policy.sim.tabletop.env import TabletopEnv
from m2distill_policy.sim.tabletop.scene import BIN_CENTER, BIN_HALF, OBJECTS, TABLE_TOP, SceneObject

#: Height (m) above the grasp at which the hand approaches, and how steeply it descends as the distance shrinks.
_HOVER = 0.11
_FUNNEL = 2.2
#: Distances (m) to the grasp at which the fingers start to close, and continue to close.
_NEAR = 0.010
_STILL_NEAR = 0.022
#: Grip height (m above the table) for carrying an object over the others, and for releasing it in the bin.
_CARRY = 0.14
_RELEASE = 0.085
#: Grip height (m above the table) from which a push hits no object.
_PUSH_HEIGHT = 0.10

#: Returns where the grip site (3,) should go (m, world frame) while the object is grasped, and the gripper command,
#: -1 open or 1 closed. The argument is the grip site's position now.
Skill = Callable[[NDArray[np.float64]], tuple[NDArray[np.float64], float]]


class TabletopExpert:
    """The expert, see :class:`m2distill_policy.sim.experts.episode.Expert`.

    Args:
        env: The environment, which was just reset.
    """

    def __init__(self, env: TabletopEnv) -> None:
        self._env = env

    def target(self) -> Target:
        """Return where the hand should go now."""
        env = self._env
        item = _find_object(env.task.targets[0])
        grip, _ = env.grip_pose()
        position = env.positions()[item.name]
        if not _is_grasped(env, item, grip, position):
            goal, gripper = _fetch(env, item, grip, position)
        else:
            goal, gripper = SKILLS[env.task.kind](grip)
        return Target(goal, DOWN, gripper, can_push=gripper < 0 and bool(grip[2] - TABLE_TOP > _PUSH_HEIGHT))


def _find_object(name: str) -> SceneObject:
    for item in OBJECTS:
        if item.name == name:
            return item
    raise SimulationError(f"the tabletop has no object '{name}'; choose one of {[item.name for item in OBJECTS]}")


def _is_grasped(env: TabletopEnv, item: SceneObject, grip: NDArray[np.float64], position: NDArray[np.float64]) -> bool:
    """Return whether the fingers are closed around the object."""
    offset = item.grasp - item.rest
    between = float(np.linalg.norm(position[:2] - grip[:2])) < 0.03 and abs(grip[2] - position[2] - offset) < 0.03
    return (
        between
        and item.name in env.touched()
        and env.gripper_width() < 2 * item.half_width + 0.006
        and env.fingers_stopped()
    )


def _fetch(
    env: TabletopEnv, item: SceneObject, grip: NDArray[np.float64], position: NDArray[np.float64]
) -> tuple[NDArray[np.float64], float]:
    """Approach from above the object, descend in a funnel, and close the fingers."""
    low = position[2] + item.grasp - item.rest
    distance = float(np.linalg.norm(position[:2] - grip[:2]))
    closing = env.gripper_width() < 0.074
    near = _STILL_NEAR if closing else _NEAR
    if distance < near and abs(grip[2] - low) < near:
        return np.array([position[0], position[1], low]), 1.0
    height = low + min(_HOVER, _FUNNEL * max(0.0, distance - 0.008))
    return np.array([position[0], position[1], height]), -1.0


def lift(grip: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """Move the grasped object straight up. See :data:`Skill`."""
    return grip + np.array([0.0, 0.0, 0.05]), 1.0


def place_in_bin(grip: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """Move the grasped object up, across, down over the bin, and release it. See :data:`Skill`."""
    to_bin = np.array(BIN_CENTER) - grip[:2]
    distance = float(np.linalg.norm(to_bin))
    height = grip[2] - TABLE_TOP
    if distance < 0.5 * BIN_HALF:
        goal = np.array([BIN_CENTER[0], BIN_CENTER[1], TABLE_TOP + _RELEASE - 0.02])
        return goal, -1.0 if height < _RELEASE + 0.01 else 1.0
    # Move across only as far as the height allows, so that the object rises clear of its neighbours.
    share = float(np.clip((height - 0.08) / (_CARRY - 0.03 - 0.08), 0.0, 1.0))
    lower = max(_RELEASE, min(_CARRY, _RELEASE + 0.9 * (distance - 0.03)))
    goal = np.array(
        [
            grip[0] + share * to_bin[0],
            grip[1] + share * to_bin[1],
            TABLE_TOP + (_CARRY + 0.01 if share < 1.0 and distance > 0.1 else lower),
        ]
    )
    return goal, 1.0


#: Kind of task -> how its goal is reached with the grasped object.
SKILLS: dict[str, Skill] = {"lift": lift, "place": place_in_bin}
