"""Summarise a finished run: success, lifelong metrics, drift and provenance."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from m2distill_policy import provenance
from m2distill_policy.errors import TrainingError
from m2distill_policy.evaluation.results import CellSummary
from training.drift import run_drift
from training.lifelong.records import CurveRecord, RunResults, read_record
from training.lifelong.run import LifelongRun
from training.metrics import fill_after_best, joint_metrics, lifelong_metrics


def with_environment(run: LifelongRun, tasks: Sequence[int]) -> list[int]:
    """Return the tasks that have a simulated environment; tasks from recordings have none."""
    return [task for task in tasks if run.tasks[task].has_env]


def sum_up(run: LifelongRun, cross_instruction: Sequence[CellSummary] | None = None) -> RunResults:
    """Return the results of a run in which every stage is trained and evaluated.

    Args:
        run: The run.
        cross_instruction: Summaries of the cross-instruction evaluation; None if it was not configured.

    Raises:
        TrainingError: A stage has no evaluation, or its success curve does not fit its checkpoint candidates.
    """
    rows = []
    for stage in range(run.stages):
        cells = run.cells(stage)
        if cells is None:
            raise TrainingError(
                f"stage {stage} of {run.folder} has no evaluation; finish the run with 'm2distill train --resume "
                f"--out {run.folder}'"
            )
        rows.append(cells)
    success = [[cell.rate for cell in row] for row in rows]
    environments = with_environment(run, range(len(run.tasks)))
    curves: list[list[float]] = []
    metrics: dict[str, float | None]
    if run.joint or len(environments) < len(run.tasks):
        last = success[-1]
        metrics = joint_metrics([rate for rate in (last[task] for task in environments) if rate is not None])
    else:
        # Tasks that were learned jointly count as their mean, weighted by their number.
        parts = [run.config.new_tasks(stage) for stage in range(run.stages)]
        final = [
            [float(np.mean([rate for rate in (row[i] for i in part) if rate is not None])) for part in parts[: k + 1]]
            for k, row in enumerate(success)
        ]
        curves = [_curve(run, stage, final[stage][stage]) for stage in range(run.stages)]
        metrics = dataclasses.asdict(lifelong_metrics(final, curves, [len(part) for part in parts]))
    rates = [cell.rate for cell in cross_instruction or () if cell.rate is not None]
    return RunResults(
        label=run.config.strategy_class.describe(run.config),
        run=run.folder.name,
        strategy=run.config.strategy,
        seed=run.config.seed,
        tasks=run.tasks,
        rollouts=run.config.evaluation.rollouts,
        sampling=run.config.evaluation.sampling,
        success=tuple(map(tuple, success)),
        wrong_object=tuple(tuple(cell.wrong_rate for cell in row) for row in rows),
        errors=sum(cell.errors for row in rows for cell in row),
        cells=tuple(rows),
        cross_instruction=None if cross_instruction is None else tuple(cross_instruction),
        cross_instruction_success=float(np.mean(rates)) if rates else None,
        success_curves=tuple(map(tuple, curves)),
        metrics=metrics,
        bytes_kept=run.stage_record(run.stages - 1).bytes_kept,
        drift=run_drift(run),
        config=run.config,
        data=run.record.data,
        trained=tuple(run.candidates(stage).made_by for stage in range(run.stages)),
        **provenance.describe(),
    )


def _curve(run: LifelongRun, stage: int, final: float) -> list[float]:
    """Return the success rate at the start of a stage and at each checkpoint candidate; constant after the chosen one.

    A run with one checkpoint candidate for each stage has no curve. The result is then ``final`` alone.
    """
    if run.config.evaluation.candidates == 1:
        return [final]
    path, again = run.curve_path(stage), run.evaluation_path(stage)
    if not path.exists():
        raise TrainingError(f"{path} is missing; remove {again} and continue with --resume")
    curve, chosen = read_record(CurveRecord, path).rates, run.chosen(stage)
    if len(curve) != chosen + 1:
        raise TrainingError(
            f"{path} holds {len(curve)} values, and the stage ends at checkpoint candidate {chosen}; remove {path} and "
            f"{again}, and continue with --resume"
        )
    return fill_after_best(list(curve), chosen, run.config.evaluation.candidates + 1)
