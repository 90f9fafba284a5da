"""``m2distill sim``: a simulated robot on DDS."""

from __future__ import annotations

import argparse

from m2distill_policy.commands import SUMMARIES
from m2distill_policy.options import whole
from m2distill_policy.sim_robot.options import add_options


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
    add_options(parser)
    parser.add_argument("--domain", type=whole("--domain", 0, 232), help="DDS domain (default: ROS_DOMAIN_ID, else 0)")
    parser.add_argument("--namespace", default="", help="before all topics, such as /left where there are two arms")
    parser.add_argument("--remap", metavar="FROM:=TO", action="append", default=[], help="use another topic")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the rollouts; 0 when all of them were run, whether or not the task was done."""
    from collections.abc import Iterator
    from contextlib import contextmanager

    from m2distill_policy.contract import Contract
    from m2distill_policy.dds.domain import domain_id
    from m2distill_policy.dds.participant import Participant
    from m2distill_policy.dds.robot_link import DdsLink
    from m2distill_policy.node.topics import parse_namespace, parse_remappings
    from m2distill_policy.sim_robot.link import Follow
    from m2distill_policy.sim_robot.session import roll_out

    domain, namespace = domain_id(args.domain), parse_namespace(args.namespace)
    remap = parse_remappings(args.remap, namespace)

    @contextmanager
    def link_for(contract: Contract, follow: Follow, lockstep: bool) -> Iterator[DdsLink]:
        with Participant(domain, remap, namespace=namespace, name="m2distill sim") as participant:
            yield DdsLink(participant, contract, follow=follow, lockstep=lockstep)

    return roll_out(args, link_for)
