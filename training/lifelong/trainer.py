"""Train the stages of a run and write the records of each stage."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils.tensorboard import SummaryWriter

from m2distill_policy import provenance
from m2distill_policy.progress import ProgressBar
from m2distill_policy.storage import whole_file
from training import distributed
from training.data.joint_data import JointData
from training.data.task_data import Demonstrated, TaskData
from training.lifelong.checkpoint import digest_of, save_tensors
from training.lifelong.partial_checkpoint import drop_partial, partial_step
from training.lifelong.records import CandidatesRecord, FileRecord, StageRecord, StateRecord, write_record
from training.lifelong.run import LifelongRun
from training.lifelong.stage import append_json_line, end_stage, pick_device, pick_precision, train_stage
from training.lifelong.strategies import make_strategy
from training.lifelong.strategy import Strategy

#: Number of steps between two rows in metrics.jsonl and TensorBoard.
LOG_EVERY = 10


def train_stages(
    run: LifelongRun,
    after_stage: Callable[[int], None],
    say: Callable[[str], None],
    *,
    quiet: bool = False,
    stages: int | None = None,
) -> None:
    """Train every stage that is not trained yet.

    Args:
        run: The run.
        after_stage: Function that is called with the number of each stage, also of stages that an earlier call trained.
        say: Function that prints a message.
        quiet: Show no progress bar.
        stages: Number of stages to train, counted from the first; None: all stages.
    """
    for stage in range(run.stages)[:stages]:
        if not run.trained(stage):
            what = ", ".join(run.tasks[index].instruction for index in run.config.new_tasks(stage))
            say(f"{run.config.strategy}: stage {stage + 1} of {run.stages}, {what}")
            distributed.wait()  # all processes check trained() before the first one writes the record of this stage
            _train(run, stage, quiet)
        if distributed.is_first():
            after_stage(stage)
        distributed.wait()


def _train(run: LifelongRun, stage: int, quiet: bool) -> None:
    config, folder = run.config, run.stage_folder(stage)
    folder.mkdir(parents=True, exist_ok=True)
    parts = run.new_data(stage)
    data = combine(parts)
    policy = run.policy(stage - 1) if stage else run.new_policy()
    made_by = provenance.describe()
    made_by["precision"] = str(pick_precision(config.optim.precision, pick_device()) or torch.float32)
    if stage == 0 and config.network.normalise:
        policy.fit_normalisation({name: torch.from_numpy(v) for name, v in data.proprioception.items()})
    strategy = make_strategy(config, run.memory(stage), run.contract.history)
    if stage:
        strategy.state = run.strategy_state(stage - 1)
    candidates: dict[int, str] = {}

    if not distributed.is_first():
        train_stage(policy, strategy, data, config, stage, folder, lambda *_: None, lambda _: None)
        return

    def snapshot(candidate: int) -> None:
        candidates[candidate] = save_tensors(folder / f"candidate_{candidate}.safetensors", policy.state_dict())

    with (
        SummaryWriter(str(run.folder / "tensorboard" / f"stage_{stage}"), purge_step=partial_step(folder)) as writer,
        ProgressBar(
            total=config.optim.stage_steps(stage, data.steps, run.contract.history, data.tasks),
            desc=f"{config.strategy} {data.name}",
            unit="step",
            disable=quiet,
        ) as bar,
    ):
        _drop_rows_after(run, stage, partial_step(folder))

        def listener(step: int, steps: int, terms: dict[str, float]) -> None:
            bar.update(step - bar.n)
            if step % LOG_EVERY == 0 or step == steps:
                bar.set_postfix(loss=f"{terms['total']:.3f}", bc=f"{terms['bc']:.3f}", refresh=False)
                row: dict[str, object] = {"stage": stage, "step": step, "steps": steps, **terms}
                append_json_line(run.folder / "metrics.jsonl", row)
                for name, value in terms.items():
                    writer.add_scalar(name, value, step)

        train_stage(policy, strategy, data, config, stage, folder, listener, snapshot)
    # In a resumed stage, the files of earlier candidates exist already.
    for path in folder.glob("candidate_*.safetensors"):
        candidates.setdefault(int(path.stem.split("_")[1]), digest_of(path))
    exemplars, state = keep(run, stage, parts, strategy, config.evaluation.candidates)
    files = {
        str(candidate): FileRecord(f"candidate_{candidate}.safetensors", sha256)
        for candidate, sha256 in sorted(candidates.items())
    }
    write_record(run.candidates_path(stage), CandidatesRecord(files, made_by, exemplars, state))
    choose(run, stage, config.evaluation.candidates)
    drop_partial(folder)


def combine(parts: Sequence[TaskData]) -> Demonstrated:
    """Return the demonstrations of all tasks of a stage as one data set."""
    return JointData(tuple(parts)) if len(parts) > 1 else parts[0]


def keep(
    run: LifelongRun, stage: int, parts: Sequence[TaskData], strategy: Strategy, candidate: int
) -> tuple[dict[str, str | None], StateRecord | None]:
    """Save memory, samples and strategy state of a trained stage. Call it before the stage is recorded as trained.

    Args:
        run: The run.
        stage: Number of the stage.
        parts: Demonstrations of each task that the stage has learned.
        strategy: Strategy in its state at the end of the stage.
        candidate: Number of the checkpoint candidate that is the result of the stage.

    Returns:
        Position of a task -> sha256 of its kept demonstrations (None if none are kept), and the record of the
        strategy's state (None if it has no state).
    """
    exemplars: dict[str, str | None] = {}
    for task, data in zip(run.config.new_tasks(stage), parts, strict=True):
        # Which demonstrations are kept depends only on the seed and the task.
        strategy.memory.add(data, np.random.default_rng([run.config.seed, task, 2**31]))
        path = run.exemplars_path(task)
        path.unlink(missing_ok=True)  # written by a process that ended before it recorded the file
        strategy.memory.save(run.memory_folder)
        exemplars[str(task)] = digest_of(path) if path.exists() else None
    run.save_samples(stage, parts[-1])
    if not strategy.state:
        return exemplars, None
    file = f"{strategy.name}_{stage}_{candidate}.safetensors"
    return exemplars, StateRecord(strategy.name, file, save_tensors(run.memory_folder / file, strategy.state))


def choose(run: LifelongRun, stage: int, candidate: int) -> None:
    """Record the checkpoint candidate that ends a stage. It is exported, and the next stage starts from it."""
    file = run.candidates(stage).candidates[str(candidate)]
    record = StageRecord(file.file, file.sha256, candidate, _bytes_kept(run, stage))
    write_record(run.stage_folder(stage) / "stage.json", record)


def end_at(run: LifelongRun, stage: int, candidate: int) -> None:
    """End a stage with a checkpoint candidate, and compute the strategy's state at it instead of at the last candidate.

    This matters for EWC, for example, which regularises every weight towards its value at the start of the next stage.
    """
    record = run.candidates(stage)
    if run.strategy_state(stage) and candidate != run.config.evaluation.candidates:
        assert record.state is not None
        parts, before = run.new_data(stage), record.state.file
        strategy = make_strategy(run.config, run.memory(stage), run.contract.history)
        strategy.state = run.strategy_state(stage - 1) if stage else {}
        end_stage(run.candidate_policy(stage, candidate), strategy, combine(parts), run.config, stage)
        exemplars, state = keep(run, stage, parts, strategy, candidate)
        write_record(run.candidates_path(stage), CandidatesRecord(record.candidates, record.made_by, exemplars, state))
        if state is not None and state.file != before:
            (run.memory_folder / before).unlink(missing_ok=True)
    choose(run, stage, candidate)


def _bytes_kept(run: LifelongRun, stage: int) -> int:
    return run.memory(stage + 1).bytes + sum(values.nbytes for values in run.strategy_state(stage).values())


def _drop_rows_after(run: LifelongRun, stage: int, done: int) -> None:
    """Remove the logged rows after step ``done`` of a stage, which a resumed stage logs again."""
    path = run.folder / "metrics.jsonl"
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue  # a killed process can leave an incomplete last line; its step is logged again
        if (row["stage"], row["step"]) <= (stage, done):
            kept.append(line)
    with whole_file(path) as temporary:
        Path(temporary).write_text("".join(line + "\n" for line in kept), encoding="utf-8")
