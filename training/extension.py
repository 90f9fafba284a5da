"""Extend a finished run by new tasks, in a new run that does not need the old demonstrations.

The old run is not changed. The new run starts with a copy of the old run's checkpoints, memory, bundles and evaluation.
With the same settings and files, the new run ends with exactly the weights of a run that was started with all tasks.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path

from m2distill_policy import provenance
from m2distill_policy.config import to_dict
from m2distill_policy.demonstrations import DemonstrationFile, demonstration_path
from m2distill_policy.errors import TrainingError
from m2distill_policy.sim.env import FILES
from training.data.task_data import check_file
from training.lifelong import samples
from training.lifelong.records import ExtensionRecord, RunRecord, write_record
from training.lifelong.run import LifelongRun
from training.new_run import own_files, require_distinct, tasks_of
from training.release import ReleaseCriteria
from training.run_config import RunConfig, first_difference
from training.text import embed

#: Lowest number of a task from your own files in a run of a simulated suite. The suite's tasks have lower numbers.
FIRST_FILE_NUMBER = 1000

#: Settings that an extension cannot change, because they define the network, its inputs and the choice of candidates.
FIXED = (
    "suite",
    "jointly",
    "image_size",
    "text_encoder",
    "seed",
    "network",
    "evaluation.candidates",
    "evaluation.ties",
)


def extend_run(
    source: LifelongRun,
    folder: Path,
    config: RunConfig,
    new: Sequence[int],
    demonstrations: Path,
    release: ReleaseCriteria | None = None,
    *,
    files: bool = False,
) -> LifelongRun:
    """Create a run that extends ``source``, or open it if ``folder`` already holds it.

    Args:
        source: The finished run.
        folder: Folder of the new run.
        config: Settings of the new stages. Its ``tasks`` are the tasks of ``source``.
        new: Tasks to add: their numbers in the suite, or the positions of their files in ``demonstrations``.
        demonstrations: Folder of the new tasks' files.
        release: Criteria for publishing the bundle of the new run; None: the default criteria.
        files: Whether the new tasks are your own files although the old tasks are from a simulated suite. The new
            tasks then have no rollouts; the old tasks still have.

    Raises:
        TrainingError: The settings or tasks do not fit ``source``, or ``folder`` holds something else.
        DemonstrationError: A file is missing or does not fit.
    """
    _require_fit(source, config)
    wanted = dataclasses.replace(config, tasks=tuple(new), jointly=1)
    added = own_files(wanted.tasks, demonstrations) if files else tasks_of(wanted, demonstrations)
    known = {task.name for task in source.tasks} | {task.instruction.casefold() for task in source.tasks}
    for task in added:
        if task.name in known or task.instruction.casefold() in known:
            raise TrainingError(
                f"{source.folder} has already learned '{task.instruction}' ({task.name}); name new tasks only"
            )
    require_distinct(added)
    for task in added:
        file = DemonstrationFile(demonstration_path(demonstrations, task.name))
        check_file(file, task.instruction, source.contract, config.later_episodes or config.episodes)
    if not added[0].has_env:  # a file's number is its position in some folder; here it only has to be unique
        free = max(1 + max(task.index for task in source.tasks), 0 if config.suite == FILES else FIRST_FILE_NUMBER)
        added = tuple(dataclasses.replace(task, index=free + i) for i, task in enumerate(added))
    text, embeddings = embed([task.instruction for task in added], config.text_encoder)
    if text != source.contract.text:
        raise TrainingError(
            f"{source.folder} was trained with the text encoder {source.contract.text} and this machine has {text}; "
            "install the same encoder"
        )
    tasks = (*source.tasks, *added)
    config = dataclasses.replace(config, tasks=tuple(task.index for task in tasks))
    made_from = ExtensionRecord(source.folder.name, source.stages, source.config, release or ReleaseCriteria())
    record = dataclasses.replace(
        source.record,
        config=config,
        tasks=tasks,
        embeddings=(*source.record.embeddings, *map(tuple, embeddings.tolist())),
        demonstrations=str(demonstrations.resolve()),
        extends=(*source.extends, made_from),
        **provenance.describe(),
    )
    if folder.exists():
        return _continued(folder, record)
    # A user may have removed damaged samples. They are written again from the demonstrations of the source.
    removed = {
        stage: source.data(source.learned(stage) - 1)
        for stage in range(source.stages)
        if not samples.have(source.stage_folder(stage))
    }
    temporary = _copy(source, folder, record, evaluation=_same_evaluation(source.config, config))
    for stage, data in removed.items():
        LifelongRun.open(temporary).save_samples(stage, data)
    temporary.rename(folder)
    return LifelongRun.open(folder)


def _continued(folder: Path, record: RunRecord) -> LifelongRun:
    """Open the run in ``folder``.

    Raises:
        TrainingError: ``folder`` does not hold the run that ``record`` describes.
    """
    if not (folder / "run.json").exists():
        raise TrainingError(f"{folder} already exists and is not a run; choose another folder")
    run = LifelongRun.open(folder)
    for key in ("extends", "tasks", "config", "demonstrations"):
        if getattr(run.record, key) != getattr(record, key):
            raise TrainingError(
                f"{folder} already holds another run, whose '{key}' differs; continue that one with --resume, or "
                "choose another folder"
            )
    return run


def _require_fit(source: LifelongRun, config: RunConfig) -> None:
    """Raise :class:`TrainingError` if ``source`` is not finished or ``config`` does not fit it."""
    for strategy in (source.config.strategy_class, config.strategy_class):
        if strategy.learns_jointly:
            raise TrainingError(
                f"{source.folder} cannot be extended from or by strategy={strategy.name}, which learns all tasks in "
                "one stage; start a new run with all tasks, or one that learns the old tasks jointly (jointly=...) and "
                "the new ones by another strategy"
            )
        if strategy.network_per_task:
            raise TrainingError(
                f"{source.folder} cannot be extended from or by strategy={strategy.name}, which has a separate network "
                "for each task; start a new run with all tasks"
            )
    missing = [source.learned(stage) - 1 for stage in range(source.stages) if not source.trained(stage)]
    if missing:
        raise TrainingError(
            f"{source.folder} has not learned '{source.tasks[missing[0]].instruction}' yet; finish it with "
            f"'m2distill train --resume --out {source.folder}'"
        )
    made, wanted = to_dict(source.config), to_dict(config)
    for name in FIXED:
        section, _, key = name.partition(".")
        ours, theirs = ({section: {key: c[section][key]} if key else c[section]} for c in (made, wanted))
        difference = first_difference(ours, theirs)
        if difference is not None:
            raise TrainingError(
                f"{source.folder} cannot be extended with another setting: {difference}; leave it unchanged, or start "
                "a new run"
            )
    replays = config.strategy_class.uses_memory and config.memory.demonstrations
    if replays and not source.memory(1).exemplars:
        raise TrainingError(
            f"{source.folder} was trained by strategy={source.config.strategy} and kept no demonstrations; set "
            "memory.episodes=0 memory.windows=0, and distil under old instructions: strategy=m2distill "
            "memory.instructions=true"
        )
    for rule in ("episodes", "windows") if replays else ():
        kept, wanted_count = getattr(source.config.memory, rule), getattr(config.memory, rule)
        if kept != wanted_count:
            raise TrainingError(
                f"{source.folder} has memory.{rule}={kept} and the extension asks for {wanted_count}; leave it "
                f"unchanged, or set memory.{rule}=0 to use no demonstrations"
            )
    saved = source.config.strategy == config.strategy and source.strategy_state(source.stages - 1)
    if config.strategy_class.requires_state and not saved:
        raise TrainingError(
            f"{source.folder} was trained by strategy={source.config.strategy}, which does not save the state that "
            f"strategy={config.strategy} needs; extend it with strategy=m2distill"
        )


def _same_evaluation(made: RunConfig, wanted: RunConfig) -> bool:
    """Return whether an evaluation with the settings ``made`` is also valid for the settings ``wanted``."""
    return first_difference(to_dict(made.evaluation), to_dict(wanted.evaluation), "evaluation.") is None


def _copy(source: LifelongRun, folder: Path, record: RunRecord, *, evaluation: bool) -> Path:
    """Copy the run ``source`` to a temporary folder, which the caller renames to ``folder``; return its path.

    Args:
        source: The run to copy.
        folder: Folder of the new run.
        record: Contents of the copy's ``run.json``.
        evaluation: Whether to copy the results of rollouts.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    left_out = {"results.json", "gate.json", "run.json", "report.html", "tensorboard"}
    left_out |= set() if evaluation else {"evaluation"}
    shutil.copytree(
        source.folder,
        temporary,
        ignore=lambda at, names: [
            name
            for name in names
            if (Path(at) == source.folder and name in left_out)
            or name.startswith("partial")
            or name == "cross_instruction.jsonl"
        ],
    )
    write_record(temporary / "run.json", record)
    return temporary
