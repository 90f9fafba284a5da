"""The world interface: what a suite gives to collection, evaluation and the simulated robot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from m2distill_policy.contract import Contract
from m2distill_policy.observation import Observation

#: In place of a suite's name: one's own demonstration files.
FILES = "files"


@dataclass(frozen=True)
class Task:
    """One task of a suite.

    suite, index: where it is found (``tabletop``, 0..).
    name: a file-name-safe identifier, ``lift_the_red_box``.
    instruction: the words given to the policy, ``lift the red box``.
    horizon: control steps after which a rollout has failed.
    kind: ``lift`` or ``place``; how a tabletop task is judged and done. Empty in suites that judge by themselves.
    targets: the objects that the instruction is about, as :meth:`SimEnv.lifted` names them; empty where not known.
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
        """Whether a policy can be rolled out in it: one's own recordings come without a simulated world."""
        return self.suite != FILES

    def __post_init__(self) -> None:
        object.__setattr__(self, "targets", tuple(self.targets))  # JSON gives a list


class SimEnv(Protocol):
    """One simulated scene with one task. Not thread-safe; one process holds one world at a time."""

    task: Task
    contract: Contract

    def reset(self, seed: int) -> Observation:
        """Draw a fresh initial state from ``seed`` alone and return the first observation (stamp 0.0)."""

    def reset_to(self, state: NDArray[np.float64]) -> Observation:
        """Return to a flattened MuJoCo state (LIBERO's initial states, a demonstration's first state)."""

    def step(self, action: NDArray[np.floating[Any]]) -> Observation:
        """One control period (1 / contract.rate_hz s) under the ``osc`` drive: ``action`` (7,) is a set-point delta."""

    def step_twist(self, twist: NDArray[np.floating[Any]], gripper: float) -> Observation:
        """One control period under the ``velocity`` drive: the arm follows ``twist`` (6,), m/s, rad/s, base frame."""

    def success(self) -> bool:
        """Whether this world's task is done now."""

    def achieved(self) -> tuple[str, ...]:
        """Names of the suite's tasks whose goal has been reached since reset: this one's, and others' by mistake."""

    def lifted(self) -> tuple[str, ...]:
        """Names of the objects that were raised by 4 cm or more since reset, in the order it happened.

        A rollout in which an object not of ``task.targets`` is here counts towards the wrong-object rate.
        """

    def state(self) -> NDArray[np.float64]:
        """The flattened MuJoCo state, for :meth:`reset_to` and demonstration files."""

    def end_effector(self) -> NDArray[np.float64]:
        """Pose (6,): position in m and rotation vector in rad, base frame."""

    def model_xml(self) -> str:
        """The MJCF of the scene, for demonstration files."""

    def render(self, camera: str, height: int, width: int) -> NDArray[np.uint8]:
        """An upright RGB picture (height, width, 3) for films and reports."""

    def close(self) -> None:
        """Free the renderer."""
