"""The demonstrations of one task as flat arrays, and windows sampled from them."""

from __future__ import annotations

import dataclasses
import hashlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from m2distill_policy.contract import Contract
from m2distill_policy.demonstrations import DemonstrationFile, Episode
from m2distill_policy.errors import DemonstrationError, TrainingError
from m2distill_policy.storage import whole_file


@dataclass(frozen=True)
class WindowBatch:
    """A batch of B windows of L steps.

    Attributes:
        images: View -> frames (B, L, H, W, 3), uint8.
        proprioception: Group -> values (B, L, n), float32.
        actions: Actions (B, L, A), float32.
        valid: (B, L) bool: False for the steps of a window beyond the end of a short episode.
        embedding: Embeddings of the instructions (B, text size), float32.
        single_steps: (B,) bool: True if a row is not a window but L unrelated steps, each read without history.
    """

    images: dict[str, NDArray[np.uint8]]
    proprioception: dict[str, NDArray[np.float32]]
    actions: NDArray[np.float32]
    valid: NDArray[np.bool_]
    embedding: NDArray[np.float32]
    single_steps: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.actions)

    def take(self, rows: NDArray[np.int64]) -> WindowBatch:
        """Return the batch of ``rows``, in this order."""
        return WindowBatch(
            images={name: frames[rows] for name, frames in self.images.items()},
            proprioception={name: values[rows] for name, values in self.proprioception.items()},
            actions=self.actions[rows],
            valid=self.valid[rows],
            embedding=self.embedding[rows],
            single_steps=self.single_steps[rows],
        )


def concatenate(parts: list[WindowBatch]) -> WindowBatch:
    """Return the rows of several batches as one batch."""
    return WindowBatch(
        images={n: np.concatenate([p.images[n] for p in parts]) for n in parts[0].images},
        proprioception={n: np.concatenate([p.proprioception[n] for p in parts]) for n in parts[0].proprioception},
        actions=np.concatenate([p.actions for p in parts]),
        valid=np.concatenate([p.valid for p in parts]),
        embedding=np.concatenate([p.embedding for p in parts]),
        single_steps=np.concatenate([p.single_steps for p in parts]),
    )


class Demonstrated(Protocol):
    """The demonstrations of a stage: those of one task, or of several tasks together."""

    @property
    def name(self) -> str:
        """The name in messages and progress bars."""

    @property
    def tasks(self) -> int:
        """The number of tasks."""

    @property
    def steps(self) -> int:
        """The number of demonstrated steps."""

    @property
    def proprioception(self) -> dict[str, NDArray[np.float32]]:
        """Proprioception: group -> (steps, n)."""

    def windows(self, rng: np.random.Generator, count: int, length: int, single_steps: float = 0.0) -> WindowBatch:
        """Sample windows, see :meth:`TaskData.windows`."""


@dataclass(frozen=True)
class TaskData:
    """All steps of all episodes of one task, concatenated.

    Attributes:
        name: Name of the task.
        instruction: Instruction of the task.
        images: View -> frames (N, H, W, 3), uint8, upright.
        proprioception: Group -> values (N, n), float32.
        actions: Actions (N, A), float32.
        lengths: Number of steps of each episode (episodes,), int64; their sum is N.
        embedding: Embedding (text size,) of the instruction, float32.
    """

    name: str
    instruction: str
    images: dict[str, NDArray[np.uint8]]
    proprioception: dict[str, NDArray[np.float32]]
    actions: NDArray[np.float32]
    lengths: NDArray[np.int64]
    embedding: NDArray[np.float32]

    def __post_init__(self) -> None:
        if len(self.lengths) == 0:
            raise TrainingError(f"task '{self.name}' has no episodes; collect demonstrations with 'm2distill demos'")

    @property
    def tasks(self) -> int:
        """The number of tasks, which is 1."""
        return 1

    @property
    def episodes(self) -> int:
        """The number of episodes."""
        return len(self.lengths)

    @property
    def steps(self) -> int:
        """The number of steps in all episodes."""
        return int(self.lengths.sum())

    @property
    def bytes(self) -> int:
        """The memory size of images, proprioception, actions and the embedding, in bytes."""
        arrays: list[NDArray[Any]] = [
            *self.images.values(),
            *self.proprioception.values(),
            self.actions,
            self.embedding,
        ]
        return sum(a.nbytes for a in arrays)

    def windows(self, rng: np.random.Generator, count: int, length: int, single_steps: float = 0.0) -> WindowBatch:
        """Sample windows.

        One step is sampled uniformly over all steps, and the window ends there. If there are too few steps before it in
        its episode, the window starts at the episode's first step instead. Early steps are therefore learned with as
        little history as they have when the policy runs.

        Args:
            rng: Source of every random choice.
            count: Number of windows.
            length: Number of steps in a window.
            single_steps: Probability that a row holds unrelated steps instead of a window. Each of these steps is
                sampled uniformly.
        """
        starts_of_episodes = np.concatenate([[0], np.cumsum(self.lengths)[:-1]])
        newest = rng.integers(0, self.steps, size=count)
        episode = np.searchsorted(starts_of_episodes, newest, side="right") - 1
        within = newest - starts_of_episodes[episode]
        last_start = np.maximum(self.lengths[episode] - length, 0)
        start = np.clip(within - (length - 1), 0, last_start)
        offsets = start[:, None] + np.arange(length)[None, :]
        valid = offsets < self.lengths[episode][:, None]
        index = starts_of_episodes[episode][:, None] + np.minimum(offsets, self.lengths[episode][:, None] - 1)
        chosen = rng.random(count) < single_steps if single_steps > 0 else np.zeros(count, dtype=np.bool_)
        index[chosen] = rng.integers(0, self.steps, size=(int(chosen.sum()), length))
        valid[chosen] = True
        return WindowBatch(
            images={name: frames[index] for name, frames in self.images.items()},
            proprioception={name: values[index] for name, values in self.proprioception.items()},
            actions=self.actions[index],
            valid=valid,
            embedding=np.broadcast_to(self.embedding, (count, len(self.embedding))).copy(),
            single_steps=chosen,
        )

    def subset(self, episodes: Sequence[int]) -> TaskData:
        """Return a copy with only the given episodes, in the given order."""
        starts = np.concatenate([[0], np.cumsum(self.lengths)[:-1]])
        index = np.concatenate([np.arange(starts[e], starts[e] + self.lengths[e]) for e in episodes])
        return TaskData(
            name=self.name,
            instruction=self.instruction,
            images={name: frames[index] for name, frames in self.images.items()},
            proprioception={name: values[index] for name, values in self.proprioception.items()},
            actions=self.actions[index],
            lengths=self.lengths[list(episodes)],
            embedding=self.embedding,
        )

    def first_steps(self, count: int) -> TaskData:
        """Return a copy with the first ``count`` steps only; the last episode may be cut short."""
        ends = np.minimum(np.cumsum(self.lengths), count)
        lengths = np.diff(ends, prepend=0)
        kept = int(ends[-1])
        return TaskData(
            name=self.name,
            instruction=self.instruction,
            images={name: frames[:kept].copy() for name, frames in self.images.items()},
            proprioception={name: values[:kept].copy() for name, values in self.proprioception.items()},
            actions=self.actions[:kept].copy(),
            lengths=lengths[lengths > 0],
            embedding=self.embedding,
        )

    def on_disk(self, folder: Path) -> TaskData:
        """Return a copy whose images are memory-mapped from temporary files in ``folder``.

        The files have no name, so they disappear when the process ends, however it ends.

        Raises:
            TrainingError: The files cannot be written, such as when the disk is full.
        """
        images: dict[str, NDArray[np.uint8]] = {}
        try:
            for name, frames in self.images.items():
                with tempfile.TemporaryFile(dir=folder) as file:
                    file.write(
                        np.ascontiguousarray(frames).data
                    )  # not written through the map, because write() reports a full disk and a map crashes
                    file.flush()
                    images[name] = np.memmap(file, dtype=np.uint8, mode="r", shape=frames.shape)
        except OSError as error:
            raise TrainingError(
                f"the images of '{self.name}' ({self.bytes / 2**20:.0f} MiB) cannot be written to {folder}: {error}; "
                "free disk space there, then continue with --resume"
            ) from error
        return dataclasses.replace(self, images=images)

    def content_hash(self) -> str:
        """Return the sha256 of every array, the instruction and the lengths of the episodes."""
        digest = hashlib.sha256(self.instruction.encode())
        named: list[tuple[str, NDArray[Any]]] = [
            *sorted(self.images.items()),
            *sorted(self.proprioception.items()),
            ("actions", self.actions),
            ("lengths", self.lengths),
            ("embedding", self.embedding),
        ]
        for name, array in named:
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def save(self, path: Path) -> None:
        """Write a safetensors file; a reader sees the whole file or none."""
        tensors: dict[str, NDArray[Any]] = {f"images.{k}": v for k, v in self.images.items()}
        tensors |= {f"proprioception.{k}": v for k, v in self.proprioception.items()}
        tensors |= {"actions": self.actions, "lengths": self.lengths, "embedding": self.embedding}
        with whole_file(path) as temporary:
            save_file(tensors, temporary, metadata={"name": self.name, "instruction": self.instruction})

    @staticmethod
    def load(path: Path, name: str, instruction: str) -> TaskData:
        """Read a file that :meth:`save` wrote.

        Raises:
            TrainingError: The file cannot be read.
        """
        try:
            tensors = load_file(path)
        except Exception as error:  # a damaged file raises SafetensorError or one of several other errors
            raise TrainingError(
                f"memory file {path} cannot be read ({error}); restore it, or start a new run"
            ) from error
        part = {
            p: {k.split(".", 1)[1]: v for k, v in tensors.items() if k.startswith(p + ".")}
            for p in ("images", "proprioception")
        }
        return TaskData(
            name,
            instruction,
            part["images"],
            part["proprioception"],
            tensors["actions"],
            tensors["lengths"],
            tensors["embedding"],
        )


def from_episodes(
    name: str, instruction: str, episodes: Sequence[Episode], embedding: NDArray[np.float32], contract: Contract
) -> TaskData:
    """Make the data of a task from its episodes, with the views and proprioception groups that the contract names.

    Raises:
        DemonstrationError: There are no episodes.
    """
    if not episodes:
        raise DemonstrationError(f"task '{name}' has no episodes; collect demonstrations with 'm2distill demos'")
    return TaskData(
        name=name,
        instruction=instruction,
        images={c: np.concatenate([e.images[c] for e in episodes]) for c in contract.camera_names},
        proprioception={
            g: np.concatenate([e.proprioception[g] for e in episodes]).astype(np.float32)
            for g in contract.proprioception_names
        },
        actions=np.concatenate([e.actions for e in episodes]).astype(np.float32),
        lengths=np.array([len(e.actions) for e in episodes], dtype=np.int64),
        embedding=embedding.astype(np.float32),
    )


def check_file(file: DemonstrationFile, instruction: str, contract: Contract, limit: int | None) -> None:
    """Check that a demonstration file fits a run.

    Args:
        file: File to check.
        instruction: Instruction of the task.
        contract: Contract of the run.
        limit: Number of episodes that the run uses; None: all episodes of the file.

    Raises:
        DemonstrationError: The file has another contract or instruction, too few episodes, or no episode longer than a
            window.
    """
    file.contract.require_same(
        contract, f"demonstrations {file.path}", "the run", ignore=("text", "action.response", "history")
    )
    if file.instruction.casefold() != instruction.casefold():
        raise DemonstrationError(
            f"{file.path} has the instruction '{file.instruction}' and the task is '{instruction}'; rename the file or "
            "correct its instruction"
        )
    if limit is not None and len(file) < limit:
        raise DemonstrationError(
            f"{file.path} has {len(file)} episodes and the configuration asks for {limit}; collect more, or set "
            f"episodes={len(file)}"
        )
    longest = max(file.lengths()[:limit], default=0)
    if longest <= contract.history:
        raise DemonstrationError(
            f"the longest episode of {file.path} has {longest} steps and a window has {contract.history}; record "
            f"demonstrations of at least {contract.history + 1} steps"
        )


def load_task(
    path: Path, instruction: str, embedding: NDArray[np.float32], contract: Contract, limit: int | None = None
) -> TaskData:
    """Read the demonstrations of a task.

    Args:
        path: Path of the demonstration file.
        instruction: Instruction of the task.
        embedding: Embedding of the instruction (text size,).
        contract: Contract of the run.
        limit: Number of episodes to read, counted from the first; None: all episodes.

    Raises:
        DemonstrationError: See :func:`check_file`.
    """
    file = DemonstrationFile(path)
    check_file(file, instruction, contract, limit)
    episodes = [file.episode(i) for i in range(len(file) if limit is None else limit)]
    return from_episodes(file.task_name, file.instruction, episodes, embedding, contract)
