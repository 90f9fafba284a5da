"""Measure success under disturbances, for a policy trained with and without disturbed demonstrations.

One task is learned twice from the same number of demonstrations and with the same number of steps: once from
undisturbed environments, once from environments that differ in camera, light, colours and noise (``m2distill demos
--randomise``). Both bundles are evaluated under each disturbance alone, at several levels, from the same initial
states. It takes hours; run the same command again to resume. ``--draw`` only redraws the chart.

Example:
    python -m benchmarks.perturbation --rollouts 20 --out mine.json --chart mine.svg
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.output import command, make_parser
from benchmarks.result_files import write_measurement
from benchmarks.svg import svg_settings, write_svg
from m2distill_policy.config import load_config, to_dict
from m2distill_policy.errors import TrainingError
from m2distill_policy.sim.disturbances import KINDS
from training.lifelong.checkpoint import read_json
from training.parallel_runs import Job
from training.run_config import RunConfig

#: Name of the bundle -> disturbances of its demonstrations.
RANDOMISED = {"clean": "", "randomised": "camera,light,texture,noise"}


def run(words: list[object]) -> None:
    """Run a subcommand of ``m2distill``, which writes to the terminal.

    Raises:
        TrainingError: The subcommand failed.
    """
    command = [sys.executable, "-m", "m2distill_policy", *map(str, words)]
    done = subprocess.run(command, check=False)
    if done.returncode != 0:
        raise TrainingError(
            f"'m2distill {words[0]}' ended with code {done.returncode}; see its message above, then run this again to "
            "resume"
        )


def training_overrides(args: argparse.Namespace) -> list[str]:
    """Return the settings in which both runs differ from the configuration file."""
    fixed = [f"tasks=[{args.task}]", "evaluation.rollouts=0", f"episodes={args.episodes}", f"seed={args.seed}"]
    return [*fixed, *args.overrides]


def measure_curves(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Collect demonstrations, train, export and evaluate one of the two bundles; finished steps are skipped.

    Returns:
        Disturbance -> level -> success rate.
    """
    folder = args.folder / name
    task = str(args.task)
    trained, overrides = folder / "run", training_overrides(args)
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
    """Measure, write, and draw the chart."""
    parser = make_parser(__doc__)
    parser.add_argument("--config", type=Path, default=Path("config/tiny.toml"), help="default: %(default)s")
    parser.add_argument(
        "--folder", type=Path, default=Path("runs/benchmark_perturbation"), help="of the runs (default: %(default)s)"
    )
    parser.add_argument("--task", type=int, default=0, help="of the suite tabletop (default: %(default)s)")
    parser.add_argument("--episodes", type=int, default=80, help="demonstrations (default: %(default)s)")
    parser.add_argument("--size", type=int, default=64, help="image size in pixels (default: %(default)s)")
    parser.add_argument("--rollouts", type=int, default=20, help="a disturbance and level (default: %(default)s)")
    parser.add_argument("--levels", default="0.25,0.5,1", help="of the disturbances (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument(
        "--out", type=Path, default=Path("benchmarks/results/perturbation.json"), help="default: %(default)s"
    )
    parser.add_argument("--chart", type=Path, default=Path("docs/perturbation.svg"), help="default: %(default)s")
    parser.add_argument("--draw", action="store_true", help="only redraw the chart from the file that --out names")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the training configuration")
    args = parser.parse_args()
    if args.draw:
        found = read_json(args.out)["figures"]
    else:
        found = {name: measure_curves(name, args) for name in RANDOMISED}
        trained = to_dict(load_config(RunConfig, args.config, training_overrides(args)))
        settings = {"rollouts": args.rollouts, "levels": args.levels, "randomised": RANDOMISED["randomised"]}
        write_measurement("perturbation", {**trained, **settings}, found, args.out)
    from training.report.charts import curves_chart

    with svg_settings():
        write_svg(args.chart, curves_chart(found))
    print(f"written: {args.chart}", file=sys.stderr)


if __name__ == "__main__":
    command(main)
