"""Add a task to the tabletop suite: raise an object to twice the usual height.

A task of a new kind needs three entries in two files. This script makes the same entries at run time:

- ``TASKS`` in ``m2distill_policy/sim/tabletop/tasks.py``: the task.
- ``GOALS`` in the same file: the test whether the goal of this kind of task is reached.
- ``SKILLS`` in ``m2distill_policy/sim/tabletop/expert.py``: how this kind of task is demonstrated.

A task of an existing kind (``lift``, ``place``) only needs the entry in ``TASKS``. Run the example with
``python -m examples.add_a_task``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from m2distill_policy.sim.env import Task
from m2distill_policy.sim.gym_env import make_env
from m2distill_policy.sim.record import record_episode
from m2distill_policy.sim.suites import make_sim_env
from m2distill_policy.sim.tabletop.expert import SKILLS
from m2distill_policy.sim.tabletop.scene import OBJECTS, TABLE_TOP
from m2distill_policy.sim.tabletop.tasks import GOALS, SUITE, TASKS

HEIGHT = 0.08  # m above the object's rest position
REST = {item.name: TABLE_TOP + item.rest for item in OBJECTS}

TASK = Task(
    suite=SUITE,
    index=len(TASKS),
    name="lift_the_red_box_high",
    instruction="lift the red box high",
    horizon=120,
    kind="lift_high",
    targets=("red_box",),
)


def is_lifted_high(name: str, position: NDArray[np.float64], touched: bool) -> bool:
    """Return whether the object is high enough and still in the gripper."""
    return bool(touched and position[2] >= REST[name] + HEIGHT)


def lift_high(grip: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """Return the target of the hand, 5 cm above its present position, and the gripper command: closed."""
    return grip + np.array([0.0, 0.0, 0.05]), 1.0


def main() -> None:
    """Add the task, demonstrate it, and repeat the demonstration through gymnasium's interface."""
    GOALS[TASK.kind] = is_lifted_high
    SKILLS[TASK.kind] = lift_high

    sim_env = make_sim_env(TASK, size=64)
    recording = record_episode(sim_env, seed=1, noise=0.0)
    sim_env.close()
    if recording is None:
        raise SystemExit("the expert failed")
    print(f"demonstrated '{TASK.instruction}' in {len(recording.episode)} steps")

    env = make_env(SUITE, task=TASK, size=64)
    _, info = env.reset(seed=1)
    total = 0.0
    for action in recording.episode.actions:
        _, reward, terminated, truncated, info = env.step(action)
        total += float(reward)
        if terminated or truncated:
            break
    env.close()
    print(f"repeated: reward {total:g}, success {info['is_success']}, lifted {', '.join(info['lifted'])}")


if __name__ == "__main__":
    main()
