"""Run the rollouts that the command line of the simulated robot asks for, and write their results."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TypeAlias

from m2distill_policy.bundle import open_bundle
from m2distill_policy.contract import Contract
from m2distill_policy.errors import ConfigError
from m2distill_policy.signals import stop_on_signals
from m2distill_policy.sim.env import Task
from m2distill_policy.sim.seeds import state_seed
from m2distill_policy.sim.suites import make_sim_env, suite_task, suite_tasks
from m2distill_policy.sim_robot.link import Follow, Link
from m2distill_policy.sim_robot.robot import RobotOptions, Rollout, RolloutReport, SimRobot
from m2distill_policy.storage import write_atomic

#: Makes a link. Its arguments are the contract, the kind of command to follow, and whether to run in lockstep.
LinkMaker: TypeAlias = Callable[[Contract, Follow, bool], AbstractContextManager[Link]]


def roll_out(args: argparse.Namespace, link_for: LinkMaker) -> int:
    """Run the rollouts requested by ``args``, print how they went, and write --out.

    Args:
        args: Options of :mod:`m2distill_policy.sim_robot.options`.
        link_for: Makes the link.

    Returns:
        0 if all rollouts were run, whether or not they succeeded; else 1.
    """
    if args.rollouts < 1:
        raise ConfigError(f"rollouts is {args.rollouts}; it must be at least 1")
    lockstep = not args.real_time
    task = suite_task(args.suite, args.task)
    instructed = next((t.name for t in suite_tasks(args.suite) if t.instruction == args.instruction), None)
    options = RobotOptions(
        follow="twist" if args.drive == "velocity" else args.set_point,
        instruction=args.instruction,
        instruction_task=instructed if instructed != task.name else None,
        timeout=args.timeout,
        command_timeout=args.command_timeout,
        record_actions=args.record_actions,
    )
    rollouts = [
        Rollout(state_seed(args.purpose, args.seed, episode), args.seed, episode)
        for episode in range(args.first, args.first + args.rollouts)
    ]
    bundle = open_bundle(args.bundle) if args.bundle is not None else None
    size = args.size or (bundle.contract.cameras[0].height if bundle is not None else 128)
    env = make_sim_env(task, size=size, visuals=args.visuals)
    try:
        if bundle is not None:
            bundle.contract.require_same(
                env.contract,
                f"bundle {bundle.identifier}",
                f"the environment of '{task.name}'",
                # An environment has no text encoder, and the velocity response is fitted to demonstrations.
                ignore=("text", "action.response"),
            )
        with link_for(env.contract, options.follow, lockstep) as link:
            robot = SimRobot(link, env, lockstep=lockstep, options=options)
            stop_on_signals(robot.stop)
            reports = robot.run(rollouts, lambda report: _print_report(report, task))
            stopped = robot.stopped
    finally:
        env.close()
    successes = sum(report.success for report in reports)
    print(f"{successes} of {len(reports)} rollouts done: {task.instruction}")
    if args.out is not None:
        result = {
            "suite": args.suite,
            "task": task.index,
            "name": task.name,
            "instruction": args.instruction or task.instruction,
            "drive": args.drive,
            "lockstep": lockstep,
            "size": size,
            "success": [report.success for report in reports],
            "rollouts": [report.to_dict() for report in reports],
        }
        args.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(args.out, (json.dumps(result, indent=1) + "\n").encode())
    return 1 if stopped else 0


def _print_report(report: RolloutReport, task: Task) -> None:
    outcome = "done" if report.success else "not done"
    others = [name for name in report.achieved if name != task.name]
    wrong = f"; did instead: {', '.join(others)}" if others else ""
    print(f"{task.name} #{report.rollout.random_stream}: {outcome} after {report.steps} steps{wrong}", flush=True)
