"""Make a new run: find its tasks, check their demonstrations, embed the instructions."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from m2distill_policy.contract import Action, Contract
from m2distill_policy.demonstrations import DemonstrationFile, demonstration_path
from m2distill_policy.errors import TrainingError
from m2distill_policy.sim.env import FILES, Task
from m2distill_policy.sim.response import fit_velocity_response
from m2distill_policy.sim.suites import suite_task
from training import distributed
from training.allocator import free_bytes
from training.data.task_data import check_file
from training.lifelong.run import LifelongRun
from training.lifelong.stage import pick_device
from training.models.resnet_t import ResNetT
from training.run_config import RunConfig
from training.text import embed


def create_run(folder: Path, config: RunConfig, demonstrations: Path) -> LifelongRun:
    """Create a run folder.

    The run's contract is that of the first task's demonstrations. Every file is checked here, before hours of training.

    Args:
        folder: Folder of the run.
        config: Settings of the run.
        demonstrations: Folder of the demonstration files.

    Raises:
        TrainingError: The demonstrations do not fit the settings, or ``folder`` holds a run.
        DemonstrationError: A file is missing or damaged.
        ConfigError: The text encoder is not available.
    """
    tasks = tasks_of(config, demonstrations)
    files = [DemonstrationFile(demonstration_path(demonstrations, task.name)) for task in tasks]
    require_distinct(tasks)
    first = files[0]
    size = first.contract.cameras[0].height
    if size != config.image_size:
        raise TrainingError(
            f"{first.path} has images of {size} pixels and image_size is {config.image_size}; collect again with "
            f"'m2distill demos --size {config.image_size}' or set image_size={size}"
        )
    for index, (task, file) in enumerate(zip(tasks, files, strict=True)):
        check_file(file, task.instruction, first.contract, config.episodes_of(index))
    text, embeddings = embed([task.instruction for task in tasks], config.text_encoder)
    contract = dataclasses.replace(first.contract, text=text, action=_fitted_action(first, config.episodes))
    require_memory(config, contract)
    return LifelongRun.create(folder, config, contract, tasks, embeddings, demonstrations)


def require_memory(config: RunConfig, contract: Contract) -> None:
    """Refuse a network or batch that does not fit into memory.

    Only a lower bound is computed: the weights with their gradients and AdamW's two moments, and the frames of a batch,
    all in float32. A step needs far more.

    Raises:
        TrainingError: The lower bound exceeds the free memory.
    """
    with torch.device("meta"):  # tensors on this device have a shape but no memory
        weights = sum(parameter.numel() for parameter in ResNetT(config.network, contract).parameters())
    pixels = sum(math.prod(camera.shape) for camera in contract.cameras)
    frames = config.optim.batch * contract.history * pixels // distributed.world_size()
    needed, free = 4 * (4 * weights + frames), free_bytes(pick_device())
    if free is not None and needed > free:
        raise TrainingError(
            f"a network of {weights} weights and batches of {config.optim.batch} windows need more than "
            f"{needed / 2**30:.3g} GiB and {free / 2**30:.3g} GiB are free; choose a smaller optim.batch or network"
        )


def tasks_of(config: RunConfig, demonstrations: Path) -> tuple[Task, ...]:
    """Return the tasks of a run: tasks of its suite, or with ``suite=files`` one task for each demonstration file."""
    if config.suite != FILES:
        return tuple(suite_task(config.suite, index) for index in config.tasks)
    return own_files(config.tasks, demonstrations)


def require_distinct(tasks: Sequence[Task]) -> None:
    """Refuse two tasks with the same name or instruction: a policy could not distinguish them.

    Raises:
        TrainingError: There are two such tasks.
    """
    for index, task in enumerate(tasks):
        for other in tasks[:index]:
            if task.name == other.name or task.instruction.casefold() == other.instruction.casefold():
                raise TrainingError(
                    f"'{other.name}' and '{task.name}' have the instruction '{task.instruction}'; a policy gets the "
                    "instruction alone: merge the two into one file, or give one of them another instruction"
                )


def own_files(wanted: Sequence[int], demonstrations: Path) -> tuple[Task, ...]:
    """Return a task for each wanted demonstration file.

    Args:
        wanted: Positions of the files in the folder, sorted by name, from 0.
        demonstrations: Folder of the files.

    Raises:
        TrainingError: The folder holds no demonstration files, or a position is out of range.
    """
    found = sorted(demonstrations.glob("*_demo.hdf5"))
    if not found:
        raise TrainingError(f"{demonstrations} holds no file '<task>_demo.hdf5'; put one file for each task there")
    tasks = []
    for index in wanted:
        if not 0 <= index < len(found):
            raise TrainingError(
                f"tasks names {index} and {demonstrations} holds {len(found)} files; allowed are "
                + ", ".join(f"{i} ({path.name})" for i, path in enumerate(found))
            )
        file = DemonstrationFile(found[index])
        tasks.append(Task(FILES, index, file.task_name, file.instruction, horizon=0))
    return tuple(tasks)


def _fitted_action(file: DemonstrationFile, episodes: int) -> Action:
    """Return the contract's action with the velocity response that fits the demonstrations.

    If the demonstrations have no poses of the end effector, the action is unchanged.
    """
    action = file.contract.action
    shown = [file.episode(i) for i in range(min(len(file), episodes))]
    if any(episode.ee is None for episode in shown):
        print(f"{file.path} has no 'obs/ee_states': ~/twist will use the default velocity response", file=sys.stderr)
        return action
    return dataclasses.replace(action, response=fit_velocity_response(shown, rate_hz=file.contract.rate_hz))
