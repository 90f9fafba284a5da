"""What is kept of old tasks: a few demonstrations each, their instructions, or nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from m2distill_policy.errors import ConfigError
from m2distill_policy.options import MANY
from m2distill_policy.ranges import require_within
from training.data.task_data import TaskData, WindowBatch, concatenate
from training.data.widen import widen

#: Windows in one batch, of each kind.
LARGEST_BATCH = 65_536
_RANGES = {
    "episodes": (0, MANY),
    "windows": (0, 100 * MANY),
    "replay_batch": (0, LARGEST_BATCH),
    "instruction_batch": (0, LARGEST_BATCH),
    "widen_noise": (0, 100.0),
}


@dataclass(frozen=True)
class MemoryConfig:
    """episodes: demonstrations kept of each old task, drawn by the seed; replay_batch: windows of them in every batch.

    windows: in their place, LIBERO's own rule: the first so many windows of a task's file (there 1000), which are its
    first demonstrations up to so many steps in all.

    instructions: keep the old tasks' words and ask them of new observations; instruction_batch: so many windows.
    widen: share of the unrelated steps among those observations that are made unlike any demonstration before they
    are asked about (see :mod:`training.data.widen`); needs ``optim.apart``. widen_noise: how far their readings move.
    """

    episodes: int = 0
    windows: int = 0
    replay_batch: int = 16
    instructions: bool = False
    instruction_batch: int = 16
    widen: float = 0.0
    widen_noise: float = 0.3

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            require_within(f"memory.{name}", getattr(self, name), low, high)
        if not 0 <= self.widen <= 1:
            raise ConfigError(f"memory.widen is {self.widen}; it is a share, 0 to 1")
        if self.episodes and self.windows:
            raise ConfigError(
                f"memory.episodes is {self.episodes} and memory.windows {self.windows}: two rules for what is kept; "
                "set one of them to 0"
            )
        if self.demonstrations and not self.replay_batch:
            kept = "episodes" if self.episodes else "windows"
            raise ConfigError(f"memory.{kept} keeps demonstrations but memory.replay_batch is 0; set both or neither")
        if self.instructions and not self.instruction_batch:
            raise ConfigError("memory.instructions is on but memory.instruction_batch is 0; set both or neither")

    @property
    def demonstrations(self) -> bool:
        """Whether demonstrations are kept, by either rule."""
        return bool(self.episodes or self.windows)


@dataclass
class Memory:
    """The old tasks, oldest first. ``exemplars`` is as long as ``embeddings``, or empty when none are kept."""

    config: MemoryConfig
    embeddings: list[np.ndarray] = field(default_factory=list)
    exemplars: list[TaskData] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        """What is kept beyond the network: exemplars' arrays, and old instructions' embeddings where used."""
        words = sum(e.nbytes for e in self.embeddings) if self.config.instructions else 0
        return words + sum(data.bytes for data in self.exemplars)

    def add(self, data: TaskData, rng: np.random.Generator) -> None:
        """Keep of ``data`` what the configuration says; ``memory.episodes`` are drawn without replacement."""
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

    def replay(self, rng: np.random.Generator, length: int, apart: float = 0.0) -> WindowBatch | None:
        """Windows of old tasks, each old task equally likely; None where nothing is kept. ``apart``: see TaskData."""
        if not self.exemplars:
            return None
        counts = rng.multinomial(self.config.replay_batch, [1 / len(self.exemplars)] * len(self.exemplars))
        parts = [d.windows(rng, int(n), length, apart) for d, n in zip(self.exemplars, counts, strict=True) if n]
        return concatenate(parts)

    def ask_old(self, new: WindowBatch, rng: np.random.Generator) -> WindowBatch | None:
        """New observations, widened as configured, under old instructions; None where the words are not kept or there
        is no old task."""
        if not (self.config.instructions and self.embeddings):
            return None
        rows = rng.integers(0, len(new), size=self.config.instruction_batch)
        told = rng.integers(0, len(self.embeddings), size=self.config.instruction_batch)
        asked = WindowBatch(
            images={name: frames[rows] for name, frames in new.images.items()},
            proprioception={name: values[rows] for name, values in new.proprioception.items()},
            actions=new.actions[rows],
            valid=new.valid[rows],
            embedding=np.stack([self.embeddings[t] for t in told]),
            apart=new.apart[rows],
        )
        return widen(asked, rng, self.config.widen, self.config.widen_noise) if self.config.widen else asked

    def save(self, folder: Path) -> None:
        """Write the newest exemplars beside the older ones."""
        folder.mkdir(parents=True, exist_ok=True)
        for index, data in enumerate(self.exemplars):
            path = folder / f"exemplars_{index}.safetensors"
            if not path.exists():
                data.save(path)
