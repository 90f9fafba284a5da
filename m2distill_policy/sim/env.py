"""Tasks, and the interface of simulated environments for collection, evaluation and the simulated robot.

:mod:`m2distill_policy.sim.gym_env` gives the same environments gymnasium's interface.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from m2distill_policy.contract import Contract
from m2distill_policy.observation import Observation

#: Name that replaces a suite's name for tasks that are known only from demonstration files.
FILES = "files"


@dataclass(frozen=True)
class Task:
    """One task of a suite.

    Attributes:
        suite: Name of the suite, such as ``tabletop``.
        index: Index of the task in its suite, from 0.
        name: Identifier that is safe in a file name, such as ``lift_the_red_box``.
        instruction: Instruction for the policy, such as ``lift the red box``.
        horizon: Number of control steps after which a rollout counts as failed.
        kind: Kind of a tabletop task, see :data:`m2distill_policy.sim.tabletop.tasks.GOALS`. Empty in other suites.
        targets: Names of the objects that the instruction is about, as in :meth:`SimEnv.lifted`. Empty if not known.
    """

    suite: str
    index: int
    name: str
    instruction: str
    horizon: int
    kind: str = ""
    targets: tuple[str, ...] = ()

    @property
    def has_env(self) -> bool:
        """Whether there is a simulated environment for the task. There is none if its suite is :data:`FILES`."""
        return self.suite != FILES

    def __post_init__(self) -> None:
        object.__setattr__(self, "targets", tuple(self.targets))  # targets read from JSON are a list


class SimEnv(Protocol):
    """A simulated scene with one task.

    Not thread-safe. A step is one control period of the contract, 1 / ``contract.rate_hz`` s.

    Attributes:
        task: The task.
        contract: The contract of the observations and actions.
    """

    task: Task
    contract: Contract

    def reset(self, seed: int) -> Observation:
        """Sample an initial state from ``seed`` alone and return the first observation (stamp 0.0)."""

    def reset_to(self, state: NDArray[np.float64]) -> Observation:
        """Set the scene to a flattened MuJoCo state, such as the first state of a demonstration."""

    def step(self, action: NDArray[np.floating[Any]]) -> Observation:
        """Run one step with the set-point delta ``action`` (7,), in [-1, 1], see :mod:`m2distill_policy.contract`."""

    def step_twist(self, twist: NDArray[np.floating[Any]], gripper: float) -> Observation:
        """Run one step with a velocity.

        Args:
            twist: Velocity (6,) in m/s and rad/s, base frame.
            gripper: Gripper command, -1 (open) to 1 (closed).
        """

    def success(self) -> bool:
        """Return whether the task is done now."""

    def achieved(self) -> tuple[str, ...]:
        """Return the names of all tasks of the suite whose goal was reached since the reset, not only of ``task``."""

    def lifted(self) -> tuple[str, ...]:
        """Return the names of the objects that were raised by 4 cm or more since the reset, in order of time.

        Evaluation uses them for the rate of wrong objects.
        """

    def state(self) -> NDArray[np.float64]:
        """Return the flattened MuJoCo state, for :meth:`reset_to` and demonstration files."""

    def end_effector(self) -> NDArray[np.float64]:
        """Return the end-effector pose (6,): position in m and rotation vector in rad, base frame."""

    def model_xml(self) -> str:
        """Return the MJCF of the scene, for demonstration files."""

    def render(self, camera: str, height: int, width: int) -> NDArray[np.uint8]:
        """Return an upright RGB image (height, width, 3) for videos and reports."""

    def close(self) -> None:
        """Free the renderer."""
