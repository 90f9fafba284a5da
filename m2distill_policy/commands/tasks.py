"""``m2distill tasks``: list the simulated tasks and their instructions."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from m2distill_policy.arguments import say_next
from m2distill_policy.commands import SUMMARIES

if TYPE_CHECKING:
    from m2distill_policy.sim.env import Task


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the subcommand."""
    parser = subparsers.add_parser(
        "tasks",
        help=SUMMARIES["tasks"],
        description="List the tasks of each suite: number, instruction, and whether a scripted expert can demonstrate "
        "them. The numbers are those of 'm2distill demos --tasks' and of the setting tasks=[0,1].",
        epilog="examples:\n  m2distill tasks\n  m2distill tasks --suite libero_goal --json",
    )
    parser.add_argument("--suite", help="list this suite only (default: all)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the tasks."""
    from m2distill_policy.errors import SimulationError
    from m2distill_policy.sim.suites import SUITES, SUITES_WITH_EXPERTS, suite_tasks

    found: dict[str, tuple[Task, ...]] = {}
    absent: dict[str, list[str]] = {}  # message -> suites
    for suite in SUITES if args.suite is None else (args.suite,):
        try:
            found[suite] = suite_tasks(suite)
        except SimulationError as error:
            if args.suite is not None:
                raise
            absent.setdefault(str(error), []).append(suite)
    for message, suites in absent.items():
        print(f"{', '.join(suites)}: {message}", file=sys.stderr)
    if args.json:
        rows = [
            {
                "suite": suite,
                "task": task.index,
                "instruction": task.instruction,
                "expert": suite in SUITES_WITH_EXPERTS,
            }
            for suite, tasks in found.items()
            for task in tasks
        ]
        print(json.dumps(rows, indent=2))
        return 0
    for suite, tasks in found.items():
        print(f"{suite} ({len(tasks)} tasks{'' if suite in SUITES_WITH_EXPERTS else ', no scripted expert'})")
        for task in tasks:
            print(f"  {task.index:>2}  {task.instruction}")
    suite = next((suite for suite in found if suite in SUITES_WITH_EXPERTS), "tabletop")
    say_next("demos", "--suite", suite, "--tasks", "0,1,2", "--size", 64, "--out", f"data/{suite}64")
    return 0
