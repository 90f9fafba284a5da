"""The demonstrations of several tasks that are learned jointly."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.data.task_data import TaskData, WindowBatch, concatenate


@dataclass(frozen=True)
class JointData:
    """The demonstrations of several tasks as one data set.

    All steps of a window come from the same task. All demonstrated steps of all tasks are equally likely.
    """

    parts: tuple[TaskData, ...]

    @property
    def name(self) -> str:
        """The name in messages and progress bars."""
        return f"all {len(self.parts)} tasks"

    @property
    def tasks(self) -> int:
        """The number of tasks."""
        return len(self.parts)

    @property
    def steps(self) -> int:
        """The number of steps in all episodes of all tasks."""
        return sum(data.steps for data in self.parts)

    @property
    def proprioception(self) -> dict[str, NDArray[np.float32]]:
        """Proprioception of all tasks, one after another: group -> (N, n)."""
        return {n: np.concatenate([d.proprioception[n] for d in self.parts]) for n in self.parts[0].proprioception}

    def windows(self, rng: np.random.Generator, count: int, length: int, single_steps: float = 0.0) -> WindowBatch:
        """Sample ``count`` windows, see :meth:`TaskData.windows`."""
        counts = rng.multinomial(count, [data.steps / self.steps for data in self.parts])
        return concatenate(
            [d.windows(rng, int(n), length, single_steps) for d, n in zip(self.parts, counts, strict=True) if n]
        )
