"""``m2distill ablate``: measure the effect of each distillation term."""

from __future__ import annotations

import argparse
from pathlib import Path

from m2distill_policy import cluster
from m2distill_policy.arguments import add_overrides, say_next, training_config
from m2distill_policy.commands import SUMMARIES, _own_strategies
from m2distill_policy.options import LARGEST_SEED, MOST_PROCESSES, whole


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the subcommand."""
    parser = subparsers.add_parser(
        "ablate",
        help=SUMMARIES["ablate"],
        description=(
            "Train the strategy m2distill with all terms, without each term and without any, on several seeds, and "
            "print one table with 95 % confidence intervals. If it is stopped, the same command continues."
        ),
        epilog="example:\n  m2distill ablate --config tiny --data demos --out runs/ablation --seeds 0,1,2",
    )
    parser.add_argument(
        "--config", type=training_config, help="TOML or YAML file, or a profile: tiny, paper, libero_small"
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of <task>_demo.hdf5 files")
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs and ablation.json")
    parser.add_argument("--seeds", default="0,1,2", help="seeds of the runs (default: 0,1,2)")
    parser.add_argument(
        "--at-once",
        type=whole("--at-once", 1, MOST_PROCESSES),
        default=2,
        help="number of parallel runs, one thread each (default: 2)",
    )
    add_overrides(parser)
    cluster.add_option(parser, "runs")
    _own_strategies.add_option(parser)
    parser.set_defaults(run=run)


def seeds_of(text: str) -> tuple[int, ...]:
    """Parse a list of seeds.

    Args:
        text: Whole numbers with commas between them, such as ``0,1,2``.

    Raises:
        ConfigError: ``text`` is not such a list, or names a seed twice.
    """
    from m2distill_policy.errors import ConfigError

    try:
        seeds = tuple(int(part) for part in text.split(","))
    except ValueError:
        seeds = ()
    if not seeds or not all(0 <= seed <= LARGEST_SEED for seed in seeds):
        raise ConfigError(
            f"--seeds is '{text[:40]}'; give whole numbers from 0 to {LARGEST_SEED}, such as --seeds 0,1,2"
        )
    twice = [seed for seed in dict.fromkeys(seeds) if seeds.count(seed) > 1]
    if twice:
        raise ConfigError(f"--seeds is '{text[:40]}' and names {twice[0]} more than once; name each seed once")
    return seeds


def run(args: argparse.Namespace) -> int:
    """Train the runs that are not finished yet, and print the table."""
    _own_strategies.load(args)
    from training.studies.ablation import ablate, table
    from training.studies.study import Study

    study = Study(args.config, args.data, args.out, tuple(args.overrides))
    print(table(ablate(study, seeds_of(args.seeds), args.at_once, cluster.launcher(args.ray))))
    print(f"written: {args.out / 'ablation.json'}")
    say_next("info", args.out)
    return 0
