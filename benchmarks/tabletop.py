"""Lifelong learning on five tabletop tasks, strategies side by side: ``python -m benchmarks.tabletop``.

Resumable at any moment: every run is a folder, every rollout a line. No time limit; ``--plan`` says what is left.
Results of finished runs are also written beside the table, one file a run; ``--go-on`` takes those that lie there for
done, so that another machine can go on where this one stopped.
Every arm of a seed shares its first stage, learns with the same steps, and is evaluated on the same held-out states,
with every object drawn over its whole region.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.output import write
from m2distill_policy.config import from_dict, load_config, to_dict
from m2distill_policy.errors import M2DistillError, TrainingError
from m2distill_policy.evaluation.results import wilson
from training.launch import Job, progress
from training.lifelong.checkpoint import read_json, write_json
from training.lifelong.m2distill import TERMS
from training.run_config import RunConfig, first_difference
from training.studies import arms
from training.studies.arms import Arm

_KEEP = ("memory.episodes=5",)
_WORDS = ("memory.instructions=true",)
_NO_DEMOS = ("memory.episodes=0",)
_NO_WORDS = ("memory.instructions=false",)
#: How the previous policy is asked, with demonstrations and without: its latents only where an old question is asked,
#: and most of the old questions of widened observations. Without demonstrations their windows are spent on words.
_ASKED = ("distill.new_latents=0.0", "memory.widen=0.8")
#: How hard the previous policy's actions are held. Beside demonstrations, where imitation of the old tasks and the
#: divergence on two kinds of old windows stand against four new windows, at 1 a new task was often half learned (10 of
#: 20, the wrong object otherwise); at a quarter it was learned 20, 20, 20 and 19 times on seeds that are not reported
#: here (3 to 6).
_HELD_BESIDE_DEMOS = (*_ASKED, "distill.policy.weight=0.25")
_HELD_BY_WORDS = (*_ASKED, "distill.policy.weight=1.0")
_WORDS_ALONE = (*_NO_DEMOS, *_WORDS, "memory.instruction_batch=4")
_ZERO = tuple(f"distill.{term}.on=false" for term in TERMS)
_LIBERO_S_MEMORY = ("memory.episodes=0", "memory.windows=1000")

#: Beside the configuration file: all five tasks, 20 rollouts a cell, and every wrong instruction told three times. A
#: stage is so many passes over its demonstrations, about 1,200 steps for a box and 2,000 for the longer ones of can and
#: bread: after 1,200 steps fine-tuning took the can 12 times of 20 (seed 0), after 1,800 or 2,400 every time.
SETTINGS = (
    "tasks=[0,1,2,3,4]", "optim.epochs=12",
    "evaluation.rollouts=20", "evaluation.told=3", "evaluation.workers=1",
    "distill.new_latents=1.0", "memory.widen=0.0", "distill.policy.weight=0.5",
)  # fmt: skip

#: The first is trained first: the others take its first stage.
ARMS: tuple[Arm, ...] = (
    Arm("sequential", "sequential fine-tuning", ("strategy=sequential",)),
    Arm(
        "m2distill_demos",
        "m2distill, 5 demonstrations an old task",
        ("strategy=m2distill", *_KEEP, *_WORDS, *_HELD_BESIDE_DEMOS),
    ),
    Arm(
        "m2distill_words",
        "m2distill, old instructions alone",
        ("strategy=m2distill", *_WORDS_ALONE, *_HELD_BY_WORDS),
    ),
    Arm("er", "experience replay, the same 5 demonstrations", ("strategy=er", *_KEEP)),
    Arm("er_libero", "experience replay by LIBERO's rule: the first 1000 windows", ("strategy=er", *_LIBERO_S_MEMORY)),
    Arm("ewc", "ewc, LIBERO's weight and fading", ("strategy=ewc",)),
    Arm("packnet", "packnet, a network of its own for every task", ("strategy=packnet",)),
    Arm("multitask", "all tasks at once: the upper bound", ("strategy=multitask",)),
    Arm("m2distill_new", "m2distill on the new task's batch alone", ("strategy=m2distill", *_NO_DEMOS, *_NO_WORDS)),
    Arm("m2distill_zero", "m2distill with the four weights at zero", ("strategy=m2distill", *_KEEP, *_WORDS, *_ZERO)),
    *(
        Arm(
            f"m2distill_no_{term}",
            f"m2distill, 5 demonstrations, without {term}",
            ("strategy=m2distill", *_KEEP, *_WORDS, *_HELD_BESIDE_DEMOS, f"distill.{term}.on=false"),
        )
        for term in TERMS
    ),
)


def jobs_of(seed: int, args: argparse.Namespace) -> list[Job]:
    """The runs of one seed, the shared first stage's owner first."""
    overrides = (*SETTINGS, *args.overrides)
    return arms.jobs_of(seed, ARMS, arms.Setting(args.config, args.folder / "demonstrations", args.folder, overrides))


def kept_results(job: Job, args: argparse.Namespace) -> Path:
    """Where a finished run's results lie beside the table."""
    folder: Path = args.out.with_suffix("")
    return folder / f"{job.name.replace(' ', '_')}.json"


def results_of(job: Job, args: argparse.Namespace) -> dict[str, Any] | None:
    """A run's results: the folder's, or with ``--go-on`` those kept by another machine; None while there are none.

    Raises :class:`TrainingError` where they were made under another configuration.
    """
    job.require_same()
    if job.finished:
        found: dict[str, Any] = read_json(job.folder / "results.json")
        return found
    path = kept_results(job, args)
    if not (args.go_on and path.exists()):
        return None
    found = read_json(path)
    difference = first_difference(to_dict(from_dict(RunConfig, found["config"])), to_dict(job.config))
    if difference is not None:
        raise TrainingError(f"{path} was made under another configuration: {difference}; go on without --go-on")
    return found


def mean_interval(values: Sequence[float | None]) -> dict[str, float] | None:
    """Mean over seeds, with the least and the greatest: three seeds do not carry an interval. None for a metric that a
    strategy does not have."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    return {"mean": float(np.mean(known)), "least": min(known), "greatest": max(known)}


def summarise(args: argparse.Namespace) -> dict[str, Any]:
    """Every arm's figures over the seeds that are done; what is not done is named."""
    figures: dict[str, Any] = {"arms": {}, "not_run": []}
    jobs = [jobs_of(seed, args) for seed in args.seeds]
    for arm, runs in zip(ARMS, zip(*jobs, strict=True), strict=True):
        found = []
        for job in runs:
            results = results_of(job, args)
            if results is None:
                figures["not_run"].append(job.name)
                continue
            found.append(results)
            if job.finished:
                kept_results(job, args).parent.mkdir(parents=True, exist_ok=True)
                write_json(kept_results(job, args), results)
        if not found:
            continue
        final = [cell for r in found for cell in r["cells"][-1]]
        successes, rollouts = sum(c["successes"] for c in final), sum(c["rollouts"] - c["errors"] for c in final)
        told = [r["told_success"] for r in found if r["told_success"] is not None]
        figures["arms"][arm.name] = {
            "words": arm.words,
            "seeds": [r["seed"] for r in found],
            "bytes_kept": found[0]["bytes_kept"],
            **{
                metric: mean_interval([r["metrics"][metric] for r in found])
                for metric in ("mean_final", "fwt", "nbt", "nbt_k_minus_1", "auc")
            },
            "mean_final_95": wilson(successes, rollouts),
            "wrong_object_final": mean_interval([float(np.mean(r["wrong_object"][-1])) for r in found]),
            "told_another_task": mean_interval(told) if told else None,
            "success": [r["success"] for r in found],
            "wrong_object": [r["wrong_object"] for r in found],
            "errors": sum(r["errors"] for r in found),
            "first_task_alone": mean_interval([r["success"][0][0] for r in found]),
            "drift_of_first_task": [
                {m: d["relative"] for m, d in r["drift"][-1][0].items()} for r in found if r["drift"]
            ],
            "trained_on": [
                [{"commit": t["commit"], "machine": t["machine"]["processor"], "time": t["time"]} for t in r["trained"]]
                for r in found
            ],
        }  # fmt: skip
    return figures


def table(figures: dict[str, Any]) -> str:
    """The figures for a terminal."""
    lines = [f"{'':<52}{'success':>9}{'NBT':>7}{'AUC':>7}{'FWT':>7}{'wrong':>7}{'told':>7}{'MiB':>7}  seeds"]
    for row in figures["arms"].values():
        shown = ("mean_final", "nbt", "auc", "fwt", "wrong_object_final", "told_another_task")
        words = [f"{row[name]['mean']:.2f}" if row[name] else "--" for name in shown]
        lines.append(
            f"{row['words']:<52}{words[0]:>9}{''.join(f'{word:>7}' for word in words[1:])}"
            f"{row['bytes_kept'] / 2**20:>7.1f}  {row['seeds']}"
        )
    lines += [f"not run: {name}" for name in figures["not_run"]]
    return "\n".join(lines)


def main() -> None:
    """Go on where the last call stopped."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("config/tiny.toml"))
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmark_tabletop"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=[a.name for a in ARMS], choices=[a.name for a in ARMS])
    parser.add_argument("--at-once", type=int, default=2, help="runs in parallel, one thread each (default: 2)")
    parser.add_argument("--plan", action="store_true", help="say what is done and what is left, and stop")
    parser.add_argument("--sum-up", action="store_true", help="write the table of what is done, and stop")
    parser.add_argument("--go-on", action="store_true", help="take runs whose results lie beside the table for done")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/tabletop.json"))
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    args = parser.parse_args()
    config = load_config(RunConfig, args.config, [*SETTINGS, *args.overrides])
    if args.plan:
        for seed in args.seeds:
            for job in jobs_of(seed, args):
                share, words = (1.0, "done") if results_of(job, args) is not None else progress(job.folder)
                print(f"{job.name:<32}{100 * share:5.0f} %  {words}")
        return
    if not args.sum_up:
        run(args, config)
    figures = summarise(args)
    write("tabletop", to_dict(config), figures, args.out)
    print(table(figures), file=sys.stderr)
    print(json.dumps({"written": str(args.out)}), file=sys.stderr)


def run(args: argparse.Namespace, config: RunConfig) -> None:
    """Everything that is left, a seed at a time; the table is written after each."""
    left = {
        seed: [j for j in jobs_of(seed, args) if j.folder.name in args.arms and results_of(j, args) is None]
        for seed in args.seeds
    }
    if not any(left.values()):
        return
    subprocess.run(
        [
            sys.executable, "-m", "m2distill_policy", "demos", "--suite", config.suite,
            "--tasks", ",".join(map(str, config.tasks)), "--episodes", str(config.episodes),
            "--size", str(config.image_size), "--out", str(args.folder / "demonstrations"),
        ],
        check=True,
    )  # fmt: skip
    for seed, jobs in left.items():
        arms.run_seed(jobs_of(seed, args)[0], jobs, args.at_once)
        write("tabletop", to_dict(config), summarise(args), args.out)


if __name__ == "__main__":
    try:
        main()
    except M2DistillError as error:
        sys.exit(f"benchmarks.tabletop: {error}")
