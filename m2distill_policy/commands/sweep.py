"""``m2distill sweep``: which settings are best."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from m2distill_policy import cluster
from m2distill_policy.commands import SUMMARIES, _own_strategies
from m2distill_policy.options import LARGEST_SEED, MANY, MOST_PROCESSES, whole


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the subcommand."""
    parser = subparsers.add_parser(
        "sweep",
        help=SUMMARIES["sweep"],
        description=(
            "Search settings of training with Optuna: every trial is a run a seed. Killed at any moment, the same "
            "command goes on with the trial it was in. Choose on seeds that you do not report; on "
            "LIBERO's suites, where every seed sees the same initial states, on tasks that you do not report."
        ),
        epilog=(
            "example: m2distill sweep config/sweeps/distill.toml --config config/tiny.toml --data demos "
            "--out runs/sweep --seeds 3,4 --trials 20"
        ),
    )
    parser.add_argument("search", type=Path, help="TOML or YAML file: metric, and the space of settings")
    parser.add_argument("--config", type=Path, help="what the settings change (config/tiny.toml, config/paper.toml)")
    parser.add_argument("--data", type=Path, required=True, help="folder of <task>_demo.hdf5 files")
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs and sweep.json")
    parser.add_argument("--seeds", default="3", help="of the runs of every trial (default: 3)")
    parser.add_argument(
        "--trials",
        type=whole("--trials", 1, MANY),
        default=20,
        help="in all, with those of earlier calls (default: 20)",
    )
    parser.add_argument(
        "--at-once",
        type=whole("--at-once", 1, MOST_PROCESSES),
        default=2,
        help="runs of a trial in parallel (default: 2)",
    )
    parser.add_argument(
        "--search-seed",
        type=whole("--search-seed", 0, LARGEST_SEED),
        default=0,
        help="of the search itself (default: 0)",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the configuration")
    cluster.add_option(parser, "runs")
    _own_strategies.add_option(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run what is left, print the trials."""
    _own_strategies.load(args)
    from m2distill_policy.commands.ablate import seeds_of
    from m2distill_policy.config import load_config
    from training.studies.arms import Study
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
    return 0
