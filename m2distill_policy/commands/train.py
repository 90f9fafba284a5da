"""``m2distill train``: train a policy on one task after another."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from m2distill_policy.arguments import add_overrides, say_next, training_config
from m2distill_policy.commands import SUMMARIES
from m2distill_policy.options import MANY, real, whole

if TYPE_CHECKING:
    from training.gate import LetThrough
    from training.lifelong.run import LifelongRun
    from training.run_config import RunConfig


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the subcommand."""
    parser = subparsers.add_parser(
        "train",
        help=SUMMARIES["train"],
        description="Train a policy on one task after another. After every task (a stage), the policy is exported as a "
        "bundle and evaluated in simulation. A run is a folder. Ctrl-C saves it; the same command, or --resume --out "
        "RUN, continues.",
        epilog=(
            "examples:\n"
            "  m2distill train --config tiny --data data/tabletop64 --out runs/first strategy=er tasks=[0,1]\n"
            "  m2distill train --extend runs/first --tasks 2 --data data/tabletop64 --out runs/second "
            "--publish bundles\n"
            "  m2distill train --extend runs/first --files --tasks 0 --data recordings --out runs/arm"
        ),
    )
    parser.add_argument(
        "--config", type=training_config, help="TOML or YAML file, or a profile: tiny, paper, libero_small"
    )
    parser.add_argument(
        "--data",
        type=Path,
        help="folder of <task>_demo.hdf5 files, written by 'm2distill demos' or 'm2distill import-bag'",
    )
    parser.add_argument("--out", type=Path, required=True, help="the run's folder")
    parser.add_argument("--resume", action="store_true", help="continue the run in --out")
    parser.add_argument("--no-evaluation", action="store_true", help="train and export, without rollouts")
    parser.add_argument(
        "--stages",
        type=whole("--stages", 1, MANY),
        help="stop after this number of stages; continue later with --resume",
    )
    parser.add_argument(
        "--first-stage-from",
        type=Path,
        metavar="RUN",
        help="copy the first stage from a run whose first stage has the same settings and data",
    )
    extend = parser.add_argument_group("add tasks to a finished run; its demonstrations are not needed")
    extend.add_argument(
        "--extend", type=Path, metavar="RUN", help="continue from the end of RUN in a new run; RUN stays unchanged"
    )
    extend.add_argument(
        "--tasks",
        metavar="LIST",
        help="tasks to add, such as 3,4: numbers in the suite, or of your own files in --data in order of name",
    )
    extend.add_argument(
        "--files",
        action="store_true",
        help="the new tasks are your own recordings in --data; the old tasks of the suite are still evaluated",
    )
    extend.add_argument(
        "--margin",
        type=real("--margin", 0, 1),
        help="reject the new bundle if success on an old task drops by more than this, from 0 to 1 (default: 0.2)",
    )
    extend.add_argument(
        "--publish",
        type=Path,
        metavar="DIR",
        help="copy a bundle that is not rejected to a folder for 'm2distill serve --watch'",
    )
    extend.add_argument(
        "--untested",
        action="store_true",
        help="publish without an evaluation of the old tasks, as for recordings alone (suite=files)",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    add_overrides(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Create or open the run, train its stages, and decide whether an extended one may be published."""
    from training import distributed
    from training.lifelong.run import LifelongRun
    from training.pipeline import finish_run
    from training.report.page import text_table

    with distributed.joined():
        # The first of several processes makes the folder; the others open it.
        lifelong = _open_or_create(args) if distributed.is_first() else None
        distributed.wait()
        lifelong = lifelong or LifelongRun.open(args.out)
        results = finish_run(lifelong, evaluate=not args.no_evaluation, stages=args.stages, quiet=args.quiet)
        if not distributed.is_first():
            return 0
    if results is not None:
        print(text_table([results]))
    folder = lifelong.folder
    print(f"bundles: {folder / 'bundles'}\nlosses: tensorboard --logdir {folder / 'tensorboard'}")
    if results is not None:
        print(f"results: {folder / 'results.json'}, rollouts: {folder / 'evaluation'}")
    code = 0
    finished = lifelong.trained(lifelong.stages - 1)
    if lifelong.extends and finished:
        code = _check_release(lifelong, args)
    if not finished:
        say_next("m2distill", "train", "--resume", "--out", folder)
    elif code == 0 and results is not None:
        say_next("m2distill", "report", folder)
    elif code == 0:
        say_next("m2distill", "info", folder)
    return code


def _open_or_create(args: argparse.Namespace) -> LifelongRun:
    """Return the run: a new one, or the one to continue."""
    from m2distill_policy.config import load_config
    from m2distill_policy.errors import ConfigError
    from training.lifelong.run import LifelongRun, share_first_stage
    from training.pipeline import create_run
    from training.run_config import RunConfig

    with_criteria = args.publish or args.untested or args.margin is not None
    if not args.extend and (args.tasks or args.files or (with_criteria and not args.resume)):
        raise ConfigError(
            "--tasks, --files, --margin, --publish and --untested need --extend RUN; give the tasks of a new run as a "
            "setting: tasks=[0,1]"
        )
    if args.resume:
        if args.config or args.overrides or args.data or args.extend:
            raise ConfigError(
                "--resume continues with the run's own configuration and data; remove --config, --data, --extend and "
                "key=value"
            )
        lifelong = LifelongRun.open(args.out)
        if not lifelong.extends and (args.publish or args.margin is not None):
            raise ConfigError(
                f"{args.out} does not extend another run, so there is no earlier bundle to compare with; remove "
                "--publish and --margin"
            )
    elif args.data is None:
        raise ConfigError("--data is missing; give the folder that 'm2distill demos' wrote")
    elif args.extend:
        lifelong = _extend(args)
    elif LifelongRun.begun(args.out):
        lifelong = LifelongRun.open(args.out)
        _require_same(lifelong, load_config(RunConfig, args.config, args.overrides), args.data)
    else:
        # Opened first: if it does not exist, no new folder is left behind.
        source = LifelongRun.open(args.first_stage_from) if args.first_stage_from is not None else None
        lifelong = create_run(args.out, load_config(RunConfig, args.config, args.overrides), args.data)
        if source is not None and not share_first_stage(source, lifelong):
            print(f"{args.first_stage_from} has another first stage; training it here", file=sys.stderr)
    return lifelong


def _require_same(run: LifelongRun, config: RunConfig, data: Path) -> None:
    """Raise :class:`TrainingError` unless the command describes the run that is in the folder already."""
    from m2distill_policy.config import to_dict
    from m2distill_policy.errors import TrainingError
    from training.run_config import first_difference

    difference = first_difference(to_dict(run.config), to_dict(config))
    if run.extends or difference is not None or run.record["demonstrations"] != str(data.resolve()):
        why = difference or ("it extends another run" if run.extends else f"it uses {run.record['demonstrations']}")
        raise TrainingError(
            f"{run.folder} already holds a different run: {why}; continue it with --resume, or choose another folder"
        )
    _say_continuing(run)


def _extend(args: argparse.Namespace) -> LifelongRun:
    from m2distill_policy.config import override
    from m2distill_policy.errors import ConfigError
    from training.extend import extend_run
    from training.gate import LetThrough
    from training.lifelong.run import LifelongRun

    if args.config or args.first_stage_from:
        raise ConfigError("--extend uses the configuration of RUN; change it with key=value, without --config")
    try:
        new = tuple(int(part) for part in (args.tasks or "").split(","))
    except ValueError:
        raise ConfigError(
            f"--tasks is '{(args.tasks or '')[:60]}'; give the numbers of the tasks to add, such as --tasks 3,4"
        ) from None
    source = LifelongRun.open(args.extend)
    config = override(source.config, args.overrides)
    criteria = _criteria(LetThrough(), args)
    if criteria.publish and not criteria.untested:
        if config.suite == "files":
            raise ConfigError(
                "--publish evaluates the old tasks, and suite=files has no simulator for them; use --untested to "
                "publish without evaluation, or remove --publish and try the bundle on the robot"
            )
        if not config.evaluation.rollouts:
            raise ConfigError(
                "--publish evaluates the old tasks, and evaluation.rollouts is 0; set it to 20, for example"
            )
    there = args.out.exists()
    run = extend_run(source, args.out, config, new, args.data, criteria, files=args.files)
    if there:
        _say_continuing(run)
    return run


def _say_continuing(run: LifelongRun) -> None:
    print(f"continuing the run in {run.folder}", file=sys.stderr)


def _criteria(before: LetThrough, args: argparse.Namespace) -> LetThrough:
    """Return the criteria of the options; those not given stay as they were."""
    from training.gate import LetThrough

    return LetThrough(
        before.margin if args.margin is None else args.margin,
        before.publish if args.publish is None else str(args.publish.resolve()),
        before.untested or args.untested,
    )


def _check_release(run: LifelongRun, args: argparse.Namespace) -> int:
    """Compare the old tasks before and after, and publish; return 1 if they got worse or were not evaluated."""
    from training.gate import LetThrough, gate, publish, verdict

    criteria = _criteria(LetThrough(**run.extends[-1]["let_through"]), args)
    stage = run.stages - 1
    bundle = run.bundle_folder(stage)
    found = gate(run, criteria.margin)
    if found is not None:
        print(verdict(found, bundle))
        if not run.tasks[-1].has_world:
            print(f"there is no simulator for '{run.tasks[-1].instruction}'; try it on the robot, slowly")
        if found.fallen:
            return 1
    else:
        print("the old tasks were not evaluated; test the bundle before you use it")
        if criteria.publish and not criteria.untested:
            has_simulator = any(task.has_world for task in run.tasks)
            way = "evaluate first, with --resume and without --no-evaluation"
            print(f"not published; {way if has_simulator else 'use --untested to publish without evaluation'}")
            return 1
    if criteria.publish:
        print(f"published: {publish(bundle, Path(criteria.publish), f'{run.folder.name}_stage_{stage}')}")
    return 0
