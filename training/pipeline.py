"""A run from its configuration to its results: create, train, export, evaluate, sum up."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from m2distill_policy import provenance
from m2distill_policy.contract import Action, Contract
from m2distill_policy.demonstrations import DemonstrationFile, demonstration_path
from m2distill_policy.errors import TrainingError
from m2distill_policy.evaluation.results import Cell, RolloutResult, summarise, summary_without_rollouts
from m2distill_policy.evaluation.rollouts import RolloutPool
from m2distill_policy.lock import only_writer
from m2distill_policy.sim.env import FILES, Task
from m2distill_policy.sim.response import fit_velocity_response
from m2distill_policy.sim.suites import suite_task
from training import distributed
from training.allocator import free_bytes
from training.data.task_data import check_file
from training.lifelong.checkpoint import read_json, write_json
from training.lifelong.run import LifelongRun
from training.lifelong.stage import pick_device
from training.metrics import first_best, hold_from, joint_metrics, lifelong_metrics, until_perfect
from training.models.resnet_t import ResNetT
from training.run_config import RunConfig
from training.text import embed


def create_run(folder: Path, config: RunConfig, demonstrations: Path) -> LifelongRun:
    """Make a run: embed the instructions, take the contract from the first task's demonstrations.

    Every task's file is opened here, so that one that is missing or does not fit is known before hours of training.
    """
    tasks = tasks_of(config, demonstrations)
    files = [DemonstrationFile(demonstration_path(demonstrations, task.name)) for task in tasks]
    require_distinct(tasks)
    first = files[0]
    size = first.contract.cameras[0].height
    if size != config.image_size:
        raise TrainingError(
            f"{first.path} holds views of {size} pixels and image_size is {config.image_size}; collect again with "
            f"'m2distill demos --size {config.image_size}' or set image_size={size}"
        )
    for index, (task, file) in enumerate(zip(tasks, files, strict=True)):
        check_file(file, task.instruction, first.contract, config.episodes_of(index))
    text, embeddings = embed([task.instruction for task in tasks], config.text_encoder)
    contract = dataclasses.replace(first.contract, text=text, action=_fitted_action(first, config.episodes))
    require_memory(config, contract)
    return LifelongRun.create(folder, config, contract, tasks, embeddings, demonstrations)


def require_memory(config: RunConfig, contract: Contract) -> None:
    """Refuse sizes that cannot be trained with here.

    What is counted is far less than a step takes: the weights with their gradients and AdamW's two moments, and the
    frames of a batch, all in float32.

    Raises:
        TrainingError: that alone is more than the memory that is free.
    """
    with torch.device("meta"):  # shapes alone
        weights = sum(parameter.numel() for parameter in ResNetT(config.network, contract).parameters())
    pixels = sum(math.prod(camera.shape) for camera in contract.cameras)
    frames = config.optim.batch * contract.history * pixels // distributed.world()
    needed, free = 4 * (4 * weights + frames), free_bytes(pick_device())
    if free is not None and needed > free:
        raise TrainingError(
            f"a network of {weights} weights and batches of {config.optim.batch} windows need more than "
            f"{needed / 2**30:.3g} GiB and {free / 2**30:.3g} GiB are free; choose a smaller optim.batch or network"
        )


def tasks_of(config: RunConfig, demonstrations: Path) -> tuple[Task, ...]:
    """The run's tasks: of its suite, or one for every file in the folder, in order of name."""
    if config.suite != FILES:
        return tuple(suite_task(config.suite, index) for index in config.tasks)
    return own_files(config.tasks, demonstrations)


def require_distinct(tasks: Sequence[Task]) -> None:
    """:class:`TrainingError` where two tasks have one name or one instruction: a bundle could not tell them apart."""
    for index, task in enumerate(tasks):
        for other in tasks[:index]:
            if task.name == other.name or task.instruction.casefold() == other.instruction.casefold():
                raise TrainingError(
                    f"'{other.name}' and '{task.name}' have the instruction '{task.instruction}'; a policy gets the "
                    "instruction alone: merge the two into one file, or word one of them otherwise"
                )


def own_files(wanted: Sequence[int], demonstrations: Path) -> tuple[Task, ...]:
    """A task for each file in the folder that ``wanted`` names by its number in order of name."""
    found = sorted(demonstrations.glob("*_demo.hdf5"))
    if not found:
        raise TrainingError(f"{demonstrations} holds no file '<task>_demo.hdf5'; put one a task there")
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
    """The action with the velocity response of these demonstrations; without end-effector poses, as it was."""
    action = file.contract.action
    shown = [file.episode(i) for i in range(min(len(file), episodes))]
    if any(episode.ee is None for episode in shown):
        print(f"{file.path} has no 'obs/ee_states': ~/twist will follow a default response", file=sys.stderr)
        return action
    return dataclasses.replace(action, response=fit_velocity_response(shown, rate_hz=file.contract.rate_hz))


def finish_run(
    run: LifelongRun, *, evaluate: bool = True, stages: int | None = None, quiet: bool = False
) -> dict[str, Any] | None:
    """Train, export and evaluate what is not done yet; returns the results once every stage is done and evaluated.

    stages: stop after so many (None: all). Raises :class:`StorageError` where another process is at it.
    """
    if stages is not None and stages < 1:
        raise TrainingError(f"{stages} stages were asked for; allowed are 1 to {run.stages}, or none for all")
    first = distributed.is_first()
    with only_writer(run.folder) if first else contextlib.nullcontext():
        if first:
            run.require_whole()
        return _finish(run, evaluate, stages, quiet, first)


def _finish(run: LifelongRun, evaluate: bool, stages: int | None, quiet: bool, first: bool) -> dict[str, Any] | None:
    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    with RolloutPool(run.config.evaluation.workers) as pool:  # its processes start when they are first needed

        def after_stage(stage: int) -> None:
            if run.config.evaluation.points > 1:
                asked = evaluate and run.config.evaluation.rollouts and _with_world(run, run.config.new_tasks(stage))
                _choose_point(run, stage, pool if asked else None, quiet)
            if not (run.bundle_folder(stage) / "bundle.json").exists():
                largest = run.export(stage, run.bundle_folder(stage)).largest
                say(f"bundle {run.bundle_folder(stage)}: ONNX Runtime and torch differ by at most {largest:.1e}")
            if evaluate and run.config.evaluation.rollouts:
                _evaluate_stage(run, stage, pool, quiet)

        run.train_stages(after_stage, say if first else lambda text: None, quiet=quiet, stages=stages)
        if not first:
            return None
        if stages is not None and stages < run.stages:
            return None
        if not (evaluate and run.config.evaluation.rollouts):
            return None
        told = _evaluate_told(run, pool, quiet) if run.config.evaluation.told else None
    results = sum_up(run, told)
    write_json(run.folder / "results.json", results)
    return results


def _with_world(run: LifelongRun, tasks: Sequence[int]) -> list[int]:
    """Those of ``tasks`` that can be rolled out."""
    return [task for task in tasks if run.tasks[task].has_env]


def _cell(run: LifelongRun, task: int, rollouts: int, purpose: str = "reported", told: str | None = None) -> Cell:
    return Cell(
        run.tasks[task].suite, run.tasks[task].index, told, rollouts, run.config.seed, purpose,  # type: ignore[arg-type]
        horizon=run.config.evaluation.horizon,
    )  # fmt: skip


def _rollouts(
    run: LifelongRun, pool: RolloutPool, bundle: Path, cells: list[Cell], log: str, quiet: bool
) -> list[RolloutResult]:
    """The rollouts of ``cells``; one that ended in an error is tried once more.

    :class:`TrainingError` where a cell has errors alone: going on later tries them again.
    """
    evaluation = run.config.evaluation
    path = run.folder / "evaluation" / log
    for attempt in range(2):
        found = pool.evaluate(
            bundle, cells, sampling=evaluation.sampling, visuals=evaluation.visuals, log=path, progress=not quiet
        )
        if attempt or not any(result.error for result in found):
            break
    for summary in summarise(found):
        if summary.rate is None:
            error = next(r.error for r in found if r.error and r.task == summary.task)
            raise TrainingError(
                f"every rollout of '{summary.task}' ended in an error: {error}; see {path}, then go on with --resume"
            )
    return found


def _point_bundle(run: LifelongRun, stage: int, point: int) -> Path:
    bundle = run.stage_folder(stage) / f"bundle_{point}"
    if not (bundle / "bundle.json").exists():
        run.export(stage, bundle, policy=run.point_policy(stage, point))
    return bundle


def _choose_point(run: LifelongRun, stage: int, pool: RolloutPool | None, quiet: bool) -> None:
    """e*: the best of a stage's evaluation points on selection states, of several the earliest or the latest; the
    reported states are not touched.

    Without a pool the last point is chosen, for good: the next stage starts from it.
    """
    record = run.stage_folder(stage) / "selection.json"
    if record.exists():
        return
    if pool is None:
        write_json(record, {"rates": None, "chosen": run.config.evaluation.points})
        return
    asked = run.config.evaluation
    cells = [_cell(run, task, asked.rollouts, asked.choose_on) for task in run.config.new_tasks(stage)]
    # Where reported states choose, their rollouts are those of the curve.
    purpose = "point" if asked.choose_on == "reported" else asked.choose_on

    def rate(point: int) -> float:
        log = f"stage_{stage}_{purpose}_{point}.jsonl"
        return _rate(_rollouts(run, pool, _point_bundle(run, stage, point), cells, log, quiet))

    order = list(range(1, asked.points + 1))
    if asked.ties == "latest":
        order.reverse()
    rates = dict(zip(order, until_perfect(map(rate, order)), strict=False))
    best = order[first_best(list(rates.values()))]
    run.end_at(stage, best)
    write_json(record, {"rates": [rates.get(point) for point in range(1, asked.points + 1)], "chosen": best})


def _chosen(run: LifelongRun, stage: int) -> int:
    """The evaluation point, from 1, that a stage ended with."""
    return int(read_json(run.stage_folder(stage) / "selection.json")["chosen"])


def _evaluate_stage(run: LifelongRun, stage: int, pool: RolloutPool, quiet: bool) -> None:
    path = run.folder / "evaluation" / f"stage_{stage}.json"
    if path.exists():
        return
    cells = {
        task: _cell(run, task, run.config.evaluation.rollouts) for task in _with_world(run, range(run.learned(stage)))
    }
    answered: dict[int, list[Cell]] = {}
    for task, cell in cells.items():
        answered.setdefault(run.answering(stage, task), []).append(cell)
    # What an earlier stage's own bundle answers, it has answered after that stage.
    found = [
        result
        for by, asked in answered.items()
        for result in _rollouts(run, pool, run.bundle_folder(by), asked, f"stage_{by}.jsonl", quiet)
    ]
    new = [cells[task] for task in _with_world(run, run.config.new_tasks(stage))]
    if run.config.evaluation.points > 1 and new:
        curve = []
        for point in range(_chosen(run, stage)):  # from 0, as the stage began
            bundle = _point_bundle(run, stage, point)
            curve.append(_rate(_rollouts(run, pool, bundle, new, f"stage_{stage}_point_{point}.jsonl", quiet)))
        # The chosen point is the stage's bundle, and what is behind it is thrown away.
        of_new = {cell.task for cell in new}
        curve.append(_rate([result for result in found if result.task_index in of_new]))
        write_json(run.folder / "evaluation" / f"stage_{stage}_curve.json", curve)
    # Last: where this is there, nothing of the stage is evaluated any more.
    known = {(summary.suite, summary.task_index): summary for summary in summarise(found)}
    row = [
        known.get((task.suite, task.index), summary_without_rollouts(task)) for task in run.tasks[: run.learned(stage)]
    ]
    write_json(path, [_summary(summary) for summary in row])


def _evaluate_told(run: LifelongRun, pool: RolloutPool, quiet: bool) -> list[dict[str, Any]]:
    """Every task's world, told each other task's instruction: the world's own task should not be done."""
    cells: dict[int, list[Cell]] = {}
    for task in _with_world(run, range(len(run.tasks))):
        for other in range(len(run.tasks)):
            if other != task:
                cell = _cell(run, task, run.config.evaluation.told, told=run.tasks[other].instruction)
                cells.setdefault(run.answering(run.stages - 1, other), []).append(cell)
    found = [
        result
        for by, asked in cells.items()
        for result in _rollouts(run, pool, run.bundle_folder(by), asked, "told.jsonl", quiet)
    ]
    return [_summary(s) for s in summarise(found)]


def _rate(results: list[RolloutResult]) -> float:
    """Mean success over the tasks in ``results``."""
    rates = [summary.rate for summary in summarise(results)]
    return float(np.mean([rate for rate in rates if rate is not None]))  # _rollouts has seen to it that each has one


def _summary(summary: Any) -> dict[str, Any]:
    return dataclasses.asdict(summary)


def sum_up(run: LifelongRun, told: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """The results of a finished run: what is in ``results.json``."""
    count = run.stages
    rows = [read_json(run.folder / "evaluation" / f"stage_{stage}.json") for stage in range(count)]
    success = [[cell["rate"] for cell in row] for row in rows]
    worlds = _with_world(run, range(len(run.tasks)))
    if run.joint or len(worlds) < len(run.tasks):
        known = joint_metrics([success[-1][task] for task in worlds])
        return {**_about(run, rows, told), "success_curves": [], "metrics": known}
    # Tasks that were learned together count as their mean, with the weight of all of them.
    parts = [run.config.new_tasks(stage) for stage in range(count)]
    final = [[float(np.mean([row[i] for i in part])) for part in parts[: k + 1]] for k, row in enumerate(success)]
    curves: list[list[float]] = []
    for stage in range(count):
        path = run.folder / "evaluation" / f"stage_{stage}_curve.json"
        if path.exists():
            curve, chosen = read_json(path), _chosen(run, stage)
            if len(curve) != chosen + 1:
                raise TrainingError(
                    f"{path} holds {len(curve)} figures and the stage ends at evaluation point {chosen}: an earlier "
                    f"version made it; remove it and {path.with_name(f'stage_{stage}.json')} and go on with --resume"
                )
            curves.append(hold_from(curve, chosen, run.config.evaluation.points + 1))
        elif run.config.evaluation.points > 1:
            raise TrainingError(
                f"{path} is missing; remove {path.with_name(f'stage_{stage}.json')} and go on with --resume"
            )
        else:
            curves.append([final[stage][stage]])
    metrics = lifelong_metrics(final, curves, [len(part) for part in parts])
    return {**_about(run, rows, told), "success_curves": curves, "metrics": dataclasses.asdict(metrics)}


def _about(run: LifelongRun, rows: list[Any], told: list[dict[str, Any]] | None) -> dict[str, Any]:
    """What results say beside the metrics. rows: the cells evaluated after each stage."""
    return {
        "label": run.config.strategy_class.describe(run.config),
        "run": run.folder.name,
        "strategy": run.config.strategy,
        "seed": run.config.seed,
        "tasks": [dataclasses.asdict(task) for task in run.tasks],
        "rollouts": run.config.evaluation.rollouts,
        "sampling": run.config.evaluation.sampling,
        "success": [[cell["rate"] for cell in row] for row in rows],
        "wrong_object": [[cell["wrong_rate"] for cell in row] for row in rows],
        "errors": sum(cell["errors"] for row in rows for cell in row),
        "cells": rows,
        "told": told,
        "told_success": float(np.mean([t["rate"] for t in told])) if told else None,
        "bytes_kept": read_json(run.stage_folder(run.stages - 1) / "stage.json")["bytes_kept"],
        "drift": run.drift(),
        "config": run.record["config"],
        # By task, a hash: whether two runs learned from the same demonstrations.
        "data": run.record["data"],
        "trained": [run.made_by(stage) for stage in range(run.stages)],
        **provenance.describe(),
    }
