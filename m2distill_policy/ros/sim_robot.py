"""The executable ``sim_robot``: ``ros2 run m2distill_policy sim_robot`` runs a simulated robot."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from rclpy.utilities import remove_ros_args

from m2distill_policy.contract import Contract
from m2distill_policy.errors import M2DistillError, printable
from m2distill_policy.installation import install_command
from m2distill_policy.ros.robot_link import RosLink
from m2distill_policy.sim_robot.link import Follow
from m2distill_policy.sim_robot.options import add_options
from m2distill_policy.sim_robot.session import roll_out

NODE = "sim_robot"


@contextmanager
def link_for(contract: Contract, follow: Follow, lockstep: bool) -> Iterator[RosLink]:
    """Connect the simulated robot to ROS 2, with a node of its own in the current rclpy context."""
    node = Node(NODE)
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    try:
        yield RosLink(node, executor, contract, follow=follow, lockstep=lockstep)
    finally:
        executor.shutdown()
        node.destroy_node()


def main() -> None:
    """Run the rollouts. The exit status is 0 if all were run, whether or not they succeeded."""
    parser = argparse.ArgumentParser(
        prog="sim_robot",
        description="Run a simulated robot on ROS 2. It publishes cameras and joint states, follows the policy's "
        "commands, and reports after each rollout whether the task was done. '--ros-args -r' renames topics.",
        epilog="example:\n"
        "  ros2 run m2distill_policy sim_robot --suite tabletop --task 0 --real-time --rollouts 3\n"
        "'ros2 launch m2distill_policy sim.launch.py bundle:=...' starts it together with the policy.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_options(parser)
    try:
        args = parser.parse_args(remove_ros_args(sys.argv)[1:])
    except M2DistillError as error:  # an option is out of range
        parser.exit(2, f"sim_robot: {printable(str(error))}\n")
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING, stream=sys.stderr)
    # rclpy's own signal handlers end the context at once, in the middle of a period.
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    try:
        code = roll_out(args, link_for)
    except M2DistillError as error:
        print(f"sim_robot: {printable(str(error))}", file=sys.stderr)
        code = 2
    except ModuleNotFoundError as error:
        if (error.name or "m2distill_policy").startswith("m2distill_policy"):
            raise
        print(
            f"sim_robot: the package '{error.name}' is not installed; install the simulator's packages: "
            f"{install_command('sim')}",
            file=sys.stderr,
        )
        code = 2
    finally:
        rclpy.try_shutdown()
    sys.exit(code)


if __name__ == "__main__":
    main()
