"""Suites of tasks by name, and the world of a task."""

from __future__ import annotations

from typing import TYPE_CHECKING

from m2distill_policy.contract import Contract, libero_contract
from m2distill_policy.errors import SimulationError, closest
from m2distill_policy.sim.algebra import use_one_thread
from m2distill_policy.sim.env import Task

if TYPE_CHECKING:
    from m2distill_policy.sim.arm_env import ArmEnv
    from m2distill_policy.sim.experts.episode import Expert

#: Every suite that is known. LIBERO's need its package and its scenes; see :mod:`m2distill_policy.sim.libero`.
SUITES = ("tabletop", "libero_spatial", "libero_object", "libero_goal", "libero_10")
#: The suites whose tasks a scripted expert can demonstrate.
SUITES_WITH_EXPERTS = ("tabletop", "libero_spatial", "libero_object", "libero_goal")


def suite_contract(name: str, size: int) -> Contract:
    """The contract of every world of suite ``name`` with views of ``size`` x ``size`` pixels; no world is made."""
    if name == "tabletop":
        from m2distill_policy.sim.tabletop import scene

        return libero_contract(size, fov_agentview=scene.AGENTVIEW_FOV, fov_hand=scene.HAND_FOV)
    return libero_contract(size)


def suite_tasks(name: str) -> tuple[Task, ...]:
    """The tasks of suite ``name`` in order. :class:`SimulationError` for one that is unknown or cannot be read."""
    if name == "tabletop":
        from m2distill_policy.sim.tabletop.tasks import TASKS

        return TASKS
    if name in SUITES:
        from m2distill_policy.sim.libero.files import libero_tasks

        return libero_tasks(name)
    raise SimulationError(f"suite '{name}' is not known; allowed are {', '.join(SUITES)}{closest(name, SUITES)}")


def suite_task(name: str, index: int) -> Task:
    """Task ``index`` of suite ``name``; raises :class:`SimulationError` where there is none."""
    tasks = suite_tasks(name)
    if not 0 <= index < len(tasks):
        raise SimulationError(f"suite '{name}' has tasks 0 to {len(tasks) - 1}; there is no task {index}")
    return tasks[index]


def make_sim_env(task: Task, *, size: int = 128, visuals: str = "fast") -> ArmEnv:
    """A world of ``task``, its views ``size`` x ``size`` pixels, drawn with profile ``visuals`` (``fast``, ``stock``).

    Building one takes about a second (LIBERO: several); close it when done. One process holds one world at a time.
    """
    if not 16 <= size <= 1024:
        raise SimulationError(f"views of {size} x {size} pixels were asked for; allowed are 16 to 1024")
    use_one_thread()
    if task.suite == "tabletop":
        from m2distill_policy.sim.tabletop.env import TabletopEnv

        return TabletopEnv(task, size=size, visuals=visuals)
    if task.suite in SUITES:
        from m2distill_policy.sim.libero.env import LiberoEnv

        return LiberoEnv(task, size=size, visuals=visuals)
    raise SimulationError(
        f"suite '{task.suite}' of task '{task.name}' is not known; "
        f"allowed are {', '.join(SUITES)}{closest(task.suite, SUITES)}"
    )


def make_expert(env: ArmEnv, seed: int) -> Expert:
    """The scripted expert of ``world.task``, from the state that ``world`` was just reset to; ``seed``: its manner.

    :class:`SimulationError` for a task that no expert knows.
    """
    from m2distill_policy.sim.tabletop.env import TabletopEnv

    if isinstance(env, TabletopEnv):
        from m2distill_policy.sim.tabletop.expert import TabletopExpert

        return TabletopExpert(env)
    from m2distill_policy.sim.libero.env import LiberoEnv

    if isinstance(env, LiberoEnv):
        from m2distill_policy.sim.libero.expert import LiberoExpert

        return LiberoExpert(env, seed)
    raise SimulationError(f"no expert knows worlds of suite '{env.task.suite}'")
