"""Check that a run that is killed at random moments ends with exactly the same results as an undisturbed run.

A small run over three tasks saves a checkpoint after every step and evaluates after every stage. It runs once
undisturbed, and again with SIGKILL to all of its processes at moments sampled from the seed. The benchmark compares the
weights of every stage, the result of every rollout, the metrics and the drift. It takes hours; run the same command
again to resume.

Example:
    python -m benchmarks.kill_resume --kills 5 --folder runs/kill_resume --out mine.json
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.output import add_out, command, make_parser
from benchmarks.result_files import PartialFigures, write_measurement
from m2distill_policy.errors import TrainingError
from training.lifelong.checkpoint import read_json
from training.lifelong.run import LifelongRun
from training.parallel_runs import run_alone

SETTINGS = (
    "tasks=[0,1,2]", "episodes=8", "image_size=64", "optim.steps=80", "optim.checkpoint_seconds=0",
    "evaluation.rollouts=4", "evaluation.candidates=2", "evaluation.workers=1", "evaluation.cross_instruction=1",
)  # fmt: skip


def train(folder: Path, data: Path) -> subprocess.Popen[bytes]:
    """Start or resume the run in its own process group."""
    words = ["--resume"] if (folder / "run.json").exists() else ["--config", "config/tiny.toml", "--data", str(data)]
    new = [] if "--resume" in words else list(SETTINGS)
    with folder.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "m2distill_policy", "train", "--out", str(folder), "--quiet", *words, *new],
            stdout=log, stderr=log, start_new_session=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip


def where(folder: Path) -> str:
    """Return what the run was doing when it was killed."""
    if not (folder / "run.json").exists():
        return "beginning"
    if any(folder.rglob("*.tmp")):
        return "saving"
    stages = sorted((folder / "stages").glob("stage_*"))
    if not stages or not (stages[-1] / "candidates.json").exists():
        return "training"
    return "evaluation" if not (folder / "results.json").exists() else "over"


def same_end(a: Path, b: Path) -> dict[str, bool]:
    """Compare two finished runs: name of the comparison -> whether they are equal."""
    ours, theirs = LifelongRun.open(a), LifelongRun.open(b)
    weights = True
    for stage in range(ours.stages):
        x, y = ours.policy(stage).state_dict(), theirs.policy(stage).state_dict()
        weights = weights and all(torch.equal(x[name], y[name]) for name in x)
    x, y = (read_json(folder / "results.json") for folder in (a, b))

    def rollouts(folder: Path) -> list[tuple[Any, ...]]:
        rows = {}
        for path in sorted((folder / "evaluation").glob("*.jsonl")):
            for line in path.read_text(encoding="utf-8").splitlines():
                row = json.loads(line)
                key = (path.name, row["task_index"], row["instruction"], row["episode"])
                rows[key] = (row["success"], row["steps"], row["error"])
        return sorted((*key, *value) for key, value in rows.items())

    return {
        "weights_of_every_stage": weights,
        "every_rollout": rollouts(a) == rollouts(b),
        **{
            name: x[name] == y[name]
            for name in ("success", "metrics", "drift", "cross_instruction_success", "bytes_kept")
        },
    }


def train_until(
    folder: Path, data: Path, rng: np.random.Generator, whole: float, moments: list[dict[str, Any]], kills: int
) -> bool:
    """Start or resume the run, and kill it at a moment sampled from ``rng``.

    Returns:
        Whether the run was killed. Otherwise it has finished: before that moment, or because all ``kills`` are done.

    Raises:
        TrainingError: The run failed.
    """
    process = train(folder, data)
    # The moment is late enough for the run to make some progress after its start.
    wait = float(rng.uniform(3.0, 12.0) + rng.uniform(0.0, 0.1) * whole) if len(moments) < kills else None
    try:
        code = process.wait(wait)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        moments.append({"run": folder.name, "after_s": round(wait or 0.0, 2), "at": where(folder)})
        print(json.dumps(moments[-1]), file=sys.stderr, flush=True)
        return True
    if code != 0:
        raise TrainingError(f"the run could not resume (code {code}); see {folder.with_suffix('.log')}")
    return False


def main() -> None:
    """Measure, and write the result."""
    parser = make_parser(__doc__)
    parser.add_argument(
        "--folder", type=Path, default=Path("runs/benchmark_kill_resume"), help="of the runs (default: %(default)s)"
    )
    parser.add_argument("--kills", type=int, default=20, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
    add_out(parser)
    args = parser.parse_args()
    config = {"settings": list(SETTINGS), "seed": args.seed, "kills": args.kills}
    partial = PartialFigures(args.folder / "benchmark", config)
    data, alone = (args.folder / name for name in ("demonstrations", "alone"))
    if "whole_s" not in partial.figures:
        if args.folder.exists():  # the duration of a run that was interrupted and resumed would be wrong
            raise TrainingError(f"{args.folder} exists without an undisturbed run; remove it or give another --folder")
        demos = ["demos", "--tasks", "0,1,2", "--episodes", "8", "--size", "64", "--out", str(data)]
        run_alone([sys.executable, "-m", "m2distill_policy", *demos], "demos")
        begin = time.monotonic()
        if train(alone, data).wait() != 0:
            raise TrainingError(f"the undisturbed run failed; see {alone.with_suffix('.log')}")
        partial.add("whole_s", time.monotonic() - begin)
    whole: float = partial.figures["whole_s"]
    moments: list[dict[str, Any]] = partial.figures.get("kills", [])
    same: list[dict[str, bool]] = partial.figures.get("same", [])
    # Every moment has its own seed, so that a resumed benchmark kills at the same moments.
    while len(moments) < args.kills:
        killed = args.folder / f"killed_{len(same)}"  # a run may finish before all kills are done; another one follows
        while train_until(killed, data, np.random.default_rng([args.seed, len(moments)]), whole, moments, args.kills):
            partial.add("kills", moments)
        same.append(same_end(alone, killed))
        partial.add("same", same)
    figures = {"whole_s": round(whole, 1), "runs": len(same), "kills": moments, "same": same}
    write_measurement("kill_resume", config, figures, args.out)
    if not all(all(run.values()) for run in same):
        sys.exit("benchmarks.kill_resume: a run that was killed did not end like the undisturbed one")


if __name__ == "__main__":
    command(main)
