"""The scripted expert of the suite ``tabletop``.

The expert has no memory: its action depends on the present scene alone. So a policy with a short history can predict
the action from images and joint positions, and a dropped object is picked up again. Unlike a policy, the expert knows
the true positions of the objects.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from m2distill_policy.errors import SimulationError
from m2distill_policy.sim.experts.motion import DOWN, Target
from m2distill_policy.sim.tabletop.env import TabletopEnv
from m2distill_policy.sim.tabletop.scene import BIN_CENTER, BIN_HALF, OBJECTS, TABLE_TOP, SceneObject

#: Largest height (m) of the hand above the grasp during the approach, and slope of the descent: height for each m of
#: horizontal distance.
_HOVER = 0.11
_FUNNEL = 2.2
#: Largest distance (m) from the grasp at which the fingers start to close; then the same for fingers that are closing
#: already.
_NEAR = 0.010
_STILL_NEAR = 0.022
#: Height of the grip site (m above the table) for carrying an object over the others, and for releasing it in the bin.
_CARRY = 0.14
_RELEASE = 0.085
#: Height of the grip site (m above the table) from which a push of the noise hits no object.
_PUSH_HEIGHT = 0.10

#: Function of a skill, called while the object is grasped. Its argument is the present position (3,) of the grip site.
#: It returns the target position (3,) of the grip site and the gripper command (-1 open, 1 closed). Positions are in m,
#: world frame.
Skill = Callable[[NDArray[np.float64]], tuple[NDArray[np.float64], float]]


class TabletopExpert:
    """The scripted expert of the tabletop, see :class:`m2distill_policy.sim.experts.episode.Expert`.

    Args:
        env: The environment, which was just reset.
    """

    def __init__(self, env: TabletopEnv) -> None:
        self._env = env

    def target(self) -> Target:
        """Return the pose to which the hand should move now, and the gripper command."""
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
    """Return the target position and gripper command that fetch an object from above."""
    low = position[2] + item.grasp - item.rest
    distance = float(np.linalg.norm(position[:2] - grip[:2]))
    closing = env.gripper_width() < 0.074
    near = _STILL_NEAR if closing else _NEAR
    if distance < near and abs(grip[2] - low) < near:
        return np.array([position[0], position[1], low]), 1.0
    height = low + min(_HOVER, _FUNNEL * max(0.0, distance - 0.008))
    return np.array([position[0], position[1], height]), -1.0


def lift(grip: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """Move the grasped object straight up. Arguments and result are those of :data:`Skill`."""
    return grip + np.array([0.0, 0.0, 0.05]), 1.0


def place_in_bin(grip: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """Move the grasped object up, over the bin and down, and release it. See :data:`Skill` for the arguments."""
    to_bin = np.array(BIN_CENTER) - grip[:2]
    distance = float(np.linalg.norm(to_bin))
    height = grip[2] - TABLE_TOP
    if distance < 0.5 * BIN_HALF:
        goal = np.array([BIN_CENTER[0], BIN_CENTER[1], TABLE_TOP + _RELEASE - 0.02])
        return goal, -1.0 if height < _RELEASE + 0.01 else 1.0
    # Move sideways only as far as the height allows, so that the object does not hit its neighbours.
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


#: Kind of task -> skill that reaches its goal with the grasped object.
SKILLS: dict[str, Skill] = {"lift": lift, "place": place_in_bin}
