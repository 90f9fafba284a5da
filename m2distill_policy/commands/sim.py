"""``m2distill sim``: a simulated robot on DDS."""

from __future__ import annotations

import argparse
from pathlib import Path

from m2distill_policy.commands import SUMMARIES


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the subcommand."""
    parser = subparsers.add_parser(
        "sim",
        help=SUMMARIES["sim"],
        description="Run a simulated robot on plain DDS with ROS 2's wire types: it publishes cameras and joint states "
        "and follows the policy's commands, and says after each rollout whether the task was done.",
        epilog="examples:\n"
        "  m2distill sim --suite tabletop --task 0 --lockstep --rollouts 10 --out result.json\n"
        "  m2distill sim --suite tabletop --task 1 --drive velocity --real-time --rollouts 3",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--suite", default="tabletop", help="(default: %(default)s)")
    parser.add_argument("--task", type=int, default=0, help="number of the task in its suite (default: %(default)s)")
    parser.add_argument("--instruction", help="what the policy is told (default: the task's own instruction)")
    parser.add_argument(
        "--drive",
        choices=("osc", "velocity"),
        default="osc",
        help="follow set-points as in training, or ~/twist as a velocity-driven arm does (default: %(default)s)",
    )
    parser.add_argument(
        "--set-point",
        choices=("action", "target_pose"),
        default="action",
        help="where the drive osc takes its set-points from: ~/action or ~/target_pose (default: %(default)s)",
    )
    pace = parser.add_mutually_exclusive_group()
    pace.add_argument("--lockstep", action="store_true", help="wait for every answer: reproducible (default)")
    pace.add_argument("--real-time", action="store_true", help="physics goes on at its own pace, whatever happens")
    parser.add_argument("--rollouts", type=int, default=1, help="(default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="number of the first rollout (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="initial states are those of 'm2distill evaluate --seed'")
    parser.add_argument(
        "--purpose", choices=("reported", "selection"), default="reported", help="which initial states (see evaluate)"
    )
    parser.add_argument("--size", type=int, help="pixels of a view's side (default: the bundle's, or 128)")
    parser.add_argument("--bundle", type=Path, help="see what this bundle was trained on: size, and whether it fits")
    parser.add_argument("--visuals", default="fast", help="profile of the pictures (default: %(default)s)")
    parser.add_argument(
        "--timeout",
        type=float,
        default=60.0,
        metavar="S",
        help="wait so long for the policy (default: %(default)s)",
    )
    parser.add_argument(
        "--command-timeout",
        type=float,
        default=0.2,
        metavar="S",
        help="in real time, hold still after so long without a command (default: %(default)s)",
    )
    parser.add_argument("--domain", type=int, help="DDS domain (default: ROS_DOMAIN_ID, else 0)")
    parser.add_argument("--remap", metavar="FROM:=TO", action="append", default=[], help="use another topic")
    parser.add_argument("--out", type=Path, help="write the results as JSON")
    parser.add_argument("--record-actions", action="store_true", help="put every action into --out")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the rollouts; 0 when all of them were run, whether or not the task was done."""
    import json

    from m2distill_policy.bundle import open_bundle
    from m2distill_policy.dds.domain import domain_id
    from m2distill_policy.dds.participant import Participant
    from m2distill_policy.dds.robot_link import DdsLink
    from m2distill_policy.dds.signals import stop_on_signals
    from m2distill_policy.errors import ConfigError
    from m2distill_policy.evaluation.seeds import state_seed
    from m2distill_policy.node.topics import parse_remappings
    from m2distill_policy.sim.suites import make_world, suite_task, suite_tasks
    from m2distill_policy.sim_robot import RobotOptions, Rollout, RolloutReport, SimRobot

    if args.rollouts < 1:
        raise ConfigError(f"{args.rollouts} rollouts were asked for; at least 1 is needed")
    lockstep = not args.real_time
    task = suite_task(args.suite, args.task)
    told = next((t.name for t in suite_tasks(args.suite) if t.instruction == args.instruction), None)
    options = RobotOptions(
        follow="twist" if args.drive == "velocity" else args.set_point,
        instruction=args.instruction,
        told_task=told if told != task.name else None,
        timeout=args.timeout,
        command_timeout=args.command_timeout,
        record_actions=args.record_actions,
    )
    domain, remap = domain_id(args.domain), parse_remappings(args.remap)
    rollouts = [
        Rollout(state_seed(args.purpose, args.seed, episode), args.seed, episode)
        for episode in range(args.first, args.first + args.rollouts)
    ]
    bundle = open_bundle(args.bundle) if args.bundle is not None else None
    size = args.size or (bundle.contract.cameras[0].height if bundle is not None else 128)

    def tell(report: RolloutReport) -> None:
        outcome = "done" if report.success else "not done"
        others = [name for name in report.achieved if name != task.name]
        wrong = f"; did instead: {', '.join(others)}" if others else ""
        print(f"{task.name} #{report.rollout.draw}: {outcome} after {report.steps} steps{wrong}", flush=True)

    world = make_world(task, size=size, visuals=args.visuals)
    try:
        if bundle is not None:
            bundle.contract.require_same(
                world.contract,
                f"bundle {bundle.identifier}",
                f"the world of '{task.name}'",
                # A world has no text encoder, and the velocity response is fitted from demonstrations.
                ignore=("text", "action.response"),
            )
        with Participant(domain, remap) as participant:
            link = DdsLink(participant, world.contract, follow=options.follow, lockstep=lockstep)
            robot = SimRobot(link, world, lockstep=lockstep, options=options)
            stop_on_signals(robot.stop)
            reports = robot.run(rollouts, tell)
            stopped = robot.stopped
    finally:
        world.close()
    successes = sum(report.success for report in reports)
    print(f"{successes} of {len(reports)} rollouts done: {task.instruction}")
    if args.out is not None:
        result = {
            "suite": args.suite,
            "task": task.index,
            "name": task.name,
            "told": args.instruction or task.instruction,
            "drive": args.drive,
            "lockstep": lockstep,
            "size": size,
            "success": [report.success for report in reports],
            "rollouts": [report.to_dict() for report in reports],
        }
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 1 if stopped else 0
