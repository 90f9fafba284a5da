"""Measure how often the scripted experts of LIBERO's suites succeed.

The expert attempts each task a hundred times: half of the attempts start from LIBERO's initial states, half from new
ones. Its actions have the same noise as in a data collection. Nothing is rendered. Every attempt is a line of
``--log``; run the same command again to resume.

Example:
    python -m benchmarks.experts --suites libero_goal --attempts 20 --out mine.json
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.output import add_out, command, make_parser
from benchmarks.result_files import write_measurement
from m2distill_policy import provenance
from m2distill_policy.evaluation.results import wilson
from m2distill_policy.progress import ProgressBar
from m2distill_policy.sim.gl import choose_gl
from m2distill_policy.sim.seeds import demonstration_seed
from m2distill_policy.sim.suites import SUITES_WITH_EXPERTS, make_expert, make_sim_env, suite_task, suite_tasks

#: Number of attempts at a task before the next task's environment is made.
_AT_A_TIME = 10
SUITES = tuple(suite for suite in SUITES_WITH_EXPERTS if suite.startswith("libero"))


def attempt_task(suite: str, index: int, numbers: list[int], noise: float) -> Iterator[dict[str, Any]]:
    """Make the attempts with ``numbers`` at one task. Even numbers start from a new state, odd ones from LIBERO's."""
    from m2distill_policy.sim.experts.episode import run_expert
    from m2distill_policy.sim.experts.noise import Noise

    world, commit = make_sim_env(suite_task(suite, index), size=16), provenance.commit()
    try:
        for number in numbers:
            # No collection uses seed 999, so these states are in no demonstrations.
            fresh = number % 2 == 0
            seed = demonstration_seed(999, index, number) if fresh else number // 2
            begin = time.monotonic()
            run = run_expert(world, seed, make_expert, noise=Noise().scaled(noise) if noise else None)
            yield {
                "suite": suite, "task": index, "number": number, "state": "fresh" if fresh else "libero",
                "noise": noise, "commit": commit, "success": run.success, "steps": len(run.actions),
                "seconds": round(time.monotonic() - begin, 2),
            }  # fmt: skip
    finally:
        world.close()


def _all_of(*args: Any) -> list[dict[str, Any]]:
    return list(attempt_task(*args))


def summarise(rows: list[dict[str, Any]], suites: list[str]) -> dict[str, Any]:
    """Summarise the attempts, with one entry for each task."""
    tasks: list[dict[str, Any]] = []
    for suite in suites:
        for task in suite_tasks(suite):
            mine = [row for row in rows if (row["suite"], row["task"]) == (suite, task.index)]
            if not mine:
                continue
            good = [row for row in mine if row["success"]]
            tasks.append(
                {
                    "suite": suite, "task": task.index, "name": task.name,
                    "attempts": len(mine), "successes": len(good),
                    "interval_95": wilson(len(good), len(mine)),
                    **{
                        f"{state}": [
                            sum(row["success"] for row in mine if row["state"] == state),
                            sum(row["state"] == state for row in mine),
                        ]
                        for state in ("libero", "fresh")
                    },
                    "steps_median": float(np.median([row["steps"] for row in good])) if good else None,
                    "seconds_median": float(np.median([row["seconds"] for row in mine])),
                }
            )  # fmt: skip
    commits = sorted({str(row["commit"]) for row in rows})
    return {
        "tasks": tasks,
        "commits": commits,
        "least": min((t["successes"] / t["attempts"] for t in tasks), default=None),
    }


def main() -> None:
    """Make the missing attempts, and write the result."""
    parser = make_parser(__doc__)
    parser.add_argument("--suites", nargs="+", default=list(SUITES), choices=SUITES, help="default: all")
    parser.add_argument(
        "--attempts", type=int, default=100, help="at each task, half of them from new states (default: %(default)s)"
    )
    parser.add_argument(
        "--noise", type=float, default=1.0, help="factor of a collection's noise (default: %(default)s)"
    )
    parser.add_argument("--workers", type=int, default=2, help="processes (default: %(default)s)")
    parser.add_argument(
        "--log", type=Path, default=Path("runs/experts.jsonl"), help="attempts so far (default: %(default)s)"
    )
    add_out(parser)
    args = parser.parse_args()
    choose_gl()
    args.log.parent.mkdir(parents=True, exist_ok=True)
    lines = args.log.read_text().splitlines() if args.log.exists() else []
    rows = [row for row in map(json.loads, lines) if row["noise"] == args.noise]
    done = {(row["suite"], row["task"], row["number"]) for row in rows}
    todo = []
    for start in range(0, args.attempts, _AT_A_TIME):  # a few attempts at every task first
        numbers = range(start, min(start + _AT_A_TIME, args.attempts))
        for suite in args.suites:
            for task in suite_tasks(suite):
                left = [number for number in numbers if (suite, task.index, number) not in done]
                todo += [(suite, task.index, left, args.noise)] if left else []
    with (
        ProcessPoolExecutor(args.workers, multiprocessing.get_context("spawn")) as pool,
        ProgressBar(total=sum(len(job[2]) for job in todo), unit="attempt") as bar,
        args.log.open("a") as log,
    ):
        for future in as_completed([pool.submit(_all_of, *job) for job in todo]):
            for row in future.result():
                rows.append(row)
                log.write(json.dumps(row, sort_keys=True) + "\n")
                bar.update(1)
            log.flush()
    mine = [row for row in rows if row["suite"] in args.suites and row["number"] < args.attempts]
    figures = summarise(mine, args.suites)
    write_measurement("experts", {"attempts": args.attempts, "noise": args.noise}, figures, args.out)
    for task in figures["tasks"]:
        print(f"{task['suite']:<16}{task['name']:<96}{task['successes']:>4} / {task['attempts']}", file=sys.stderr)


if __name__ == "__main__":
    command(main)
