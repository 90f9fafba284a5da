"""The demonstrations of several tasks, learned from at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.data.task_data import TaskData, WindowBatch, concatenate


@dataclass(frozen=True)
class JointData:
    """Several tasks' demonstrations where a stage expects one's. A window is of one task, and every demonstrated step
    is as likely as any other, whichever task it is of."""

    parts: tuple[TaskData, ...]

    @property
    def name(self) -> str:
        """For messages and progress bars."""
        return f"all {len(self.parts)} tasks"

    @property
    def tasks(self) -> int:
        """How many tasks they are of."""
        return len(self.parts)

    @property
    def steps(self) -> int:
        """How many steps all episodes of all tasks have together."""
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
