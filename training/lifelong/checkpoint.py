"""Read and write the files of a checkpoint: tensors as safetensors, the rest as JSON.

Each file is written under a temporary name and renamed.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from m2distill_policy.errors import TrainingError
from m2distill_policy.storage import whole_file


def write_json(path: Path, data: Any) -> None:
    """Write JSON so that a reader sees the old file or the new one, never half of one."""
    with whole_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        json.dump(data, file, indent=2, sort_keys=True)


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        TrainingError: The file is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise TrainingError(f"{path} is missing; is this a run folder?") from error
    except (ValueError, RecursionError) as error:  # also UnicodeDecodeError, and numbers too long for Python
        raise TrainingError(f"{path} is not JSON ({error}); restore it, or start a new run") from error


def save_tensors(path: Path, tensors: dict[str, Tensor]) -> str:
    """Write tensors and return the sha256 of the file, which the caller stores in a record."""
    with whole_file(path) as temporary:
        save_file({k: v.detach().contiguous().cpu() for k, v in tensors.items()}, temporary)
        digest = hashlib.sha256(temporary.read_bytes()).hexdigest()
    return digest


def digest_of(path: Path) -> str:
    """Return the sha256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def load_tensors(path: Path, sha256: str) -> dict[str, Tensor]:
    """Read tensors that :func:`save_tensors` wrote.

    Args:
        path: Path of the file.
        sha256: Expected sha256 of the file, from its record.

    Raises:
        TrainingError: The file is missing, damaged, or has another sha256.
    """
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except FileNotFoundError as error:
        raise TrainingError(f"checkpoint {path} is missing; restore it, or start a new run") from error
    if digest != sha256:
        raise TrainingError(
            f"checkpoint {path} has sha256 {digest[:12]} and {sha256[:12]} was recorded; it is damaged: restore it, or "
            "start a new run"
        )
    try:
        return load_file(path)
    except (SafetensorError, ValueError) as error:
        raise TrainingError(f"checkpoint {path} cannot be read ({error}); restore it, or start a new run") from error


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the state of the optimiser as named tensors: ``optimiser.<parameter index>.<name>``."""
    state = optimiser.state_dict()["state"]
    return {
        f"optimiser.{index}.{name}": torch.as_tensor(value)
        for index, entry in state.items()
        for name, value in entry.items()
    }


def restore_optimiser(optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Restore the state that :func:`optimiser_tensors` returned."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimiser."):
            _, index, name = key.split(".", 2)
            state.setdefault(int(index), {})[name] = value
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
