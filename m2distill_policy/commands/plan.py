"""``m2distill plan``: estimate the training time."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from m2distill_policy.arguments import add_overrides, say_next, training_config
from m2distill_policy.commands import SUMMARIES, _own_strategies
from m2distill_policy.options import MANY, whole


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the subcommand."""
    parser = subparsers.add_parser(
        "plan",
        help=SUMMARIES["plan"],
        description=(
            "Count the training steps and rollouts of a configuration, time a few of each on this machine, and print "
            "the estimated hours. Rollouts count with their full length, although successful ones end sooner."
        ),
        epilog="example:\n  m2distill plan --config libero_small suite=libero_goal strategy=er --seeds 3",
    )
    parser.add_argument(
        "--config", type=training_config, help="TOML or YAML file, or a profile: tiny, paper, libero_small"
    )
    parser.add_argument(
        "--data",
        type=Path,
        help="folder of <task>_demo.hdf5 files; without it, every demonstration counts as --length steps",
    )
    parser.add_argument(
        "--length",
        type=whole("--length", 1, MANY),
        default=130,
        help="assumed steps of a demonstration (default: %(default)s)",
    )
    parser.add_argument(
        "--seeds",
        type=whole("--seeds", 1, MANY),
        default=1,
        help="number of runs with different seeds (default: %(default)s)",
    )
    add_overrides(parser)
    _own_strategies.add_option(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Count steps and rollouts, time a few of each, and print the estimate."""
    _own_strategies.load(args)
    from m2distill_policy.config import load_config
    from m2distill_policy.errors import ConfigError
    from m2distill_policy.sim.env import FILES
    from m2distill_policy.sim.suites import suite_task
    from training.run_config import RunConfig
    from training.studies.plan import count, demonstrated_steps, measure, table

    config = load_config(RunConfig, args.config, args.overrides)
    if config.suite == FILES:
        raise ConfigError(
            "suite=files has no simulator whose speed could be measured; name a suite, such as suite=tabletop"
        )
    tasks = [suite_task(config.suite, index) for index in config.tasks]
    work = count(config, tasks, demonstrated_steps(config, tasks, args.data, args.length), history=10)
    speed = measure(config, tasks[0], lambda text: print(text, file=sys.stderr, flush=True))
    print(table(config, work, speed, args.seeds))
    size = config.image_size
    say_next("demos", "--suite", config.suite, "--size", size, "--out", f"data/{config.suite}{size}")
    return 0
