"""Share a trained first stage between runs that would train the same one.

In the first stage there is no old task. Runs that differ only in strategy, memory or distillation therefore end it with
the same weights, and one run can train it for all of them.
"""

from __future__ import annotations

import shutil
from typing import Any

from m2distill_policy.config import to_dict
from training.lifelong.checkpoint import read_json, write_json
from training.lifelong.records import CandidatesRecord, write_record
from training.lifelong.run import LifelongRun
from training.lifelong.stage import end_stage
from training.lifelong.strategies import make_strategy
from training.lifelong.trainer import choose, combine, keep


def share_first_stage(source: LifelongRun, target: LifelongRun) -> bool:
    """Copy a trained first stage into another run. If the evaluation settings are the same, copy its evaluation too.

    Args:
        source: Run that has trained the first stage.
        target: Run that gets the copy.

    Returns:
        Whether the stage was copied. False if ``target`` would train a different first stage, ``target`` has already
        trained it, or ``source`` has not.
    """
    if (
        not all(run.config.strategy_class.shares_first_stage for run in (source, target))
        or target.joint
        or source.joint
        or target.trained(0)
        or not source.trained(0)
        or _decides(source) != _decides(target)
    ):
        return False
    parts = target.new_data(0)
    if any(source.record.data.get(str(i)) != target.record.data[str(i)] for i in range(len(parts))):
        return False
    folder = target.stage_folder(0)
    folder.mkdir(parents=True, exist_ok=True)
    for path in source.stage_folder(0).glob("candidate_*.safetensors"):
        shutil.copy2(path, folder / path.name)
    record, candidate = source.candidates(0), source.stage_record(0).candidate
    strategy = make_strategy(target.config, target.memory(0), target.contract.history)
    end_stage(source.candidate_policy(0, candidate), strategy, combine(parts), target.config, 0)
    exemplars, state = keep(target, 0, parts, strategy, candidate)
    write_record(target.candidates_path(0), CandidatesRecord(record.candidates, record.made_by, exemplars, state))
    choose(target, 0, candidate)
    if source.config.evaluation == target.config.evaluation:
        _copy_evaluation(source, target)
    return True


def _decides(run: LifelongRun) -> dict[str, Any]:
    """Return every setting that affects the training of a run's first stage."""
    # The first stage of an extended run was trained with the configuration of the oldest run.
    made = to_dict(run.extends[0].config if run.extends else run.config)
    return {
        **{k: made[k] for k in ("suite", "episodes", "image_size", "text_encoder", "seed", "network", "augment")},
        "tasks": made["tasks"][: run.config.first_tasks],
        "optim": {k: v for k, v in made["optim"].items() if k not in ("later_lr", "checkpoint_seconds", "recompute")},
        **{k: made["evaluation"][k] for k in ("candidates", "choose_on", "ties")},
        "contract": run.contract.to_dict(),
    }


def _copy_evaluation(source: LifelongRun, target: LifelongRun) -> None:
    """Copy the evaluation of the first stage, which is valid because weights and initial states are the same.

    The files are copied in the order in which the evaluation writes them. If the process is killed in between, the
    missing part is evaluated again.
    """
    to = target.folder / "evaluation"
    to.mkdir(exist_ok=True)
    for path in (source.folder / "evaluation").glob("stage_0*.jsonl"):
        shutil.copy2(path, to / path.name)
    for old, new in (
        (source.selection_path(0), target.selection_path(0)),
        (source.curve_path(0), target.curve_path(0)),
        (source.evaluation_path(0), target.evaluation_path(0)),
    ):
        if old.exists():
            write_json(new, read_json(old))
