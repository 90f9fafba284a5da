"""``m2distill demos``: collect demonstrations with scripted experts."""

from __future__ import annotations

import argparse
from pathlib import Path

from m2distill_policy.arguments import say_next, train_command
from m2distill_policy.commands import SUMMARIES
from m2distill_policy.options import LARGEST_SEED, MANY, MOST_PROCESSES, real, whole


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the subcommand."""
    parser = subparsers.add_parser(
        "demos",
        help=SUMMARIES["demos"],
        description=(
            "Collect successful demonstrations with scripted experts: one HDF5 file in LIBERO's layout for each task. "
            "If it is stopped, the same command continues and ends with the same files. Finished files stay unchanged."
        ),
        epilog="examples:\n"
        "  m2distill demos --tasks 0,1,2 --episodes 80 --size 64 --out data/tabletop64\n"
        "  m2distill demos --suite libero_object --episodes 50 --size 128 --out data/libero_object",
    )
    parser.add_argument(
        "--suite",
        default="tabletop",
        help="tabletop, libero_object, libero_goal or libero_spatial (default: %(default)s)",
    )
    parser.add_argument(
        "--tasks",
        default="all",
        help="task numbers such as 0,1,2, or all (default: %(default)s); see 'm2distill tasks'",
    )
    parser.add_argument(
        "--episodes",
        type=whole("--episodes", 1, MANY),
        default=80,
        help="successful episodes for each task (default: %(default)s)",
    )
    parser.add_argument(
        "--size",
        type=whole("--size", 1, 4096),
        default=64,
        help="width and height of both camera views in pixels (default: %(default)s)",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the files")
    parser.add_argument(
        "--workers",
        type=whole("--workers", 1, MOST_PROCESSES),
        default=2,
        help="number of processes (default: %(default)s)",
    )
    parser.add_argument(
        "--seed",
        type=whole("--seed", 0, LARGEST_SEED),
        default=0,
        help="random seed of the scenes and disturbances (default: %(default)s)",
    )
    parser.add_argument(
        "--visuals", default="fast", help="rendering profile: fast, or stock as in robosuite (default: %(default)s)"
    )
    parser.add_argument(
        "--noise",
        type=real("--noise", 0, 100),
        default=1.0,
        help="factor on the standard noise of the executed actions (default: %(default)s)",
    )
    parser.add_argument(
        "--randomise",
        metavar="KINDS",
        default="",
        help="randomise the environment for robustness: camera, light, texture, delay, gain, noise, with commas "
        "between them, or all; the level is sampled for every episode (see 'm2distill evaluate --perturb')",
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
    """Collect demonstrations with a progress bar on standard error, and print a line for each file."""
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
                bar.initial = done  # episodes of an earlier call would distort the displayed speed
            bar.n = done
            bar.set_postfix_str(note)

        files = collect(collection, progress)
    for file in files:
        lengths = [len(episode) for episode in file]
        print(
            f"{file.path}: {len(file)} successful of {file.tried} attempts, {min(lengths)} to {max(lengths)} steps "
            f"(mean {sum(lengths) / len(lengths):.0f})"
        )
    say_next(*train_command(args.out, args.suite, collection.tasks, args.episodes, args.size))
    return 0
