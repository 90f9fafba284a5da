"""Strategies side by side on one suite's tasks in turn, over several seeds: what :mod:`benchmarks.tabletop` and
:mod:`benchmarks.libero_small` have in common.

Resumable at any moment: every run is a folder, every rollout a line. No time limit; ``--plan`` says what is left.
Results of finished runs are also written beside the table, one file a run; ``--go-on`` takes those that lie there for
done, so that another machine can go on where this one stopped.
Every arm of a seed learns with the same steps, is evaluated on the same held-out states and, where it is trained in the
same folder, shares the first stage.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.output import write
from m2distill_policy import cluster
from m2distill_policy.config import from_dict, load_config, to_dict
from m2distill_policy.errors import TrainingError
from m2distill_policy.evaluation.results import wilson
from training.lifelong.checkpoint import read_json, write_json
from training.parallel_runs import Job, progress, run_alone
from training.run_config import RunConfig, first_difference
from training.studies import arms
from training.studies.arms import Arm


@dataclass(frozen=True)
class Study:
    """name: of the result, of its file in ``benchmarks/results`` and of the runs' folder. config: a file; settings:
    changes to it that every arm has. arms: the first is trained first, the others take its first stage."""

    name: str
    config: Path
    settings: tuple[str, ...]
    arms: tuple[Arm, ...]


@dataclass(frozen=True)
class Place:
    """Where a study's runs and results lie. folder: of the runs and demonstrations. out: the table's file; results of
    finished runs lie beside it. go_on: those that lie there already count. data: folder of the demonstrations, where
    several studies share them; None: one in ``folder``."""

    folder: Path
    out: Path
    overrides: tuple[str, ...] = ()
    go_on: bool = False
    data: Path | None = None

    @property
    def demonstrations(self) -> Path:
        """Folder of the demonstrations."""
        return self.data or self.folder / "demonstrations"

    def kept(self, job: Job) -> Path:
        """Where a finished run's results lie beside the table."""
        return self.out.with_suffix("") / f"{job.name.replace(' ', '_')}.json"


def jobs_of(study: Study, seed: int, place: Place) -> list[Job]:
    """The runs of one seed, the shared first stage's owner first."""
    overrides = (*study.settings, *place.overrides)
    setting = arms.Setting(study.config, place.demonstrations, place.folder, overrides)
    return arms.jobs_of(seed, study.arms, setting)


def results_of(job: Job, place: Place) -> dict[str, Any] | None:
    """A run's results: the folder's, or with ``--go-on`` those kept by another machine; None while there are none.

    Raises :class:`TrainingError` where they were made under another configuration.
    """
    job.require_same()
    if job.finished:
        found: dict[str, Any] = read_json(job.folder / "results.json")
        return found
    path = place.kept(job)
    if not (place.go_on and path.exists()):
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


def summarise(study: Study, seeds: Sequence[int], place: Place) -> dict[str, Any]:
    """Every arm's figures over the seeds that are done; what is not done is named."""
    figures: dict[str, Any] = {"arms": {}, "not_run": []}
    jobs = [jobs_of(study, seed, place) for seed in seeds]
    for arm, runs in zip(study.arms, zip(*jobs, strict=True), strict=True):
        found = []
        for job in runs:
            results = results_of(job, place)
            if results is None:
                figures["not_run"].append(job.name)
                continue
            found.append(results)
            if job.finished:
                place.kept(job).parent.mkdir(parents=True, exist_ok=True)
                write_json(place.kept(job), results)
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


def add_options(parser: argparse.ArgumentParser, study_arms: Sequence[Arm]) -> None:
    """What every study's command takes."""
    names = [arm.name for arm in study_arms]
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=names, choices=names, metavar="ARM", help=", ".join(names))
    parser.add_argument("--at-once", type=int, default=2, help="runs in parallel, one thread each (default: 2)")
    parser.add_argument("--plan", action="store_true", help="say what is done and what is left, and stop")
    parser.add_argument("--sum-up", action="store_true", help="write the table of what is done, and stop")
    parser.add_argument("--go-on", action="store_true", help="take runs whose results lie beside the table for done")
    cluster.add_option(parser, "runs")
    parser.add_argument("overrides", nargs="*", metavar="key=value")


def main(
    name: str, doc: str | None, settings: tuple[str, ...], study_arms: tuple[Arm, ...], seeds: Sequence[int] = (0, 1, 2)
) -> None:
    """The command of a study of one suite under the profile ``tiny``: go on where the last call stopped."""
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--config", type=Path, default=Path("config/tiny.toml"))
    parser.add_argument("--folder", type=Path, default=Path(f"runs/benchmark_{name}"))
    parser.add_argument("--out", type=Path, default=Path(f"benchmarks/results/{name}.json"))
    add_options(parser, study_arms)
    parser.set_defaults(seeds=list(seeds))
    args = parser.parse_args()
    study = Study(name, args.config, settings, study_arms)
    go(study, Place(args.folder, args.out, tuple(args.overrides), args.go_on), args)


def go(study: Study, place: Place, args: argparse.Namespace) -> None:
    """Go on where the last call stopped: plan, or run what is left and write the table."""
    if args.plan:
        for seed in args.seeds:
            for job in jobs_of(study, seed, place):
                share, words = (1.0, "done") if results_of(job, place) is not None else progress(job.folder)
                print(f"{job.name:<32}{100 * share:5.0f} %  {words}")
        return
    if not args.sum_up:
        _run(study, place, args)
    figures = _write(study, place, args.seeds)
    print(table(figures), file=sys.stderr)
    print(json.dumps({"written": str(place.out)}), file=sys.stderr)


def _write(study: Study, place: Place, seeds: Sequence[int]) -> dict[str, Any]:
    config = load_config(RunConfig, study.config, [*study.settings, *place.overrides])
    figures = summarise(study, seeds, place)
    write(study.name, to_dict(config), figures, place.out)
    return figures


def _run(study: Study, place: Place, args: argparse.Namespace) -> None:
    """Everything that is left, a seed at a time; the table is written after each."""
    left = {
        seed: [
            job
            for job in jobs_of(study, seed, place)
            if job.folder.name in args.arms and results_of(job, place) is None
        ]
        for seed in args.seeds
    }
    if not any(left.values()):
        return
    config = load_config(RunConfig, study.config, [*study.settings, *place.overrides])
    run_alone(
        [
            sys.executable, "-m", "m2distill_policy", "demos", "--suite", config.suite,
            "--tasks", ",".join(map(str, config.tasks)), "--episodes", str(config.episodes),
            "--size", str(config.image_size), "--out", str(place.demonstrations),
        ],
        "demos",
    )  # fmt: skip
    for seed, jobs in left.items():
        if jobs:
            arms.run_seed(jobs_of(study, seed, place)[0], jobs, args.at_once, cluster.launcher(args.ray))
            _write(study, place, args.seeds)
