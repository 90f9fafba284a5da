"""``m2distill train``: train a policy on one task after another."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from m2distill_policy.arguments import add_overrides, say_next, training_config
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
        help="task numbers to add, such as 3,4. With --files: numbers of the files in --data, sorted by name, from 0 "
        "on",
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
        help="if the bundle is not rejected, copy it to this folder, for 'm2distill serve --watch'",
    )
    extend.add_argument(
        "--untested",
        action="store_true",
        help="publish without an evaluation of the old tasks; needed if RUN was trained on your own files "
        "(suite=files)",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    add_overrides(parser)
    _own_strategies.add_option(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Create or open the run and train its stages. For an extended run, decide whether to publish its bundle."""
    _own_strategies.load(args)
    from training import distributed
    from training.report.page import text_table

    _check_options(args)
    with distributed.joined():
        trained = _trained(args)
        if not distributed.is_first():
            return 0
    lifelong, results = trained.run, trained.results
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
        say_next("train", "--resume", "--out", folder)
    elif code == 0 and results is not None:
        say_next("report", folder)
    elif code == 0:
        say_next("info", folder)
    return code


def _check_options(args: argparse.Namespace) -> None:
    from m2distill_policy.errors import ConfigError
    from training.lifelong.run import LifelongRun

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
        if (args.publish or args.margin is not None) and not LifelongRun.open(args.out).extends:
            raise ConfigError(
                f"{args.out} does not extend another run, so there is no earlier bundle to compare with; remove "
                "--publish and --margin"
            )
    elif args.data is None:
        raise ConfigError("--data is missing; give the folder that 'm2distill demos' wrote")
    elif args.extend and (args.config or args.first_stage_from):
        raise ConfigError("--extend uses the configuration of RUN; change it with key=value, without --config")


def _trained(args: argparse.Namespace) -> Trained:
    """Resume, extend or start a run, as the options say."""
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
            release=_criteria(ReleaseCriteria(), args),
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
        raise ConfigError(
            f"--tasks is '{text[:60]}'; give the numbers of the tasks to add, such as --tasks 3,4"
        ) from None


def _criteria(before: ReleaseCriteria, args: argparse.Namespace) -> ReleaseCriteria:
    """Return the release criteria ``before``, with the changes that the options give."""
    from training.release import ReleaseCriteria

    return ReleaseCriteria(
        before.margin if args.margin is None else args.margin,
        before.publish if args.publish is None else str(args.publish.resolve()),
        before.untested or args.untested,
    )


def _check_release(run: LifelongRun, args: argparse.Namespace) -> int:
    """Compare success on the old tasks before and after, and publish the bundle if the release criteria allow it.

    Returns:
        1 if the bundle is rejected, or may not be published because the old tasks were not evaluated; else 0.
    """
    from training.regression_gate import gate, publish, verdict

    criteria = _criteria(run.extends[-1].release, args)
    stage = run.stages - 1
    bundle = run.bundle_folder(stage)
    found = gate(run, criteria.margin)
    if found is not None:
        print(verdict(found, bundle))
        if not run.tasks[-1].has_env:
            print(f"there is no simulator for '{run.tasks[-1].instruction}'; try it on the robot, slowly")
        if found.fallen:
            return 1
    else:
        print("the old tasks were not evaluated; test the bundle before you use it")
        if criteria.publish and not criteria.untested:
            has_simulator = any(task.has_env for task in run.tasks)
            way = "evaluate first, with --resume and without --no-evaluation"
            print(f"not published; {way if has_simulator else 'use --untested to publish without evaluation'}")
            return 1
    if criteria.publish:
        print(f"published: {publish(bundle, Path(criteria.publish), f'{run.folder.name}_stage_{stage}')}")
    return 0
