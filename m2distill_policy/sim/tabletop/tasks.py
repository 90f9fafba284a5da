"""The tasks of the suite ``tabletop`` in the order in which they are learned, and tests of their goals."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from m2distill_policy.sim.env import Task
from m2distill_policy.sim.tabletop.scene import BIN_CENTER, BIN_HALF, BIN_HEIGHT, OBJECTS, TABLE_TOP

SUITE = "tabletop"

#: Height (m) above its rest position on the table from which an object counts as lifted.
LIFT_HEIGHT = 0.04

_REST = {item.name: TABLE_TOP + item.rest for item in OBJECTS}

#: Test of a goal: a function that returns whether the goal is reached. Its arguments are the name of the object, its
#: position (3,) in m, world frame, and whether a finger touches it.
Goal = Callable[[str, NDArray[np.float64], bool], bool]


def is_lifted(name: str, position: NDArray[np.float64], touched: bool = True) -> bool:
    """Return whether an object is raised by :data:`LIFT_HEIGHT` or more. See :data:`Goal` for the arguments."""
    return bool(position[2] >= _REST[name] + LIFT_HEIGHT)


def is_in_bin(name: str, position: NDArray[np.float64], touched: bool) -> bool:
    """Return whether an object lies in the bin and was released. See :data:`Goal` for the arguments."""
    inside = abs(position[0] - BIN_CENTER[0]) < BIN_HALF and abs(position[1] - BIN_CENTER[1]) < BIN_HALF
    return bool(inside and position[2] < TABLE_TOP + BIN_HEIGHT + 0.03 and not touched)


#: Kind of task -> test of its goal.
GOALS: dict[str, Goal] = {"lift": is_lifted, "place": is_in_bin}


def _lift(index: int, color: str) -> Task:
    return Task(SUITE, index, f"lift_the_{color}_box", f"lift the {color} box", 90, "lift", (f"{color}_box",))


def _place(index: int, item: str) -> Task:
    name = f"pick_up_the_{item}_and_place_it_in_the_bin"
    return Task(SUITE, index, name, name.replace("_", " "), 160, "place", (item,))


TASKS: tuple[Task, ...] = (_lift(0, "red"), _lift(1, "green"), _lift(2, "blue"), _place(3, "can"), _place(4, "bread"))


def is_reached(task: Task, positions: Mapping[str, NDArray[np.float64]], touched: frozenset[str]) -> bool:
    """Return whether the goal of a task is reached.

    Args:
        task: The task.
        positions: Position (3,) of each object in m, world frame.
        touched: Names of the objects that a finger touches.
    """
    (item,) = task.targets
    return GOALS[task.kind](item, positions[item], item in touched)


def reached_tasks(positions: Mapping[str, NDArray[np.float64]], touched: frozenset[str]) -> tuple[str, ...]:
    """Return the names of all tasks of the suite whose goal is reached. See :func:`is_reached` for the arguments."""
    return tuple(task.name for task in TASKS if is_reached(task, positions, touched))
