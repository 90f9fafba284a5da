"""``m2distill evaluate``: roll a bundle out in a world and count successes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from m2distill_policy import cluster
from m2distill_policy.options import LARGEST_SEED, MANY, MOST_PROCESSES, real, whole

if TYPE_CHECKING:
    from m2distill_policy.sim.disturbances import Disturbance

SUMMARY = "roll a bundle out in a world and count successes"


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the subcommand."""
    parser = subparsers.add_parser(
        "evaluate",
        help=SUMMARY,
        description=(
            "Roll a bundle out on tasks of a suite, from initial states that no demonstration and no choice of a "
            "checkpoint ever used (of the 50 of LIBERO's tasks, the first 25). Every rollout is a line of "
            "rollouts.jsonl; run again, it goes on where it stopped."
        ),
        epilog="examples:\n"
        "  m2distill evaluate bundles/first --suite tabletop --tasks 0,1 --out results/first\n"
        "  m2distill evaluate bundles/first --perturb camera,light,delay --levels 0.5,1 --out results/disturbed",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="the bundle's folder")
    parser.add_argument("--suite", default="tabletop", help="suite of the tasks (default: tabletop)")
    parser.add_argument("--tasks", help="indices, such as 0,1 (default: every task of the suite that the bundle knows)")
    parser.add_argument(
        "--rollouts", type=whole("--rollouts", 1, MANY), default=20, help="rollouts a task (default: 20)"
    )
    parser.add_argument(
        "--workers", type=whole("--workers", 1, MOST_PROCESSES), default=2, help="processes (default: 2)"
    )
    parser.add_argument(
        "--sampling", default="low_noise", choices=("sample", "low_noise", "mode"), help="how actions are drawn"
    )
    parser.add_argument(
        "--temperature", type=real("--temperature", 0.001, 1000), default=1.0, help="of --sampling sample (default: 1)"
    )
    parser.add_argument(
        "--seed",
        type=whole("--seed", 0, LARGEST_SEED),
        default=0,
        help="which initial states and random numbers (default: 0)",
    )
    parser.add_argument(
        "--horizon",
        type=whole("--horizon", 0, MANY),
        default=0,
        help="control steps after which a rollout has failed (default: the task's own)",
    )
    parser.add_argument("--visuals", default="fast", choices=("fast", "stock"), help="visual profile (default: fast)")
    parser.add_argument("--tell", metavar="INSTRUCTION", help="tell every world this instead of its own instruction")
    parser.add_argument(
        "--perturb",
        metavar="KINDS",
        help="also in worlds that are a little wrong: camera, light, texture, delay, gain, noise, or all; how much "
        "that is at level 1 is in docs/architecture.md",
    )
    parser.add_argument("--levels", default="0.5,1", help="of --perturb, above 0 and up to 1 (default: %(default)s)")
    parser.add_argument(
        "--film", type=whole("--film", 0, MANY), default=0, metavar="N", help="film the first N rollouts of each task"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for rollouts.jsonl, summary.json and videos")
    cluster.add_option(parser, "rollouts")
    parser.set_defaults(run=run)


def _disturbances(kinds: str | None, levels: str) -> list[tuple[Disturbance, ...]]:
    """None at all, then each kind at each level alone."""
    from m2distill_policy.errors import ConfigError
    from m2distill_policy.sim.disturbances import KINDS, Disturbance

    if not kinds:
        return [()]
    try:
        wanted = [float(text) for text in levels.split(",")]
    except ValueError:
        raise ConfigError(f"--levels is '{levels}'; numbers with commas between them are needed") from None
    if not all(0 < level <= 1 for level in wanted):
        raise ConfigError(
            f"--levels is '{levels}'; above 0 and up to 1 is allowed, undisturbed worlds come in any case"
        )
    names = list(KINDS) if kinds == "all" else kinds.split(",")
    for option, given in (("--perturb", names), ("--levels", wanted)):
        if len(set(given)) != len(given):
            raise ConfigError(f"{option} names one twice: {', '.join(map(str, given))}")
    return [(), *((Disturbance(name, level),) for name in names for level in wanted)]


def run(args: argparse.Namespace) -> int:
    """Evaluate and print the table; 1 when a rollout ended in an error."""
    import dataclasses
    import json

    from m2distill_policy.bundle import open_bundle
    from m2distill_policy.errors import ConfigError
    from m2distill_policy.evaluation.results import curves, curves_table, make_cells, summarise, table
    from m2distill_policy.evaluation.rollouts import RolloutPool
    from m2distill_policy.lock import only_writer
    from m2distill_policy.provenance import commit, machine, versions
    from m2distill_policy.sim.suites import suite_tasks
    from m2distill_policy.storage import write_atomic

    bundle = open_bundle(args.bundle)
    if args.tasks is None:
        tasks = [task.index for task in suite_tasks(args.suite) if task.instruction in bundle.instructions]
        if not tasks:
            raise ConfigError(
                f"bundle '{args.bundle}' knows no instruction of suite '{args.suite}'; "
                f"it knows {list(bundle.instructions)}"
            )
    else:
        try:
            tasks = [int(text) for text in args.tasks.split(",")]
        except ValueError:
            raise ConfigError(
                f"--tasks is '{args.tasks[:60]}'; whole numbers with commas between them are needed"
            ) from None
    cells = [
        cell
        for wrong in _disturbances(args.perturb, args.levels)
        for cell in make_cells(
            args.suite,
            tasks,
            args.rollouts,
            seed=args.seed,
            instruction=args.tell,
            disturbances=wrong,
            horizon=args.horizon,
        )
    ]
    with only_writer(args.out), RolloutPool(args.workers, launcher=cluster.launcher(args.ray)) as pool:
        results = pool.evaluate(
            bundle,
            cells,
            sampling=args.sampling,
            temperature=args.temperature,
            visuals=args.visuals,
            log=args.out / "rollouts.jsonl",
            video_folder=args.out / "videos",
            videos_per_cell=args.film,
            progress=True,
        )
    summaries = summarise(results)
    summary = {
        "bundle": bundle.identifier,
        "tasks_learned": list(bundle.task_names),
        "provenance": dict(bundle.provenance),
        "sampling": args.sampling,
        "temperature": args.temperature,
        "seed": args.seed,
        "visuals": args.visuals,
        "cells": [dataclasses.asdict(s) for s in summaries],
        "curves": curves(summaries),
        "commit": commit(),
        "versions": versions(),
        "machine": machine(),
    }
    write_atomic(args.out / "summary.json", (json.dumps(summary, indent=2) + "\n").encode())
    print(table(summaries))
    if args.perturb:
        print("\n" + curves_table(curves(summaries)))
    errors = [r for r in results if r.error is not None]
    for result in errors:
        print(f"error: {result.task}, rollout {result.episode}: {result.error}")
    return 1 if errors else 0
