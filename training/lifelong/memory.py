"""The replay buffer: demonstrations of old tasks, instructions of old tasks, both, or neither."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from m2distill_policy.config_keys import require_ranges, setting
from m2distill_policy.errors import ConfigError
from m2distill_policy.options import MANY
from training.data.out_of_distribution import perturb_single_steps
from training.data.task_data import TaskData, WindowBatch, concatenate

#: Largest number of windows of each kind in a batch.
LARGEST_BATCH = 65_536


@dataclass(frozen=True)
class MemoryConfig:
    """The replay buffer: which demonstrations and instructions of old tasks it keeps, and their share of a batch."""

    episodes: int = setting(
        0, "Demonstrations kept of each old task, sampled by the seed.", unit="demonstrations", low=0, high=MANY
    )
    windows: int = setting(
        0,
        "LIBERO's rule, instead of memory.episodes: keep this many windows from the start of a task's file (LIBERO: "
        "1000).",
        unit="windows",
        low=0,
        high=100 * MANY,
    )
    replay_batch: int = setting(
        16, "Windows of kept demonstrations in every batch.", unit="windows", low=0, high=LARGEST_BATCH
    )
    instructions: bool = setting(
        False,
        "Keep the instructions of old tasks. Every batch then also has windows of the new task that are paired with "
        "the instruction of an old task.",
    )
    instruction_batch: int = setting(
        16,
        "Windows of the new task with the instruction of an old task in every batch.",
        unit="windows",
        low=0,
        high=LARGEST_BATCH,
    )
    out_of_distribution: float = setting(
        0.0,
        "Share of the single steps with an old instruction that are augmented: their colour channels are exchanged, "
        "and noise is added to their proprioception. Needs optim.single_steps above 0.",
    )
    out_of_distribution_noise: float = setting(
        0.3,
        "Standard deviation of the noise of memory.out_of_distribution. The unit is the standard deviation of each "
        "number of the proprioception over the single steps of the batch.",
        low=0,
        high=100.0,
    )

    def __post_init__(self) -> None:
        require_ranges(self, "memory.")
        if not 0 <= self.out_of_distribution <= 1:
            raise ConfigError(f"memory.out_of_distribution is {self.out_of_distribution}; it is a share, 0 to 1")
        if self.episodes and self.windows:
            raise ConfigError(
                f"memory.episodes is {self.episodes} and memory.windows {self.windows}; only one of the two "
                "rules can be used: set the other to 0"
            )
        if self.demonstrations and not self.replay_batch:
            kept = "episodes" if self.episodes else "windows"
            raise ConfigError(f"memory.{kept} keeps demonstrations but memory.replay_batch is 0; set both or neither")
        if self.instructions and not self.instruction_batch:
            raise ConfigError("memory.instructions is on but memory.instruction_batch is 0; set both or neither")

    @property
    def demonstrations(self) -> bool:
        """Whether demonstrations are kept, by ``episodes`` or by ``windows``."""
        return bool(self.episodes or self.windows)


@dataclass
class Memory:
    """The replay buffer of a run. Its lists are in the order in which the tasks were learned.

    Attributes:
        config: Settings of the replay buffer.
        embeddings: Embedding (text size,) of the instruction of each old task.
        exemplars: Kept demonstrations of each old task; empty if no demonstrations are kept.
    """

    config: MemoryConfig
    embeddings: list[np.ndarray] = field(default_factory=list)
    exemplars: list[TaskData] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        """Memory size in bytes: exemplars, and embeddings of old instructions if they are used."""
        instructions = sum(e.nbytes for e in self.embeddings) if self.config.instructions else 0
        return instructions + sum(data.bytes for data in self.exemplars)

    def add(self, data: TaskData, rng: np.random.Generator) -> None:
        """Add a task that has been learned.

        Args:
            data: Demonstrations of the task.
            rng: Random number generator that samples ``memory.episodes`` of them, without replacement.

        Raises:
            ConfigError: There are fewer demonstrations than ``memory.episodes``.
        """
        self.embeddings.append(data.embedding)
        if self.config.episodes:
            if data.episodes < self.config.episodes:
                raise ConfigError(
                    f"memory.episodes is {self.config.episodes} but task '{data.name}' has {data.episodes} episodes"
                )
            chosen = np.sort(rng.choice(data.episodes, self.config.episodes, replace=False))
            self.exemplars.append(data.subset([int(e) for e in chosen]))
        elif self.config.windows:
            self.exemplars.append(data.first_steps(self.config.windows))

    def replay(self, rng: np.random.Generator, length: int, single_steps: float = 0.0) -> WindowBatch | None:
        """Sample windows of old tasks. Each old task is equally likely.

        Args:
            rng: Source of every random choice.
            length: Number of steps in a window.
            single_steps: Share of rows that are single steps, see :meth:`TaskData.windows`.

        Returns:
            ``memory.replay_batch`` windows; None if no demonstrations are kept.
        """
        if not self.exemplars:
            return None
        counts = rng.multinomial(self.config.replay_batch, [1 / len(self.exemplars)] * len(self.exemplars))
        parts = [d.windows(rng, int(n), length, single_steps) for d, n in zip(self.exemplars, counts, strict=True) if n]
        return concatenate(parts)

    def with_old_instructions(self, new: WindowBatch, rng: np.random.Generator) -> WindowBatch | None:
        """Pair observations of the new task with instructions of old tasks.

        If ``memory.out_of_distribution`` is above 0, single steps are augmented (:func:`perturb_single_steps`).

        Args:
            new: Windows of the new task.
            rng: Source of every random choice.

        Returns:
            ``memory.instruction_batch`` windows; None if instructions are not kept or there is no old task.
        """
        if not (self.config.instructions and self.embeddings):
            return None
        rows = rng.integers(0, len(new), size=self.config.instruction_batch)
        chosen = rng.integers(0, len(self.embeddings), size=self.config.instruction_batch)
        batch = WindowBatch(
            images={name: frames[rows] for name, frames in new.images.items()},
            proprioception={name: values[rows] for name, values in new.proprioception.items()},
            actions=new.actions[rows],
            valid=new.valid[rows],
            embedding=np.stack([self.embeddings[t] for t in chosen]),
            single_steps=new.single_steps[rows],
        )
        return (
            perturb_single_steps(batch, rng, self.config.out_of_distribution, self.config.out_of_distribution_noise)
            if self.config.out_of_distribution
            else batch
        )

    def save(self, folder: Path) -> None:
        """Write the exemplars that are not yet in ``folder``."""
        folder.mkdir(parents=True, exist_ok=True)
        for index, data in enumerate(self.exemplars):
            path = folder / f"exemplars_{index}.safetensors"
            if not path.exists():
                data.save(path)
