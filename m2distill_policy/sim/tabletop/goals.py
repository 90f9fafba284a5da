"""When a task of the suite ``tabletop`` is done, judged from where the objects are."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from m2distill_policy.sim.env import Task
from m2distill_policy.sim.tabletop.scene import BIN_CENTER, BIN_HALF, BIN_HEIGHT, TABLE_TOP, THINGS
from m2distill_policy.sim.tabletop.tasks import LIFT_HEIGHT, TASKS

_REST = {thing.name: TABLE_TOP + thing.rest for thing in THINGS}


def is_lifted(name: str, position: NDArray[np.float64]) -> bool:
    """Whether object ``name`` at ``position`` (3,) m is raised by :data:`LIFT_HEIGHT` or more."""
    return bool(position[2] >= _REST[name] + LIFT_HEIGHT)


def is_in_bin(position: NDArray[np.float64], held: bool) -> bool:
    """Whether an object at ``position`` (3,) m lies inside the bin and the fingers have let it go."""
    inside = abs(position[0] - BIN_CENTER[0]) < BIN_HALF and abs(position[1] - BIN_CENTER[1]) < BIN_HALF
    return bool(inside and position[2] < TABLE_TOP + BIN_HEIGHT + 0.03 and not held)


def reached(task: Task, positions: Mapping[str, NDArray[np.float64]], held: frozenset[str]) -> bool:
    """Whether ``task``'s goal is reached; ``positions`` by object name, ``held``: objects that a finger touches."""
    (thing,) = task.targets
    if task.kind == "lift":
        return is_lifted(thing, positions[thing])
    return is_in_bin(positions[thing], thing in held)


def reached_tasks(positions: Mapping[str, NDArray[np.float64]], held: frozenset[str]) -> tuple[str, ...]:
    """Names of every task of the suite whose goal is reached."""
    return tuple(task.name for task in TASKS if reached(task, positions, held))
