"""``m2distill train``: learn a suite's tasks one after another."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from m2distill_policy.commands import SUMMARIES

if TYPE_CHECKING:
    from training.lifelong.run import LifelongRun


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the subcommand."""
    parser = subparsers.add_parser(
        "train",
        help=SUMMARIES["train"],
        description="Learn tasks one after another. A run is a folder; killed at any moment, it goes on with --resume.",
        epilog=(
            "examples:\n"
            "  m2distill train --config config/tiny.toml --data demos --out runs/first strategy=m2distill tasks=[0,1]\n"
            "  m2distill train --extend runs/first --tasks 2 --data demos --out runs/second --publish bundles"
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
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
    extend = parser.add_argument_group("new tasks for a finished run, whose old demonstrations are not needed")
    extend.add_argument("--extend", type=Path, metavar="RUN", help="go on where RUN ended, in a new run; RUN stays")
    extend.add_argument(
        "--tasks",
        metavar="LIST",
        help="tasks to add, such as 3,4: of the suite, or numbers of the files in --data where they are one's own",
    )
    extend.add_argument(
        "--margin",
        type=float,
        default=0.2,
        help="share by which success on an old task may fall before the new bundle is refused (default: %(default)s)",
    )
    extend.add_argument(
        "--publish", type=Path, metavar="DIR", help="copy a bundle that is not refused into a folder robots watch"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the configuration")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Create or open the run, go through its stages, and see whether an extended one may go to the robot."""
    from m2distill_policy.config import load_config
    from m2distill_policy.errors import ConfigError
    from training.lifelong.run import LifelongRun, share_first_stage
    from training.pipeline import create_run, finish_run
    from training.report.page import text_table
    from training.run_config import RunConfig

    if not args.extend and (args.tasks or (args.publish and not args.resume)):
        raise ConfigError("--tasks and --publish belong to --extend RUN; a new run's tasks are a setting: tasks=[0,1]")
    if args.resume:
        if args.config or args.overrides or args.data or args.extend:
            raise ConfigError(
                "--resume goes on with the run's own configuration and data; leave --config, --data, --extend and "
                "key=value out"
            )
        lifelong = LifelongRun.open(args.out)
    elif args.data is None:
        raise ConfigError("--data is missing; name the folder that 'm2distill demos' wrote")
    elif args.extend:
        lifelong = _extended(args)
    else:
        # Opened before the new run exists: a source that is not there must not leave half a run behind.
        source = LifelongRun.open(args.first_stage_from) if args.first_stage_from is not None else None
        lifelong = create_run(args.out, load_config(RunConfig, args.config, args.overrides), args.data)
        if source is not None and not share_first_stage(source, lifelong):
            print(f"{args.first_stage_from} began otherwise: the first stage is trained here", file=sys.stderr)
    results = finish_run(lifelong, evaluate=not args.no_evaluation, stages=args.stages, quiet=args.quiet)
    if results is not None:
        print(text_table([results]))
    print(f"bundles: {lifelong.folder / 'bundles'}")
    if lifelong.extends and lifelong.trained(lifelong.stages - 1):
        _let_through(lifelong, args)
    return 0


def _extended(args: argparse.Namespace) -> LifelongRun:
    from m2distill_policy.config import override
    from m2distill_policy.errors import ConfigError
    from training.extend import extend_run
    from training.lifelong.run import LifelongRun

    if args.config or args.first_stage_from:
        raise ConfigError("--extend goes on with RUN's configuration; change it by key=value, without --config")
    try:
        new = tuple(int(part) for part in (args.tasks or "").split(","))
    except ValueError:
        raise ConfigError(f"--tasks is '{args.tasks or ''}'; name the tasks to add, such as --tasks 3,4") from None
    source = LifelongRun.open(args.extend)
    return extend_run(source, args.out, override(source.config, args.overrides), new, args.data)


def _let_through(run: LifelongRun, args: argparse.Namespace) -> None:
    """Compare old tasks before and after, and publish; :class:`TrainingError` where they fell too far."""
    from training.gate import gate, publish, require_passed

    stage = run.stages - 1
    bundle = run.bundle_folder(stage)
    found = gate(run, args.margin)
    if found is None:
        print("old tasks were not rolled out, so nothing is known of them: try the bundle before you rely on it")
    else:
        require_passed(found, bundle)
        kept = ", ".join(f"{b:.2f} -> {a:.2f}" for b, a in zip(found.before, found.after, strict=True))
        print(f"old tasks before and after, over {found.rollouts} rollouts: {kept}")
    if args.publish:
        print(f"published: {publish(bundle, args.publish, f'{run.folder.name}_stage_{stage}')}")
