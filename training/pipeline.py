"""Finish a run: train, choose among checkpoint candidates, export and evaluate every stage, and sum up."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import numpy as np

from m2distill_policy.errors import TrainingError
from m2distill_policy.evaluation.results import Cell, CellSummary, RolloutResult, summarise, summary_without_rollouts
from m2distill_policy.evaluation.rollouts import RolloutPool
from m2distill_policy.lock import only_writer
from training import distributed
from training.lifelong.records import CurveRecord, EvaluationRecord, RunResults, SelectionRecord, write_record
from training.lifelong.run import LifelongRun
from training.lifelong.stage_bundle import export_stage
from training.lifelong.trainer import end_at, train_stages
from training.metrics import first_best, until_perfect
from training.results import sum_up, with_environment


def finish_run(
    run: LifelongRun, *, evaluate: bool = True, stages: int | None = None, quiet: bool = False
) -> RunResults | None:
    """Train, export and evaluate the stages that are not done yet.

    Args:
        run: The run to finish.
        evaluate: Run the rollouts of ``config.evaluation``.
        stages: Number of stages to train, counted from the first; None: all stages.
        quiet: Show no progress bars.

    Returns:
        The results. None if a stage is not yet trained or evaluated, and in all processes except the first.

    Raises:
        TrainingError: A file of the run is damaged, or training or evaluation failed.
        StorageError: Another process is working on the run.
    """
    if stages is not None and stages < 1:
        raise TrainingError(f"stages is {stages}; allowed are 1 to {run.stages}; leave it out to train all")
    first = distributed.is_first()
    with only_writer(run.folder) if first else contextlib.nullcontext():
        if first:
            run.require_whole()
        return _finish(run, evaluate, stages, quiet, first)


def _finish(run: LifelongRun, evaluate: bool, stages: int | None, quiet: bool, first: bool) -> RunResults | None:
    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    with RolloutPool(run.config.evaluation.workers) as pool:  # its processes start when they are needed

        def after_stage(stage: int) -> None:
            if run.config.evaluation.candidates > 1:
                rolls_out = (
                    evaluate and run.config.evaluation.rollouts and with_environment(run, run.config.new_tasks(stage))
                )
                _choose_candidate(run, stage, pool if rolls_out else None, quiet)
            if not (run.bundle_folder(stage) / "bundle.json").exists():
                largest = export_stage(run, stage, run.bundle_folder(stage)).largest
                say(f"bundle {run.bundle_folder(stage)}: ONNX Runtime and torch differ by at most {largest:.1e}")
            if evaluate and run.config.evaluation.rollouts:
                _evaluate_stage(run, stage, pool, quiet)

        train_stages(run, after_stage, say if first else lambda text: None, quiet=quiet, stages=stages)
        if not first:
            return None
        if stages is not None and stages < run.stages:
            return None
        if not (evaluate and run.config.evaluation.rollouts):
            return None
        crossed = _evaluate_cross_instruction(run, pool, quiet) if run.config.evaluation.cross_instruction else None
    results = sum_up(run, crossed)
    write_record(run.folder / "results.json", results)
    return results


def _cell(
    run: LifelongRun, task: int, rollouts: int, purpose: str = "reported", instruction: str | None = None
) -> Cell:
    return Cell(
        run.tasks[task].suite, run.tasks[task].index, instruction, rollouts, run.config.seed, purpose,  # type: ignore[arg-type]
        horizon=run.config.evaluation.horizon,
    )  # fmt: skip


def _rollouts(
    run: LifelongRun, pool: RolloutPool, bundle: Path, cells: list[Cell], log: str, quiet: bool
) -> list[RolloutResult]:
    """Run the rollouts of every :class:`Cell` in ``cells``. A rollout that ends in an error is repeated once.

    Raises:
        TrainingError: All rollouts of a cell ended in an error. Resuming the run repeats these rollouts.
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
                f"every rollout of '{summary.task}' ended in an error: {error}; see {path}, then continue with --resume"
            )
    return found


def _candidate_bundle(run: LifelongRun, stage: int, candidate: int) -> Path:
    bundle = run.stage_folder(stage) / f"bundle_{candidate}"
    if not (bundle / "bundle.json").exists():
        export_stage(run, stage, bundle, policy=run.candidate_policy(stage, candidate))
    return bundle


def _choose_candidate(run: LifelongRun, stage: int, pool: RolloutPool | None, quiet: bool) -> None:
    """Choose the checkpoint candidate that ends a stage.

    It is the candidate with the highest success rate from the initial states of ``evaluation.choose_on``.
    ``evaluation.ties`` decides between equally good candidates. If ``pool`` is None, there are no rollouts, and the
    last candidate is chosen. A later evaluation does not change the choice, because the next stage starts from it.
    """
    record = run.selection_path(stage)
    if record.exists():
        return
    if pool is None:
        write_record(record, SelectionRecord(run.config.evaluation.candidates))
        return
    evaluation = run.config.evaluation
    cells = [_cell(run, task, evaluation.rollouts, evaluation.choose_on) for task in run.config.new_tasks(stage)]
    # Rollouts from the reported states are also used for the success curve, which reads them from the same log.
    purpose = "candidate" if evaluation.choose_on == "reported" else evaluation.choose_on

    def rate(candidate: int) -> float:
        log = f"stage_{stage}_{purpose}_{candidate}.jsonl"
        return _rate(_rollouts(run, pool, _candidate_bundle(run, stage, candidate), cells, log, quiet))

    order = list(range(1, evaluation.candidates + 1))
    if evaluation.ties == "latest":
        order.reverse()
    rates = dict(zip(order, until_perfect(map(rate, order)), strict=False))
    best = order[first_best(list(rates.values()))]
    end_at(run, stage, best)
    measured = tuple(rates.get(candidate) for candidate in range(1, evaluation.candidates + 1))
    write_record(record, SelectionRecord(best, measured))


def _evaluate_stage(run: LifelongRun, stage: int, pool: RolloutPool, quiet: bool) -> None:
    path = run.evaluation_path(stage)
    if path.exists():
        return
    cells = {
        task: _cell(run, task, run.config.evaluation.rollouts)
        for task in with_environment(run, range(run.learned(stage)))
    }
    answered: dict[int, list[Cell]] = {}
    for task, cell in cells.items():
        answered.setdefault(run.answering(stage, task), []).append(cell)
    # Rollouts of an earlier stage's bundle are in that stage's log already and are not repeated.
    found = [
        result
        for by, group in answered.items()
        for result in _rollouts(run, pool, run.bundle_folder(by), group, f"stage_{by}.jsonl", quiet)
    ]
    new = [cells[task] for task in with_environment(run, run.config.new_tasks(stage))]
    if run.config.evaluation.candidates > 1 and new:
        curve = []
        for candidate in range(run.chosen(stage)):  # 0 is the start of the stage
            bundle = _candidate_bundle(run, stage, candidate)
            curve.append(_rate(_rollouts(run, pool, bundle, new, f"stage_{stage}_candidate_{candidate}.jsonl", quiet)))
        # The chosen candidate is the bundle of the stage; later candidates are discarded.
        of_new = {cell.task for cell in new}
        curve.append(_rate([result for result in found if result.task_index in of_new]))
        write_record(run.curve_path(stage), CurveRecord(tuple(curve)))
    # Written last: if it exists, the evaluation of the stage is complete.
    known = {(summary.suite, summary.task_index): summary for summary in summarise(found)}
    learned = run.tasks[: run.learned(stage)]
    row = [known.get((task.suite, task.index), summary_without_rollouts(task)) for task in learned]
    write_record(path, EvaluationRecord(tuple(row)))


def _evaluate_cross_instruction(run: LifelongRun, pool: RolloutPool, quiet: bool) -> list[CellSummary]:
    """Evaluate each task's environment under the instruction of every other task.

    The policy should then not succeed at the environment's own task.
    """
    cells: dict[int, list[Cell]] = {}
    for task in with_environment(run, range(len(run.tasks))):
        for other in range(len(run.tasks)):
            if other != task:
                cell = _cell(
                    run, task, run.config.evaluation.cross_instruction, instruction=run.tasks[other].instruction
                )
                cells.setdefault(run.answering(run.stages - 1, other), []).append(cell)
    found = [
        result
        for by, group in cells.items()
        for result in _rollouts(run, pool, run.bundle_folder(by), group, "cross_instruction.jsonl", quiet)
    ]
    return summarise(found)


def _rate(results: list[RolloutResult]) -> float:
    """Return the mean success rate over the tasks in ``results``."""
    rates = [summary.rate for summary in summarise(results)]
    return float(np.mean([rate for rate in rates if rate is not None]))  # _rollouts raises if a task has no rate
