"""The tasks of the suite ``tabletop``, in the order in which they are learned."""

from __future__ import annotations

from m2distill_policy.sim.env import Task

SUITE = "tabletop"

#: An object counts as lifted, and a lift task as done, this far (m) above where it rests on the table.
LIFT_HEIGHT = 0.04


def _lift(index: int, color: str) -> Task:
    return Task(SUITE, index, f"lift_the_{color}_box", f"lift the {color} box", 90, "lift", (f"{color}_box",))


def _place(index: int, thing: str) -> Task:
    name = f"pick_up_the_{thing}_and_place_it_in_the_bin"
    return Task(SUITE, index, name, name.replace("_", " "), 160, "place", (thing,))


TASKS: tuple[Task, ...] = (_lift(0, "red"), _lift(1, "green"), _lift(2, "blue"), _place(3, "can"), _place(4, "bread"))
