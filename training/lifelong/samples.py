"""Samples of a stage's demonstrations, saved in the run folder and not used for training.

The samples are one demonstration, on which a bundle is checked before it is written, and eight windows, on which drift
is measured. With them a run can be exported, extended and reported when its demonstrations are no longer available.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from m2distill_policy.errors import TrainingError
from m2distill_policy.storage import whole_file
from training.data.task_data import TaskData, WindowBatch
from training.lifelong.checkpoint import digest_of
from training.lifelong.records import SamplesRecord, read_record, write_record

#: Windows on which drift is measured.
PROBES = 8
_EPISODE, _PROBES, _RECORD = "episode.safetensors", "probes.safetensors", "samples.json"


def save_samples(folder: Path, data: TaskData, rng: np.random.Generator, history: int) -> None:
    """Save samples of a stage's demonstrations.

    Args:
        folder: Folder of the stage.
        data: Demonstrations of the last task that the stage learned.
        rng: Random number generator that samples the windows.
        history: Number of steps in a window.
    """
    # Take the first episode that is longer than a window, because the check of a bundle needs a window that moves.
    enough = np.flatnonzero(data.lengths > history)
    data.subset([int(enough[0]) if len(enough) else int(np.argmax(data.lengths))]).save(folder / _EPISODE)
    batch = data.windows(rng, PROBES, history)
    tensors: dict[str, NDArray[np.generic]] = {f"images.{name}": frames for name, frames in batch.images.items()}
    tensors |= {f"proprioception.{name}": values for name, values in batch.proprioception.items()}
    tensors |= {name: getattr(batch, name) for name in ("actions", "valid", "embedding", "single_steps")}
    with whole_file(folder / _PROBES) as temporary:
        save_file(tensors, temporary)
    write_record(folder / _RECORD, SamplesRecord(digest_of(folder / _EPISODE), digest_of(folder / _PROBES)))


def have(folder: Path) -> bool:
    """Return whether a stage's folder holds its samples."""
    return (folder / _RECORD).exists()


def _verified(folder: Path, name: str) -> Path:
    record = read_record(SamplesRecord, folder / _RECORD)
    path, known = folder / name, record.episode if name == _EPISODE else record.probes
    if not path.exists() or digest_of(path) != known:
        raise TrainingError(
            f"{path} is damaged or missing; restore it. If the run's demonstrations are still available, remove "
            f"{folder / _RECORD} instead, and the samples are written again"
        )
    return path


def episode(folder: Path, name: str, instruction: str) -> TaskData:
    """Read the saved demonstration.

    Raises:
        TrainingError: The demonstration is damaged or missing.
    """
    return TaskData.load(_verified(folder, _EPISODE), name, instruction)


def probes(folder: Path) -> WindowBatch:
    """Read the saved windows.

    Raises:
        TrainingError: The windows are damaged or missing.
    """
    tensors = load_file(_verified(folder, _PROBES))
    part = {
        kind: {k.split(".", 1)[1]: v for k, v in tensors.items() if k.startswith(f"{kind}.")}
        for kind in ("images", "proprioception")
    }
    return WindowBatch(
        part["images"],
        part["proprioception"],
        *(tensors[name] for name in ("actions", "valid", "embedding", "single_steps")),
    )
