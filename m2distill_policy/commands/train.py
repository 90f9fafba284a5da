"""``m2distill train``: learn a suite's tasks one after another."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from m2distill_policy.commands import SUMMARIES, _own_strategies
from m2distill_policy.options import MANY, real, whole

if TYPE_CHECKING:
    from training.lifelong.run import LifelongRun
    from training.release import ReleaseCriteria
    from training.run_config import RunConfig


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the subcommand."""
    parser = subparsers.add_parser(
        "train",
        help=SUMMARIES["train"],
        description="Learn tasks one after another. A run is a folder; killed at any moment, it goes on with --resume.",
        epilog=(
            "examples:\n"
            "  m2distill train --config config/tiny.toml --data demos --out runs/first strategy=m2distill tasks=[0,1]\n"
            "  m2distill train --extend runs/first --tasks 2 --data demos --out runs/second --publish bundles\n"
            "  m2distill train --extend runs/first --files --tasks 0 --data recordings --out runs/arm"
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=Path, help="TOML or YAML file (config/tiny.toml, config/paper.toml)")
    parser.add_argument("--data", type=Path, help="folder of <task>_demo.hdf5 files, from 'm2distill demos'")
    parser.add_argument("--out", type=Path, required=True, help="the run's folder")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
    parser.add_argument("--no-evaluation", action="store_true", help="train and export only")
    parser.add_argument(
        "--stages", type=whole("--stages", 1, MANY), help="stop after so many stages; go on later with --resume"
    )
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
        "--files",
        action="store_true",
        help="the new tasks are one's own recordings in --data, the old ones a suite's, which are still rolled out",
    )
    extend.add_argument(
        "--margin",
        type=real("--margin", 0, 1),
        help="share by which success on an old task may fall before the new bundle is refused (default: 0.2)",
    )
    extend.add_argument(
        "--publish", type=Path, metavar="DIR", help="copy a bundle that is not refused into a folder robots watch"
    )
    extend.add_argument(
        "--untested",
        action="store_true",
        help="publish also a bundle whose old tasks were not rolled out, such as one of recordings alone (suite=files)",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the configuration")
    _own_strategies.add_option(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Create or open the run, go through its stages, and see whether an extended one may go to the robot."""
    _own_strategies.load(args)
    from training import distributed
    from training.lifelong.run import LifelongRun
    from training.pipeline import finish_run
    from training.report.page import text_table

    with distributed.joined():
        # The first of several processes makes the folder, the others find it made.
        lifelong = _made(args) if distributed.is_first() else None
        distributed.wait()
        lifelong = lifelong or LifelongRun.open(args.out)
        results = finish_run(lifelong, evaluate=not args.no_evaluation, stages=args.stages, quiet=args.quiet)
        if not distributed.is_first():
            return 0
    if results is not None:
        print(text_table([results]))
    print(f"bundles: {lifelong.folder / 'bundles'}")
    if lifelong.extends and lifelong.trained(lifelong.stages - 1):
        return _release(lifelong, args)
    return 0


def _made(args: argparse.Namespace) -> LifelongRun:
    """The run that was asked for: a new one, or the one to go on with."""
    from m2distill_policy.config import load_config
    from m2distill_policy.errors import ConfigError
    from training.lifelong.first_stage import share_first_stage
    from training.lifelong.run import LifelongRun
    from training.new_run import create_run
    from training.run_config import RunConfig

    let_through = args.publish or args.untested or args.margin is not None
    if not args.extend and (args.tasks or args.files or (let_through and not args.resume)):
        raise ConfigError(
            "--tasks, --files, --margin, --publish and --untested belong to --extend RUN; a new run's tasks are a "
            "setting: tasks=[0,1]"
        )
    if args.resume:
        if args.config or args.overrides or args.data or args.extend:
            raise ConfigError(
                "--resume goes on with the run's own configuration and data; leave --config, --data, --extend and "
                "key=value out"
            )
        lifelong = LifelongRun.open(args.out)
        if not lifelong.extends and (args.publish or args.margin is not None):
            raise ConfigError(f"{args.out} extends no other run: there is nothing to compare its bundle with")
    elif args.data is None:
        raise ConfigError("--data is missing; name the folder that 'm2distill demos' wrote")
    elif args.extend:
        lifelong = _extended(args)
    elif LifelongRun.begun(args.out):
        lifelong = LifelongRun.open(args.out)
        _require_same(lifelong, load_config(RunConfig, args.config, args.overrides), args.data)
    else:
        # Opened before the new run exists: a source that is not there must not leave half a run behind.
        source = LifelongRun.open(args.first_stage_from) if args.first_stage_from is not None else None
        lifelong = create_run(args.out, load_config(RunConfig, args.config, args.overrides), args.data)
        if source is not None and not share_first_stage(source, lifelong):
            print(f"{args.first_stage_from} began otherwise: the first stage is trained here", file=sys.stderr)
    return lifelong


def _require_same(run: LifelongRun, config: RunConfig, data: Path) -> None:
    """The same command once more goes on with the run that it began; :class:`TrainingError` where it is another."""
    from m2distill_policy.config import to_dict
    from m2distill_policy.errors import TrainingError
    from training.run_config import first_difference

    difference = first_difference(to_dict(run.config), to_dict(config))
    if run.extends or difference is not None or run.record.demonstrations != str(data.resolve()):
        why = difference or ("it extends another run" if run.extends else f"it learns {run.record.demonstrations}")
        raise TrainingError(
            f"{run.folder} already holds a run, and another one: {why}; go on with it by --resume or choose another "
            "folder"
        )
    _say_going_on(run)


def _extended(args: argparse.Namespace) -> LifelongRun:
    from m2distill_policy.config import override
    from m2distill_policy.errors import ConfigError
    from training.extend import extend_run
    from training.lifelong.run import LifelongRun
    from training.release import ReleaseCriteria

    if args.config or args.first_stage_from:
        raise ConfigError("--extend goes on with RUN's configuration; change it by key=value, without --config")
    try:
        new = tuple(int(part) for part in (args.tasks or "").split(","))
    except ValueError:
        raise ConfigError(
            f"--tasks is '{(args.tasks or '')[:60]}'; name the tasks to add, such as --tasks 3,4"
        ) from None
    source = LifelongRun.open(args.extend)
    config = override(source.config, args.overrides)
    told = _told(ReleaseCriteria(), args)
    if told.publish and not told.untested:
        if config.suite == "files":
            raise ConfigError(
                "--publish needs rollouts of the old tasks, and suite=files has no world for them: leave it out and "
                "try the bundle on the robot, or say --untested"
            )
        if not config.evaluation.rollouts:
            raise ConfigError("--publish needs rollouts of the old tasks, and evaluation.rollouts is 0; ask for some")
    there = args.out.exists()
    run = extend_run(source, args.out, config, new, args.data, told, files=args.files)
    if there:
        _say_going_on(run)
    return run


def _say_going_on(run: LifelongRun) -> None:
    print(f"{run.folder} holds this run already: going on with it", file=sys.stderr)


def _told(before: ReleaseCriteria, args: argparse.Namespace) -> ReleaseCriteria:
    """What the options say, and where they say nothing what was said before."""
    from training.release import ReleaseCriteria

    return ReleaseCriteria(
        before.margin if args.margin is None else args.margin,
        before.publish if args.publish is None else str(args.publish.resolve()),
        before.untested or args.untested,
    )


def _release(run: LifelongRun, args: argparse.Namespace) -> int:
    """Compare old tasks before and after, and publish; 1 where they fell too far or it is not known."""
    from training.gate import gate, publish, verdict

    told = _told(run.extends[-1].release, args)
    stage = run.stages - 1
    bundle = run.bundle_folder(stage)
    found = gate(run, told.margin)
    if found is not None:
        print(verdict(found, bundle))
        if not run.tasks[-1].has_env:
            print(f"'{run.tasks[-1].instruction}' has no world to be tried in: try it on the robot, slowly")
        if found.fallen:
            return 1
    else:
        print("the old tasks were not rolled out, so nothing is known of them: try the bundle before you rely on it")
        if told.publish and not told.untested:
            worlds = any(task.has_env for task in run.tasks)
            way = "evaluate with --resume, without --no-evaluation"
            print(f"not published; {way if worlds else 'no world can be asked: say --untested'}")
            return 1
    if told.publish:
        print(f"published: {publish(bundle, Path(told.publish), f'{run.folder.name}_stage_{stage}')}")
    return 0
