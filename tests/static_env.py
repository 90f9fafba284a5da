"""An environment with random images that no command changes, with the interface that a simulated robot needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2distill_policy.contract import Contract
from m2distill_policy.observation import Observation
from m2distill_policy.sim.env import Task
from tests.bundles import INSTRUCTIONS, observations


class StaticEnv:
    """Returns different images for every seed and step.

    before_step: number of a step since the start, from 1 -> function to call before it.
    """

    def __init__(self, contract: Contract, horizon: int = 30) -> None:
        self.contract = contract
        self.task = Task("test", 0, "static", INSTRUCTIONS[0], horizon)
        self.before_step: dict[int, Callable[[], object]] = {}
        self.steps = 0
        self._at = 0
        self._seen = observations(contract, 40)

    def reset(self, seed: int) -> Observation:
        self._seen = observations(self.contract, 40, seed)
        self._at = 0
        return self._seen[0]

    def step(self, action: NDArray[np.floating[Any]]) -> Observation:
        self.steps += 1
        self._at += 1
        self.before_step.get(self.steps, lambda: None)()
        seen = self._seen[self._at % len(self._seen)]
        return Observation(seen.images, seen.proprioception, self._at * self.contract.period)

    def step_twist(self, twist: NDArray[np.floating[Any]], gripper: float) -> Observation:
        return self.step(twist)

    def success(self) -> bool:
        return False

    def achieved(self) -> tuple[str, ...]:
        return ()

    def lifted(self) -> tuple[str, ...]:
        return ()

    def end_effector(self) -> NDArray[np.float64]:
        return np.array([0.45, 0.02 * self._at, 0.3, 3.0, 0.1, -0.05])

    def reset_to(self, state: NDArray[np.float64]) -> Observation:
        raise NotImplementedError

    def state(self) -> NDArray[np.float64]:
        raise NotImplementedError

    def model_xml(self) -> str:
        raise NotImplementedError

    def render(self, camera: str, height: int, width: int) -> NDArray[np.uint8]:
        raise NotImplementedError

    def close(self) -> None:
        pass
