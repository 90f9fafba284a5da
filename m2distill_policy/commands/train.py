"""``m2distill train``: learn a suite's tasks one after another."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from m2distill_policy.commands import SUMMARIES


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the subcommand."""
    parser = subparsers.add_parser(
        "train",
        help=SUMMARIES["train"],
        description="Learn tasks one after another. A run is a folder; killed at any moment, it goes on with --resume.",
        epilog=(
            "example: m2distill train --config config/tiny.toml --data demos --out runs/first "
            "strategy=m2distill tasks=[0,1,2] optim.steps=400"
        ),
    )
    parser.add_argument("--config", type=Path, help="TOML or YAML file (config/tiny.toml, config/paper.toml)")
    parser.add_argument("--data", type=Path, help="folder of <task>_demo.hdf5 files, from 'm2distill demos'")
    parser.add_argument("--out", type=Path, required=True, help="the run's folder")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
    parser.add_argument("--no-evaluation", action="store_true", help="train and export only")
    parser.add_argument("--stages", type=int, help="stop after so many stages; go on later with --resume")
    parser.add_argument(
        "--first-stage-from",
        type=Path,
        metavar="RUN",
        help="take the first stage from a run that learned the very same",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the configuration")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Create or open the run and go through its stages."""
    from m2distill_policy.config import load_config
    from m2distill_policy.errors import ConfigError
    from training.lifelong.run import LifelongRun, share_first_stage
    from training.pipeline import create_run, finish_run
    from training.report.page import text_table
    from training.run_config import RunConfig

    if args.resume:
        if args.config or args.overrides or args.data:
            raise ConfigError(
                "--resume goes on with the run's own configuration and data; leave --config, --data and key=value out"
            )
        lifelong = LifelongRun.open(args.out)
    else:
        if args.data is None:
            raise ConfigError("--data is missing; name the folder that 'm2distill demos' wrote")
        # Opened before the new run exists: a source that is not there must not leave half a run behind.
        source = LifelongRun.open(args.first_stage_from) if args.first_stage_from is not None else None
        lifelong = create_run(args.out, load_config(RunConfig, args.config, args.overrides), args.data)
        if source is not None and not share_first_stage(source, lifelong):
            print(f"{args.first_stage_from} began otherwise: the first stage is trained here", file=sys.stderr)
    results = finish_run(lifelong, evaluate=not args.no_evaluation, stages=args.stages, quiet=args.quiet)
    if results is not None:
        print(text_table([results]))
    print(f"bundles: {lifelong.folder / 'bundles'}")
    return 0
