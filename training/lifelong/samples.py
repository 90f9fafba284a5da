"""What a stage puts aside of its demonstrations so that its run folder is enough later on; never learned from.

One demonstration, on which a bundle is checked before it is written, and eight windows, on which drift is measured.
With them a run can be exported, extended and reported where its demonstrations are not to be had any more.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from m2distill_policy.errors import TrainingError
from training.data.task_data import TaskData, WindowBatch

#: Windows on which drift is measured.
PROBES = 8
_EPISODE, _PROBES = "episode.safetensors", "probes.safetensors"


def put_aside(folder: Path, data: TaskData, rng: np.random.Generator, history: int) -> None:
    """Write the samples of ``data`` into a stage's folder: its first demonstration, and windows drawn by ``rng``."""
    data.subset([0]).save(folder / _EPISODE)
    batch = data.windows(rng, PROBES, history)
    tensors: dict[str, NDArray[np.generic]] = {f"images.{name}": frames for name, frames in batch.images.items()}
    tensors |= {f"proprioception.{name}": values for name, values in batch.proprioception.items()}
    tensors |= {name: getattr(batch, name) for name in ("actions", "valid", "embedding", "apart")}
    temporary = folder / f"{_PROBES}.tmp"
    save_file(tensors, temporary)
    temporary.replace(folder / _PROBES)


def have(folder: Path) -> bool:
    """Whether a stage's folder holds its samples; runs made before there were any do not."""
    return (folder / _EPISODE).exists() and (folder / _PROBES).exists()


def episode(folder: Path, name: str, instruction: str) -> TaskData:
    """The demonstration put aside."""
    return TaskData.load(folder / _EPISODE, name, instruction)


def probes(folder: Path) -> WindowBatch:
    """The windows put aside; raises :class:`TrainingError` where they cannot be read."""
    path = folder / _PROBES
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"{path} cannot be read ({error}); restore it, or leave drift out of the report") from error
    part = {
        kind: {k.split(".", 1)[1]: v for k, v in tensors.items() if k.startswith(f"{kind}.")}
        for kind in ("images", "proprioception")
    }
    return WindowBatch(
        part["images"],
        part["proprioception"],
        *(tensors[name] for name in ("actions", "valid", "embedding", "apart")),
    )
