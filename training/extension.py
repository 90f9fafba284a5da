"""New tasks for a finished run: a new run that begins where the old one ended, without its demonstrations.

The old run stays as it is. The new one holds its checkpoints, memory, bundles and evaluation, and goes on as if it had
been given all tasks at once: with the same settings and files it ends with the very same weights.
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

#: Where the numbers of one's own files begin in a run whose suite has numbers of its own.
BESIDE_A_SUITE = 1000

#: Settings that the old stages fixed: what the network is, what it is shown, and among what a stage's end is chosen.
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
    """Make the run in ``folder`` that goes on where ``source`` ended.

    config: of the new stages; its ``tasks`` are the source's. new: tasks to add, indices into the suite, or of the
    files in ``demonstrations`` where the suite is one's own files. release: when its bundle is published.
    files: the new tasks are one's own files although the old ones are a suite's: recordings of an arm on top of
    simulation. They cannot be rolled out; the old ones still are.

    Where ``folder`` holds this very run already, that one is returned, to go on with. Raises :class:`TrainingError` or
    :class:`DemonstrationError` before anything is written.
    """
    _require_fit(source, config)
    wanted = dataclasses.replace(config, tasks=tuple(new), jointly=1)
    added = own_files(wanted.tasks, demonstrations) if files else tasks_of(wanted, demonstrations)
    known = {task.name for task in source.tasks} | {task.instruction.casefold() for task in source.tasks}
    for task in added:
        if task.name in known or task.instruction.casefold() in known:
            raise TrainingError(
                f"{source.folder} has learned '{task.instruction}' ({task.name}) already; name tasks that are new"
            )
    require_distinct(added)
    for task in added:
        file = DemonstrationFile(demonstration_path(demonstrations, task.name))
        check_file(file, task.instruction, source.contract, config.later_episodes or config.episodes)
    if not added[0].has_env:  # their numbers are of another folder; here they only have to differ
        free = max(1 + max(task.index for task in source.tasks), 0 if config.suite == FILES else BESIDE_A_SUITE)
        added = tuple(dataclasses.replace(task, index=free + i) for i, task in enumerate(added))
    text, embeddings = embed([task.instruction for task in added], config.text_encoder)
    if text != source.contract.text:
        raise TrainingError(
            f"{source.folder} reads instructions by {source.contract.text} and this machine by {text}; install the "
            "same encoder"
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
        return _going_on(folder, record)
    # Samples that were removed, because they were damaged, are made again from the source's own demonstrations.
    removed = {
        stage: source.data(source.learned(stage) - 1)
        for stage in range(source.stages)
        if not samples.have(source.stage_folder(stage))
    }
    temporary = _copy(source, folder, record, evaluation=_same_evaluation(source.config, config))
    for stage, data in removed.items():
        LifelongRun.open(temporary).put_aside(stage, data)
    temporary.rename(folder)
    return LifelongRun.open(folder)


def _going_on(folder: Path, record: RunRecord) -> LifelongRun:
    """The run in ``folder``, if it is the one that ``record`` describes; :class:`TrainingError` otherwise."""
    if not (folder / "run.json").exists():
        raise TrainingError(f"{folder} is there already and holds no run; choose another folder")
    run = LifelongRun.open(folder)
    for key in ("extends", "tasks", "config", "demonstrations"):
        if getattr(run.record, key) != getattr(record, key):
            raise TrainingError(
                f"{folder} already holds a run, and another one: its '{key}' differs; go on with it by --resume or "
                "choose another folder"
            )
    return run


def _require_fit(source: LifelongRun, config: RunConfig) -> None:
    """:class:`TrainingError` unless ``source`` is finished and ``config`` leaves alone what its stages fixed."""
    for strategy in (source.config.strategy_class, config.strategy_class):
        if strategy.learns_jointly:
            raise TrainingError(
                f"{source.folder} cannot be extended from or by strategy={strategy.name}, which learns all tasks in "
                "one stage; start a new run with all tasks, or one that learns the old tasks jointly (jointly=...) and "
                "the new ones by another strategy"
            )
        if strategy.network_per_task:
            raise TrainingError(
                f"{source.folder} cannot be extended from or by strategy={strategy.name}, which has a network for each "
                "task and none for all; start a new run"
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
                f"{source.folder} cannot be extended under another setting: {difference}; leave it as it is, or begin "
                "a new run"
            )
    replays = config.strategy_class.uses_memory and config.memory.demonstrations
    if replays and not source.memory(1).exemplars:
        raise TrainingError(
            f"{source.folder} was trained by strategy={source.config.strategy} and kept no demonstrations; set "
            "memory.episodes=0 memory.windows=0 and hold the old tasks by their words: strategy=m2distill "
            "memory.instructions=true"
        )
    for rule in ("episodes", "windows") if replays else ():
        kept, asked = getattr(source.config.memory, rule), getattr(config.memory, rule)
        if kept != asked:
            raise TrainingError(
                f"{source.folder} kept memory.{rule}={kept} of each task's demonstrations and {asked} were asked for; "
                "leave it as it is, or 0 for none"
            )
    saved = source.config.strategy == config.strategy and source.strategy_state(source.stages - 1)
    if config.strategy_class.requires_state and not saved:
        raise TrainingError(
            f"{source.folder} was trained by strategy={source.config.strategy}, which did not save the state that "
            f"strategy={config.strategy} starts from; extend it by strategy=m2distill"
        )


def _same_evaluation(made: RunConfig, wanted: RunConfig) -> bool:
    """Whether what was evaluated is what would be now."""
    return first_difference(to_dict(made.evaluation), to_dict(wanted.evaluation), "evaluation.") is None


def _copy(source: LifelongRun, folder: Path, record: RunRecord, *, evaluation: bool) -> Path:
    """The source's folder under a temporary name beside ``folder``, which :meth:`Path.rename` then makes it: whole or
    not at all."""
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
