"""``m2distill evaluate``: measure a bundle's success rate in simulation."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from m2distill_policy import cluster
from m2distill_policy.arguments import add_bundle, find_bundle, say_next
from m2distill_policy.commands import SUMMARIES
from m2distill_policy.options import LARGEST_SEED, MANY, MOST_PROCESSES, real, whole

if TYPE_CHECKING:
    from m2distill_policy.sim.disturbances import Disturbance


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the subcommand."""
    parser = subparsers.add_parser(
        "evaluate",
        help=SUMMARIES["evaluate"],
        description=(
            "Run a bundle on tasks of a suite and print the success rates. It starts from initial states that "
            "neither demonstrations nor the choice of checkpoints use. For LIBERO's tasks these are the first 25 of "
            "its 50 benchmark states. If it is stopped, the same command continues."
        ),
        epilog="examples:\n"
        "  m2distill evaluate --rollouts 5 --out results/pretrained   # the pretrained policy\n"
        "  m2distill evaluate runs/first --suite tabletop --tasks 0,1 --out results/first --videos 1\n"
        "  m2distill evaluate bundles/first --perturb camera,light,delay --levels 0.5,1 --out results/disturbed",
    )
    add_bundle(parser)
    parser.add_argument(
        "--suite", default="tabletop", help="suite of the tasks (default: tabletop); see 'm2distill tasks'"
    )
    parser.add_argument(
        "--tasks", help="task numbers, such as 0,1 (default: the tasks of the suite that the bundle was trained on)"
    )
    parser.add_argument(
        "--rollouts", type=whole("--rollouts", 1, MANY), default=20, help="rollouts of each task (default: 20)"
    )
    parser.add_argument(
        "--workers", type=whole("--workers", 1, MOST_PROCESSES), default=2, help="number of processes (default: 2)"
    )
    parser.add_argument(
        "--sampling",
        default="low_noise",
        choices=("sample", "low_noise", "mode"),
        help="action from the mixture: sample draws one, low_noise draws with a small standard deviation, "
        "mode takes the mean of the most likely component (default: low_noise)",
    )
    parser.add_argument(
        "--temperature",
        type=real("--temperature", 0.001, 1000),
        default=1.0,
        help="temperature of --sampling sample (default: 1)",
    )
    parser.add_argument(
        "--seed",
        type=whole("--seed", 0, LARGEST_SEED),
        default=0,
        help="random seed of the initial states and the sampling (default: 0)",
    )
    parser.add_argument(
        "--horizon",
        type=whole("--horizon", 0, MANY),
        default=0,
        help="control steps after which a rollout counts as failed; 0: the task's own limit (default: 0)",
    )
    parser.add_argument(
        "--visuals", default="fast", choices=("fast", "stock"), help="rendering profile (default: fast)"
    )
    parser.add_argument("--instruction", help="instruction for all tasks (default: each task's own instruction)")
    parser.add_argument(
        "--perturb",
        metavar="KINDS",
        help="evaluate also in disturbed environments: camera, light, texture, delay, gain, noise, with commas "
        "between them, or all; docs/explanation/simulation.md says what level 1 is",
    )
    parser.add_argument(
        "--levels", default="0.5,1", help="levels of --perturb, above 0 and up to 1 (default: %(default)s)"
    )
    parser.add_argument(
        "--videos",
        type=whole("--videos", 0, MANY),
        default=0,
        metavar="N",
        help="record a video of the first N rollouts of each task (default: 0)",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for rollouts.jsonl, summary.json and videos")
    cluster.add_option(parser, "rollouts")
    parser.set_defaults(run=run)


def _disturbances(kinds: str | None, levels: str) -> list[tuple[Disturbance, ...]]:
    """Return the disturbances to evaluate: first none, then each kind at each level."""
    from m2distill_policy.errors import ConfigError
    from m2distill_policy.sim.disturbances import KINDS, Disturbance

    if not kinds:
        return [()]
    try:
        wanted = [float(text) for text in levels.split(",")]
    except ValueError:
        raise ConfigError(f"--levels is '{levels}'; give numbers with commas between them, such as 0.5,1") from None
    if not all(0 < level <= 1 for level in wanted):
        raise ConfigError(
            f"--levels is '{levels}'; allowed are numbers above 0 and up to 1. Level 0 is always evaluated"
        )
    names = list(KINDS) if kinds == "all" else kinds.split(",")
    for option, given in (("--perturb", names), ("--levels", wanted)):
        if len(set(given)) != len(given):
            raise ConfigError(f"{option} is '{','.join(map(str, given))}'; name each one once")
    return [(), *((Disturbance(name, level),) for name in names for level in wanted)]


def run(args: argparse.Namespace) -> int:
    """Evaluate the bundle and print the table. Return 1 if a rollout ended with an error, else 0."""
    import json

    from m2distill_policy.bundle import open_bundle
    from m2distill_policy.config import to_dict
    from m2distill_policy.errors import ConfigError
    from m2distill_policy.evaluation.results import (
        EvaluationSummary,
        curves,
        curves_table,
        make_cells,
        summarise,
        table,
    )
    from m2distill_policy.evaluation.rollouts import RolloutPool
    from m2distill_policy.lock import only_writer
    from m2distill_policy.provenance import describe
    from m2distill_policy.sim.suites import suite_tasks
    from m2distill_policy.storage import write_atomic

    bundle = open_bundle(find_bundle(args.bundle))
    if args.tasks is None:
        tasks = [task.index for task in suite_tasks(args.suite) if task.instruction in bundle.instructions]
        if not tasks:
            raise ConfigError(
                f"the bundle '{bundle.path}' was not trained on a task of the suite '{args.suite}'; it knows the "
                f"instructions {list(bundle.instructions)}"
            )
    else:
        try:
            tasks = [int(text) for text in args.tasks.split(",")]
        except ValueError:
            raise ConfigError(
                f"--tasks is '{args.tasks[:60]}'; give whole numbers with commas between them, such as 0,1"
            ) from None
    cells = [
        cell
        for wrong in _disturbances(args.perturb, args.levels)
        for cell in make_cells(
            args.suite,
            tasks,
            args.rollouts,
            seed=args.seed,
            instruction=args.instruction,
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
            videos_per_cell=args.videos,
            progress=True,
        )
    summaries = summarise(results)
    summary = EvaluationSummary(
        bundle=bundle.identifier,
        bundle_path=str(bundle.path.resolve()),
        tasks_learned=tuple(bundle.task_names),
        provenance=dict(bundle.provenance),
        sampling=args.sampling,
        temperature=args.temperature,
        seed=args.seed,
        visuals=args.visuals,
        cells=tuple(summaries),
        curves=curves(summaries),
        **describe(),
    )
    write_atomic(args.out / "summary.json", (json.dumps(to_dict(summary), indent=2) + "\n").encode())
    print(table(summaries))
    if args.perturb:
        print("\n" + curves_table(curves(summaries)))
    errors = [r for r in results if r.error is not None]
    for result in errors:
        print(f"error: {result.task}, rollout {result.episode}: {result.error}")
    print(f"written: {args.out / 'summary.json'}, {args.out / 'rollouts.jsonl'}")
    if args.videos:
        print(f"videos: {args.out / 'videos'}")
    if not errors:
        say_next("serve", bundle.path, "--instruction", bundle.instructions[0])
    return 1 if errors else 0
