"""From the options of the simulated robot's commands to rollouts and their result."""

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

#: Makes a link for a contract: what the robot follows, and whether it runs in lockstep.
LinkMaker: TypeAlias = Callable[[Contract, Follow, bool], AbstractContextManager[Link]]


def roll_out(args: argparse.Namespace, link_for: LinkMaker) -> int:
    """Run the rollouts that ``args`` ask for on a link, print how they went, and write --out.

    args: as :mod:`m2distill_policy.sim_robot.options` has them.

    Returns 0 when all of them were run, whether or not the task was done.
    """
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
    rollouts = [
        Rollout(state_seed(args.purpose, args.seed, episode), args.seed, episode)
        for episode in range(args.first, args.first + args.rollouts)
    ]
    bundle = open_bundle(args.bundle) if args.bundle is not None else None
    size = args.size or (bundle.contract.cameras[0].height if bundle is not None else 128)
    world = make_sim_env(task, size=size, visuals=args.visuals)
    try:
        if bundle is not None:
            bundle.contract.require_same(
                world.contract,
                f"bundle {bundle.identifier}",
                f"the world of '{task.name}'",
                # A world has no text encoder, and the velocity response is fitted from demonstrations.
                ignore=("text", "action.response"),
            )
        with link_for(world.contract, options.follow, lockstep) as link:
            robot = SimRobot(link, world, lockstep=lockstep, options=options)
            stop_on_signals(robot.stop)
            reports = robot.run(rollouts, lambda report: _tell(report, task))
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
        write_atomic(args.out, (json.dumps(result, indent=1) + "\n").encode())
    return 1 if stopped else 0


def _tell(report: RolloutReport, task: Task) -> None:
    outcome = "done" if report.success else "not done"
    others = [name for name in report.achieved if name != task.name]
    wrong = f"; did instead: {', '.join(others)}" if others else ""
    print(f"{task.name} #{report.rollout.draw}: {outcome} after {report.steps} steps{wrong}", flush=True)
