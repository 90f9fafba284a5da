"""How much a bundle takes, trained with and without disturbances: ``python -m benchmarks.perturbation``.

One task learned twice, from the same number of demonstrations: collected in clean worlds, and in worlds that are a
little wrong (``m2distill demos --randomise``), each with the same steps. Both bundles are rolled out in every
disturbance alone, at several levels, from the same initial states. Resumable; writes a chart beside the JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.output import command, write
from m2distill_policy.config import load_config, to_dict
from m2distill_policy.errors import TrainingError
from m2distill_policy.sim.disturbances import KINDS
from training.parallel_runs import Job
from training.run_config import RunConfig

#: What demonstrations are collected under, by the name of the bundle.
RANDOMISED = {"clean": "", "randomised": "camera,light,texture,noise"}


def run(words: list[object]) -> None:
    """A subcommand of ``m2distill``, its output on the terminal; raises :class:`TrainingError` if it fails."""
    command = [sys.executable, "-m", "m2distill_policy", *map(str, words)]
    done = subprocess.run(command, check=False)
    if done.returncode != 0:
        raise TrainingError(f"'m2distill {words[0]}' ended with {done.returncode}; run again to go on")


def training_of(args: argparse.Namespace) -> list[str]:
    """What differs from the configuration file in both runs."""
    fixed = [f"tasks=[{args.task}]", "evaluation.rollouts=0", f"episodes={args.episodes}", f"seed={args.seed}"]
    return [*fixed, *args.overrides]


def curves_of(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Collect, train, export and evaluate one of the two; what is done already is left alone."""
    folder = args.folder / name
    task = str(args.task)
    trained, overrides = folder / "run", training_of(args)
    job = Job(name, trained, (), load_config(RunConfig, args.config, overrides), folder / "demonstrations")
    job.require_same()
    demos: list[object] = ["demos", "--tasks", task, "--episodes", args.episodes, "--size", args.size]
    if RANDOMISED[name]:
        demos += ["--randomise", RANDOMISED[name]]
    run([*demos, "--out", folder / "demonstrations"])
    if not (trained / "results.json").exists():
        train: list[object] = ["train", "--out", trained]
        if (trained / "run.json").exists():
            train.append("--resume")
        else:
            train += ["--config", args.config, "--data", folder / "demonstrations", *overrides]
        run(train)
    bundle = folder / "bundle"
    if not bundle.exists():
        run(["export", trained, "--out", bundle])
    out = folder / "evaluation"
    evaluate: list[object] = ["evaluate", bundle, "--tasks", task, "--rollouts", args.rollouts, "--seed", args.seed]
    run([*evaluate, "--sampling", "mode", "--perturb", ",".join(KINDS), "--levels", args.levels, "--out", out])
    found: dict[str, Any] = json.loads((out / "summary.json").read_text())["curves"]
    return found


def main() -> None:
    """Measure, write, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("config/tiny.toml"))
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmark_perturbation"))
    parser.add_argument("--task", type=int, default=0)
    parser.add_argument("--episodes", type=int, default=80)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--rollouts", type=int, default=20)
    parser.add_argument("--levels", default="0.25,0.5,1")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/perturbation.json"))
    parser.add_argument("--chart", type=Path, default=Path("docs/perturbation.svg"))
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the training")
    args = parser.parse_args()
    found = {name: curves_of(name, args) for name in RANDOMISED}
    trained = to_dict(load_config(RunConfig, args.config, training_of(args)))
    settings = {"rollouts": args.rollouts, "levels": args.levels, "randomised": RANDOMISED["randomised"]}
    write("perturbation", {**trained, **settings}, found, args.out)
    from training.report.charts import curves_chart

    args.chart.parent.mkdir(parents=True, exist_ok=True)
    args.chart.write_text(curves_chart(found) + "\n", encoding="utf-8")


if __name__ == "__main__":
    command(main)
