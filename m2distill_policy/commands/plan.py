"""``m2distill plan``: how long a run takes, before it starts."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from m2distill_policy.commands import SUMMARIES, _own_strategies
from m2distill_policy.options import MANY, whole


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the subcommand."""
    parser = subparsers.add_parser(
        "plan",
        help=SUMMARIES["plan"],
        description=(
            "Count the steps and rollouts that a configuration asks for, time a few of each on this machine, and say "
            "the hours. Rollouts are counted at their full length: successes end sooner."
        ),
        epilog="example: m2distill plan --config config/libero_small.toml suite=libero_goal strategy=er --seeds 3",
    )
    parser.add_argument("--config", type=Path, help="as for train (config/tiny.toml, config/libero_small.toml)")
    parser.add_argument(
        "--data", type=Path, help="folder of <task>_demo.hdf5 files (default: --length a demonstration)"
    )
    parser.add_argument(
        "--length", type=whole("--length", 1, MANY), default=130, help="steps of a demonstration (default: %(default)s)"
    )
    parser.add_argument(
        "--seeds",
        type=whole("--seeds", 1, MANY),
        default=1,
        help="runs that differ in their seed (default: %(default)s)",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the configuration")
    _own_strategies.add_option(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Count, time, and print."""
    _own_strategies.load(args)
    from m2distill_policy.config import load_config
    from m2distill_policy.errors import ConfigError
    from m2distill_policy.sim.env import FILES
    from m2distill_policy.sim.suites import suite_task
    from training.run_config import RunConfig
    from training.studies.plan import count, demonstrated_steps, measure, table

    config = load_config(RunConfig, args.config, args.overrides)
    if config.suite == FILES:
        raise ConfigError("suite=files has no simulated world to time; name a suite")
    if args.length < 1 or args.seeds < 1:
        raise ConfigError(f"--length and --seeds are at least 1; got {args.length} and {args.seeds}")
    tasks = [suite_task(config.suite, index) for index in config.tasks]
    work = count(config, tasks, demonstrated_steps(config, tasks, args.data, args.length), history=10)
    speed = measure(config, tasks[0], lambda text: print(text, file=sys.stderr, flush=True))
    print(table(config, work, speed, args.seeds))
    return 0
