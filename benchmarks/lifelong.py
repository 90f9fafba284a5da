"""Run a study of lifelong learning and keep its results: shared by the benchmarks of the tabletop and LIBERO suites.

A study can be stopped at any moment; the same command resumes it. Every run has its own folder. The results of finished
runs are written to one file (:mod:`benchmarks.result_files`). With ``--reuse-results``, a run whose result is in that
file counts as done, so that another machine can continue the study.

With the same seed, all variants of a study (its arms) train for the same number of steps and are evaluated on the same
held-out initial states. Arms that
are trained in the same folder share the first stage.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks import tables
from benchmarks.output import make_parser
from benchmarks.result_files import RunResult, read_runs, write_runs
from benchmarks.tables import METRICS, Column, metric
from m2distill_policy import cluster
from m2distill_policy.config import from_dict, to_dict
from m2distill_policy.errors import TrainingError
from training.parallel_runs import Job, progress, run_alone
from training.run_config import RunConfig, first_difference
from training.studies.study import Arm, Study, results_of, run_seed

#: Columns of the table of a finished study.
COLUMNS: tuple[Column, ...] = (
    metric("success", "mean_final"),
    *METRICS,
    ("wrong object", lambda run: float(np.mean(run.wrong_object_rate[-1]))),
    ("cross-instruction", lambda run: run.cross_instruction_success),
)


@dataclass(frozen=True)
class Benchmark:
    """A study and the file that keeps its results.

    Attributes:
        name: Name of the study.
        study: The study, which defines the runs.
        results: File of the study's results.
        reuse: Whether to take the result of a run from this file if this machine does not have the run.
    """

    name: str
    study: Study
    results: Path
    reuse: bool = False

    def result(self, job: Job) -> RunResult | None:
        """Return a run's result; None if the run is not finished.

        Raises:
            TrainingError: The run has another configuration.
        """
        job.require_same()
        arm = job.folder.name
        if job.finished:
            return RunResult.of(arm, results_of(job))
        kept = [run for run in read_runs(self.results) if (run.arm, run.seed) == (arm, job.config.seed)]
        if not (self.reuse and kept):
            return None
        difference = first_difference(to_dict(from_dict(RunConfig, kept[0].config)), to_dict(job.config))
        if difference is not None:
            raise TrainingError(
                f"{self.results} holds a result of '{job.name}' under another configuration: {difference}; repeat the "
                "command without --reuse-results"
            )
        return kept[0]

    def write(self, seeds: Sequence[int]) -> None:
        """Write the results of this machine's finished runs. Results of other runs stay in the file."""
        found = {(run.arm, run.seed): run for run in read_runs(self.results)}
        for seed in seeds:
            for job in self.study.jobs(seed):
                result = self.result(job)
                if result is not None:
                    found[result.arm, result.seed] = result
        names = [arm.name for arm in self.study.arms]
        ordered = sorted(found.values(), key=lambda run: names.index(run.arm) if run.arm in names else len(names))
        write_runs(self.results, self.name, to_dict(self.study.shared_config()), ordered)


def add_options(parser: argparse.ArgumentParser, study_arms: Sequence[Arm]) -> None:
    """Add the options of every study."""
    names = [arm.name for arm in study_arms]
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds to run (default: %(default)s)")
    parser.add_argument("--arms", nargs="+", default=names, choices=names, metavar="ARM", help=", ".join(names))
    parser.add_argument("--at-once", type=int, default=2, help="parallel runs, one thread each (default: %(default)s)")
    parser.add_argument("--plan", action="store_true", help="show the progress of every run, and exit")
    parser.add_argument("--summarise", action="store_true", help="write the results of finished runs, and exit")
    parser.add_argument(
        "--reuse-results", action="store_true", help="count runs whose results are in the output file as done"
    )
    cluster.add_option(parser, "runs")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the configuration of every run")


def main(
    name: str, doc: str | None, settings: tuple[str, ...], study_arms: tuple[Arm, ...], seeds: Sequence[int] = (0, 1, 2)
) -> None:
    """Run the command of a study of one suite under the profile ``tiny``, or resume it."""
    parser = make_parser(doc)
    parser.add_argument("--config", type=Path, default=Path("config/tiny.toml"), help="default: %(default)s")
    parser.add_argument(
        "--folder", type=Path, default=Path(f"runs/benchmark_{name}"), help="of the runs (default: %(default)s)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path(f"benchmarks/results/{name}.jsonl"), help="results (default: %(default)s)"
    )
    add_options(parser, study_arms)
    parser.set_defaults(seeds=list(seeds))
    args = parser.parse_args()
    overrides = (*settings, *args.overrides)
    study = Study(args.config, args.folder / "demonstrations", args.folder, overrides, study_arms)
    execute(Benchmark(name, study, args.out, args.reuse_results), args)


def execute(benchmark: Benchmark, args: argparse.Namespace) -> None:
    """Do what the options ask: show the plan, write the results, or finish the runs and write the results."""
    if args.plan:
        for seed in args.seeds:
            for job in benchmark.study.jobs(seed):
                done = benchmark.result(job) is not None
                share, state = (1.0, "done") if done else progress(job.folder)
                print(f"{job.name:<32}{100 * share:5.0f} %  {state}")
        return
    if not args.summarise:
        _run(benchmark, args)
    benchmark.write(args.seeds)
    print("\n".join(tables.rows(benchmark.results, benchmark.study.arms, COLUMNS)))
    print(f"written: {benchmark.results}", file=sys.stderr)


def _run(benchmark: Benchmark, args: argparse.Namespace) -> None:
    """Finish the runs, one seed after another; write the results after each seed."""
    study = benchmark.study
    left = {
        seed: [
            job for job in study.jobs(seed) if job.folder.name in args.arms and benchmark.result(job) is None
        ]
        for seed in args.seeds
    }  # fmt: skip
    if not any(left.values()):
        return
    config = study.shared_config()
    run_alone(
        [
            sys.executable, "-m", "m2distill_policy", "demos", "--suite", config.suite,
            "--tasks", ",".join(map(str, config.tasks)), "--episodes", str(config.episodes),
            "--size", str(config.image_size), "--out", str(study.data),
        ],
        "demos",
    )  # fmt: skip
    for seed, jobs in left.items():
        if jobs:
            run_seed(study.jobs(seed)[0], jobs, args.at_once, cluster.launcher(args.ray))
            benchmark.write(args.seeds)
