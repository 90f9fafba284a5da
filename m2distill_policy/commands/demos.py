"""``m2distill demos``: scripted experts fill a folder with demonstrations."""

from __future__ import annotations

import argparse
from pathlib import Path

from m2distill_policy.options import LARGEST_SEED, MANY, MOST_PROCESSES, real, whole

SUMMARY = "collect demonstrations of a suite's tasks with scripted experts"


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the subcommand."""
    parser = subparsers.add_parser(
        "demos",
        help=SUMMARY,
        description=(
            "Collect demonstrations in parallel processes, one HDF5 file a task in LIBERO's layout, successes only. "
            "Killed at any moment, the same command goes on where it was and ends with the same file; "
            "run again when finished, it changes nothing."
        ),
        epilog="examples: m2distill demos --tasks 0,1,2 --episodes 80 --size 64 --out data/tabletop64 --workers 2; "
        "m2distill demos --suite libero_object --episodes 50 --size 128 --out data/libero_object",
    )
    parser.add_argument(
        "--suite",
        default="tabletop",
        help="tabletop, libero_object, libero_goal or libero_spatial (default: %(default)s)",
    )
    parser.add_argument("--tasks", default="all", help="task indices such as 0,1,2, or all (default: %(default)s)")
    parser.add_argument(
        "--episodes",
        type=whole("--episodes", 1, MANY),
        default=80,
        help="successes to keep a task (default: %(default)s)",
    )
    parser.add_argument(
        "--size", type=whole("--size", 1, 4096), default=64, help="pixels a side of both views (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the files")
    parser.add_argument(
        "--workers", type=whole("--workers", 1, MOST_PROCESSES), default=2, help="processes (default: %(default)s)"
    )
    parser.add_argument(
        "--seed",
        type=whole("--seed", 0, LARGEST_SEED),
        default=0,
        help="of the collection: layouts and disturbances (default: %(default)s)",
    )
    parser.add_argument("--visuals", default="fast", help="fast or stock (default: %(default)s)")
    parser.add_argument(
        "--noise",
        type=real("--noise", 0, 100),
        default=1.0,
        help="times the standard disturbance of the executed action (default: %(default)s)",
    )
    parser.add_argument(
        "--randomise",
        metavar="KINDS",
        default="",
        help="train against worlds that are a little wrong: camera, light, texture, delay, gain, noise, or all, each "
        "at a level drawn for every episode (see 'm2distill evaluate --perturb')",
    )
    parser.add_argument(
        "--extend",
        action="store_true",
        help="add episodes to finished files of the same settings until each task has --episodes",
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="overwrite files that are damaged or were collected with other settings",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Collect, with a progress bar on standard error, and say what came of it."""
    from m2distill_policy.progress import ProgressBar
    from m2distill_policy.sim.collect import collect
    from m2distill_policy.sim.collection import Collection, parse_tasks
    from m2distill_policy.sim.disturbances import KINDS

    collection = Collection(
        folder=args.out,
        tasks=parse_tasks(args.tasks, args.suite),
        suite=args.suite,
        episodes=args.episodes,
        size=args.size,
        visuals=args.visuals,
        seed=args.seed,
        workers=args.workers,
        noise=args.noise,
        randomise=tuple(KINDS) if args.randomise == "all" else tuple(k for k in args.randomise.split(",") if k),
        extend=args.extend,
        force=args.force,
    )
    with ProgressBar(total=collection.episodes * len(collection.tasks), unit="episode", smoothing=0.1) as bar:

        def progress(done: int, total: int, note: str) -> None:
            if bar.n == 0 and done > 1:
                bar.initial = done  # an earlier run's episodes say nothing about this one's speed
            bar.n = done
            bar.set_postfix_str(note)

        files = collect(collection, progress)
    for file in files:
        lengths = [len(episode) for episode in file]
        print(
            f"{file.path}: {len(file)} episodes kept of {file.tried} tried, {min(lengths)} to {max(lengths)} steps "
            f"(mean {sum(lengths) / len(lengths):.0f})"
        )
    return 0
