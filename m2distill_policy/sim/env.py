"""Tasks, and the interface of a simulated environment that collection, evaluation and the simulated robot use.

:mod:`m2distill_policy.sim.gym_env` gives the same environments gymnasium's interface.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from m2distill_policy.contract import Contract
from m2distill_policy.observation import Observation

#: Used instead of a suite's name for tasks that come from demonstration files alone.
FILES = "files"


@dataclass(frozen=True)
class Task:
    """One task of a suite.

    Attributes:
        suite: Name of the suite, such as ``tabletop``.
        index: Index of the task in its suite, from 0.
        name: Identifier that is safe in a file name, such as ``lift_the_red_box``.
        instruction: Instruction for the policy, such as ``lift the red box``.
        horizon: Control steps after which a rollout has failed.
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
        """Whether there is a simulated environment for the task. Demonstration files alone have none."""
        return self.suite != FILES

    def __post_init__(self) -> None:
        object.__setattr__(self, "targets", tuple(self.targets))  # JSON gives a list


class SimEnv(Protocol):
    """A simulated scene with one task.

    Not thread-safe. A step is one control period of the contract, 1 / ``contract.rate_hz`` s.

    Attributes:
        task: The task.
        contract: The contract of its observations and actions.
    """

    task: Task
    contract: Contract

    def reset(self, seed: int) -> Observation:
        """Sample an initial state from ``seed`` alone and return the first observation (stamp 0.0)."""

    def reset_to(self, state: NDArray[np.float64]) -> Observation:
        """Return to a flattened MuJoCo state, such as the first state of a demonstration."""

    def step(self, action: NDArray[np.floating[Any]]) -> Observation:
        """Move one step. ``action`` (7,) is a set-point delta in [-1, 1], see :mod:`m2distill_policy.contract`."""

    def step_twist(self, twist: NDArray[np.floating[Any]], gripper: float) -> Observation:
        """Move one step with a velocity: ``twist`` (6,) in m/s and rad/s, base frame; ``gripper`` -1 to 1."""

    def success(self) -> bool:
        """Return whether the task is done now."""

    def achieved(self) -> tuple[str, ...]:
        """Return the names of the suite's tasks whose goal was reached since the reset, including other tasks."""

    def lifted(self) -> tuple[str, ...]:
        """Return the names of the objects that were raised by 4 cm or more since the reset, in that order.

        If an object that is not in ``task.targets`` was lifted, the rollout counts for the wrong-object rate.
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
