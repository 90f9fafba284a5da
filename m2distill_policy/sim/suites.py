"""Suites of tasks by name: their contracts, tasks, environments and scripted experts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from m2distill_policy.contract import Contract, libero_contract
from m2distill_policy.errors import SimulationError, closest
from m2distill_policy.sim.blas_threads import use_one_thread
from m2distill_policy.sim.env import Task

if TYPE_CHECKING:
    from m2distill_policy.sim.arm_env import ArmEnv
    from m2distill_policy.sim.experts.episode import Expert

#: All suites. LIBERO's suites need LIBERO's package and scenes, see :mod:`m2distill_policy.sim.libero`.
SUITES = ("tabletop", "libero_spatial", "libero_object", "libero_goal", "libero_10")
#: The suites whose tasks have a scripted expert.
SUITES_WITH_EXPERTS = ("tabletop", "libero_spatial", "libero_object", "libero_goal")


def suite_contract(name: str, size: int) -> Contract:
    """Return the contract of the environments of a suite, without making an environment.

    Args:
        name: Name of the suite.
        size: Height and width of the views in pixels.
    """
    if name == "tabletop":
        from m2distill_policy.sim.tabletop import scene

        return libero_contract(size, fov_agentview=scene.AGENTVIEW_FOV, fov_hand=scene.HAND_FOV)
    return libero_contract(size)


def suite_tasks(name: str) -> tuple[Task, ...]:
    """Return the tasks of suite ``name`` in order.

    Raises:
        SimulationError: There is no such suite, or its tasks cannot be read.
    """
    if name == "tabletop":
        from m2distill_policy.sim.tabletop.tasks import TASKS

        return TASKS
    if name in SUITES:
        from m2distill_policy.sim.libero.files import libero_tasks

        return libero_tasks(name)
    raise SimulationError(f"there is no suite '{name}'; choose one of {', '.join(SUITES)}{closest(name, SUITES)}")


def suite_task(name: str, index: int) -> Task:
    """Return task ``index`` of suite ``name``.

    Raises:
        SimulationError: There is no such task.
    """
    tasks = suite_tasks(name)
    if not 0 <= index < len(tasks):
        raise SimulationError(f"suite '{name}' has tasks 0 to {len(tasks) - 1}; there is no task {index}")
    return tasks[index]


def make_sim_env(task: Task, *, size: int = 128, visuals: str = "fast") -> ArmEnv:
    """Make the environment of a task. Close it at the end.

    This takes about one second, and several seconds for LIBERO.

    Args:
        task: The task.
        size: Height and width of the views in pixels, 16 to 1024.
        visuals: Visual profile, ``fast`` or ``stock``, see :mod:`m2distill_policy.sim.visuals`.

    Raises:
        SimulationError: An argument is not allowed, or the scene cannot be built.
    """
    if not 16 <= size <= 1024:
        raise SimulationError(f"size is {size} pixels; allowed are 16 to 1024")
    use_one_thread()
    if task.suite == "tabletop":
        from m2distill_policy.sim.tabletop.env import TabletopEnv

        return TabletopEnv(task, size=size, visuals=visuals)
    if task.suite in SUITES:
        from m2distill_policy.sim.libero.env import LiberoEnv

        return LiberoEnv(task, size=size, visuals=visuals)
    raise SimulationError(
        f"task '{task.name}' is of suite '{task.suite}', which does not exist; choose one of "
        f"{', '.join(SUITES)}{closest(task.suite, SUITES)}"
    )


def make_expert(env: ArmEnv, seed: int) -> Expert:
    """Make the scripted expert of an environment that was just reset.

    Args:
        env: The environment.
        seed: Seed of the expert's motion style.

    Raises:
        SimulationError: There is no expert for the task.
    """
    from m2distill_policy.sim.tabletop.env import TabletopEnv

    if isinstance(env, TabletopEnv):
        from m2distill_policy.sim.tabletop.expert import TabletopExpert

        return TabletopExpert(env)
    from m2distill_policy.sim.libero.env import LiberoEnv

    if isinstance(env, LiberoEnv):
        from m2distill_policy.sim.libero.expert import LiberoExpert

        return LiberoExpert(env, seed)
    raise SimulationError(
        f"suite '{env.task.suite}' has no scripted experts; choose one of {', '.join(SUITES_WITH_EXPERTS)}"
    )
