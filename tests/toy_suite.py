"""A suite of worlds without physics, for tests of evaluation. It has the real one's two functions."""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2distill_policy.contract import Contract
from m2distill_policy.errors import SimulationError
from m2distill_policy.observation import Observation
from m2distill_policy.sim.env import SimEnv, Task
from tests.bundles import INSTRUCTIONS, toy_contract

TASKS = tuple(
    Task("toy", i, text.replace(" ", "_"), text, 12, "lift", (text.split(" ")[2] + "_box",))
    for i, text in enumerate(INSTRUCTIONS)
)


class ToyEnv:
    """Succeeds after a number of steps drawn from the seed and the actions; misbehaves as the environment tells it."""

    def __init__(self, task: Task, size: int) -> None:
        self.task = task
        self.contract: Contract = toy_contract(size)
        self._sum, self._steps, self._needed = 0.0, 0, 0
        self._rng = np.random.default_rng(0)

    def reset(self, seed: int) -> Observation:
        self._rng = np.random.default_rng(seed)
        self._needed = int(self._rng.integers(4, 16))
        self._sum, self._steps = 0.0, 0
        problem, where = os.environ.get("TOY_TROUBLE", ":").split(":")
        if where and seed % 5 == int(where):
            if problem == "raise":
                raise ValueError("the toy broke")
            if problem == "die":
                os._exit(9)
            if problem == "hang":
                time.sleep(3600)
        return self._observe()

    def reset_to(self, state: NDArray[np.float64]) -> Observation:
        raise NotImplementedError

    def step(self, action: NDArray[np.floating[Any]]) -> Observation:
        self._sum += float(np.sum(action))
        self._steps += 1
        return self._observe()

    def step_twist(self, twist: NDArray[np.floating[Any]], gripper: float) -> Observation:
        raise NotImplementedError

    def success(self) -> bool:
        return self._steps >= self._needed

    def achieved(self) -> tuple[str, ...]:
        return (self.task.name,) if self.success() else ()

    def lifted(self) -> tuple[str, ...]:
        return self.task.targets if self.success() else ()

    def state(self) -> NDArray[np.float64]:
        return np.array([self._sum])

    def end_effector(self) -> NDArray[np.float64]:
        return np.zeros(6)

    def model_xml(self) -> str:
        return ""

    def render(self, camera: str, height: int, width: int) -> NDArray[np.uint8]:
        return np.full((height, width, 3), self._steps, dtype=np.uint8)

    def close(self) -> None:
        print("noise on stdout, which must not reach the answers")

    def _observe(self) -> Observation:
        images = {c.name: self._rng.integers(0, 256, c.shape, dtype=np.uint8) for c in self.contract.cameras}
        # What the policy did shows in what is seen next, so that two runs agree only if their actions do.
        joints = np.full(7, np.tanh(self._sum), dtype=np.float32)
        readings = {"joint_states": joints, "gripper_states": np.zeros(2, dtype=np.float32)}
        return Observation(images, readings, self._steps * self.contract.period)


def suite_tasks(name: str) -> tuple[Task, ...]:
    if name != "toy":
        raise SimulationError(f"suite '{name}' is not known; allowed is toy")
    return TASKS


def make_sim_env(task: Task, *, size: int = 32, visuals: str = "fast") -> SimEnv:
    if visuals == "broken":
        raise SimulationError("the toy's scene cannot be made; look for its parts")
    return ToyEnv(task, size)
