"""``m2distill train``: learn a suite's tasks one after another."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from m2distill_policy.commands import SUMMARIES, _own_strategies
from m2distill_policy.options import MANY, real, whole

if TYPE_CHECKING:
    from training.api import Trained
    from training.lifelong.run import LifelongRun
    from training.release import ReleaseCriteria


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
    """Train, resume or extend a run, and see whether an extended one may go to the robot."""
    _own_strategies.load(args)
    from training import distributed
    from training.report.page import text_table

    _check_options(args)
    with distributed.joined():
        trained = _trained(args)
        if not distributed.is_first():
            return 0
    lifelong = trained.run
    if trained.results is not None:
        print(text_table([trained.results]))
    print(f"bundles: {lifelong.folder / 'bundles'}")
    if lifelong.extends and lifelong.trained(lifelong.stages - 1):
        return _release(lifelong, args)
    return 0


def _check_options(args: argparse.Namespace) -> None:
    from m2distill_policy.errors import ConfigError
    from training.lifelong.run import LifelongRun

    release = args.publish or args.untested or args.margin is not None
    if not args.extend and (args.tasks or args.files or (release and not args.resume)):
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
        if (args.publish or args.margin is not None) and not LifelongRun.open(args.out).extends:
            raise ConfigError(f"{args.out} extends no other run: there is nothing to compare its bundle with")
    elif args.data is None:
        raise ConfigError("--data is missing; name the folder that 'm2distill demos' wrote")
    elif args.extend and (args.config or args.first_stage_from):
        raise ConfigError("--extend goes on with RUN's configuration; change it by key=value, without --config")


def _trained(args: argparse.Namespace) -> Trained:
    """Make the call that the options ask for."""
    import training
    from m2distill_policy.config import load_config, override
    from training.lifelong.run import LifelongRun
    from training.release import ReleaseCriteria
    from training.run_config import RunConfig

    evaluate = not args.no_evaluation
    if args.resume:
        return training.resume(args.out, evaluate=evaluate, stages=args.stages, quiet=args.quiet)
    if args.extend:
        return training.extend(
            args.extend,
            _new_tasks(args.tasks or ""),
            args.data,
            args.out,
            config=override(LifelongRun.open(args.extend).config, args.overrides),
            release=_told(ReleaseCriteria(), args),
            files=args.files,
            evaluate=evaluate,
            stages=args.stages,
            quiet=args.quiet,
        )
    return training.train(
        load_config(RunConfig, args.config, args.overrides),
        args.data,
        args.out,
        first_stage_from=args.first_stage_from,
        evaluate=evaluate,
        stages=args.stages,
        quiet=args.quiet,
    )


def _new_tasks(text: str) -> tuple[int, ...]:
    from m2distill_policy.errors import ConfigError

    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--tasks is '{text[:60]}'; name the tasks to add, such as --tasks 3,4") from None


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
            if worlds:
                print("not published; evaluate with --resume, without --no-evaluation")
            else:
                print("not published; there is no simulator for these tasks: use --untested to publish all the same")
            return 1
    if told.publish:
        print(f"published: {publish(bundle, Path(told.publish), f'{run.folder.name}_stage_{stage}')}")
    return 0
