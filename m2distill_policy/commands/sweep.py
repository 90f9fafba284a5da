"""``m2distill sweep``: search for the best settings."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from m2distill_policy import cluster
from m2distill_policy.arguments import add_overrides, installed_file, say_next, training_config
from m2distill_policy.commands import SUMMARIES, _own_strategies
from m2distill_policy.options import LARGEST_SEED, MANY, MOST_PROCESSES, whole


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the subcommand."""
    parser = subparsers.add_parser(
        "sweep",
        help=SUMMARIES["sweep"],
        description=(
            "Search training settings with Optuna. Each trial is one run for every seed. If it is stopped, the same "
            "command continues. Search on seeds that you do not report. On LIBERO's suites all seeds share the initial "
            "states, so search there on tasks that you do not report."
        ),
        epilog=(
            "example:\n  m2distill sweep distill --config tiny --data data/tabletop64 "
            "--out runs/sweep --seeds 3,4 --trials 20"
        ),
    )
    parser.add_argument(
        "search",
        metavar="SEARCH",
        type=installed_file("config/sweeps", ".toml"),
        help="TOML or YAML file with the metric and the ranges of the settings, such as config/sweeps/distill.toml",
    )
    parser.add_argument(
        "--config", type=training_config, help="TOML or YAML file, or a profile: tiny, paper, libero_small"
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of <task>_demo.hdf5 files")
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs and sweep.json")
    parser.add_argument("--seeds", default="3", help="seeds, such as 3,4; a trial runs once per seed (default: seed 3)")
    parser.add_argument(
        "--trials",
        type=whole("--trials", 1, MANY),
        default=20,
        help="total number of trials, including those of earlier calls (default: 20)",
    )
    parser.add_argument(
        "--at-once",
        type=whole("--at-once", 1, MOST_PROCESSES),
        default=2,
        help="number of parallel runs (default: 2)",
    )
    parser.add_argument(
        "--search-seed",
        type=whole("--search-seed", 0, LARGEST_SEED),
        default=0,
        help="seed of the search itself (default: 0)",
    )
    add_overrides(parser)
    cluster.add_option(parser, "runs")
    _own_strategies.add_option(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the trials that are not finished yet, and print the table of all trials."""
    _own_strategies.load(args)
    from m2distill_policy.commands.ablate import seeds_of
    from m2distill_policy.config import load_config
    from training.studies.study import Study
    from training.studies.sweep import SweepConfig, sweep, table

    study = Study(args.config, args.data, args.out, tuple(args.overrides))
    found = sweep(
        load_config(SweepConfig, args.search),
        study,
        seeds_of(args.seeds),
        args.trials,
        args.at_once,
        args.search_seed,
        lambda text: print(text, file=sys.stderr, flush=True),
        cluster.launcher(args.ray),
    )
    print(table(found))
    print(f"written: {args.out / 'sweep.json'}")
    say_next("info", args.out)
    return 0
