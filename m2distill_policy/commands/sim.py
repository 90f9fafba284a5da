"""``m2distill sim``: run a simulated robot, over DDS."""

from __future__ import annotations

import argparse

from m2distill_policy.arguments import find_bundle, say_next
from m2distill_policy.commands import SUMMARIES
from m2distill_policy.options import whole
from m2distill_policy.sim_robot.options import add_options


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the subcommand."""
    parser = subparsers.add_parser(
        "sim",
        help=SUMMARIES["sim"],
        description="Run a simulated robot with the interface of a real one: it publishes camera images and joint "
        "states, "
        "follows the policy's commands, and reports after each rollout whether it succeeded. Start 'm2distill serve' "
        "first. Without --bundle and --size, it fits the pretrained policy that ships with the package.",
        epilog="examples:\n"
        "  m2distill sim --task 0 --lockstep   # with 'm2distill serve --lockstep': the pretrained policy\n"
        "  m2distill sim --bundle runs/first --task 0 --lockstep --rollouts 10 --out result.json\n"
        "  m2distill sim --suite tabletop --task 1 --drive velocity --real-time --rollouts 3",
    )
    add_options(parser)
    parser.add_argument("--domain", type=whole("--domain", 0, 232), help="DDS domain (default: ROS_DOMAIN_ID, else 0)")
    parser.add_argument("--namespace", default="", help="prefix of all topics, such as /left for one of two arms")
    parser.add_argument(
        "--remap",
        metavar="FROM:=TO",
        action="append",
        default=[],
        help="rename a topic, such as /joint_states:=/arm/joint_states",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the rollouts. Return 0 if all rollouts ran to their end, whether they succeeded or not."""
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

    # If --size or another suite is given, 'm2distill serve' does not serve the pretrained policy.
    if args.bundle is not None or (args.size is None and args.suite == "tabletop"):
        args.bundle = find_bundle(args.bundle)
    code = roll_out(args, link_for)
    if code == 0:
        if args.out is not None:
            print(f"written: {args.out}")
        say_next("evaluate", args.bundle or "BUNDLE", "--suite", args.suite, "--out", "results/first")
    return code
