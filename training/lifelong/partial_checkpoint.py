"""The partial checkpoint of a stage that is being trained: policy and optimiser, from which training resumes."""

from __future__ import annotations

from pathlib import Path

import torch

from training.lifelong.checkpoint import load_tensors, optimiser_tensors, restore_optimiser, save_tensors
from training.lifelong.records import PartialRecord, read_record, write_record
from training.models.resnet_t import ResNetT

_RECORD = "partial.json"


def save_partial(policy: ResNetT, optimiser: torch.optim.Optimizer, folder: Path, stage: int, step: int) -> None:
    """Write the partial checkpoint after ``step`` steps into a stage's folder, and remove the previous one."""
    tensors = {f"policy.{k}": v for k, v in policy.state_dict().items()} | optimiser_tensors(optimiser)
    path = folder / f"partial_{step}.safetensors"
    digest = save_tensors(path, tensors)
    write_record(folder / _RECORD, PartialRecord(stage, step, path.name, digest))
    for old in folder.glob("partial_*.safetensors"):
        if old != path:
            old.unlink()


def resume_partial(policy: ResNetT, optimiser: torch.optim.Optimizer, folder: Path, stage: int) -> int:
    """Load the partial checkpoint of a stage.

    Returns:
        The number of steps that are done; 0 without a checkpoint.
    """
    if not (folder / _RECORD).exists():
        return 0
    record = read_record(PartialRecord, folder / _RECORD)
    if record.stage != stage:
        return 0
    tensors = load_tensors(folder / record.file, record.sha256)
    policy.load_state_dict({k.removeprefix("policy."): v for k, v in tensors.items() if k.startswith("policy.")})
    restore_optimiser(optimiser, tensors)
    return record.step


def partial_step(folder: Path) -> int:
    """Return the number of steps of a stage's partial checkpoint; 0 without one."""
    return read_record(PartialRecord, folder / _RECORD).step if (folder / _RECORD).exists() else 0


def drop_partial(folder: Path) -> None:
    """Remove the partial checkpoint. Call it when the stage has been recorded as trained."""
    (folder / _RECORD).unlink(missing_ok=True)
    for old in folder.glob("partial_*.safetensors"):
        old.unlink()
