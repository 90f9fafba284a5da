"""The scripted expert of the suite ``tabletop``.

An expert has no memory: its action is a function of the scene as it is, so that what it does can be read from the
views and joints, a dropped object is picked up again, and a policy with a short history can imitate it. It sees the
objects' true positions, which a policy never does.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from m2distill_policy.errors import SimulationError
from m2distill_policy.sim.experts.motion import DOWN, Target
from m2distill_policy.sim.tabletop.env import TabletopEnv
from m2distill_policy.sim.tabletop.scene import BIN_CENTER, BIN_HALF, TABLE_TOP, THINGS, Thing

#: Height (m) over the grasp at which the hand comes in, and how steeply it sinks as the distance shrinks.
_HOVER = 0.11
_FUNNEL = 2.2
#: Distances (m) at which the fingers may close, and stay closed.
_NEAR = 0.010
_STILL_NEAR = 0.022
#: Grip height (m over the table) for carrying over whatever else stands there, and for letting go in the bin.
_CARRY = 0.14
_RELEASE = 0.085
#: Grip height (m over the table) from which a push meets nothing that stands there.
_FREE = 0.10


class TabletopExpert:
    """See :class:`m2distill_policy.sim.experts.episode.Expert`."""

    def __init__(self, env: TabletopEnv) -> None:
        self._env = env

    def target(self) -> Target:
        """Where the hand should go now."""
        env = self._env
        thing = _thing(env.task.targets[0])
        grip, _ = env.grip_pose()
        target = env.positions()[thing.name]
        if not _grasped(env, thing, grip, target):
            goal, gripper = _fetch(env, thing, grip, target)
        elif env.task.kind == "lift":
            goal, gripper = grip + np.array([0.0, 0.0, 0.05]), 1.0
        else:
            goal, gripper = _carry(grip)
        return Target(goal, DOWN, gripper, free=gripper < 0 and bool(grip[2] - TABLE_TOP > _FREE))


def _thing(name: str) -> Thing:
    for thing in THINGS:
        if thing.name == name:
            return thing
    raise SimulationError(f"no expert knows the object '{name}'; known are {[t.name for t in THINGS]}")


def _grasped(env: TabletopEnv, thing: Thing, grip: NDArray[np.float64], target: NDArray[np.float64]) -> bool:
    """Whether the fingers have arrived at the object's sides with the object between them."""
    offset = thing.grasp - thing.rest
    between = float(np.linalg.norm(target[:2] - grip[:2])) < 0.03 and abs(grip[2] - target[2] - offset) < 0.03
    return (
        between
        and thing.name in env.held()
        and env.gripper_width() < 2 * thing.half_width + 0.006
        and env.fingers_still()
    )


def _fetch(
    env: TabletopEnv, thing: Thing, grip: NDArray[np.float64], target: NDArray[np.float64]
) -> tuple[NDArray[np.float64], float]:
    """Come in over the object, sink in a funnel, close."""
    low = target[2] + thing.grasp - thing.rest
    distance = float(np.linalg.norm(target[:2] - grip[:2]))
    closing = env.gripper_width() < 0.074
    near = _STILL_NEAR if closing else _NEAR
    if distance < near and abs(grip[2] - low) < near:
        return np.array([target[0], target[1], low]), 1.0
    height = low + min(_HOVER, _FUNNEL * max(0.0, distance - 0.008))
    return np.array([target[0], target[1], height]), -1.0


def _carry(grip: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """Up, across once high enough, down over the bin, and open."""
    to_bin = np.array(BIN_CENTER) - grip[:2]
    distance = float(np.linalg.norm(to_bin))
    height = grip[2] - TABLE_TOP
    if distance < 0.5 * BIN_HALF:
        goal = np.array([BIN_CENTER[0], BIN_CENTER[1], TABLE_TOP + _RELEASE - 0.02])
        return goal, -1.0 if height < _RELEASE + 0.01 else 1.0
    # Across only as far as the height allows: the object leaves its neighbours from above.
    free = float(np.clip((height - 0.08) / (_CARRY - 0.03 - 0.08), 0.0, 1.0))
    lower = max(_RELEASE, min(_CARRY, _RELEASE + 0.9 * (distance - 0.03)))
    goal = np.array(
        [
            grip[0] + free * to_bin[0],
            grip[1] + free * to_bin[1],
            TABLE_TOP + (_CARRY + 0.01 if free < 1.0 and distance > 0.1 else lower),
        ]
    )
    return goal, 1.0
