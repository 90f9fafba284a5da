"""What a stage puts aside of its demonstrations so that its run folder is enough later on; never learned from.

One demonstration, on which a bundle is checked before it is written, and eight windows, on which drift is measured.
With them a run can be exported, extended and reported where its demonstrations are not to be had any more.
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


def put_aside(folder: Path, data: TaskData, rng: np.random.Generator, history: int) -> None:
    """Write the samples of ``data`` into a stage's folder: a demonstration, and windows drawn by ``rng``."""
    # The first in which a window slides, which is what a bundle is checked on.
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
    """Whether a stage's folder holds its samples."""
    return (folder / _RECORD).exists()


def _verified(folder: Path, name: str) -> Path:
    record = read_record(SamplesRecord, folder / _RECORD)
    path, known = folder / name, record.episode if name == _EPISODE else record.probes
    if not path.exists() or digest_of(path) != known:
        raise TrainingError(
            f"{path} is damaged or missing; restore it, or, where the run's demonstrations are still there, remove "
            f"{folder / _RECORD} and it is made anew"
        )
    return path


def episode(folder: Path, name: str, instruction: str) -> TaskData:
    """The demonstration put aside."""
    return TaskData.load(_verified(folder, _EPISODE), name, instruction)


def probes(folder: Path) -> WindowBatch:
    """The windows put aside; raises :class:`TrainingError` where they are damaged."""
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
